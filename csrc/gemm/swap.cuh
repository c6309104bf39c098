// The roles of a kernel with A and B swapped: B's rows on WGMMA's m side, few rows of A on its n
// side. One thread of the producer warpgroup brings the operands by TMA, one of its warps the
// products of scale factors, the consumer warpgroups have 64 rows of B each.
#pragma once

#include "core/pipeline.cuh"
#include "core/tile.cuh"
#include "gemm/config.h"
#include "gemm/mainloop.cuh"
#include "gemm/places.cuh"
#include "gemm/scheduler.cuh"
#include "gemm/split.cuh"
#include "gemm/storage.cuh"
#include "gemm/swap_epilogue.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/control.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"

namespace pykernels::gemm {

/// Sets up all barriers of a CTA: a stage is full once its bytes and its scales are there. One
/// thread.
template <GemmConfig kConfig>
__device__ __forceinline__ void initialise_swapped(const GemmParams& params,
                                                   SharedStorage<kConfig>& smem) {
  constexpr uint32_t kNumProducers = 2;  // the TMA thread, the scale warp
  const ClusterPlace place(params);
  GemmPipeline<kConfig>::initialise(smem.barriers, kNumProducers, kConfig.num_consumer_warps(),
                                    place.peers());
  SplitReduction<kConfig>::initialise(smem, place.split);
}

/// TMA thread: fills the ring with the operands of this CTA's k tiles of all its tiles. Of a tile
/// of A that the cluster shares, each CTA loads its part into all of them.
template <GemmConfig kConfig, typename Scheduler>
__device__ __forceinline__ void load_operands(const Params<kConfig>& params,
                                              SharedStorage<kConfig>& smem,
                                              const ClusterPlace& place, Scheduler scheduler) {
  GemmPipeline<kConfig> pipeline(smem.barriers, place.peers());
  const uint32_t part_rows = kConfig.block_m / place.num_sharing;
  const uint32_t part = place.sharing_rank * part_rows;
  const uint32_t mask =
      place.num_sharing > 1 ? ((1 << place.num_sharing) - 1) << place.peers().first : 0;
  for (; scheduler.has_tile(); scheduler.advance()) {
    if constexpr (!kConfig.grouped) {
      if (scheduler.is_last()) ptx::griddepcontrol_launch_dependents();
    }
    const auto tile = scheduler.tile();
    take_ready_rows<kConfig>(params);
    for (uint32_t k_tile = place.first_k_tile; k_tile < place.end_k_tile; ++k_tile) {
      const uint32_t stage = pipeline.stage();
      const uint32_t full = pipeline.full_barrier();
      const uint32_t k_start = k_tile * kBlockK;
      const uint32_t a = ptx::cvta_to_shared(smem.a[stage]) + part * kBlockK;
      pipeline.wait_empty();
      pipeline.expect_bytes(kConfig.stage_bytes());
      load_b(params, tile, k_start, tile.n_start, {ptx::cvta_to_shared(smem.b[stage]), full, 0});
      load_a(params, tile, k_start, tile.m_start + part, {a, full, mask});
      pipeline.advance();
    }
  }
  if constexpr (kConfig.grouped) ptx::griddepcontrol_launch_dependents();  // the last is loading
  pipeline.drain();  // no peer signals this CTA any more
}

/// Scale warp: writes sfa * sfb of every row of A of a k tile beside the stage's operands. A tile's
/// rows of B belong to one block, so the products are the same for all of them.
///
/// The factors are loaded a group of k tiles ahead. Rows and blocks beyond m and n repeat the last
/// one: their products are never stored.
template <GemmConfig kConfig>
class ScaleWarp {
 public:
  __device__ __forceinline__ ScaleWarp(const Params<kConfig>& params, SharedStorage<kConfig>& smem,
                                       const ClusterPlace& place)
      : params_(params), smem_(smem), place_(place), pipeline_(smem.barriers, place.peers()) {}

  template <typename Scheduler>
  __device__ __forceinline__ void run(Scheduler scheduler) {
    for (; scheduler.has_tile(); scheduler.advance()) {
      write_tile(scheduler.tile());
    }
  }

 private:
  static constexpr uint32_t kRows = (kConfig.block_m + 31) / 32;  // of a lane

  template <typename Tile>
  __device__ __forceinline__ void write_tile(const Tile& tile) {
    uint32_t k_tile = place_.first_k_tile;
    const uint32_t end = place_.end_k_tile;
    if (k_tile == end) return;
#pragma unroll
    for (uint32_t i = 0; i < kRows; ++i) {
      const uint32_t last_row = row_end(params_, tile) - 1;
      // Lanes beyond the tile load one of its own rows again: the rows behind may not be ready.
      const uint32_t lane_row = (i * 32 + threadIdx.x % 32) % kConfig.block_m;
      const uint32_t row = min(tile.m_start + lane_row, last_row);
      row_a_[i] = sfa_of(params_, tile) + row * params_.sfa_stride_m;
    }
    const uint32_t block = min(tile.n_start, params_.n - 1) / kScaleRows;
    row_b_ = sfb_of(params_, tile) + block * params_.sfb_stride_n;
    load_group(k_tile, end);
    while (k_tile < end) {
      float products[kGroup][kRows];
#pragma unroll
      for (uint32_t i = 0; i < kGroup * kRows; ++i) {
        products[i / kRows][i % kRows] = a_[i / kRows][i % kRows] * b_[i / kRows];
      }
      load_group(k_tile + kGroup, end);
#pragma unroll
      for (uint32_t i = 0; i < kGroup; ++i) {
        if (k_tile + i < end) write_stage(products[i]);
      }
      k_tile += kGroup;
    }
  }

