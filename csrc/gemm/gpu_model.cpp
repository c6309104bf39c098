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

// GPCs hold up to 9 TPCs of 2 SMs and dies differ in which are off: of an H100 SXM 66 TPCs are on
// ("H100", glennklockwood.com/garden/processors/h100). There 120 of 132 SMs run clusters of 8 and a
// GPC had 16 SMs (github.com/accel-sim/gpu-app-collection/pull/87; cuBLAS launches 15 clusters of
// 8: github.com/NVIDIA/cutlass/issues/1921): one GPC of fewer than 16. The other layouts are
// estimates. On a GPU the driver's own counts take their place.
constexpr std::initializer_list<int> kGpcs132 = {18, 18, 18, 16, 16, 16, 16, 14};
constexpr std::initializer_list<int> kGpcs114 = {16, 16, 16, 16, 16, 18, 16};
constexpr std::initializer_list<int> kGpcs78 = {10, 10, 10, 10, 10, 10, 10, 8};

// TFLOPS (half of what is stated with sparsity), GB/s, SMs and MB of L2:
//   H100: "NVIDIA H100", www.nvidia.com/en-us/data-center/h100/; SMs, L2 and PCIe's TFLOPS:
//     archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html.
//   H100 PCIe: ten 512-bit controllers at 1593 MHz ("Nvidia's H100: Funny L2, and Tons of
//     Bandwidth", chipsandcheese.com/p/nvidias-h100-funny-l2-and-tons-of-bandwidth), so 2039 GB/s.
//   H100 NVL: "NVIDIA H100 NVL GPU" product brief PB-11773-001, www.nvidia.com/content/dam/en-zz/
//     Solutions/Data-Center/h100/PB-11773-001_v01.pdf.
//   H200: "NVIDIA H200", www.nvidia.com/en-us/data-center/h200/. TFLOPS of both NVL: twice the 835
//     of BF16 (github.com/pytorch/torchtitan, torchtitan/tools/utils.py).
//   H800: estimate: as H100, but for NVLink and FP64.
//   H20: 148 TFLOPS BF16, 4.0 TB/s, 78 SMs as reported (willitrunai.com/es/gpus/h20-96gb,
//     zangshuxian.com/new/674733024499207168; no page of NVIDIA's found); FP8 as its 296 INT8,
//     L2: estimates.
//   GH200: 96 GB of HBM3 at 4 TB/s (nishikiout.net/entry/2023/08/09/143040), 60 MB of L2
//     (github.com/markdewing/AI_kernels, latency/README.md); the rest, estimate: as H100.
// The clock is the one at which SMs times 4096 multiply-adds reach these TFLOPS (1.83 GHz is also
// the H100's boost clock at low precision: glennklockwood.com, above); H20's, at which 1024 do.
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
  // Estimates: one thread's load took 479 clocks from HBM and 263 from L2 on an H800 PCIe (Luo et
  // al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture",
  // arxiv.org/abs/2402.13499, table IV), 690 and 281 on a GH200 (github.com/markdewing/AI_kernels,
  // latency/README.md): 0.26 to 0.38 us and 0.15 us at 1.83 GHz. TMA and the loads of others come
  // on top.
  gpu.hbm_latency_us = 0.8;
  gpu.l2_latency_us = 0.4;
  gpu.l2_mbytes = variant.l2_mbytes;
  // Estimate: L2 has two partitions, and what SMs of both read may lie in both.
  gpu.l2_keep_share = 0.6;
  // Estimate: 0.9 of the 5120 that an A100's L2 reads ("NVIDIA A100 Tensor Core GPU Architecture",
  // images.nvidia.com/aem-dam/en-zz/Solutions/data-center/nvidia-ampere-architecture-whitepaper.pdf,
  // p. 35). Hopper's is not published; 4472 were measured on an H800 PCIe (Luo et al., above, table
  // V). The up to 1550 TFLOPS that DeepGEMM states for H800 (github.com/deepseek-ai/DeepGEMM, news
  // of 2025-04-18) need 4300 at 1.83 GHz with tiles of 128x160, pairs of which share B.
  gpu.l2_bytes_per_clock = 4600;
  gpu.sm_bytes_per_clock = 64;  // estimate: two sectors
  gpu.macs_per_clock = variant.tflops * 1e3 / 2 / gpu.num_sms / variant.clock_ghz;
  gpu.tensor_share = 0.9;  // estimate: clocks fall under a full load of the tensor cores
  // "at every instruction issue time, each scheduler issues one instruction": "CUDA C++ Programming
  // Guide", compute capabilities, docs.nvidia.com/cuda/cuda-c-programming-guide/.
  gpu.issue_per_clock = 1;
  gpu.dsmem_bytes_per_clock = 14;  // estimate: about a quarter of what L2 gives an SM
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
