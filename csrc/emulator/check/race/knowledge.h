// Vector clocks: what a thread, a barrier or a flag knows to have happened. Components are the
// threads and asynchronous agents of a cluster; other clusters are known through flags only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace pykernels::emulator {

/// In what way something is known. A component's value is the clock up to which its accesses are.
enum class Layer : uint8_t {
  kKnown,        // ordered, and visible through the generic proxy
  kExecuted,     // ordered only in time: reads have returned (a release of too narrow a scope)
  kAsyncShared,  // a proxy fence has made it visible to the async proxy, in shared memory
  kAsyncGlobal,  // and in global memory
  kTensorMap,    // and to the tensor-map proxy
  kCount
};

/// The clocks of one cluster's components, by layer. Missing components are 0. An empty kExecuted
/// equals kKnown.
class ClusterClock {
 public:
  uint32_t at(Layer layer, uint32_t component) const {
    const std::vector<uint32_t>& values = values_of(layer);
    return component < values.size() ? values[component] : 0;
  }
  /// The layer's clocks as they are read.
  const std::vector<uint32_t>& values_of(Layer layer) const {
    const std::vector<uint32_t>& values = layers_[static_cast<size_t>(layer)];
    return layer == Layer::kExecuted && values.empty() ? layers_[0] : values;
  }
  /// Raises a component of one layer; kKnown is kExecuted too.
  void raise(Layer layer, uint32_t component, uint32_t clock);
  /// Raises to the other's clocks: all layers, or with `only_executed` the order in time alone.
  void join(const ClusterClock& other, bool only_executed);
  /// Makes a proxy's layer see all that is known.
  void publish(Layer layer);

 private:
  static void join_values(std::vector<uint32_t>& into, const std::vector<uint32_t>& from);
  void separate_executed();

  std::array<std::vector<uint32_t>, static_cast<size_t>(Layer::kCount)> layers_;
};

class Knowledge;
using KnowledgeRef = std::shared_ptr<const Knowledge>;

/// What is known of all clusters.
class Knowledge {
 public:
  uint32_t cluster = 0;  // whose clock `own` is
  ClusterClock own;
  /// Of other clusters, by ascending serial number; shared between those who know the same.
  std::vector<std::pair<uint32_t, std::shared_ptr<const ClusterClock>>> others;
  uint64_t finished_grids = 0;  // a bit a grid: everything in it has happened

  const ClusterClock* of(uint32_t other) const;
  void join(const KnowledgeRef& from, bool only_executed);
  void raise(uint32_t of_cluster, Layer layer, uint32_t component, uint32_t clock);
  void publish(Layer layer);

 private:
  void join_other(uint32_t other, const std::shared_ptr<const ClusterClock>& clock,
                  bool only_executed);
};

}  // namespace pykernels::emulator
