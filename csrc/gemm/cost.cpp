// The cost model that ranks the kernels of the FP8 GEMM.
#include "gemm/cost.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/math.h"

namespace pykernels::gemm {
namespace {

/// value / divisor rounded up; the divisor is a power of two, as cluster extents are.
int64_t ceil_shift(int64_t value, uint32_t divisor) {
  return (value + divisor - 1) >> std::countr_zero(divisor);
}

double round_to_sectors(double bytes) { return std::ceil(bytes / 32) * 32; }

/// The largest of three times that overlap, more where another comes near it: (a^4 + b^4 +
/// c^4)^1/4.
double overlapped(double a, double b, double c) {
  const double squares = a * a * a * a + b * b * b * b + c * c * c * c;
  return std::sqrt(std::sqrt(squares));
}

/// Tiles of so many rows along m of each group, as whole ones of one product. Groups have m rows on
/// average only, so that the last of a group's tiles is half full.
double tiles_along_m(const GemmProblem& problem, double rows) {
  const double tiles = static_cast<double>(problem.m) / rows;
  return problem.num_groups > 1 ? std::max(1.0, tiles + 0.5) : std::ceil(tiles);
}

/// What does not depend on the candidate.
struct Terms {
  const GemmProblem& problem;
  const GpuModel& gpu;
  double k_tiles;
  double groups;   // 1 for one product
  double a_bytes;  // of all groups
  double b_bytes;
  double d_bytes;
  double once_bytes;  // operands, scales and output once, in sectors
  double l2_keep_bytes;
  double us_per_clock;
  double us_per_hbm_byte;
  double us_per_l2_byte;
  double clocks_per_mac;
  double clocks_per_load_byte;
  double clocks_per_issue;
  double per_sm;  // 1 / SMs
  // Whose factors a tile loads: a group ahead, also behind the last one; with swap_ab by split k.
  double scale_k_tiles;
  std::array<double, kMaxCluster + 1> swap_scale_k_tiles;
  std::array<int64_t, kMaxCluster + 1> num_clusters;  // that run at one time, by size; 0: none
  std::array<double, kMaxCluster + 1> k_tiles_of;     // of the CTA with most of them, by split k
  std::array<double, kMaxCluster + 1> reduce_us_per_byte;  // of an output tile, by split k

  Terms(const GemmProblem& of, const GpuModel& on) : problem(of), gpu(on) {
    const auto m = static_cast<double>(problem.m);
    const auto n = static_cast<double>(problem.n);
    const auto k = static_cast<double>(problem.k);
    const int64_t k_tiles_count = ceil_div(problem.k, kBlockK);
    k_tiles = static_cast<double>(k_tiles_count);
    scale_k_tiles =
        k_tiles_count > 0
            ? static_cast<double>((k_tiles_count / int64_t{kGroup} + 1) * int64_t{kGroup})
            : 0;
    groups = static_cast<double>(std::max<int64_t>(problem.num_groups, 1));
    a_bytes = groups * m * k;
    b_bytes = groups * n * k;
    d_bytes = groups * m * n * problem.d_bytes;
    const double n_blocks = groups * static_cast<double>(ceil_div(problem.n, kBlockK));
    once_bytes = round_to_sectors(a_bytes) + round_to_sectors(b_bytes) + round_to_sectors(d_bytes) +
                 round_to_sectors(4 * groups * m * k_tiles) +
                 round_to_sectors(4 * n_blocks * k_tiles);
    l2_keep_bytes = gpu.l2_mbytes * gpu.l2_keep_share * (1 << 20);
    us_per_clock = 1e-3 / gpu.clock_ghz;
    us_per_hbm_byte = 1e-3 / (gpu.hbm_gbps * gpu.hbm_share);
    us_per_l2_byte = us_per_clock / gpu.l2_bytes_per_clock;
    clocks_per_mac = 1 / (gpu.macs_per_clock * gpu.tensor_share);
    clocks_per_load_byte = 1 / gpu.sm_bytes_per_clock;
    clocks_per_issue = 1 / gpu.issue_per_clock;
    const int num_sms = std::min(problem.num_sms, gpu.num_sms);
    per_sm = 1.0 / num_sms;
    for (int size = 1; size <= kMaxCluster; ++size) {
      const auto at = static_cast<size_t>(size);
      num_clusters[at] = std::min(gpu.active_clusters[at], num_sms / size);
      const int64_t least = k_tiles_count / size;  // of one CTA; `longer` of them have one more
      const int64_t longer = k_tiles_count - least * size;
      k_tiles_of[at] = static_cast<double>(least + (longer > 0 ? 1 : 0));
      swap_scale_k_tiles[at] = static_cast<double>(longer * loaded_scales(least + 1) +
                                                   (size - longer) * loaded_scales(least));
      // Every CTA takes in its share of the tile from each of the others.
      reduce_us_per_byte[at] = us_per_clock / gpu.dsmem_bytes_per_clock * (size - 1) / size;
    }
  }

