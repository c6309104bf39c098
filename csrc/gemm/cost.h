// The cost model of the FP8 GEMM: what a kernel with a schedule would cost on a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "core/registry.h"
#include "gemm/config.h"

namespace pykernels::gemm {

/// What the choice of a kernel depends on.
struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  uint32_t d_bytes = 2;          // an element of the output
  int num_sms = 0;               // that the launch may take
  bool batch_invariant = false;  // the bits of a row may not depend on m: no split-k
};

/// A kernel with a schedule that could run the problem and the time that the model gives it. The
/// time is the largest of the three bounds plus the start: a model to rank kernels by, not a
/// prediction.
struct GemmCandidate {
  const KernelInfo* kernel = nullptr;
  GemmConfig config;
  GemmSchedule schedule;
  int64_t num_tiles = 0;  // of one CTA each, counting those that fill up a cluster
  int64_t num_waves = 0;  // tiles of the busiest CTA
  double memory_us = 0;   // operands, scales and output once through HBM
  double l2_us = 0;       // every tile's operands from L2
  double compute_us = 0;  // the busiest SM: loading and multiplying its k tiles, epilogues
  double total_us = 0;
};

/// The config that a kernel was compiled for, from its metadata.
GemmConfig config_of(const KernelInfo& kernel);

/// The schedules that a kernel can run.
std::vector<GemmSchedule> schedules_of(const GemmConfig& config);

/// The modelled cost of one kernel.
GemmCandidate cost_of(const GemmProblem& problem, const KernelInfo& kernel,
                      const GemmSchedule& schedule);

/// Every kernel of the family that can run the problem, with every schedule, cheapest first;
/// equals, which another bound hides, by the work of an SM. Pure.
std::vector<GemmCandidate> rank_configs(const GemmProblem& problem,
                                        const std::vector<const KernelInfo*>& family);

/// The first of rank_configs. Throws EnvironmentError if there is none.
GemmCandidate choose_config(const GemmProblem& problem,
                            const std::vector<const KernelInfo*>& family);

}  // namespace pykernels::gemm
