// The two ends of the ring: the producer fills stages by TMA, consumer warpgroups multiply them and
// promote every k tile into FP32 totals.
#pragma once

#include "core/tile.cuh"
#include "gemm/config.h"
#include "gemm/scheduler.cuh"
#include "gemm/storage.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/memory.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_e4m3.cuh"

namespace pykernels::gemm {

/// Producer thread: one stage for each k tile of the output tile. With clusters, each CTA loads its
/// share of the common rows of B into all of them.
template <GemmConfig kConfig>
__device__ __forceinline__ void load_tile(const GemmParams& params, SharedStorage<kConfig>& smem,
                                          GemmPipeline<kConfig>& pipeline, const Tile& tile) {
  for (uint32_t k_tile = 0; k_tile < params.num_k_tiles; ++k_tile, pipeline.advance()) {
    const uint32_t stage = pipeline.stage();
    const uint32_t full = pipeline.full_barrier();
    const uint32_t k_start = k_tile * kBlockK;
    pipeline.wait_empty();
    pipeline.expect_bytes(kConfig.stage_bytes());
    ptx::cp_async_bulk_tensor_2d_load(ptx::cvta_to_shared(smem.a[stage]), &params.map_a, k_start,
                                      tile.m_start, full);
    if constexpr (kConfig.cluster > 1) {
      constexpr uint32_t kRows = kConfig.block_n / kConfig.cluster;
      const uint32_t first_row = ptx::cluster_ctarank() * kRows;
      ptx::cp_async_bulk_tensor_2d_load_multicast(
          ptx::cvta_to_shared(smem.b[stage]) + first_row * kBlockK, &params.map_b, k_start,
          tile.n_start + first_row, full, (1 << kConfig.cluster) - 1);
    } else {
      ptx::cp_async_bulk_tensor_2d_load(ptx::cvta_to_shared(smem.b[stage]), &params.map_b, k_start,
                                        tile.n_start, full);
    }
  }
}

/// Scale factors of the k tiles of one output tile, for a consumer thread's two rows.
///
/// The four lanes of a quad hold the same two rows, so each of them loads and multiplies the
/// factors of another k tile, a group of four k tiles ahead, and the quad exchanges them by
/// shuffles. Rows beyond m repeat the last one: their products are never stored.
class ScaleLoader {
 public:
  static constexpr uint32_t kGroup = 4;  // k tiles, one a lane of the quad

  __device__ __forceinline__ explicit ScaleLoader(const GemmParams& params)
      : step_a_(kGroup * params.sfa_stride_k),
        step_b_(kGroup * params.sfb_stride_k),
        num_k_tiles_(params.num_k_tiles) {}

  /// Turns to an output tile and loads its first group.
  __device__ __forceinline__ void start(const GemmParams& params, const Tile& tile) {
    const uint32_t row = tile.m_start + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const uint32_t last_row = params.m - 1;
    k_tile_ = threadIdx.x % kGroup;
    const float* first_a = params.sfa + k_tile_ * params.sfa_stride_k;
    row_a_[0] = first_a + min(row, last_row) * params.sfa_stride_m;
    row_a_[1] = first_a + min(row + 8, last_row) * params.sfa_stride_m;
    row_b_ = params.sfb + k_tile_ * params.sfb_stride_k + tile.n_start / 128 * params.sfb_stride_n;
    load_group();
  }

  /// Turns to the next four k tiles, the first ones at the first call; load_group follows it.
  __device__ __forceinline__ void next_group() {
    scales_[0] = a_[0] * b_;
    scales_[1] = a_[1] * b_;
  }

  /// Loads the factors of the group after the current one.
  __device__ __forceinline__ void load_group() {
    if (k_tile_ < num_k_tiles_) {
      a_[0] = ptx::ld_global_f32(row_a_[0]);
      a_[1] = ptx::ld_global_f32(row_a_[1]);
      b_ = ptx::ld_global_f32(row_b_);
    }
    k_tile_ += kGroup;
    row_a_[0] += step_a_;
    row_a_[1] += step_a_;
    row_b_ += step_b_;
  }

  /// sfa * sfb of the thread's row 0 or 1 (8 further down) for k tile `i` of the group.
  __device__ __forceinline__ float scale(uint32_t row, uint32_t i) const {
    constexpr uint32_t kQuads = 0x1c1f;
    return __uint_as_float(ptx::shfl_sync_idx_b32(__float_as_uint(scales_[row]), i, kQuads));
  }