  /// K tiles whose factors the scale warp loads for so many of its own.
  static int64_t loaded_scales(int64_t k_tiles_of_cta) {
    if (k_tiles_of_cta == 0) return 0;
    return (ceil_div(k_tiles_of_cta, int64_t{kGroup}) + 1) * int64_t{kGroup};
  }

  /// The share of what is read again after `distance` other bytes that L2 has lost by then.
  double miss_share(double distance) const {
    return distance > l2_keep_bytes ? 1 - l2_keep_bytes / distance : 0;
  }
};

/// One kernel on one problem: what does not depend on the schedule.
struct KernelTerms {
  const GemmKernel& kernel;
  int64_t tiles_m;  // of a group
  int64_t tiles_n;
  double tensor_clocks;
  double issue_clocks;
  double load_clocks;
  double k_tile_us;  // of an SM, for all but the latency

  KernelTerms(const Terms& terms, const GemmKernel& of)
      : kernel(of),
        tiles_m(ceil_div(terms.problem.m, of.config.block_m)),
        tiles_n(ceil_div(terms.problem.n, of.config.block_n)),
        tensor_clocks(std::max(of.macs * terms.clocks_per_mac, of.shared_clocks)),
        issue_clocks(of.instructions * terms.clocks_per_issue),
        load_clocks(of.load_bytes * terms.clocks_per_load_byte),
        k_tile_us(std::max({tensor_clocks, issue_clocks, load_clocks,
                            tensor_clocks * of.per_warpgroup + of.gap_clocks}) *
                  terms.us_per_clock) {}

  /// No schedule takes less: all SMs busy all the time.
  double least_us(const Terms& terms) const {
    return terms.groups * tiles_along_m(terms.problem, kernel.config.block_m) *
           static_cast<double>(tiles_n) * terms.k_tiles * k_tile_us * terms.per_sm;
  }
};

/// One candidate: the times of one cluster tile, and how many there are.
class CandidateTerms {
 public:
  CandidateTerms(const Terms& terms, const KernelTerms& kernel_terms, const GemmSchedule& schedule)
      : terms_(terms), on_(kernel_terms), schedule_(schedule) {
    num_m_ = ceil_shift(on_.tiles_m, schedule.cluster_m);
    num_n_ = ceil_shift(on_.tiles_n, schedule.cluster_n);
    const double rows = on_.kernel.config.block_m * schedule.cluster_m;
    num_tiles_ = std::llround(terms.groups * tiles_along_m(terms.problem, rows) *
                              static_cast<double>(num_n_));
    num_clusters_ = terms.num_clusters[schedule.cluster()];
    k_tiles_ = terms.k_tiles_of[schedule.split_k];
    count_bytes();
    const double per_tile = 1 / static_cast<double>(std::max<int64_t>(num_tiles_, 1));
    hbm_us_ = hbm_bytes_ * terms.us_per_hbm_byte * per_tile;
    l2_us_ = l2_bytes_ * terms.us_per_l2_byte * per_tile;
    const GpuModel& gpu = terms.gpu;
    const double from_hbm = hbm_bytes_ < l2_bytes_ ? hbm_bytes_ / l2_bytes_ : 1;
    const double latency_us =
        gpu.l2_latency_us + from_hbm * (gpu.hbm_latency_us - gpu.l2_latency_us);
    latency_us_ = latency_us * on_.kernel.per_stage;
    epilogue_us_ = (gpu.epilogue_clocks + on_.kernel.epilogue_clocks) * terms.us_per_clock;
    if (schedule.split_k > 1) {
      reduce_us_ =
          gpu.split_wait_us + on_.kernel.partial_bytes * terms.reduce_us_per_byte[schedule.split_k];
    }
    sm_us_ = k_tiles_ * std::max(on_.k_tile_us, latency_us_) + epilogue_us_ + reduce_us_;
    launch_us_ = gpu.launch_us + (schedule.cluster() > 1 ? gpu.cluster_start_us : 0);
    fill_us_ = gpu.hbm_latency_us + gpu.l2_latency_us;
    num_full_waves_ = num_tiles_ >= num_clusters_ ? num_tiles_ / num_clusters_ : 0;
    num_rest_ = num_tiles_ - num_full_waves_ * num_clusters_;
  }

