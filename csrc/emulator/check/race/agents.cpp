#include "emulator/check/race/agents.h"

#include <algorithm>

namespace pykernels::emulator {
namespace {

constexpr size_t kMaxSeen = 32;    // of a lane; older ones are no longer told apart by location
constexpr size_t kMaxStored = 16;  // of a lane; older ones are forgotten

/// The threads that synchronise at a level with one at a place.
uint64_t group_of(Scope level, const Place& place) {
  constexpr int kRankBits = 4;
  switch (level) {
    case Scope::kCta:
      return uint64_t{place.cluster} << kRankBits | place.cta;
    case Scope::kCluster:
      return place.cluster;
    case Scope::kGpu:
      return place.rank;
    default:
      return 0;
  }
}

uint64_t release_key(Scope scope, Scope level, const Place& place) {
  constexpr int kScopeShift = 60;
  constexpr int kLevelShift = 56;
  return static_cast<uint64_t>(scope) << kScopeShift | static_cast<uint64_t>(level) << kLevelShift |
         group_of(level, place);
}

}  // namespace

bool includes(Scope scope, const Place& place, const Place& other) {
  switch (scope) {
    case Scope::kCta:
      return place.cluster == other.cluster && place.cta == other.cta;
    case Scope::kCluster:
      return place.cluster == other.cluster;
    case Scope::kGpu:
      return place.rank == other.rank;
    default:
      return true;
  }
}

View view_of(const WarpRaces& races, const Knowledge& known, LaneMask own) {
  return {&known, races.first, own, races.now, races.synced, races.converged};
}

void View::raise_own(ClusterClock& into, bool only_executed) const {
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const bool is_own = (own >> lane & 1) != 0;
    const uint32_t visible = is_own ? now : synced;
    const uint32_t over = is_own ? now : converged;
    if (visible != 0 && !only_executed) into.raise(Layer::kKnown, first + lane, visible);
    if (over != 0 && (only_executed || over > visible)) {
      into.raise(Layer::kExecuted, first + lane, over);
    }
  }
}

const KnowledgeRef& Release::frozen() const {
  if (frozen_ != nullptr) return frozen_;
  auto all = std::make_shared<Knowledge>(*known);
  view.raise_own(all->own, false);
  all->detach();
  if (sequential) {
    auto bare = std::make_shared<Knowledge>(*all);
    bare->fenced.clear();
    bare->observed.clear();
    bare_ = std::move(bare);
    join_fenced(all->fenced, fenced());
  }
  return frozen_ = std::move(all);
}

Fenced Release::fenced() const {
  if (bare_ == nullptr) frozen();
  return {scope, place.rank, bare_};
}

bool Location::release(const Release& release) {
  bool changed = false;
  // A reader of a narrower scope takes only what threads near it have released.
  for (int i = static_cast<int>(Scope::kCta); i <= static_cast<int>(release.scope); ++i) {
    const auto level = static_cast<Scope>(i);
    KnowledgeRef& merged = releases_[release_key(release.scope, level, release.place)];
    KnowledgeRef all = merged == nullptr ? release.frozen() : joined(merged, release.frozen());
    changed |= all != merged;
    merged = std::move(all);
  }
  return changed;
}

bool Location::fence(const Fenced& fence) {
  for (const Fenced& other : fences_) {
    if (other.scope == fence.scope && other.rank == fence.rank &&
        (other.known == fence.known || other.known->covers(*fence.known))) {
      return false;
    }
  }
  join_fenced(fences_, fence);
  return true;
}

void Location::clear() {
  releases_.clear();
  fences_.clear();
}

KnowledgeRef Location::released(Scope scope, Scope level, const Place& place) const {
  const auto found = releases_.find(release_key(scope, level, place));
  return found == releases_.end() ? nullptr : found->second;
}

void LaneFences::see(uint64_t location, Scope scope, Scope level, const KnowledgeRef& known) {
  const auto before = std::find_if(seen.begin(), seen.end(), [&](const SeenRelease& other) {
    return other.location == location && other.scope == scope && other.level == level;
  });
  if (before != seen.end()) {
    before->known = joined(before->known, known);
    return;
  }
  if (seen.size() >= kMaxSeen && location != 0) {
    const auto oldest = std::find_if(seen.begin(), seen.end(),
                                     [](const SeenRelease& other) { return other.location != 0; });
    if (oldest != seen.end()) {
      const SeenRelease moved = *oldest;
      seen.erase(oldest);
      see(0, moved.scope, moved.level, moved.known);
    }
  }
  seen.push_back({location, scope, level, known});
}

void LaneFences::store(uint64_t location, const Release& release) {
  std::erase_if(stored, [&](const StoredRelease& other) {
    return other.location == location && other.release.scope == release.scope;
  });
  if (stored.size() >= kMaxStored) stored.erase(stored.begin());
  stored.push_back({location, release});
}

void SyncClock::join(const KnowledgeRef& known, bool only_executed) {
  if (known == last_joined_ && only_executed == last_only_executed_) return;
  gathered_.join(*known, only_executed);
  last_joined_ = known;
  last_only_executed_ = only_executed;
}

void SyncClock::complete(bool cumulative) {
  completed_.push_back(std::make_shared<const Knowledge>(gathered_));
  ++num_completed_;
  if (completed_.size() > kKept) completed_.pop_front();
  if (cumulative) return;
  const uint32_t cluster = gathered_.cluster;
  gathered_ = Knowledge{};
  gathered_.cluster = cluster;
  last_joined_ = nullptr;
}

KnowledgeRef SyncClock::completed(uint64_t phase) const {
  if (completed_.empty() || phase >= num_completed_) return nullptr;
  const uint64_t oldest = num_completed_ - completed_.size();
  return completed_[phase < oldest ? 0 : static_cast<size_t>(phase - oldest)];
}

KnowledgeRef SyncClock::acquire(const KnowledgeRef& known, const KnowledgeRef& released,
                                bool only_executed) {
  if (cached_known_ == known && cached_released_ == released && !only_executed) {
    return cached_result_;
  }
  if (only_executed) {
    auto executed = std::make_shared<Knowledge>(*known);
    executed->join(*released, true);
    return executed;
  }
  cached_known_ = known;
  cached_released_ = released;
  cached_result_ = joined(known, released);
  return cached_result_;
}

uint32_t ClusterRaces::thread_of(const Epoch& epoch) const {
  if (epoch.component < num_threads) {
    return epoch.component + static_cast<uint32_t>(__builtin_ctz(epoch.lanes));
  }
  if (epoch.component < first_slot()) {
    const uint32_t group = epoch.component - num_threads;
    const uint32_t per_cta = warpgroups_per_cta();
    return (group / per_cta * warps_per_cta + group % per_cta * 4) * kWarpSize;
  }
  return slots[epoch.component - first_slot()].owner;
}

}  // namespace pykernels::emulator