 private:
  int64_t step_a_;
  int64_t step_b_;
  uint32_t num_k_tiles_;
  uint32_t k_tile_;        // that this lane loads next
  const float* row_a_[2];  // its factors
  const float* row_b_;
  float a_[2] = {0.0f, 0.0f};  // factors on their way
  float b_ = 0.0f;
  float scales_[2];  // of the current group, this lane's k tile
};

/// FP32 registers of a consumer thread for its share of a 64 x block_n tile, in WGMMA's order:
/// element 4j + 2h + i is row lane / 4 + 8h of the warp's 16, column 8j + lane % 4 * 2 + i.
template <GemmConfig kConfig>
using Accumulator = float[kConfig.block_n / 2];

/// One WGMMA of the k tile: 32 of its columns, `kStep` of 4; the first one starts from zero.
template <GemmConfig kConfig, uint32_t kStep>
__device__ __forceinline__ void multiply_step(Accumulator<kConfig>& acc, uint64_t a, uint64_t b) {
  const uint64_t a_step = a + kStep * 2;  // 32 bytes, in units of 16
  const uint64_t b_step = b + kStep * 2;
  if constexpr (kStep == 0) {
    ptx::wgmma_m64k32_f32_e4m3_e4m3_scale_d_0(acc, a_step, b_step);
  } else {
    ptx::wgmma_m64k32_f32_e4m3_e4m3_scale_d_1(acc, a_step, b_step);
  }
}

/// acc = a * b of one k tile for the warpgroup's 64 rows, as one committed group. `a`, `b`:
/// descriptors of the operands.
template <GemmConfig kConfig>
__device__ __forceinline__ void multiply_k_tile(Accumulator<kConfig>& acc, uint64_t a, uint64_t b) {
  ptx::wgmma_fence();
  multiply_step<kConfig, 0>(acc, a, b);
  multiply_step<kConfig, 1>(acc, a, b);
  multiply_step<kConfig, 2>(acc, a, b);
  multiply_step<kConfig, 3>(acc, a, b);
  ptx::wgmma_commit_group();
}

/// total = fmaf(acc, scale of the row, total), of a completed group.
template <GemmConfig kConfig>
__device__ __forceinline__ void promote(Accumulator<kConfig>& acc, const float (&scale)[2],
                                        Accumulator<kConfig>& total) {
#pragma unroll
  for (uint32_t i = 0; i < kConfig.block_n / 2; ++i) {
    hold_uses(acc[i]);
    total[i] = fmaf(acc[i], scale[i / 2 % 2], total[i]);
  }
}

/// Consumer warpgroup: multiplies the k tiles of one output tile, its 64 rows.
///
/// Each k tile starts from zero in the tensor core, which keeps about 14 bits of a sum, and is
/// promoted in FP32: total = fmaf(acc, sfa * sfb, total). Two accumulators take turns, so that the
/// tensor core multiplies one k tile while the one before is promoted.
template <GemmConfig kConfig>
class TileMultiplier {
 public:
  __device__ __forceinline__ TileMultiplier(const SharedStorage<kConfig>& smem,
                                            GemmPipeline<kConfig>& pipeline, ScaleLoader& scales,
                                            Accumulator<kConfig>& total)
      : pipeline_(pipeline),
        scales_(scales),
        total_(total),
        a_(ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.a) +
                                        uniform(threadIdx.x / 128) * kWarpgroupRows * kBlockK)),
        b_(ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.b))) {}

  /// Turns to the next k tiles, at most ScaleLoader::kGroup: scale factors of theirs are at hand.
  __device__ __forceinline__ void next_group() { scales_.next_group(); }

  /// The four k tiles of a group.
  __device__ __forceinline__ void multiply_group() {
    Accumulator<kConfig> even, odd;
    const uint32_t stage_0 = issue(even);
    scales_.load_group();
    const uint32_t stage_1 = issue(odd);
    ptx::wgmma_wait_group<1>();  // all but the k tile just issued
    finish(even, stage_0, 0);
    const uint32_t stage_2 = issue(even);
    ptx::wgmma_wait_group<1>();
    finish(odd, stage_1, 1);
    const uint32_t stage_3 = issue(odd);
    ptx::wgmma_wait_group<1>();
    finish(even, stage_2, 2);
    ptx::wgmma_wait_group<0>();
    finish(odd, stage_3, 3);
  }

  /// k tile `i` of a group that is not full.
  __device__ __forceinline__ void multiply_single(uint32_t i) {
    Accumulator<kConfig> acc;
    const uint32_t stage = issue(acc);
    ptx::wgmma_wait_group<0>();
    finish(acc, stage, i);
  }

 private:
  /// Starts acc = a * b of the next k tile and returns its stage.
  __device__ __forceinline__ uint32_t issue(Accumulator<kConfig>& acc) {
    constexpr uint64_t kUnit = 16;  // bytes, of descriptor addresses
    const uint32_t stage = pipeline_.stage();
    pipeline_.wait_full();  // the stage's bytes have landed
    multiply_k_tile<kConfig>(acc, a_ + stage * (kConfig.block_m * kBlockK / kUnit),
                             b_ + stage * (kConfig.block_n * kBlockK / kUnit));
    pipeline_.advance();
    return stage;
  }

  /// After the wait for the k tile: acc is complete and its stage has been read.
  __device__ __forceinline__ void finish(Accumulator<kConfig>& acc, uint32_t stage, uint32_t i) {
    pipeline_.release(stage);
    const float scale[2] = {scales_.scale(0, i), scales_.scale(1, i)};
    promote<kConfig>(acc, scale, total_);
  }

  GemmPipeline<kConfig>& pipeline_;
  ScaleLoader& scales_;
  Accumulator<kConfig>& total_;
  uint64_t a_;  // descriptors of the first stage's operands
  uint64_t b_;
};

/// Consumer warpgroup: total = dequant(A) @ dequant(B).T of its 64 rows of the tile that `scales`
/// has started.
template <GemmConfig kConfig>
__device__ __forceinline__ void multiply_tile(uint32_t num_k_tiles,
                                              const SharedStorage<kConfig>& smem,
                                              GemmPipeline<kConfig>& pipeline, ScaleLoader& scales,
                                              Accumulator<kConfig>& total) {
#pragma unroll
  for (float& element : total) element = 0.0f;
  TileMultiplier<kConfig> multiplier(smem, pipeline, scales, total);
  for (; num_k_tiles >= ScaleLoader::kGroup; num_k_tiles -= ScaleLoader::kGroup) {
    multiplier.next_group();
    multiplier.multiply_group();
  }
  multiplier.next_group();
#pragma unroll 1
  for (uint32_t i = 0; i < num_k_tiles; ++i) multiplier.multiply_single(i);
}

}  // namespace pykernels::gemm
