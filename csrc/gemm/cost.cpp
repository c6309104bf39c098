// The cost model that ranks the kernels of the FP8 GEMM.
#include "gemm/cost.h"

#include <algorithm>
#include <tuple>

#include "core/check.h"

namespace pykernels::gemm {
namespace {

/// GHz at which 132 SMs reach the FP8 peak of the H100 SXM and H200 datasheets, 1979 TFLOPS.
constexpr double kClockGhz = 1.83;
/// FP8 multiply-adds a clock and SM: the same datasheets, 1979e12 / 2 / 132 / 1.83e9.
constexpr double kMacsPerClock = 4096;
/// Bytes a microsecond from HBM: 4.8 TB/s, H200 datasheet.
constexpr double kMemoryBytesPerUs = 4.8e6;
/// Bytes a clock that L2 delivers to all SMs (A100 whitepaper: 5120; Hopper's is not published
/// lower).
constexpr double kL2BytesPerClock = 5120;
/// Bytes a clock that one SM takes in from L2 (A100 whitepaper: 64; Hopper's is not published
/// lower).
constexpr double kSmBytesPerClock = 64;
/// k tiles that the consumers multiply without a gap: a lone warpgroup leaves the tensor cores idle
/// while it promotes the last one of a group; with two, each fills the other's gap.
constexpr double kKTilesPerGap = 4;
/// Clocks of such a gap beyond one FFMA a clock and accumulator, from wait_group to the next WGMMA:
/// an estimate from the instruction counts of bench/listing.py.
constexpr double kGapClocks = 100;
/// Clocks of an epilogue that nothing hides: an estimate from its 150 to 250 instructions and
/// barrier.
constexpr double kEpilogueClocks = 400;
/// Microseconds before the first and after the last k tile: an estimate of two trips to HBM, 0.6 us
/// each, and the start of the grid.
constexpr double kStartUs = 2.0;

int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

uint32_t config_field(const KernelInfo& kernel, const char* field) {
  const auto found = kernel.config.find(field);
  if (found == kernel.config.end()) {
    throw EnvironmentError(
        concat("the metadata of kernel ", kernel.name, " has no config.", field));
  }
  return static_cast<uint32_t>(found->second);
}

bool can_run(const GemmProblem& problem, const GemmCandidate& candidate) {
  return static_cast<int64_t>(candidate.schedule.cluster()) <= problem.num_sms &&
         (!problem.batch_invariant || candidate.schedule.split_k == 1);
}

bool is_cheaper(const GemmCandidate& first, const GemmCandidate& second) {
  return std::tie(first.total_us, first.compute_us, first.kernel->name) <
         std::tie(second.total_us, second.compute_us, second.kernel->name);
}

}  // namespace

GemmConfig config_of(const KernelInfo& kernel) {
  return {.block_m = config_field(kernel, "block_m"),
          .block_n = config_field(kernel, "block_n"),
          .cluster = config_field(kernel, "cluster"),
          .swap_ab = config_field(kernel, "swap_ab") != 0};
}

std::vector<GemmSchedule> schedules_of(const GemmConfig& config) {
  if (config.cluster == 1) return {{}};
  return {{.cluster_m = config.cluster}};
}

GemmCandidate cost_of(const GemmProblem& problem, const KernelInfo& kernel,
                      const GemmSchedule& schedule) {
  const auto& [m, n, k, d_bytes, num_sms, batch_invariant] = problem;
  GemmCandidate candidate;
  candidate.kernel = &kernel;
  candidate.config = config_of(kernel);
  candidate.schedule = schedule;
  const GemmConfig& config = candidate.config;
  const int64_t cluster_tiles =
      ceil_div(m, config.block_m * config.cluster) * ceil_div(n, config.block_n);
  const int64_t num_clusters = std::max<int64_t>(num_sms / config.cluster, 1);
  const double k_tiles = static_cast<double>(ceil_div(k, kBlockK));
  candidate.num_tiles = cluster_tiles * config.cluster;
  candidate.num_waves = ceil_div(cluster_tiles, num_clusters);

  const double operands = static_cast<double>(m + n) * static_cast<double>(k);
  const double scales = (static_cast<double>(m) + static_cast<double>(n) / 128) * k_tiles * 4;
  const double output = static_cast<double>(m) * static_cast<double>(n) * d_bytes;
  candidate.memory_us = (operands + scales + output) / kMemoryBytesPerUs;

  const double tile_bytes = (config.block_m + config.block_n / config.cluster) * kBlockK;
  candidate.l2_us = static_cast<double>(candidate.num_tiles) * k_tiles * tile_bytes /
                    (kL2BytesPerClock * kClockGhz * 1e3);

  double k_tile_clocks = config.block_m * config.block_n * kBlockK / kMacsPerClock;
  if (config.num_consumer_warpgroups() == 1) {
    k_tile_clocks += (config.block_n / 2 + kGapClocks) / kKTilesPerGap;
  }
  const double load_clocks = (config.block_m + config.block_n) * kBlockK / kSmBytesPerClock;
  k_tile_clocks = std::max(k_tile_clocks, load_clocks);
  candidate.compute_us = static_cast<double>(candidate.num_waves) *
                         (k_tiles * k_tile_clocks + kEpilogueClocks) / (kClockGhz * 1e3);
  candidate.total_us =
      kStartUs + std::max({candidate.memory_us, candidate.l2_us, candidate.compute_us});
  return candidate;
}

std::vector<GemmCandidate> rank_configs(const GemmProblem& problem,
                                        const std::vector<const KernelInfo*>& family) {
  std::vector<GemmCandidate> candidates;
  candidates.reserve(family.size());
  for (const KernelInfo* kernel : family) {
    for (const GemmSchedule& schedule : schedules_of(config_of(*kernel))) {
      const GemmCandidate candidate = cost_of(problem, *kernel, schedule);
      if (can_run(problem, candidate)) candidates.push_back(candidate);
    }
  }
  std::sort(candidates.begin(), candidates.end(), is_cheaper);
  return candidates;
}

GemmCandidate choose_config(const GemmProblem& problem,
                            const std::vector<const KernelInfo*>& family) {
  GemmCandidate best;
  for (const KernelInfo* kernel : family) {
    for (const GemmSchedule& schedule : schedules_of(config_of(*kernel))) {
      const GemmCandidate candidate = cost_of(problem, *kernel, schedule);
      if (!can_run(problem, candidate)) continue;
      if (best.kernel == nullptr || is_cheaper(candidate, best)) best = candidate;
    }
  }
  if (best.kernel == nullptr) {
    throw EnvironmentError(concat("no kernel of family fp8_gemm_nt for ", problem.num_sms,
                                  " SMs is installed; build the package with its kernels"));
  }
  return best;
}

}  // namespace pykernels::gemm
