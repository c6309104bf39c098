// The kernels of the FP8 GEMM as the cost model knows them: what it derives from their configs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/registry.h"
#include "gemm/config.h"

namespace pykernels::gemm {

/// A kernel of the family and what the model derives from its config, once.
struct GemmKernel {
  static constexpr size_t kMaxSchedules = 16;

  const KernelInfo* info = nullptr;
  GemmConfig config;
  std::array<GemmSchedule, kMaxSchedules> schedule_list{};
  size_t num_schedules = 0;

  double macs = 0;             // multiply-adds of a k tile
  double shared_clocks = 0;    // that the tensor cores need to read a k tile from shared memory
  double gap_clocks = 0;       // a k tile, in which a warpgroup has nothing in the tensor cores
  double per_warpgroup = 0;    // 1 / consumer warpgroups
  double instructions = 0;     // a k tile, of each scheduler
  double epilogue_clocks = 0;  // instructions of an epilogue, of each scheduler
  double scale_bytes = 0;      // that a CTA's loads of scale factors take from L2, a k tile
  double load_bytes = 0;       // that TMA writes into the SM, a k tile
  double per_stage = 0;        // 1 / stages of the ring
  double partial_bytes = 0;    // FP32 totals of an output tile

  std::span<const GemmSchedule> schedules() const { return {schedule_list.data(), num_schedules}; }
};

using GemmFamily = std::vector<GemmKernel>;

/// The config that a kernel was compiled for, from its metadata.
GemmConfig config_of(const KernelInfo& kernel);

/// The schedules that a kernel can run.
std::vector<GemmSchedule> schedules_of(const GemmConfig& config);

/// What the model needs to know of these kernels.
GemmFamily make_family(std::span<const KernelInfo* const> kernels);

inline constexpr const char* kDenseFamily = "fp8_gemm_nt";
inline constexpr const char* kGroupedFamily = "grouped_fp8_gemm_nt";

/// The registered kernels of one of these families; made anew only when the registry has changed.
/// The reference stays valid.
const GemmFamily& registered_family(bool grouped);

}  // namespace pykernels::gemm
