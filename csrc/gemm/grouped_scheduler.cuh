// The order of output tiles of a grouped GEMM. One warp of a CTA, the scheduler, finds the CTA's
// tiles in the groups and hands them to the other roles through a small ring in shared memory.
#pragma once

#include "core/device_error.cuh"
#include "core/pipeline.cuh"
#include "core/warp.cuh"
#include "gemm/config.h"
#include "gemm/counters.cuh"
#include "gemm/places.cuh"
#include "gemm/scheduler.cuh"
#include "gemm/segments.cuh"
#include "gemm/storage.cuh"
#include "ptx/address.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"

namespace pykernels::gemm {

inline constexpr uint32_t kNoTile = 0xffffffff;  // in place of a group: there are no more tiles

/// Scheduler warp: deals cluster tiles to the resident clusters, round robin, group by group;
/// within a group in the order of TileScheduler. Groups without rows have no tiles: what finds a
/// tile's group is a scan over 32 of them and a ballot.
template <GemmConfig kConfig>
class TileFinder {
 public:
  __device__ __forceinline__ TileFinder(const GroupedGemmParams& params,
                                        SharedStorage<kConfig>& smem)
      : params_(params),
        ring_(smem.tiles.barriers),
        slots_(ptx::cvta_to_shared(smem.tiles.tiles)),
        windows_(params, params.band_rows.divisor * rows_of_tile(params)),
        tile_idx_(cluster_idx<kConfig>(params)) {}

  /// Hands over all of the CTA's tiles and, at the end, that there are no more.
  __device__ __forceinline__ void run() {
    GroupedTile tile{};
    do {
      if (!find(tile) || !wait_ready(tile)) tile.group = kNoTile;
      publish(tile);
    } while (tile.group != kNoTile);
  }

 private:
  /// The CTA's next tile; false behind the last one.
  __device__ __forceinline__ bool find(GroupedTile& tile) {
    while (tile_idx_ >= window_end_) {
      if (!windows_.next(segment_)) return false;
      if (!__any_sync(kAllLanes, segment_.num_rows > 0)) continue;
      const uint32_t tiles = tiles_along_m(segment_.num_rows) * params_.num_tiles_n;
      segment_end_ = window_end_ + inclusive_sum(tiles);
      window_end_ = __shfl_sync(kAllLanes, segment_end_, 31);
    }
    tile = locate();
    tile_idx_ += params_.num_clusters;
    return true;
  }

  /// Of a cluster tile.
  __device__ __forceinline__ static uint32_t rows_of_tile(const GroupedGemmParams& params) {
    return kConfig.block_m * (kConfig.cluster > 1 ? params.schedule.cluster_m : 1);
  }

  /// Cluster tiles of so many rows.
  __device__ __forceinline__ uint32_t tiles_along_m(uint32_t num_rows) const {
    const uint32_t rows = rows_of_tile(params_);
    return (num_rows + rows - 1) / rows;
  }

  /// Tile `tile_idx_`, which lies in this window.
  __device__ __forceinline__ GroupedTile locate() const {
    const uint32_t lane = __ffs(__ballot_sync(kAllLanes, segment_end_ > tile_idx_)) - 1;
    const uint32_t first_row = __shfl_sync(kAllLanes, segment_.first_row, lane);
    const uint32_t num_rows = __shfl_sync(kAllLanes, segment_.num_rows, lane);
    const uint32_t group = __shfl_sync(kAllLanes, segment_.group, lane);
    const uint32_t segment_end = __shfl_sync(kAllLanes, segment_end_, lane);
    const uint32_t num_m = tiles_along_m(num_rows);
    const uint32_t tile = tile_idx_ - (segment_end - num_m * params_.num_tiles_n);
    const uint32_t band = params_.band_tiles.divide(tile);
    const uint32_t first_m = band * params_.band_rows.divisor;
    const uint32_t band_rows = min(params_.band_rows.divisor, num_m - first_m);
    const uint32_t in_band = tile - band * params_.band_tiles.divisor;
    const uint32_t n_idx = in_band / band_rows;
    const uint32_t m_idx = first_m + in_band - n_idx * band_rows;
    const Tile in_group = cta_tile<kConfig>(params_, m_idx, n_idx);
    return {{first_row + in_group.m_start, in_group.n_start}, first_row + num_rows, group};
  }

  __device__ __forceinline__ void publish(const GroupedTile& tile) {
    ring_.wait_empty();  // all roles have read the slot's last tile
    if (threadIdx.x % 32 == 0) {
      ptx::st_shared_v4_b32(slots_ + ring_.stage() * 16,
                            {tile.m_start, tile.n_start, tile.m_end, tile.group});
      ring_.arrive_full();
    }
    ring_.advance();
  }

