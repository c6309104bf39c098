#include "emulator/isa/special_registers.h"

#include <string>
#include <utility>

#include "emulator/machine/machine.h"
#include "emulator/machine/memory.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kWarpsPerSm = 64;             // sm_90
constexpr uint32_t kReservedSharedBytes = 1024;  // that CUDA keeps of each CTA's shared memory

const MachineLaunch& launch(Warp& warp) { return warp.cta().grid->launch; }

template <int kAxis>
uint32_t component(const Dim3& size) {
  return kAxis == 0 ? size.x : kAxis == 1 ? size.y : size.z;
}

uint64_t volume(const Dim3& size) { return uint64_t{size.x} * size.y * size.z; }

uint64_t upper_half(uint64_t value) { return value >> 32; }

template <int kAxis>
uint64_t thread_index(Warp& warp, int lane) {
  const Dim3& block = launch(warp).block;
  const auto thread = static_cast<uint32_t>(warp.index() * kWarpSize + lane);
  if constexpr (kAxis == 0) return thread % block.x;
  if constexpr (kAxis == 1) return thread / block.x % block.y;
  return thread / (block.x * block.y);
}

template <int kAxis>
uint64_t block_size(Warp& warp) {
  return component<kAxis>(launch(warp).block);
}

template <int kAxis>
uint64_t block_index(Warp& warp) {
  return warp.cta().ctaid[kAxis];
}

template <int kAxis>
uint64_t grid_size(Warp& warp) {
  return component<kAxis>(launch(warp).grid);
}

template <int kAxis>
uint64_t cluster_size(Warp& warp) {
  return component<kAxis>(launch(warp).cluster);
}

template <int kAxis>
uint64_t cluster_index(Warp& warp) {
  return warp.cta().ctaid[kAxis] / component<kAxis>(launch(warp).cluster);
}

template <int kAxis>
uint64_t num_clusters(Warp& warp) {
  return grid_size<kAxis>(warp) / cluster_size<kAxis>(warp);
}

template <int kAxis>
uint64_t index_in_cluster(Warp& warp) {
  return warp.cta().ctaid[kAxis] % cluster_size<kAxis>(warp);
}

uint64_t linear_block_index(Warp& warp) {
  return block_index<0>(warp) +
         grid_size<0>(warp) * (block_index<1>(warp) + grid_size<1>(warp) * block_index<2>(warp));
}

uint64_t static_shared(Warp& warp) { return warp.program().static_shared_bytes; }

/// kValue: a function of the warp, for values that all lanes share.
template <auto kValue, typename Lane>
Step write_uniform(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto value = static_cast<Lane>(kValue(warp));
  Lane* result = warp.lanes<Lane>(inst.operands[0]);
  for_lanes(active, [&](int lane) { result[lane] = value; });
  return Step::kNext;
}

/// kValue: a function of warp and lane.
template <auto kValue, typename Lane>
Step write_lanes(Warp& warp, const Instruction& inst, LaneMask active) {
  Lane* result = warp.lanes<Lane>(inst.operands[0]);
  for_lanes(active, [&](int lane) { result[lane] = static_cast<Lane>(kValue(warp, lane)); });
  return Step::kNext;
}

struct Entry {
  Handler narrow;
  Handler wide;
};

template <auto kValue>
Entry uniform() {
  return {&write_uniform<kValue, uint32_t>, &write_uniform<kValue, uint64_t>};
}

template <auto kValue>
Entry by_lane() {
  return {&write_lanes<kValue, uint32_t>, &write_lanes<kValue, uint64_t>};
}

using Entries = std::vector<std::pair<std::string, Entry>>;

template <int kAxis>
void add_axis(Entries& entries, const std::string& axis) {
  entries.emplace_back("%tid" + axis, by_lane<thread_index<kAxis>>());
  entries.emplace_back("%ntid" + axis, uniform<block_size<kAxis>>());
  entries.emplace_back("%ctaid" + axis, uniform<block_index<kAxis>>());
  entries.emplace_back("%nctaid" + axis, uniform<grid_size<kAxis>>());
  entries.emplace_back("%clusterid" + axis, uniform<cluster_index<kAxis>>());
  entries.emplace_back("%nclusterid" + axis, uniform<num_clusters<kAxis>>());
  entries.emplace_back("%cluster_ctaid" + axis, uniform<index_in_cluster<kAxis>>());
  entries.emplace_back("%cluster_nctaid" + axis, uniform<cluster_size<kAxis>>());
}

