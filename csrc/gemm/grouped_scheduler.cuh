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
        tile_idx_(cluster_idx<kConfig>(params)) {}

  __device__ __forceinline__ void run() {
    switch (params_.source) {
      case GroupSource::kOffsets:
        return find_tiles(OffsetWindows(params_));
      case GroupSource::kIndices:
        return find_tiles(IndexWindows(params_));
      case GroupSource::kMasked:
        return find_tiles(MaskedWindows(params_));
    }
  }

 private:
  template <typename Windows>
  __device__ __forceinline__ void find_tiles(Windows windows) {
    const uint32_t rows_of_tile = kConfig.block_m * params_.schedule.cluster_m;
    GroupedTile found{};  // published once it is known whether there is another one
    bool has_found = false;
    uint32_t first = 0;  // tiles ahead of the window
    Segment segment;
    while (windows.next(segment)) {
      const uint32_t tiles_m = (segment.num_rows + rows_of_tile - 1) / rows_of_tile;
      const uint32_t end = first + inclusive_sum(tiles_m * params_.num_tiles_n);
      const uint32_t window_end = __shfl_sync(kWholeWarp, end, 31);
      for (; tile_idx_ < window_end; tile_idx_ += params_.num_clusters) {
        if (has_found && !publish(found, 0)) return;
        found = tile_of(segment, tiles_m, end);
        has_found = true;
      }
      first = window_end;
    }
    if (!has_found) {
      found.group = kNoTile;
      put(found, 0);
    } else {
      publish(found, kLastTile);
    }
  }

  __device__ __forceinline__ static uint32_t inclusive_sum(uint32_t value) {
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t below = __shfl_up_sync(kWholeWarp, value, distance);
      if (threadIdx.x % 32 >= distance) value += below;
    }
    return value;
  }

  /// Tile `tile_idx_`, which lies in this window. `end`: behind the last tile of the lane's
  /// segment.
  __device__ __forceinline__ GroupedTile tile_of(const Segment& segment, uint32_t tiles_m,
                                                 uint32_t end) const {
    const uint32_t lane = __ffs(__ballot_sync(kWholeWarp, end > tile_idx_)) - 1;
    const uint32_t num_m = __shfl_sync(kWholeWarp, tiles_m, lane);
    const uint32_t first_row = __shfl_sync(kWholeWarp, segment.first_row, lane);
    const uint32_t num_rows = __shfl_sync(kWholeWarp, segment.num_rows, lane);
    const uint32_t group = __shfl_sync(kWholeWarp, segment.group, lane);
    const uint32_t segment_end = __shfl_sync(kWholeWarp, end, lane);
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
    const bool is_ready = params_.ready == nullptr || wait_ready(tile);
    GroupedTile published = tile;
    if (!is_ready) published.group = kNoTile;
    put(published, is_ready ? flags : 0);
    return is_ready;
  }

  __device__ __forceinline__ void put(const GroupedTile& tile, uint32_t flags) {
    ring_.wait_empty();  // all roles have read the slot's last tile
    if (threadIdx.x % 32 == 0) {
      const uint32_t words[4] = {tile.m_start, tile.n_start, tile.m_end, tile.group | flags};
      ptx::st_shared_v4_b32(slots_ + ring_.stage() * 16, words);
      ring_.arrive_full();
    }
    ring_.advance();
  }

  /// Waits for the rows of a tile, each lane for one of its counters; false after the time-out,
  /// which is recorded. What the rows' writers have released is then acquired by the whole warp.
  __device__ __forceinline__ bool wait_ready(const GroupedTile& tile) const {
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
    uint32_t seen = load_counter(index);
    if (seen >= expected) return true;
    const uint64_t start = ptx::globaltimer();
    while (seen < expected) {
      if (ptx::globaltimer() - start > params_.ready_timeout_ns) {
        ErrorReporter(params_.errors)
            .write({DeviceErrorKind::kReadyTimeout, index, static_cast<int32_t>(seen),
                    static_cast<int32_t>(expected)});
        return false;
      }
      seen = load_counter(index);
    }
    return true;
  }

  __device__ __forceinline__ uint32_t load_counter(uint32_t index) const {
    const uint32_t* counter = params_.ready + index;
    return params_.system_scope != 0 ? ptx::ld_acquire_sys_u32(counter)
                                     : ptx::ld_acquire_gpu_u32(counter);
  }

  const GroupedGemmParams& params_;
  TilePipeline ring_;
  uint32_t slots_;     // shared-window address
  uint32_t tile_idx_;  // of the cluster, among all groups' tiles
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