  /// Loads the factors of a group from `k_tile` on; behind the last k tile that one's again.
  __device__ __forceinline__ void load_group(uint32_t k_tile, uint32_t end) {
#pragma unroll
    for (uint32_t i = 0; i < kGroup; ++i) {
      const uint32_t k = min(k_tile + i, end - 1);
      b_[i] = load_scale(row_b_, k, params_.sfb_stride_k_bytes);
#pragma unroll
      for (uint32_t row = 0; row < kRows; ++row) {
        a_[i][row] = load_scale(row_a_[row], k, params_.sfa_stride_k_bytes);
      }
    }
  }

  __device__ __forceinline__ void write_stage(const float (&products)[kRows]) {
    const uint32_t scales = ptx::cvta_to_shared(smem_.scales[pipeline_.stage()]);
    pipeline_.wait_empty();  // the stage's last products have been read
#pragma unroll
    for (uint32_t i = 0; i < kRows; ++i) {
      const uint32_t row = i * 32 + threadIdx.x % 32;
      if (row < kConfig.block_m) ptx::st_shared_f32(scales + row * 4, products[i]);
    }
    ptx::bar_warp_sync();  // lane 0 hands over what all lanes have written
    if (threadIdx.x % 32 == 0) pipeline_.arrive_full();
    pipeline_.advance();
  }

  const Params<kConfig>& params_;
  SharedStorage<kConfig>& smem_;
  const ClusterPlace& place_;
  GemmPipeline<kConfig> pipeline_;
  const float* row_a_[kRows];
  const float* row_b_;
  float a_[kGroup][kRows];  // factors on their way
  float b_[kGroup];
};

/// Consumer warpgroup: total = dequant(B) @ dequant(A).T of its 64 rows of B over this CTA's k
/// tiles of one output tile.
template <GemmConfig kConfig>
__device__ __forceinline__ void multiply_swapped(uint32_t num_k_tiles, SharedStorage<kConfig>& smem,
                                                 GemmPipeline<kConfig>& pipeline,
                                                 Accumulator<kConfig>& total) {
  constexpr uint64_t kUnit = 16;  // bytes, of descriptor addresses
  const uint64_t b = ptx::descriptor_k_major_128b(
      ptx::cvta_to_shared(smem.b) + uniform(threadIdx.x / 128) * kWarpgroupRows * kBlockK);
  const uint64_t a = ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.a));
  // Of this thread's rows of A: 8j + lane % 4 * 2 + i.
  uint32_t first_scales = ptx::cvta_to_shared(smem.scales) + threadIdx.x % 4 * 8;
  hold_value(first_scales);
#pragma unroll
  for (float& element : total) element = 0.0f;
#pragma unroll 2
  for (; num_k_tiles > 0; --num_k_tiles, pipeline.advance()) {
    const uint32_t stage = pipeline.stage();
    Accumulator<kConfig> acc;
    pipeline.wait_full();  // the stage's bytes have landed, its scales are written
    multiply_k_tile<kConfig>(acc, b + stage * (kConfig.block_n * kBlockK / kUnit),
                             a + stage * (kConfig.block_m * kBlockK / kUnit), false);
    float scale[kConfig.block_m / 8][2];
    const uint32_t scales = first_scales + stage * kConfig.block_m * 4;
#pragma unroll
    for (uint32_t j = 0; j < kConfig.block_m / 8; ++j) {
      ptx::ld_shared_v2_f32(scales + j * 32, scale[j]);
    }
    ptx::wgmma_wait_group<0>();
    ptx::bar_warp_sync();  // all lanes have read the scales
    pipeline.release(stage);
#pragma unroll
    for (uint32_t i = 0; i < kConfig.block_m / 2; ++i) {
      hold_uses(acc[i]);
      total[i] = fmaf(acc[i], scale[i / 4][i % 2], total[i]);
    }
  }
}

/// Consumer warpgroup: multiplies, promotes, adds up and stores its 64 rows of B of all of the
/// CTA's tiles.
template <GemmConfig kConfig, typename Scheduler>
__device__ __forceinline__ void consume_swapped(const Params<kConfig>& params,
                                                SharedStorage<kConfig>& smem,
                                                const ClusterPlace& place, Scheduler scheduler) {
  GemmPipeline<kConfig> pipeline(smem.barriers, place.peers());
  SplitReduction<kConfig> reduction(smem, place);
  const SwapEpilogue<kConfig> epilogue(params, smem);
  const uint32_t num_k_tiles = place.end_k_tile - place.first_k_tile;
  for (; scheduler.has_tile(); scheduler.advance()) {
    Accumulator<kConfig> total;
    multiply_swapped<kConfig>(num_k_tiles, smem, pipeline, total);
    if constexpr (kConfig.has_split()) reduction.reduce(total, scheduler.is_last());
    epilogue.store_tile(scheduler.tile(), total, [&](uint32_t j) { return reduction.owns(j); });
  }
}

template <GemmConfig kConfig>
__device__ __forceinline__ void run_swapped(const GemmParams& params, SharedStorage<kConfig>& smem,
                                            const ClusterPlace& place,
                                            const TileScheduler<kConfig>& scheduler) {
  const uint32_t warp_idx = uniform(threadIdx.x / 32);  // the compiler sees no divergence below
  if (warp_idx < kConfig.num_consumer_warps()) {
    consume_swapped<kConfig>(params, smem, place, scheduler);
  } else if (warp_idx == kConfig.num_consumer_warps()) {
    if (threadIdx.x % 32 == 0) load_operands<kConfig>(params, smem, place, scheduler);
  } else if (warp_idx == kConfig.num_consumer_warps() + 1) {
    ScaleWarp<kConfig>(params, smem, place).run(scheduler);
  }
}

}  // namespace pykernels::gemm
