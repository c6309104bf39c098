// The order of output tiles. Every role holds its own scheduler and walks the same sequence.
#pragma once

#include "gemm/config.h"
#include "ptx/warp.cuh"

namespace pykernels::gemm {

/// Top left corner of a CTA's output tile. In a cluster it may lie beyond m or n: such a CTA still
/// takes part in the multicast, and TMA clips what it stores.
struct Tile {
  uint32_t m_start;
  uint32_t n_start;
};

/// Deals cluster tiles (cluster_m x cluster_n tiles) to the resident clusters, round robin.
///
/// The order keeps the tiles that run at one time close to a square, so that their operands stay in
/// L2: down `raster_group` cluster tiles along m, then one step along n, then the next group.
template <GemmConfig kConfig>
class TileScheduler {
 public:
  __device__ __forceinline__ explicit TileScheduler(const GemmParams& params)
      : params_(params), tile_idx_(blockIdx.x) {
    if constexpr (kHasCluster) tile_idx_ /= params.schedule.cluster();
  }

  /// False once this CTA has no tile left.
  __device__ __forceinline__ bool has_tile() const { return tile_idx_ < params_.num_tiles; }

  /// True if the current tile is this CTA's last one.
  __device__ __forceinline__ bool is_last() const {
    return tile_idx_ + params_.num_clusters >= params_.num_tiles;
  }

  __device__ __forceinline__ void advance() { tile_idx_ += params_.num_clusters; }

  __device__ __forceinline__ Tile tile() const {
    const uint32_t group_idx = tile_idx_ / params_.group_tiles;
    const uint32_t idx_in_group = tile_idx_ - group_idx * params_.group_tiles;
    const uint32_t first_m = group_idx * params_.raster_group;
    const uint32_t rows = min(params_.num_m - first_m, params_.raster_group);
    uint32_t n_idx = idx_in_group / rows;
    uint32_t m_idx = first_m + idx_in_group - n_idx * rows;
    if constexpr (kHasCluster) {
      const GemmSchedule& schedule = params_.schedule;
      const uint32_t rank = ptx::cluster_ctarank() % (schedule.cluster_m * schedule.cluster_n);
      n_idx = n_idx * schedule.cluster_n + rank / schedule.cluster_m;
      m_idx = m_idx * schedule.cluster_m + rank % schedule.cluster_m;
    }
    return {m_idx * kConfig.block_m, n_idx * kConfig.block_n};
  }

 private:
  static constexpr bool kHasCluster = kConfig.cluster > 1 || kConfig.swap_ab;

  const GemmParams& params_;
  uint32_t tile_idx_;  // of the cluster
};

}  // namespace pykernels::gemm
