// Flags: releases that ride on strong writes, and acquires by those who read them.
#include <algorithm>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

/// A later release of the same lane takes the place of an earlier one.
void note_seen(std::vector<SeenRelease>& seen, uint64_t location, const Release& release) {
  const auto before = std::find_if(seen.begin(), seen.end(), [&](const SeenRelease& other) {
    return other.location == location && other.release.same_lane(release);
  });
  if (before == seen.end()) {
    seen.push_back({location, release});
  } else if (before->release.view.now < release.view.now) {
    before->release = release;
  }
}

}  // namespace

uint64_t location_key(const Cta* owner, uint64_t address) {
  if (owner == nullptr) return address;
  constexpr int kOffsetBits = 18;
  constexpr int kRankBits = 4;
  const uint64_t cluster = owner->cluster->races->serial;
  return 1ull << 63 | cluster << (kOffsetBits + kRankBits) | uint64_t{owner->rank} << kOffsetBits |
         address;
}

void RaceDetector::acquire_location(Warp& warp, int lane, uint64_t key,
                                    const std::vector<Release>& released, MemoryOrder order) {
  const WarpRaces& races = *warp.races;
  if (!acquires(order.semantics)) {
    for (const Release& release : released) note_seen(fences(warp, lane).seen, key, release);
    return;
  }
  KnowledgeRef known = races.known[static_cast<size_t>(lane)];
  const auto acquire = [&](const Release& release) {
    if (!includes(release.scope, release.place, races.place) ||
        !includes(order.scope, races.place, release.place)) {
      return;
    }
    auto joined = std::make_shared<Knowledge>(*known);
    release.join_into(*joined, false);
    known = std::move(joined);
  };
  for (const Release& release : released) acquire(release);
  // An acquire holds for what relaxed reads of the same place found before it.
  if (races.fences != nullptr) {
    for (const SeenRelease& seen : fences(warp, lane).seen) {
      if (seen.location == key) acquire(seen.release);
    }
  }
  if (known != races.known[static_cast<size_t>(lane)]) set_known(warp, 1u << lane, known);
}

void RaceDetector::synchronise(Warp& warp, int lane, uint64_t key, AccessKind kind,
                               MemoryOrder order) {
  const auto place = locations_.find(key);
  if (kind != AccessKind::kWrite) {
    static const std::vector<Release> kNothing;
    const bool known = place != locations_.end();
    acquire_location(warp, lane, key, known ? place->second : kNothing, order);
  }
  if (kind == AccessKind::kRead) return;
  std::vector<Release> own;
  if (releases(order.semantics)) {
    own.push_back(release_of(warp, lane, order.scope));
    ++warp.races->now;
  } else if (warp.races->fences != nullptr) {
    own = fences(warp, lane).released;
  }
  // A read-modify-write goes on with what others have released there; a store begins anew, but for
  // what its own thread has released there before.
  if (kind == AccessKind::kWrite && place != locations_.end()) {
    const Place& here = warp.races->place;
    std::erase_if(place->second, [&](const Release& other) {
      return other.known->cluster != here.cluster || other.view.first != warp.races->first ||
             other.view.own != 1u << lane;
    });
  }
  if (own.empty()) return;
  std::vector<Release>& released = locations_[key];
  for (Release& release : own) {
    std::erase_if(released, [&](const Release& other) { return other.same_lane(release); });
    released.push_back(std::move(release));
  }
}

/// A weak store ends what was released there.
void RaceDetector::forget_location(const Access& access, uint64_t address) {
  locations_.erase(location_key(access.owner, address));
}

}  // namespace pykernels::emulator
