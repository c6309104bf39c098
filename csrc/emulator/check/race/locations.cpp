// Flags: releases that ride on strong writes, and acquires by those who read them.
#include <algorithm>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {

uint64_t location_key(const Cta* owner, uint64_t address) {
  if (owner == nullptr) return address;
  constexpr int kOffsetBits = 18;
  constexpr int kRankBits = 4;
  const uint64_t cluster = owner->cluster->races->serial;
  return 1ull << 63 | cluster << (kOffsetBits + kRankBits) | uint64_t{owner->rank} << kOffsetBits |
         address;
}

void RaceDetector::acquire_location(Warp& warp, int lane, const std::vector<Release>& released,
                                    MemoryOrder order) {
  const WarpRaces& races = *warp.races;
  KnowledgeRef known = races.known[static_cast<size_t>(lane)];
  for (const Release& release : released) {
    if (!acquires(order.semantics)) {
      std::vector<Release>& seen = fences(warp, lane).seen;
      const bool again = std::any_of(seen.begin(), seen.end(), [&](const Release& other) {
        return other.known == release.known && other.view.now == release.view.now &&
               other.view.own == release.view.own;
      });
      if (!again) seen.push_back(release);
      continue;
    }
    if (!includes(release.scope, release.place, races.place) ||
        !includes(order.scope, races.place, release.place)) {
      continue;
    }
    auto joined = std::make_shared<Knowledge>(*known);
    release.join_into(*joined, false);
    known = std::move(joined);
  }
  if (known != races.known[static_cast<size_t>(lane)]) set_known(warp, 1u << lane, known);
}

void RaceDetector::synchronise(Warp& warp, int lane, uint64_t key, AccessKind kind,
                               MemoryOrder order) {
  const auto place = locations_.find(key);
  if (kind != AccessKind::kWrite && place != locations_.end()) {
    acquire_location(warp, lane, place->second, order);
  }
  if (kind == AccessKind::kRead) return;
  std::vector<Release> own;
  if (releases(order.semantics)) {
    own.push_back(release_of(warp, lane, order.scope));
    ++warp.races->now;
  } else if (warp.races->fences != nullptr) {
    own = fences(warp, lane).released;
  }
  // A read-modify-write goes on with what others have released there; a store begins anew.
  if (kind == AccessKind::kWrite && place != locations_.end()) place->second.clear();
  if (own.empty()) return;
  std::vector<Release>& released = locations_[key];
  for (Release& release : own) {
    std::erase_if(released, [&](const Release& other) {
      return other.known->cluster == release.known->cluster && other.view.own != 0 &&
             other.view.first == release.view.first && other.view.own == release.view.own &&
             other.scope == release.scope;
    });
    released.push_back(std::move(release));
  }
}

/// A weak store ends what was released there.
void RaceDetector::forget_location(const Access& access, uint64_t address) {
  locations_.erase(location_key(access.owner, address));
}

}  // namespace pykernels::emulator
