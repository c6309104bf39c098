#include "emulator/check/race/knowledge.h"

#include <algorithm>

namespace pykernels::emulator {

void ClusterClock::join_values(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  uint32_t* const target = into.data();
  const uint32_t* const source = from.data();
  for (size_t i = 0; i < from.size(); ++i) target[i] = std::max(target[i], source[i]);
}

void ClusterClock::separate_executed() {
  std::vector<uint32_t>& executed = layers_[static_cast<size_t>(Layer::kExecuted)];
  if (executed.empty()) executed = layers_[0];
}

bool ClusterClock::covers(const ClusterClock& other) const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const std::vector<uint32_t>& mine = values_of(static_cast<Layer>(layer));
    const std::vector<uint32_t>& theirs = other.values_of(static_cast<Layer>(layer));
    const size_t count = std::min(mine.size(), theirs.size());
    bool behind = false;
    for (size_t i = 0; i < count; ++i) behind |= mine[i] < theirs[i];
    for (size_t i = count; i < theirs.size(); ++i) behind |= theirs[i] != 0;
    if (behind) return false;
  }
  return true;
}

void ClusterClock::raise(Layer layer, uint32_t component, uint32_t clock) {
  const auto raise_one = [&](std::vector<uint32_t>& values) {
    if (values.size() <= component) values.resize(component + 1, 0);
    values[component] = std::max(values[component], clock);
  };
  std::vector<uint32_t>& executed = layers_[static_cast<size_t>(Layer::kExecuted)];
  if (layer == Layer::kExecuted) separate_executed();
  if (layer == Layer::kKnown && !executed.empty()) raise_one(executed);
  raise_one(layers_[static_cast<size_t>(layer)]);
}

void ClusterClock::join(const ClusterClock& other, bool only_executed) {
  std::vector<uint32_t>& executed = layers_[static_cast<size_t>(Layer::kExecuted)];
  if (only_executed || !other.layers_[static_cast<size_t>(Layer::kExecuted)].empty()) {
    separate_executed();
  }
  if (!executed.empty()) join_values(executed, other.values_of(Layer::kExecuted));
  if (only_executed) return;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (layer == static_cast<size_t>(Layer::kExecuted)) continue;
    join_values(layers_[layer], other.layers_[layer]);
  }
}

void ClusterClock::publish(Layer layer) {
  join_values(layers_[static_cast<size_t>(layer)], layers_[0]);
}

const ClusterClock* Knowledge::of(uint32_t other) const {
  if (other == cluster) return &own;
  const auto place =
      std::lower_bound(others.begin(), others.end(), other,
                       [](const auto& entry, uint32_t wanted) { return entry.first < wanted; });
  return place == others.end() || place->first != other ? nullptr : place->second.get();
}

void Knowledge::join_other(uint32_t other, const std::shared_ptr<const ClusterClock>& clock,
                           bool only_executed) {
  if (other == cluster) return own.join(*clock, only_executed);
  const auto place =
      std::lower_bound(others.begin(), others.end(), other,
                       [](const auto& entry, uint32_t wanted) { return entry.first < wanted; });
  const bool known = place != others.end() && place->first == other;
  if (known && (place->second == clock || place->second->covers(*clock))) return;
  if (!known && !only_executed) {
    others.insert(place, {other, clock});
    return;
  }
  if (!only_executed && clock->covers(*place->second)) {
    place->second = clock;
    return;
  }
  auto joined = std::make_shared<ClusterClock>(known ? *place->second : ClusterClock());
  joined->join(*clock, only_executed);
  if (known) {
    place->second = std::move(joined);
  } else {
    others.insert(place, {other, std::move(joined)});
  }
}

bool Knowledge::has_finished(int grid) const {
  return std::any_of(finished.begin(), finished.end(),
                     [&](const FinishedGrids& grids) { return grids.has(grid); });
}

bool Knowledge::covers(const Knowledge& other) const {
  const auto covers_cluster = [&](uint32_t of_cluster, const ClusterClock& clock) {
    const ClusterClock* const mine = of(of_cluster);
    return mine == &clock || (mine != nullptr && mine->covers(clock));
  };
  const auto covers_fences = [](const std::vector<Fenced>& mine, const std::vector<Fenced>& all) {
    return std::all_of(all.begin(), all.end(), [&](const Fenced& fence) {
      return std::any_of(mine.begin(), mine.end(), [&](const Fenced& own_fence) {
        return own_fence.scope == fence.scope && own_fence.rank == fence.rank &&
               (own_fence.known == fence.known || own_fence.known->covers(*fence.known));
      });
    });
  };
  return (other.cluster == kNoCluster || covers_cluster(other.cluster, other.own)) &&
         std::all_of(
             other.others.begin(), other.others.end(),
             [&](const auto& entry) { return covers_cluster(entry.first, *entry.second); }) &&
         std::all_of(other.finished.begin(), other.finished.end(),
                     [&](const FinishedGrids& grids) { return has_finished(grids.last); }) &&
         covers_fences(fenced, other.fenced) && covers_fences(observed, other.observed);
}

void Knowledge::join_clocks(const Knowledge& from, bool only_executed) {
  for (const FinishedGrids& grids : from.finished) {
    if (!has_finished(grids.last)) finished.push_back(grids);
  }
  if (from.cluster == cluster) {
    own.join(from.own, only_executed);
  } else if (from.cluster != kNoCluster) {
    // A copy: a reference into `from` would keep all that `from` refers to.
    join_other(from.cluster, std::make_shared<const ClusterClock>(from.own), only_executed);
  }
  for (const auto& [other, clock] : from.others) join_other(other, clock, only_executed);
}

void Knowledge::join(const Knowledge& from, bool only_executed) {
  join_clocks(from, only_executed);
  if (only_executed) return;
  for (const Fenced& fence : from.fenced) join_fenced(fenced, fence);
  for (const Fenced& fence : from.observed) join_fenced(observed, fence);
}

void Knowledge::detach() {
  join_other(std::exchange(cluster, kNoCluster),
             std::make_shared<const ClusterClock>(std::move(own)), false);
  own = ClusterClock();
}

void Knowledge::publish(Layer layer) {
  own.publish(layer);
  for (auto& [other, clock] : others) {
    auto published = std::make_shared<ClusterClock>(*clock);
    published->publish(layer);
    clock = std::move(published);
  }
}

KnowledgeRef joined(const KnowledgeRef& known, const KnowledgeRef& from) {
  if (known == from || known->covers(*from)) return known;
  if (known->cluster == from->cluster && from->covers(*known)) return from;
  auto all = std::make_shared<Knowledge>(*known);
  all->join(*from, false);
  return all;
}

void join_fenced(std::vector<Fenced>& fences, const Fenced& fence) {
  const auto place = std::find_if(fences.begin(), fences.end(), [&](const Fenced& other) {
    return other.scope == fence.scope && other.rank == fence.rank;
  });
  if (place == fences.end()) {
    fences.push_back(fence);
  } else {
    place->known = joined(place->known, fence.known);
  }
}

}  // namespace pykernels::emulator