  /// Not more than total_us.
  double least_us() const {
    const double full = static_cast<double>(num_full_waves_ * num_clusters_);
    const auto rest = static_cast<double>(num_rest_);
    const double shared_us = std::max(hbm_us_, l2_us_);
    return launch_us_ + fill_us_ +
           std::max(full * shared_us, static_cast<double>(num_full_waves_) * sm_us_) +
           (num_rest_ > 0 ? std::max(rest * shared_us, sm_us_) : 0);
  }

  double total_us() const { return launch_us_ + fill_us_ + work_us(); }

  GemmCost cost() const {
    GemmCost cost;
    cost.num_tiles = num_tiles_ * schedule_.cluster();
    cost.num_waves = num_full_waves_ + (num_rest_ > 0 ? 1 : 0);
    cost.hbm_bytes = hbm_bytes_;
    cost.l2_bytes = l2_bytes_;
    cost.hbm_us = hbm_bytes_ * terms_.us_per_hbm_byte;
    cost.l2_us = l2_bytes_ * terms_.us_per_l2_byte;
    const auto waves = static_cast<double>(cost.num_waves);
    const double k_tiles_us = waves * k_tiles_ * terms_.us_per_clock;  // at one clock each
    cost.tensor_us = k_tiles_us * on_.tensor_clocks;
    cost.issue_us = k_tiles_us * on_.issue_clocks;
    cost.load_us = k_tiles_us * on_.load_clocks;
    cost.latency_us = waves * k_tiles_ * latency_us_;
    cost.epilogue_us = waves * epilogue_us_;
    cost.reduce_us = waves * reduce_us_;
    cost.waves_us = work_us() - static_cast<double>(num_tiles_) /
                                    static_cast<double>(num_clusters_) * wave_us(num_clusters_);
    cost.fill_us = fill_us_;
    cost.launch_us = launch_us_;
    cost.total_us = total_us();
    return cost;
  }

 private:
  void count_bytes() {
    const GemmKernel& kernel = on_.kernel;
    const auto num_m = static_cast<double>(num_m_);
    const auto num_n = static_cast<double>(num_n_);
    const double cta_tiles =
        terms_.groups * num_m * num_n * schedule_.cluster_m * schedule_.cluster_n;
    const double scale_k_tiles =
        kernel.config.swap_ab ? terms_.swap_scale_k_tiles[schedule_.split_k] : terms_.scale_k_tiles;
    l2_bytes_ = terms_.a_bytes * num_n + terms_.b_bytes * num_m +
                cta_tiles * scale_k_tiles * kernel.scale_bytes + terms_.d_bytes;
    hbm_bytes_ = terms_.once_bytes;
    // A group's tiles at one time, or all of its operands in L2: nothing is read again.
    const double a_bytes = terms_.a_bytes / terms_.groups;
    const double b_bytes = terms_.b_bytes / terms_.groups;
    if (num_m_ * num_n_ <= num_clusters_) return;
    if (a_bytes + b_bytes <= terms_.l2_keep_bytes) return;
    const auto k = static_cast<double>(terms_.problem.k);
    const double band = raster_band(kernel.config, schedule_, num_clusters_, num_m_);
    const double rows = band * schedule_.cluster_m * kernel.config.block_m;
    const double columns_at_once = std::max(static_cast<double>(num_clusters_) / band, 1.0);
    const double band_bytes = std::min(rows * k, a_bytes);
    const double window_bytes =
        std::min(columns_at_once * schedule_.cluster_n * kernel.config.block_n * k, b_bytes);
    const double again_a = std::max(num_n / columns_at_once - 1, 0.0);
    const double again_b = static_cast<double>((num_m_ - 1) / static_cast<int64_t>(band));
    hbm_bytes_ += again_a * terms_.a_bytes * terms_.miss_share(band_bytes + window_bytes) +
                  again_b * terms_.b_bytes * terms_.miss_share(band_bytes + b_bytes);
  }

