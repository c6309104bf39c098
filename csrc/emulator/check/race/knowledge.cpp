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
  if (known && place->second == clock) return;
  if (!known && !only_executed) {
    others.insert(place, {other, clock});
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

void Knowledge::join(const KnowledgeRef& from, bool only_executed) {
  finished_grids |= from->finished_grids;
  join_other(from->cluster, {from, &from->own}, only_executed);
  for (const auto& [other, clock] : from->others) join_other(other, clock, only_executed);
}

void Knowledge::raise(uint32_t of_cluster, Layer layer, uint32_t component, uint32_t clock) {
  if (of_cluster == cluster) return own.raise(layer, component, clock);
  auto raised = std::make_shared<ClusterClock>();
  raised->raise(layer, component, clock);
  join_other(of_cluster, raised, layer == Layer::kExecuted);
}

void Knowledge::publish(Layer layer) {
  own.publish(layer);
  for (auto& [other, clock] : others) {
    auto published = std::make_shared<ClusterClock>(*clock);
    published->publish(layer);
    clock = std::move(published);
  }
}

}  // namespace pykernels::emulator
