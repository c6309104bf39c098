// The cost model of the FP8 GEMM: what a kernel with a schedule would cost on a GPU. Its formulas
// stand in README.md, "Cost model".
#pragma once

#include <cstdint>
#include <vector>

#include "core/registry.h"
#include "gemm/config.h"
#include "gemm/family.h"
#include "gemm/gpu_model.h"

namespace pykernels::gemm {

/// What the choice of a kernel depends on, beside the GPU.
struct GemmProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  uint32_t d_bytes = 2;          // an element of the output
  int num_sms = 0;               // that the launch may take
  bool batch_invariant = false;  // the bits of a row may not depend on m: no split-k
  int64_t num_groups = 0;        // each of m rows with a B of its own; 0: one product, no groups
  bool no_clusters = false;      // each CTA waits for its own tiles' rows

  friend bool operator==(const GemmProblem&, const GemmProblem&) = default;
};

/// The modelled time of one candidate, microseconds, and its parts: a model to rank kernels by, not
/// a prediction. The parts overlap; only fill, launch and waves add up with the rest.
struct GemmCost {
  int64_t num_tiles = 0;  // of one CTA each, counting those that fill up a cluster
  int64_t num_waves = 0;  // tiles of the busiest cluster
  double hbm_bytes = 0;   // read and written
  double l2_bytes = 0;    // taken from L2 by all CTAs, a multicast once, and written
  double hbm_us = 0;
  double l2_us = 0;
  double tensor_us = 0;    // the busiest SM's tensor cores
  double issue_us = 0;     // its schedulers
  double load_us = 0;      // its stages through its port of L2
  double latency_us = 0;   // its stages at as many bytes in flight as its ring holds
  double epilogue_us = 0;  // its epilogues
  double reduce_us = 0;    // its reductions over split k
  double waves_us = 0;     // what SMs without a tile in the last wave cost
  double fill_us = 0;      // until the first stage has landed, after the last store
  double launch_us = 0;
  double total_us = 0;
};

struct GemmCandidate {
  const KernelInfo* kernel = nullptr;
  GemmConfig config;
  GemmSchedule schedule;
  GemmCost cost;
};

/// Cluster tiles along m that are walked before the next one along n: as many as make the operands
/// of the tiles that run at one time, a group's rows and the columns beside them, fewest bytes.
uint32_t raster_band(const GemmConfig& config, const GemmSchedule& schedule, int64_t num_clusters,
                     int64_t num_m);

/// Every kernel that can run the problem, with every schedule, cheapest first. Pure.
std::vector<GemmCandidate> rank_configs(const GemmProblem& problem, const GpuModel& gpu,
                                        const GemmFamily& family);

/// The first of rank_configs, in a few microseconds. Throws EnvironmentError if there is none.
GemmCandidate choose_config(const GemmProblem& problem, const GpuModel& gpu,
                            const GemmFamily& family);

}  // namespace pykernels::gemm
