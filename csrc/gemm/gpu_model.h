// What the cost model knows of a GPU: constants with unit and source.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "gemm/config.h"

namespace pykernels::gemm {

/// What an emulated device is called, which stands for an H200 (emulated_device.cpp).
inline constexpr std::string_view kEmulatorName = "emulator";

/// One GPU. gpu_model.cpp has the table, a line a constant where it comes from. Of what is labelled
/// an estimate there `python -m pykernels calibrate` fits seven to measured times: hbm_share,
/// l2_bytes_per_clock, tensor_share, sm_bytes_per_clock, split_wait_us, epilogue_clocks, launch_us.
struct GpuModel {
  std::string name;  // words that the driver's name of the GPU has, "H100 PCIe"
  int num_sms = 0;
  /// Clusters of this many CTAs, one an SM, that are resident together; [0] is not used. A cluster
  /// lies in one GPC, so 132 SMs are not 33 clusters of 4.
  std::array<int, kMaxCluster + 1> active_clusters{};

  double clock_ghz = 0;              // SMs, and L2 with them, under load
  double hbm_gbps = 0;               // GB/s, peak
  double hbm_share = 0;              // of the peak that a stream of loads reaches
  double hbm_latency_us = 0;         // of a TMA load from HBM while others load, microseconds
  double l2_mbytes = 0;              // capacity, 2^20 bytes
  double l2_keep_share = 0;          // of the capacity that operands in use by all SMs have
  double l2_bytes_per_clock = 0;     // from L2 to all SMs and back, reached
  double l2_latency_us = 0;          // of a TMA load that hits L2, microseconds
  double sm_bytes_per_clock = 0;     // from L2 into one SM
  double macs_per_clock = 0;         // FP8 multiply-adds a clock and SM, peak
  double tensor_share = 0;           // of that peak that a main loop reaches (power, clocks)
  double issue_per_clock = 0;        // warp instructions, of each of an SM's four schedulers
  double dsmem_bytes_per_clock = 0;  // from the other CTAs of a cluster into one SM
  double split_wait_us = 0;          // until the partial totals of a tile's other CTAs are there
  double cluster_start_us = 0;       // what a cluster's start and end cost beyond a CTA's
  double epilogue_clocks = 0;        // of a tile's epilogue beyond its instructions
  double launch_us = 0;              // from one kernel's end to the next one's first instruction
};

/// The double fields of GpuModel by name: what Python shows, tests change and the calibration fits
/// seven of.
struct GpuConstant {
  const char* name;
  double GpuModel::* field;
};
std::span<const GpuConstant> gpu_constants();

/// The GPUs that there are constants for.
std::span<const GpuModel> gpu_models();

/// The constants of the GPU of this name, the driver's or a part of it ("NVIDIA H100 PCIe", "h100
/// pcie"), the emulated device's among them.
const GpuModel* find_gpu_model(std::string_view name);

/// The constants of the GPU with the nearest number of SMs, for one that the table lacks.
const GpuModel& nearest_gpu_model(int num_sms);

/// The same constants for a part of the GPU: clusters in proportion, at least one that fits.
GpuModel with_num_sms(const GpuModel& gpu, int num_sms);

}  // namespace pykernels::gemm
