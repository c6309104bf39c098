// Vector clocks: what a thread, a barrier or a flag knows to have happened. Components are the
// threads and asynchronous agents of a cluster; other clusters are known through flags only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "emulator/memory_model.h"

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
  /// Whether the other's clocks are none above these.
  bool covers(const ClusterClock& other) const;
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

/// What was known at the fence.sc instructions of a scope on one GPU.
struct Fenced {
  Scope scope = Scope::kGpu;
  uint32_t rank = 0;
  KnowledgeRef known;
};

/// A launch in which everything has happened, as in those that it was behind.
struct FinishedGrids {
  int last = 0;                                         // -1: a launch before this run
  std::shared_ptr<const std::vector<bool>> precedents;  // of it; see Grid

  bool has(int grid) const {
    return grid == last ||
           (precedents != nullptr && grid >= 0 && static_cast<size_t>(grid) < precedents->size() &&
            (*precedents)[static_cast<size_t>(grid)]);
  }
};

/// What is known of all clusters.
class Knowledge {
 public:
  static constexpr uint32_t kNoCluster = ~0u;

  uint32_t cluster = 0;  // whose clock `own` is; kNoCluster: all stand in `others`
  ClusterClock own;
  /// Of other clusters, by ascending serial number; shared between those who know the same.
  std::vector<std::pair<uint32_t, std::shared_ptr<const ClusterClock>>> others;
  std::vector<FinishedGrids> finished;
  // Of fence.sc instructions that have happened, and of those that a strong read has found to come
  // before any fence.sc behind it.
  std::vector<Fenced> fenced;
  std::vector<Fenced> observed;

  const ClusterClock* of(uint32_t other) const;
  bool has_finished(int grid) const;
  bool covers(const Knowledge& other) const;
  void join(const Knowledge& from, bool only_executed);
  /// Joins the clocks, not what fences have made of them.
  void join_clocks(const Knowledge& from, bool only_executed);
  void publish(Layer layer);
  /// Moves the own clock to the others, so that another cluster can share it.
  void detach();

 private:
  void join_other(uint32_t other, const std::shared_ptr<const ClusterClock>& clock,
                  bool only_executed);
};

/// `known` joined with `from`: itself where that adds nothing.
KnowledgeRef joined(const KnowledgeRef& known, const KnowledgeRef& from);
/// Joins a fence's knowledge to that of its scope and GPU.
void join_fenced(std::vector<Fenced>& fences, const Fenced& fence);

}  // namespace pykernels::emulator
