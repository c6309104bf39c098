// The table of GPUs.
#include "gemm/gpu_model.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <initializer_list>
#include <vector>

namespace pykernels::gemm {
namespace {

constexpr std::string_view kEmulatedGpu = "H200";  // that it stands for

/// What a GPU of the family differs in; the rest is the GH100 die's.
struct Variant {
  const char* name;
  std::initializer_list<int> gpc_sms;  // SMs of each GPC
  double tflops;                       // FP8, dense
  double clock_ghz;
  double hbm_gbps;
  double l2_mbytes;
};

// GPCs hold up to 18 SMs (Hopper whitepaper) and dies differ in which are off. On an H100 SXM, 120
// of 132 SMs run clusters of 8 and a GPC had 16 SMs (github.com/accel-sim/gpu-app-collection#87;
// cuBLAS launches 15 clusters of 8: github.com/NVIDIA/cutlass#1921): one GPC of fewer than 16. The
// other layouts are estimates. On a GPU the driver's own counts take their place.
constexpr std::initializer_list<int> kGpcs132 = {18, 18, 18, 16, 16, 16, 16, 14};
constexpr std::initializer_list<int> kGpcs114 = {16, 16, 16, 16, 16, 18, 16};
constexpr std::initializer_list<int> kGpcs78 = {10, 10, 10, 10, 10, 10, 10, 8};

// TFLOPS, GB/s and SMs: NVIDIA's datasheets and the Hopper whitepaper; H20 (148 TFLOPS BF16, 296
// FP8, 4.0 TB/s, 78 SMs): its published specification. The clock is the one at which SMs times 4096
// multiply-adds reach these TFLOPS; H20's, at which 1024 do. L2: whitepaper, 50 MB of 60; H20 and
// GH200 60 (estimate: all slices on). H800: as H100, but for NVLink and FP64.
const Variant kVariants[] = {
    {"H100", kGpcs132, 1979, 1.83, 3350, 50},      {"H100 PCIe", kGpcs114, 1513, 1.62, 2039, 50},
    {"H100 NVL", kGpcs132, 1671, 1.545, 3938, 50}, {"H800", kGpcs132, 1979, 1.83, 3350, 50},
    {"H800 PCIe", kGpcs114, 1513, 1.62, 2039, 50}, {"H200", kGpcs132, 1979, 1.83, 4800, 50},
    {"H200 NVL", kGpcs132, 1671, 1.545, 4800, 50}, {"H20", kGpcs78, 296, 1.853, 4000, 60},
    {"GH200", kGpcs132, 1979, 1.83, 4000, 60},
};

GpuModel make_gpu_model(const Variant& variant) {
  GpuModel gpu;
  gpu.name = variant.name;
  for (const int sms : variant.gpc_sms) {
    gpu.num_sms += sms;
    for (int size = 1; size <= kMaxCluster; ++size) {
      gpu.active_clusters[static_cast<size_t>(size)] += sms / size;
    }
  }
  gpu.clock_ghz = variant.clock_ghz;
  gpu.hbm_gbps = variant.hbm_gbps;
  gpu.hbm_share = 0.92;  // estimate
  // Estimates: unloaded, a load takes about 400 clocks from HBM and 200 from L2
  // (doi.org/10.1016/j.ultsonch.2023.106546, table 3); TMA and the load of others come on top.
  gpu.hbm_latency_us = 0.8;
  gpu.l2_latency_us = 0.4;
  gpu.l2_mbytes = variant.l2_mbytes;
  // Estimate: L2 has two partitions, and what SMs of both read may lie in both.
  gpu.l2_keep_share = 0.6;
  // Estimate: 0.9 of 5120, A100 whitepaper; Hopper's is the same (the table above: 8986 GB/s at
  // 1755 MHz). The 1550 TFLOPS that DeepGEMM states for H800 need more than 4300 with its tiles of
  // 128x160 and multicast.
  gpu.l2_bytes_per_clock = 4600;
  gpu.sm_bytes_per_clock = 64;  // A100 whitepaper; Hopper's is not published lower
  gpu.macs_per_clock = variant.tflops * 1e3 / 2 / gpu.num_sms / variant.clock_ghz;
  gpu.tensor_share = 0.9;          // estimate: clocks fall under a full load of the tensor cores
  gpu.issue_per_clock = 1;         // CUDA C++ Programming Guide
  gpu.dsmem_bytes_per_clock = 14;  // estimate: a quarter of what L2 gives an SM
  gpu.split_wait_us = 1.0;         // estimate: a trip of about 0.3 us and the skew of the CTAs
  gpu.cluster_start_us = 0.2;      // estimate: one cluster barrier at the start, a drain at the end
  gpu.epilogue_clocks = 300;       // estimate: last wait, barrier, issue of the stores
  gpu.launch_us = 0.8;             // estimate: programmatic dependent launch inside a graph
  return gpu;
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> found(1);
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      found.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!found.back().empty()) {
      found.emplace_back();
    }
  }
  if (found.back().empty()) found.pop_back();
  return found;
}

}  // namespace

