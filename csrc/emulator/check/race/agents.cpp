#include "emulator/check/race/agents.h"

namespace pykernels::emulator {

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

void Release::join_into(Knowledge& into, bool only_executed) const {
  into.join(known, only_executed);
  raise_own(into, only_executed);
}

void Release::raise_own(Knowledge& into, bool only_executed) const {
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    const bool own = (view.own >> lane & 1) != 0;
    const uint32_t visible = own ? view.now : view.synced;
    const uint32_t over = own ? view.now : view.converged;
    if (visible != 0 && !only_executed) {
      into.raise(known->cluster, Layer::kKnown, view.first + lane, visible);
    }
    if (over != 0 && (only_executed || over > visible)) {
      into.raise(known->cluster, Layer::kExecuted, view.first + lane, over);
    }
  }
}

void SyncClock::join(const KnowledgeRef& known, bool only_executed) {
  if (known == last_joined_ && only_executed == last_only_executed_) return;
  gathered_.join(known, only_executed);
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
  auto joined = std::make_shared<Knowledge>(*known);
  joined->join(released, only_executed);
  if (only_executed) return joined;
  cached_known_ = known;
  cached_released_ = released;
  cached_result_ = joined;
  return joined;
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
