// The order of output tiles. Every role holds its own scheduler and walks the same sequence.
#pragma once

#include "gemm/config.h"
#include "gemm/places.cuh"
#include "ptx/warp.cuh"

namespace pykernels::gemm {

/// Index of this CTA's cluster.
template <GemmConfig kConfig>
__device__ __forceinline__ uint32_t cluster_idx(const GemmParams& params) {
  return kConfig.swap_ab ? params.cluster.divide(blockIdx.x) : blockIdx.x / kConfig.cluster;
}

/// This CTA's tile of a cluster tile. Clusters extend along m or n, by powers of two; the parts of
/// a split are further apart.
template <GemmConfig kConfig>
__device__ __forceinline__ Tile cta_tile(const GemmParams& params, uint32_t m_idx, uint32_t n_idx) {
  if constexpr (kConfig.cluster > 1 || kConfig.swap_ab) {
    const GemmSchedule& schedule = params.schedule;
    const uint32_t rank = ptx::cluster_ctarank();
    const uint32_t along_n = schedule.cluster_m > 1 ? 0 : rank & (schedule.cluster_n - 1);
    m_idx = m_idx * schedule.cluster_m + (rank & (schedule.cluster_m - 1));
    n_idx = n_idx * schedule.cluster_n + along_n;
  }
  return {m_idx * kConfig.block_m, n_idx * kConfig.block_n};
}

/// Deals cluster tiles (cluster_m x cluster_n tiles) to the resident clusters, round robin.
///
/// The order keeps the tiles that run at one time close to a square, so that their operands stay in
/// L2: down a band of cluster tiles along m, then one step along n, then the next band.
template <GemmConfig kConfig>
class TileScheduler {
 public:
  __device__ __forceinline__ explicit TileScheduler(const GemmParams& params)
      : params_(params), tile_idx_(cluster_idx<kConfig>(params)), tile_(locate()) {}

  /// False once this CTA has no tile left.
  __device__ __forceinline__ bool has_tile() const { return tile_idx_ < params_.num_tiles; }

  /// True if the current tile is this CTA's last one.
  __device__ __forceinline__ bool is_last() const {
    return tile_idx_ + params_.num_clusters >= params_.num_tiles;
  }

  __device__ __forceinline__ void advance() {
    tile_idx_ += params_.num_clusters;
    tile_ = locate();
  }

  __device__ __forceinline__ const Tile& tile() const { return tile_; }

 private:
  __device__ __forceinline__ Tile locate() const {
    const uint32_t band_idx = params_.band_tiles.divide(tile_idx_);
    const uint32_t first = band_idx * params_.band_tiles.divisor;
    const bool is_last_band = first + params_.band_tiles.divisor >= params_.num_tiles;
    const FastDivisor& rows = is_last_band ? params_.last_band_rows : params_.band_rows;
    const uint32_t n_idx = rows.divide(tile_idx_ - first);
    const uint32_t m_idx =
        band_idx * params_.band_rows.divisor + tile_idx_ - first - n_idx * rows.divisor;
    return cta_tile<kConfig>(params_, m_idx, n_idx);
  }

  const GemmParams& params_;
  uint32_t tile_idx_;  // of the cluster
  Tile tile_;
};

}  // namespace pykernels::gemm