std::span<const GpuConstant> gpu_constants() {
  static constexpr GpuConstant kConstants[] = {
      {"clock_ghz", &GpuModel::clock_ghz},
      {"hbm_gbps", &GpuModel::hbm_gbps},
      {"hbm_share", &GpuModel::hbm_share},
      {"hbm_latency_us", &GpuModel::hbm_latency_us},
      {"l2_mbytes", &GpuModel::l2_mbytes},
      {"l2_keep_share", &GpuModel::l2_keep_share},
      {"l2_bytes_per_clock", &GpuModel::l2_bytes_per_clock},
      {"l2_latency_us", &GpuModel::l2_latency_us},
      {"sm_bytes_per_clock", &GpuModel::sm_bytes_per_clock},
      {"macs_per_clock", &GpuModel::macs_per_clock},
      {"tensor_share", &GpuModel::tensor_share},
      {"issue_per_clock", &GpuModel::issue_per_clock},
      {"dsmem_bytes_per_clock", &GpuModel::dsmem_bytes_per_clock},
      {"split_wait_us", &GpuModel::split_wait_us},
      {"cluster_start_us", &GpuModel::cluster_start_us},
      {"epilogue_clocks", &GpuModel::epilogue_clocks},
      {"launch_us", &GpuModel::launch_us},
  };
  return kConstants;
}

std::span<const GpuModel> gpu_models() {
  static const std::vector<GpuModel> models = [] {
    std::vector<GpuModel> made;
    for (const Variant& variant : kVariants) made.push_back(make_gpu_model(variant));
    return made;
  }();
  return models;
}

const GpuModel* find_gpu_model(std::string_view name) {
  if (name == kEmulatorName) name = kEmulatedGpu;
  const std::vector<std::string> given = words(name);
  const GpuModel* best = nullptr;
  size_t best_words = 0;
  for (const GpuModel& gpu : gpu_models()) {
    const std::vector<std::string> needed = words(gpu.name);
    const bool has_all = std::all_of(needed.begin(), needed.end(), [&](const auto& word) {
      return std::find(given.begin(), given.end(), word) != given.end();
    });
    if (!has_all || needed.size() <= best_words) continue;
    best = &gpu;
    best_words = needed.size();
  }
  return best;
}

GpuModel with_num_sms(const GpuModel& gpu, int num_sms) {
  GpuModel part = gpu;
  part.num_sms = num_sms;
  for (int size = 1; size <= kMaxCluster; ++size) {
    int& count = part.active_clusters[static_cast<size_t>(size)];
    count = std::max(count * num_sms / gpu.num_sms, std::min(num_sms / size, 1));
  }
  return part;
}

const GpuModel& nearest_gpu_model(int num_sms) {
  const auto models = gpu_models();
  return *std::min_element(models.begin(), models.end(), [&](const auto& a, const auto& b) {
    return std::abs(a.num_sms - num_sms) < std::abs(b.num_sms - num_sms);
  });
}

}  // namespace pykernels::gemm
