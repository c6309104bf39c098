// Flags: releases that ride on strong writes, and acquires by those who read them.
#include <algorithm>

#include "emulator/check/race/detector.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr Scope kScopes[] = {Scope::kCta, Scope::kCluster, Scope::kGpu, Scope::kSys};

}  // namespace

uint64_t location_key(const Cta* owner, uint64_t address, uint32_t scalar_shift) {
  constexpr int kSizeShift = 58;
  const uint64_t size = uint64_t{scalar_shift} << kSizeShift;
  if (owner == nullptr) return size | address;
  constexpr int kOffsetBits = 18;
  constexpr int kRankBits = 4;
  const uint64_t cluster = owner->cluster->races->serial;
  return 1ull << 63 | size | cluster << (kOffsetBits + kRankBits) |
         uint64_t{owner->rank} << kOffsetBits | address;
}

/// A strong read: takes what has been released there, now or by a fence behind.
void RaceDetector::acquire_location(Warp& warp, int lane, uint64_t key, const Location* location,
                                    MemoryOrder order) {
  WarpRaces& races = *warp.races;
  const bool takes = acquires(order.semantics);
  if (location == nullptr && (races.fences == nullptr || !takes)) return;
  LaneFences& own = fences(warp, lane);
  const LastRead read{key, location == nullptr ? 0 : location->version, order.scope, takes};
  if (own.last_read == read) return;
  own.last_read = read;
  if (location != nullptr) {
    for (const Fenced& fence : location->fences()) {
      if (fence.scope != Scope::kSys && fence.rank != races.place.rank) continue;
      join_fenced(own.seen_fences, fence);
      races.unshared_fences |= 1u << lane;
    }
  }
  KnowledgeRef known = races.known[static_cast<size_t>(lane)];
  for (const Scope scope : kScopes) {
    for (const Scope level : kScopes) {
      const bool wanted = takes ? level == std::min(scope, order.scope) : level <= scope;
      if (location == nullptr || !wanted) continue;
      const KnowledgeRef released = location->released(scope, level, races.place);
      if (released == nullptr) continue;
      if (takes) {
        known = joined(known, released);
      } else {
        own.see(key, scope, level, released);
      }
    }
  }
  if (!takes) return;
  // An acquire holds for what relaxed reads of the same place found before it.
  for (const SeenRelease& seen : own.seen) {
    if (seen.location == key && seen.level <= order.scope) known = joined(known, seen.known);
  }
  if (known != races.known[static_cast<size_t>(lane)]) set_known(warp, 1u << lane, known);
}

/// A strong write. `anew`: a store; a read-modify-write goes on with what others have released.
void RaceDetector::release_location(Warp& warp, int lane, uint64_t key, bool anew,
                                    MemoryOrder order) {
  WarpRaces& races = *warp.races;
  Location& location = locations_[key];
  bool changed = false;
  if (anew && !location.empty()) {
    location.clear();
    changed = true;
  }
  if (releases(order.semantics)) {
    fences(warp, lane).store(key, release_of(warp, lane, order.scope));
    ++races.now;
  }
  if (races.fences != nullptr) {
    const LaneFences& own = fences(warp, lane);
    for (const Release& release : own.released) {
      if (!releases(order.semantics)) changed |= location.release(release);
      if (release.sequential) changed |= location.fence(release.fenced());
    }
    // A store begins anew, but for what its own thread has released there before.
    for (const StoredRelease& stored : own.stored) {
      if (stored.location == key && (anew || releases(order.semantics))) {
        changed |= location.release(stored.release);
      }
    }
  }
  for (const Fenced& fence : races.known[static_cast<size_t>(lane)]->fenced) {
    changed |= location.fence(fence);
  }
  if (location.empty()) {
    locations_.erase(key);
  } else if (changed) {
    location.version = ++num_versions_;
  }
}

/// A vector access counts as those of its scalars.
void RaceDetector::synchronise(Warp& warp, int lane, const Cta* owner, uint64_t address,
                               const ThreadAccess& access) {
  const AccessKind kind = access.kind_of(lane);
  for (uint32_t offset = 0; offset < access.bytes; offset += 1u << access.scalar_shift) {
    const uint64_t key = location_key(owner, address + offset, access.scalar_shift);
    if (kind != AccessKind::kWrite && !access.reduction) {
      const auto place = locations_.find(key);
      const Location* const location = place == locations_.end() ? nullptr : &place->second;
      acquire_location(warp, lane, key, location, access.order);
    }
    if (kind == AccessKind::kRead) continue;
    release_location(warp, lane, key, kind == AccessKind::kWrite, access.order);
  }
}

/// A weak store, or one of another size, ends what was released there.
void RaceDetector::forget_location(const Access& access, uint64_t address, const Epoch& flag) {
  locations_.erase(location_key(access.owner, address, flag.what >> kWhatSizeShift));
}

}  // namespace pykernels::emulator