  /// `tiles` cluster tiles side by side, one a cluster.
  double wave_us(int64_t tiles) const {
    const auto count = static_cast<double>(tiles);
    return overlapped(count * hbm_us_, count * l2_us_, sm_us_);
  }

  double work_us() const {
    double us =
        num_full_waves_ > 0 ? static_cast<double>(num_full_waves_) * wave_us(num_clusters_) : 0;
    if (num_rest_ > 0) us += wave_us(num_rest_);
    return us;
  }

  const Terms& terms_;
  const KernelTerms& on_;
  const GemmSchedule& schedule_;
  int64_t num_m_ = 0;  // cluster tiles of a group
  int64_t num_n_ = 0;
  int64_t num_tiles_ = 0;
  int64_t num_clusters_ = 0;
  int64_t num_full_waves_ = 0;
  int64_t num_rest_ = 0;  // tiles of the last wave
  double k_tiles_ = 0;    // of the CTA with most of them
  double hbm_bytes_ = 0;
  double l2_bytes_ = 0;
  double hbm_us_ = 0;  // a cluster tile
  double l2_us_ = 0;
  double sm_us_ = 0;
  double latency_us_ = 0;
  double epilogue_us_ = 0;
  double reduce_us_ = 0;
  double launch_us_ = 0;
  double fill_us_ = 0;
};

bool can_run(const Terms& terms, const GemmSchedule& schedule) {
  return terms.num_clusters[schedule.cluster()] > 0 &&
         (!terms.problem.batch_invariant || schedule.split_k == 1) &&
         (!terms.problem.no_clusters || schedule.cluster() == 1);
}

}  // namespace

uint32_t raster_band(const GemmConfig& config, const GemmSchedule& schedule, int64_t num_clusters,
                     int64_t num_m) {
  if (num_m <= 1) return 1;
  const double rows = config.block_m * schedule.cluster_m;
  const double columns = config.block_n * schedule.cluster_n;
  const double square = std::sqrt(static_cast<double>(num_clusters) * columns / rows);
  return static_cast<uint32_t>(std::clamp<int64_t>(std::llround(square), 1, num_m));
}

std::vector<GemmCandidate> rank_configs(const GemmProblem& problem, const GpuModel& gpu,
                                        const GemmFamily& family) {
  const Terms terms(problem, gpu);
  std::vector<GemmCandidate> candidates;
  for (const GemmKernel& kernel : family) {
    const KernelTerms kernel_terms(terms, kernel);
    for (const GemmSchedule& schedule : kernel.schedules()) {
      if (!can_run(terms, schedule)) continue;
      const CandidateTerms candidate(terms, kernel_terms, schedule);
      candidates.push_back({kernel.info, kernel.config, schedule, candidate.cost()});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const auto& a, const auto& b) { return a.cost.total_us < b.cost.total_us; });
  return candidates;
}

GemmCandidate choose_config(const GemmProblem& problem, const GpuModel& gpu,
                            const GemmFamily& family) {
  const Terms terms(problem, gpu);
  const GemmKernel* best = nullptr;
  GemmSchedule best_schedule;
  double best_us = std::numeric_limits<double>::infinity();
  // From the last name on: few rows run best on the swapped kernels, which then rule out others.
  // Of equals the first name and schedule is taken, as rank_configs sorts them.
  for (auto kernel = family.rbegin(); kernel != family.rend(); ++kernel) {
    const KernelTerms kernel_terms(terms, *kernel);
    if (kernel_terms.least_us(terms) > best_us) continue;
    for (const GemmSchedule& schedule : kernel->schedules()) {
      if (!can_run(terms, schedule)) continue;
      const CandidateTerms candidate(terms, kernel_terms, schedule);
      if (candidate.least_us() > best_us) continue;
      const double us = candidate.total_us();
      if (us > best_us || (us == best_us && best == &*kernel)) continue;
      best = &*kernel;
      best_schedule = schedule;
      best_us = us;
    }
  }
  if (best == nullptr) {
    throw EnvironmentError(
        concat("no kernel of family ", problem.num_groups > 0 ? kGroupedFamily : kDenseFamily,
               " for ", problem.num_sms, " SMs is installed; build the package with its kernels"));
  }
  const KernelTerms kernel_terms(terms, *best);
  return {best->info, best->config, best_schedule,
          CandidateTerms(terms, kernel_terms, best_schedule).cost()};
}

}  // namespace pykernels::gemm