void add_lane_masks(Entries& entries) {
  entries.emplace_back("%laneid",
                       by_lane<[](Warp&, int lane) { return static_cast<uint64_t>(lane); }>());
  entries.emplace_back("%lanemask_eq",
                       by_lane<[](Warp&, int lane) { return uint64_t{1} << lane; }>());
  entries.emplace_back("%lanemask_lt",
                       by_lane<[](Warp&, int lane) { return (uint64_t{1} << lane) - 1; }>());
  entries.emplace_back("%lanemask_le",
                       by_lane<[](Warp&, int lane) { return (uint64_t{2} << lane) - 1; }>());
  entries.emplace_back("%lanemask_gt", by_lane<[](Warp&, int lane) {
                         return uint64_t{kFullMask} & ~((uint64_t{2} << lane) - 1);
                       }>());
  entries.emplace_back("%lanemask_ge", by_lane<[](Warp&, int lane) {
                         return uint64_t{kFullMask} & ~((uint64_t{1} << lane) - 1);
                       }>());
}

/// CTAs have no fixed SM here: %smid spreads them by their index, so that it stays below %nsmid.
void add_places(Entries& entries) {
  entries.emplace_back("%warpid",
                       uniform<[](Warp& warp) { return static_cast<uint64_t>(warp.index()); }>());
  entries.emplace_back("%nwarpid", uniform<[](Warp&) { return uint64_t{kWarpsPerSm}; }>());
  entries.emplace_back("%smid", uniform<[](Warp& warp) {
                         return linear_block_index(warp) %
                                static_cast<uint64_t>(warp.machine().options().num_sms);
                       }>());
  entries.emplace_back("%nsmid", uniform<[](Warp& warp) {
                         return static_cast<uint64_t>(warp.machine().options().num_sms);
                       }>());
  entries.emplace_back(
      "%gridid",
      uniform<[](Warp& warp) { return static_cast<uint64_t>(warp.cta().grid->index); }>());
  entries.emplace_back("%cluster_ctarank",
                       uniform<[](Warp& warp) { return uint64_t{warp.cta().rank}; }>());
  entries.emplace_back("%cluster_nctarank",
                       uniform<[](Warp& warp) { return volume(launch(warp).cluster); }>());
  entries.emplace_back("%is_explicit_cluster", uniform<[](Warp& warp) {
                         return static_cast<uint64_t>(warp.program().explicit_cluster ||
                                                      volume(launch(warp).cluster) != 1);
                       }>());
  entries.emplace_back(
      "%dynamic_smem_size",
      uniform<[](Warp& warp) { return uint64_t{launch(warp).dynamic_shared_bytes}; }>());
  entries.emplace_back("%total_smem_size", uniform<[](Warp& warp) {
                         return static_shared(warp) + launch(warp).dynamic_shared_bytes;
                       }>());
  entries.emplace_back("%aggr_smem_size", uniform<[](Warp& warp) {
                         return static_shared(warp) + launch(warp).dynamic_shared_bytes;
                       }>());
  // CUDA's reserved part is no memory of the emulator: it starts at 0 and no address lies in it.
  for (const char* name : {"begin", "0", "1"}) {
    entries.emplace_back("%reserved_smem_offset_" + std::string(name),
                         uniform<[](Warp&) { return uint64_t{0}; }>());
  }
  for (const char* name : {"cap", "end"}) {
    entries.emplace_back("%reserved_smem_offset_" + std::string(name),
                         uniform<[](Warp&) { return uint64_t{kReservedSharedBytes}; }>());
  }
  entries.emplace_back("%current_graph_exec", uniform<[](Warp&) { return uint64_t{0}; }>());
}

/// Time is the count of executed instructions; a nanosecond each.
void add_clocks(Entries& entries) {
  for (const char* name : {"%clock", "%clock64", "%globaltimer", "%globaltimer_lo"}) {
    entries.emplace_back(name, uniform<[](Warp& warp) { return warp.machine().clock(); }>());
  }
  for (const char* name : {"%clock_hi", "%globaltimer_hi"}) {
    entries.emplace_back(name,
                         uniform<[](Warp& warp) { return upper_half(warp.machine().clock()); }>());
  }
}

Entries make_entries() {
  Entries entries;
  add_axis<0>(entries, ".x");
  add_axis<1>(entries, ".y");
  add_axis<2>(entries, ".z");
  add_lane_masks(entries);
  add_places(entries);
  add_clocks(entries);
  for (int i = 0; i < 32; ++i) {
    entries.emplace_back("%envreg" + std::to_string(i), uniform<[](Warp& warp) {
                           warp.machine().note(kCooperativeNote);
                           return uint64_t{0};
                         }>());
  }
  return entries;
}

}  // namespace

Handler special_register_handler(std::string_view name, bool is_64) {
  static const Entries entries = make_entries();
  for (const auto& [known, entry] : entries) {
    if (known == name) return is_64 ? entry.wide : entry.narrow;
  }
  return nullptr;
}

}  // namespace pykernels::emulator
