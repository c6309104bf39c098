// Counters in global memory through which a grouped kernel overlaps with its neighbours: it waits
// for rows of A that another kernel is still writing, and tells which parts of D it has stored.
//
// A counter stands for kCounterRows rows: of all groups' rows together, or of each group's own
// where they are masked. `ready` counts rows, `done` kCounterColumns columns of a row.
#pragma once

#include "gemm/config.h"
#include "gemm/places.cuh"
#include "gemm/storage.cuh"
#include "ptx/address.cuh"
#include "ptx/atomic.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/fence.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"

namespace pykernels::gemm {

/// TMA thread, ahead of a tile's first load: what the scheduler warp has acquired for the tile, TMA
/// sees too.
template <GemmConfig kConfig>
__device__ __forceinline__ void take_ready_rows(const Params<kConfig>& params) {
  if constexpr (kConfig.waits_for_rows()) {
    if (params.ready != nullptr) ptx::fence_proxy_async_global();
  }
}

/// The counters of the rows of a tile, or of a part of it.
struct CounterRange {
  uint32_t base;   // row of A's map that the first counter of all begins with
  uint32_t index;  // of that counter
  uint32_t first;  // counters behind it
  uint32_t last;

  /// Of the rows from `begin` to `end` - 1; there is one at least.
  __device__ __forceinline__ CounterRange(const GroupedGemmParams& params, const GroupedTile& tile,
                                          uint32_t begin, uint32_t end)
      : base(tile.group * params.a_group_rows),
        index(tile.group * params.counters_per_group),
        first((begin - base) / kCounterRows),
        last((end - 1 - base) / kCounterRows) {}
};

/// Adds to the done counters what of D, `rows` rows from `begin` on and `columns` columns from
/// `n_start` on, this thread knows to be stored.
template <GemmConfig kConfig>
__device__ __forceinline__ void signal_done(const GroupedGemmParams& params,
                                            const GroupedTile& tile, uint32_t begin, uint32_t rows,
                                            uint32_t n_start, uint32_t columns) {
  const uint32_t end = min(begin + rows, tile.m_end);
  if (params.done == nullptr || begin >= end || n_start >= params.n) return;
  const uint32_t parts = min(columns, params.n - n_start) / kCounterColumns;
  const CounterRange counters(params, tile, begin, end);
#pragma unroll 1
  for (uint32_t i = counters.first; i <= counters.last; ++i) {
    const uint32_t counter_begin = counters.base + i * kCounterRows;
    const uint32_t stored = min(end, counter_begin + kCounterRows) - max(begin, counter_begin);
    uint32_t* counter = params.done + counters.index + i;
    if (params.system_scope != 0) {
      ptx::red_release_sys_add_u32(counter, stored * parts);
    } else {
      ptx::red_release_gpu_add_u32(counter, stored * parts);
    }
  }
}
template <GemmConfig kConfig>
__device__ __forceinline__ void signal_done(const GemmParams&, const Tile&, uint32_t, uint32_t,
                                            uint32_t, uint32_t) {}

/// Signals what a warpgroup's storing thread has handed to TMA once the stores are complete: before
/// the thread's next tile, so that it does not wait for them, or at the end. The tile waits in
/// shared memory, for which the main loop has no registers to spare.
template <GemmConfig kConfig>
class DoneSignal {
 public:
  __device__ __forceinline__ DoneSignal(const Params<kConfig>&, SharedStorage<kConfig>&) {}
  __device__ __forceinline__ void note(const Tile&, uint32_t) const {}
  __device__ __forceinline__ void wait_and_signal() const {}
  __device__ __forceinline__ void signal() const {}
};

template <GemmConfig kConfig>
  requires(kConfig.grouped)
class DoneSignal<kConfig> {
 public:
  __device__ __forceinline__ DoneSignal(const GroupedGemmParams& params,
                                        SharedStorage<kConfig>& smem)
      : params_(params),
        stored_(ptx::cvta_to_shared(smem.tiles.stored[threadIdx.x / 128 % kMaxWarpgroups])) {
    if (params_.done != nullptr && threadIdx.x % 128 == 0) note({{0, 0}, 0, 0}, 0);
  }

  /// The thread has issued and committed the stores of the tile's kWarpgroupRows rows from `begin`
  /// on.
  __device__ __forceinline__ void note(const GroupedTile& tile, uint32_t begin) const {
    if (params_.done == nullptr) return;
    ptx::st_shared_v4_b32(stored_, {begin, tile.n_start, tile.m_end, tile.group});
  }

  /// Waits for the stores that have been noted and signals them.
  __device__ __forceinline__ void wait_and_signal() const {
    if (params_.done == nullptr) return;
    ptx::cp_async_bulk_wait_group<0>();  // written, so that the release covers it
    signal();
  }

  /// Signals what has been noted, of which the thread knows that it is stored.
  __device__ __forceinline__ void signal() const {
    if (params_.done == nullptr) return;
    uint32_t words[4];
    ptx::ld_shared_v4_b32(stored_, words);
    const GroupedTile tile{{words[0], words[1]}, words[2], words[3]};
    signal_done<kConfig>(params_, tile, tile.m_start, kWarpgroupRows, tile.n_start,
                         kConfig.block_n);
  }

 private:
  const GroupedGemmParams& params_;
  uint32_t stored_;  // shared-window address
};

}  // namespace pykernels::gemm
