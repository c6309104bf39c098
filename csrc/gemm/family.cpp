// What the cost model derives from a kernel's config.
#include "gemm/family.h"

#include <atomic>
#include <deque>
#include <limits>
#include <mutex>

#include "core/check.h"

namespace pykernels::gemm {
namespace {

/// Bytes a clock that shared memory delivers (CUDA C++ Programming Guide: 32 banks of 4 bytes).
constexpr double kSharedBytesPerClock = 128;
// Instructions of a consumer warp in each k tile beside its FFMA, from bench/listing.py (README.md,
// "Budgets"): where a ring's stages are known offsets from a group's first one; where they are not;
// of the plain loop with swap_ab.
constexpr double kLoopInstructions = 27;
constexpr double kWrappedLoopInstructions = 33;
constexpr double kSwapLoopInstructions = 31.5;
/// More of them where a tile's columns belong to two blocks of B: for the second block's factors,
/// and to select two factors for each unit of columns between the outer ones.
constexpr double kSecondBlockInstructions = 3;
constexpr double kUnitSelects = 2;
/// With swap_ab, for each load of two products of scale factors.
constexpr double kAccumulatorsPerScaleLoad = 4;
/// Clocks beyond one FFMA a clock from a warpgroup's wait to its next WGMMA, where nothing of its
/// own is in flight meanwhile (after each group of k tiles; without a second accumulator after each
/// k tile): estimate.
constexpr double kGapClocks = 100;
/// Instructions of a warp's epilogue for each accumulator: conversion, stmatrix, addresses
/// (estimate from listings of 150 to 250 instructions).
constexpr double kEpilogueInstructions = 2;

uint32_t config_field(const KernelInfo& kernel, const char* field) {
  const auto found = kernel.config.find(field);
  if (found == kernel.config.end()) {
    throw EnvironmentError(
        concat("the metadata of kernel ", kernel.name, " has no config.", field));
  }
  return static_cast<uint32_t>(found->second);
}

/// Of a consumer warp in each k tile.
double loop_instructions(const GemmConfig& config) {
  const double accumulators = config.columns() / 2;
  if (config.swap_ab) {
    return kSwapLoopInstructions + accumulators + accumulators / kAccumulatorsPerScaleLoad;
  }
  double instructions =
      accumulators + (config.has_ring_of_groups() ? kLoopInstructions : kWrappedLoopInstructions);
  if (config.num_scale_blocks() > 1) {
    instructions += kSecondBlockInstructions;
    const uint32_t inner_units = config.block_n / config.column_unit() - 2;
    if (!config.has_two_loops()) instructions += kUnitSelects * inner_units;
  }
  return instructions;
}

GemmKernel make_kernel(const KernelInfo& info) {
  GemmKernel kernel;
  kernel.info = &info;
  const GemmConfig config = kernel.config = config_of(info);
  for (const GemmSchedule& schedule : schedules_of(config)) {
    kernel.schedule_list[kernel.num_schedules++] = schedule;
  }
  const uint32_t warpgroups = config.num_consumer_warpgroups();
  const double accumulators = config.columns() / 2;  // of a thread
  kernel.macs = static_cast<double>(config.block_m) * config.block_n * kBlockK;
  kernel.shared_clocks =
      warpgroups * kBlockK * (kWarpgroupRows + config.columns()) / kSharedBytesPerClock;
  kernel.instructions = warpgroups * loop_instructions(config);
  const bool overlaps = !config.swap_ab && config.has_two_accumulators();
  kernel.gap_clocks = (accumulators + kGapClocks) / (overlaps ? static_cast<double>(kGroup) : 1);
  kernel.per_warpgroup = 1.0 / warpgroups;
  kernel.epilogue_clocks = warpgroups * kEpilogueInstructions * accumulators;
  if (config.swap_ab) {
    // One warp loads the factors of all rows, every lane the block's.
    kernel.scale_bytes = 4.0 * 32 * ((config.block_m + 31) / 32 + 1);
  } else {
    // Each quad loads a factor of each of its rows and blocks.
    const uint32_t quads = config.num_consumer_threads() / 4;
    kernel.scale_bytes = 4.0 * (config.block_m + quads * config.num_scale_blocks());
  }
  kernel.load_bytes = config.stage_bytes();
  kernel.per_stage = 1.0 / config.num_stages();
  kernel.partial_bytes = 4.0 * config.block_m * config.block_n;
  return kernel;
}

}  // namespace

GemmConfig config_of(const KernelInfo& kernel) {
  return {.block_m = config_field(kernel, "block_m"),
          .block_n = config_field(kernel, "block_n"),
          .cluster = config_field(kernel, "cluster"),
          .swap_ab = config_field(kernel, "swap_ab") != 0,
          .grouped = kernel.config.count("grouped") != 0 && config_field(kernel, "grouped") != 0};
}

std::vector<GemmSchedule> schedules_of(const GemmConfig& config) {
  std::vector<GemmSchedule> schedules;
  if (!config.swap_ab) {
    if (config.cluster == 1) return {{}};
    return {{.cluster_m = config.cluster}, {.cluster_n = config.cluster}};
  }
  constexpr uint32_t kMinBoxRows = 8;  // of A that each CTA of the cluster loads
  for (uint32_t cluster_n = 1; cluster_n <= 4; cluster_n *= 2) {
    if (config.block_m / cluster_n < kMinBoxRows) break;
    for (uint32_t split_k = 1; split_k * cluster_n <= kMaxCluster; ++split_k) {
      if (split_k > 1 && !config.has_split()) break;
      if (split_k > config.num_units()) break;  // each CTA completes one of the tile's units
      schedules.push_back({.cluster_n = cluster_n, .split_k = split_k});
    }
  }
  return schedules;
}

GemmFamily make_family(std::span<const KernelInfo* const> kernels) {
  GemmFamily family;
  family.reserve(kernels.size());
  for (const KernelInfo* info : kernels) family.push_back(make_kernel(*info));
  return family;
}

namespace {

/// The registered kernels of one family, made anew when the registry has changed.
class RegisteredFamily {
 public:
  explicit RegisteredFamily(const char* name) : name_(name) {}

  const GemmFamily& get() {
    const uint64_t generation = Registry::instance().generation();
    if (generation_.load(std::memory_order_acquire) == generation) {
      return *latest_.load(std::memory_order_acquire);
    }
    const std::lock_guard lock(mutex_);
    families_.push_back(make_family(Registry::instance().family(name_)));
    latest_.store(&families_.back(), std::memory_order_release);
    generation_.store(generation, std::memory_order_release);
    return families_.back();
  }

 private:
  const char* name_;
  std::mutex mutex_;
  std::deque<GemmFamily> families_;  // one for each state; never shrinks
  std::atomic<const GemmFamily*> latest_{nullptr};
  std::atomic<uint64_t> generation_{std::numeric_limits<uint64_t>::max()};
};

}  // namespace

const GemmFamily& registered_family(bool grouped) {
  static RegisteredFamily dense(kDenseFamily);
  static RegisteredFamily of_groups(kGroupedFamily);
  return grouped ? of_groups.get() : dense.get();
}

}  // namespace pykernels::gemm
