// The order of output tiles of a grouped GEMM. One warp of a CTA, the scheduler, finds the CTA's
// tiles in the groups and hands them to the other roles through a small ring in shared memory.
#pragma once

#include "core/pipeline.cuh"
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

inline constexpr uint32_t kLastTile = 0x80000000;  // beside the group, of a CTA's last tile
inline constexpr uint32_t kNoTile = 0xffffffff;    // in place of the group: there are no more

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
        windows_(params),
        tile_idx_(cluster_idx<kConfig>(params)) {}

  /// A tile is handed over once it is known whether there is another one.
  __device__ __forceinline__ void run() {
    GroupedTile tile{{0, 0}, 0, kNoTile};
    bool has_more = true;
    do {
      GroupedTile next{};
      has_more = find(next);
      const bool is_first = tile.group == kNoTile;
      if ((!is_first || !has_more) && !publish(tile, has_more ? 0 : kLastTile)) return;
      tile = next;
    } while (has_more);
  }

 private:
  /// The CTA's next tile; false behind the last one.
  __device__ __forceinline__ bool find(GroupedTile& tile) {
    while (tile_idx_ >= window_end_) {
      if (!windows_.next(segment_)) return false;
      const uint32_t tiles = tiles_along_m(segment_.num_rows) * params_.num_tiles_n;
      segment_end_ = window_end_ + inclusive_sum(tiles);
      window_end_ = __shfl_sync(kWholeWarp, segment_end_, 31);
    }
    tile = locate();
    tile_idx_ += params_.num_clusters;
    return true;
  }

  /// Cluster tiles of so many rows.
  __device__ __forceinline__ uint32_t tiles_along_m(uint32_t num_rows) const {
    const uint32_t rows_of_tile =
        kConfig.block_m * (kConfig.cluster > 1 ? params_.schedule.cluster_m : 1);
    return (num_rows + rows_of_tile - 1) / rows_of_tile;
  }

  __device__ __forceinline__ static uint32_t inclusive_sum(uint32_t value) {
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t below = __shfl_up_sync(kWholeWarp, value, distance);
      if (threadIdx.x % 32 >= distance) value += below;
    }
    return value;
  }

  /// Tile `tile_idx_`, which lies in this window.
  __device__ __forceinline__ GroupedTile locate() const {
    const uint32_t lane = __ffs(__ballot_sync(kWholeWarp, segment_end_ > tile_idx_)) - 1;
    const uint32_t first_row = __shfl_sync(kWholeWarp, segment_.first_row, lane);
    const uint32_t num_rows = __shfl_sync(kWholeWarp, segment_.num_rows, lane);
    const uint32_t group = __shfl_sync(kWholeWarp, segment_.group, lane);
    const uint32_t segment_end = __shfl_sync(kWholeWarp, segment_end_, lane);
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

  /// Hands a tile over once its rows have arrived; false, and no tile, if they never do.
  __device__ __forceinline__ bool publish(const GroupedTile& tile, uint32_t flags) {
    const bool is_ready = wait_ready(tile);
    ring_.wait_empty();  // all roles have read the slot's last tile
    if (threadIdx.x % 32 == 0) {
      const uint32_t group = is_ready ? tile.group | flags : kNoTile;
      ptx::st_shared_v4_b32(slots_ + ring_.stage() * 16,
                            {tile.m_start, tile.n_start, tile.m_end, group});
      ring_.arrive_full();
    }
    ring_.advance();
    return is_ready;
  }

  /// Waits for the rows of a tile, each lane for one of its counters; false after the time-out,
  /// which is recorded. What the rows' writers have released is then acquired by the whole warp.
  __device__ __forceinline__ bool wait_ready(const GroupedTile& tile) const {
    if constexpr (!kConfig.waits_for_rows()) return true;
    if (params_.ready == nullptr || tile.group == kNoTile) return true;
    const uint32_t tile_end = min(tile.m_start + kConfig.block_m, tile.m_end);
    const CounterRange counters(params_, tile, tile.m_start, tile_end);
    const uint32_t counter = counters.first + threadIdx.x % 32;
    bool is_ready = true;
    if (counter <= counters.last) {
      const uint32_t expected = rows_of_counter(tile, counters.base + counter * kCounterRows);
      is_ready = wait_counter(counters.index + counter, expected);
    }
    ptx::bar_warp_sync();  // the others' acquires, ahead of lane 0's release to the roles
    return __all_sync(kWholeWarp, is_ready);
  }

  /// Rows that belong to groups among those of a counter that begins with row `begin`.
  __device__ __forceinline__ uint32_t rows_of_counter(const GroupedTile& tile,
                                                      uint32_t begin) const {
    uint32_t first = begin;
    uint32_t end = tile.m_end;
    if (params_.source == GroupSource::kOffsets) {
      first = max(begin, static_cast<uint32_t>(ptx::ld_global_s32(params_.groups)));
      end = static_cast<uint32_t>(ptx::ld_global_s32(params_.groups + params_.num_groups));
    }
    return min(begin + kCounterRows, end) - first;
  }

  __device__ __forceinline__ bool wait_counter(uint32_t index, uint32_t expected) const {
    const uint64_t start = ptx::globaltimer();
    while (true) {
      const uint32_t seen = load_counter(index);
      if (seen >= expected) return true;
      if (ptx::globaltimer() - start <= params_.ready_timeout_ns) continue;
      write_error(params_.errors, {DeviceErrorKind::kReadyTimeout, index,
                                   static_cast<int32_t>(seen), static_cast<int32_t>(expected)});
      return false;
    }
  }

  __device__ __forceinline__ uint32_t load_counter(uint32_t index) const {
    const uint32_t* counter = params_.ready + index;
    return params_.system_scope != 0 ? ptx::ld_acquire_sys_u32(counter)
                                     : ptx::ld_acquire_gpu_u32(counter);
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
  __device__ __forceinline__ bool is_last() const { return (read().group & kLastTile) != 0; }
  __device__ __forceinline__ GroupedTile tile() const {
    GroupedTile tile = read();
    tile.group &= ~kLastTile;
    return tile;
  }

  /// Gives the tile's slot back and turns to the next one.
  __device__ __forceinline__ void advance() {
    const bool was_last = is_last();
    if constexpr (kReader == Reader::kWarp) ptx::bar_warp_sync();  // all lanes have read
    ring_.release(ring_.stage());
    ring_.advance();
    has_tile_ = !was_last;
    if (has_tile_) take();
  }

 private:
  __device__ __forceinline__ void take() {
    ring_.wait_full();  // the scheduler has written the slot
    has_tile_ = read().group != kNoTile;
  }

  __device__ __forceinline__ GroupedTile read() const {
    uint32_t words[4];
    ptx::ld_shared_v4_b32(slots_ + ring_.stage() * 16, words);
    return {{words[0], words[1]}, words[2], words[3]};
  }

  TilePipeline ring_;
  uint32_t slots_;  // shared-window address
  bool has_tile_;
};

}  // namespace pykernels::gemm
