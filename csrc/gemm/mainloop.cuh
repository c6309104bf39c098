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
/// The four lanes of a quad hold the same two rows, so each of them loads and multiplies the factors
/// of another k tile, a group of four k tiles ahead, and the quad exchanges them by shuffles. Rows
/// beyond m repeat the last one: their products are never stored.
class ScaleLoader {
 public:
  static constexpr uint32_t kGroup = 4;  // k tiles, one a lane of the quad

  __device__ __forceinline__ ScaleLoader(const GemmParams& params, uint32_t row, uint32_t n_start)
      : step_a_(kGroup * params.sfa_stride_k),
        step_b_(kGroup * params.sfb_stride_k),
        k_tile_(threadIdx.x % kGroup),
        num_k_tiles_(params.num_k_tiles) {
    const uint32_t last_row = params.m - 1;
    const float* first_a = params.sfa + k_tile_ * params.sfa_stride_k;
    row_a_[0] = first_a + min(row, last_row) * params.sfa_stride_m;
    row_a_[1] = first_a + min(row + 8, last_row) * params.sfa_stride_m;
    row_b_ = params.sfb + k_tile_ * params.sfb_stride_k + n_start / 128 * params.sfb_stride_n;
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
  const float* row_a_[2];  // this lane's next factors
  const float* row_b_;
  int64_t step_a_;
  int64_t step_b_;
  uint32_t k_tile_;
  uint32_t num_k_tiles_;
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
  static_assert(kConfig.block_n == 64 || kConfig.block_n == 128);
  if constexpr (kConfig.block_n == 64 && kStep == 0) {
    ptx::wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_0(acc, a_step, b_step);
  } else if constexpr (kConfig.block_n == 64) {
    ptx::wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_1(acc, a_step, b_step);
  } else if constexpr (kStep == 0) {
    ptx::wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_0(acc, a_step, b_step);
  } else {
    ptx::wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_1(acc, a_step, b_step);
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

/// Consumer warpgroup: total = dequant(A) @ dequant(B).T of its 64 rows.
///
/// Each k tile starts from zero in the tensor core, which keeps about 14 bits of a sum, and is
/// scaled and added in FP32: total = fmaf(acc, sfa * sfb, total).
template <GemmConfig kConfig>
__device__ __forceinline__ void multiply_tile(const GemmParams& params,
                                              SharedStorage<kConfig>& smem,
                                              GemmPipeline<kConfig>& pipeline, const Tile& tile,
                                              Accumulator<kConfig>& total) {
  const uint32_t warpgroup_idx = uniform(threadIdx.x / 128);
  const uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;  // in the CTA's tile
  const uint64_t a_base = ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.a) +
                                                       warpgroup_idx * kWarpgroupRows * kBlockK);
  const uint64_t b_base = ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.b));
#pragma unroll
  for (float& element : total) element = 0.0f;
  if (params.num_k_tiles == 0) return;

  ScaleLoader scales(params, tile.m_start + row, tile.n_start);
  for (uint32_t k_tile = 0; k_tile < params.num_k_tiles; k_tile += ScaleLoader::kGroup) {
    scales.next_group();
#pragma unroll
    for (uint32_t i = 0; i < ScaleLoader::kGroup; ++i) {
      if (i > 0 && k_tile + i >= params.num_k_tiles) break;
      Accumulator<kConfig> acc;
      pipeline.wait_full();  // the stage's bytes have landed
      multiply_k_tile<kConfig>(acc, a_base + pipeline.stage() * (sizeof(smem.a[0]) / 16),
                               b_base + pipeline.stage() * (sizeof(smem.b[0]) / 16));
      const float scale[2] = {scales.scale(0, i), scales.scale(1, i)};
      if (i == 0) scales.load_group();
      ptx::wgmma_wait_group<0>();  // acc is complete, the stage has been read
      pipeline.release();
      promote<kConfig>(acc, scale, total);
      pipeline.advance();
    }
  }
}

}  // namespace pykernels::gemm
