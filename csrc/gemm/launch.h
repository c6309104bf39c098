// From tensors to the launch of an FP8 GEMM: which kernel, with what grid, maps and parameters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/launch.h"
#include "core/registry.h"
#include "core/tensor_view.h"
#include "gemm/config.h"

namespace pykernels::gemm {

struct GemmArguments {
  TensorView a;    // [m, k] e4m3
  TensorView sfa;  // [m, ceil(k / 128)] FP32
  TensorView b;    // [n, k] e4m3
  TensorView sfb;  // [ceil(n / 128), ceil(k / 128)] FP32
  TensorView d;    // [m, n] BF16 or FP32
  std::optional<int64_t> num_sms;
};

/// What the choice of a kernel depends on.
struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  uint32_t d_bytes = 2;  // an element of the output
  int num_sms = 0;       // that the launch may take
};

/// A kernel that could run the problem and the time that the model gives it. The time is the
/// largest of the three bounds plus the start: a model to rank kernels by, not a prediction.
struct GemmCandidate {
  const KernelInfo* kernel = nullptr;
  GemmConfig config;
  int64_t num_tiles = 0;  // of one CTA each, counting those that fill up a cluster
  int64_t num_waves = 0;  // tiles of the busiest CTA
  double memory_us = 0;   // operands, scales and output once through HBM
  double l2_us = 0;       // every tile's operands from L2
  double compute_us = 0;  // the busiest SM: loading and multiplying its k tiles, epilogues
  double total_us = 0;
};

/// The config that a kernel was compiled for, from its metadata.
GemmConfig config_of(const KernelInfo& kernel);

/// The modelled cost of one kernel.
GemmCandidate cost_of(const GemmProblem& problem, const KernelInfo& kernel);

/// Every kernel of the family that can run the problem, cheapest first; equals, which another bound
/// hides, by the work of an SM. Pure.
std::vector<GemmCandidate> rank_configs(const GemmProblem& problem,
                                        const std::vector<const KernelInfo*>& family);

/// The first of rank_configs. Throws EnvironmentError if there is none.
GemmCandidate choose_config(const GemmProblem& problem,
                            const std::vector<const KernelInfo*>& family);

/// The launch of the chosen kernel of family fp8_gemm_nt. The arguments have been checked
/// (pykernels/checks.py) and m and n are not 0; what would let the kernel touch foreign memory is
/// checked again and throws ArgumentError.
Launch make_fp8_gemm_nt_launch(Device& device, const GemmArguments& arguments);

/// The same with the kernel given by name, as tests and benches need.
Launch make_fp8_gemm_nt_launch(Device& device, const GemmArguments& arguments,
                               const KernelInfo& kernel);

}  // namespace pykernels::gemm