  /// Waits for the rows of a tile, each lane for one of its counters; false after the time-out,
  /// which is recorded. What the rows' writers have released is then acquired by the whole warp.
  __device__ __forceinline__ bool wait_ready(const GroupedTile& tile) const {
    if constexpr (!kConfig.waits_for_rows()) return true;
    if (params_.ready == nullptr) return true;
    const uint32_t tile_end = min(tile.m_start + kConfig.block_m, tile.m_end);
    const CounterRange counters(params_, tile, tile.m_start, tile_end);
    const uint32_t counter = counters.first + threadIdx.x % 32;
    bool is_ready = true;
    if (counter <= counters.last) {
      const uint32_t expected = rows_of_counter(tile, counters.base + counter * kCounterRows);
      is_ready = wait_counter(counters.index + counter, expected);
    }
    ptx::bar_warp_sync();  // the others' acquires, ahead of lane 0's release to the roles
    return __all_sync(kAllLanes, is_ready);
  }

  /// Rows that belong to groups among those of a counter that begins with row `begin`. Offsets
  /// that are wrong elsewhere do not take the tile's own rows away.
  __device__ __forceinline__ uint32_t rows_of_counter(const GroupedTile& tile,
                                                      uint32_t begin) const {
    int32_t first = static_cast<int32_t>(begin);
    int32_t end = static_cast<int32_t>(tile.m_end);
    if (params_.source == GroupSource::kOffsets) {
      const int32_t groups_begin = ptx::ld_global_s32(params_.groups);
      const int32_t groups_end = ptx::ld_global_s32(params_.groups + params_.num_groups);
      first = max(first, min(groups_begin, static_cast<int32_t>(tile.m_start)));
      end = min(max(end, groups_end), static_cast<int32_t>(params_.m));
    }
    return min(static_cast<int32_t>(begin + kCounterRows), end) - first;
  }

  /// Polls relaxed, since each acquire empties the L1 cache with the scale factors of the tiles
  /// that are being multiplied.
  __device__ __forceinline__ bool wait_counter(uint32_t index, uint32_t expected) const {
    const uint32_t* counter = params_.ready + index;
    const uint64_t start = ptx::globaltimer();
    while (true) {
      const uint32_t seen = ptx::ld_relaxed_sys_u32(counter);
      if (seen >= expected) break;
      if (ptx::globaltimer() - start <= params_.ready_timeout_ns) continue;
      if (!windows_.has_error()) {  // a wrong offset says more
        write_error(params_.errors, {DeviceErrorKind::kReadyTimeout, index,
                                     static_cast<int32_t>(seen), static_cast<int32_t>(expected)});
      }
      return false;
    }
    if (params_.system_scope != 0) {
      ptx::ld_acquire_sys_u32(counter);
    } else {
      ptx::ld_acquire_gpu_u32(counter);
    }
    return true;
  }

  const GroupedGemmParams& params_;
  TilePipeline ring_;
  uint32_t slots_;  // shared-window address
  SegmentWindows windows_;
  uint32_t tile_idx_;         // of the cluster's next tile, among all groups' tiles
  uint32_t window_end_ = 0;   // behind the last tile of the window
  Segment segment_;           // the lane's in this window
  uint32_t segment_end_ = 0;  // behind the last of its tiles
};

/// Who walks the tiles: one thread, or the lanes of a warp together.
enum class Reader { kThread, kWarp };

/// The tiles of this CTA as the scheduler warp finds them; the interface of TileScheduler. The
/// current tile stays in its slot, since the main loop has no registers to spare.
template <GemmConfig kConfig, Reader kReader>
class TileReader {
 public:
  /// Waits for the first tile.
  __device__ __forceinline__ explicit TileReader(SharedStorage<kConfig>& smem)
      : ring_(smem.tiles.barriers), slots_(ptx::cvta_to_shared(smem.tiles.tiles)) {
    take();
  }

  __device__ __forceinline__ bool has_tile() const { return has_tile_; }
  __device__ __forceinline__ GroupedTile tile() const {
    uint32_t words[4];
    ptx::ld_shared_v4_b32(slots_ + ring_.stage() * 16, words);
    return {{words[0], words[1]}, words[2], words[3]};
  }

  /// Gives the tile's slot back and turns to the next one.
  __device__ __forceinline__ void advance() {
    if constexpr (kReader == Reader::kWarp) ptx::bar_warp_sync();  // all lanes have read
    ring_.release(ring_.stage());
    ring_.advance();
    take();
  }

 private:
  __device__ __forceinline__ void take() {
    ring_.wait_full();  // the scheduler has written the slot
    has_tile_ = tile().group != kNoTile;
  }

  TilePipeline ring_;
  uint32_t slots_;  // shared-window address
  bool has_tile_;
};

}  // namespace pykernels::gemm
