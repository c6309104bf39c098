// The two ends of the ring: the producer fills stages by TMA, consumer warpgroups multiply them and
// promote every k tile into FP32 totals.
#pragma once

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

/// The scale factors of one k tile that a thread needs: its two rows of A and the tile's rows of B.
struct ScaleFactors {
  float a[2];
  float b;
};

/// Walks the scale tensors, of any strides, along k. Rows beyond m repeat the last one: their
/// products are zeros that are never stored.
class ScaleLoader {
 public:
  __device__ __forceinline__ ScaleLoader(const GemmParams& params, uint32_t row, uint32_t n_start)
      : stride_a_(params.sfa_stride_k), stride_b_(params.sfb_stride_k) {
    const uint32_t last_row = params.m - 1;
    a_[0] = params.sfa + min(row, last_row) * params.sfa_stride_m;
    a_[1] = params.sfa + min(row + 8, last_row) * params.sfa_stride_m;
    b_ = params.sfb + n_start / 128 * params.sfb_stride_n;
  }

  __device__ __forceinline__ ScaleFactors next() {
    const ScaleFactors factors = {{ptx::ld_global_f32(a_[0]), ptx::ld_global_f32(a_[1])},
                                  ptx::ld_global_f32(b_)};
    a_[0] += stride_a_;
    a_[1] += stride_a_;
    b_ += stride_b_;
    return factors;
  }

 private:
  const float* a_[2];
  const float* b_;
  int64_t stride_a_;
  int64_t stride_b_;
};

/// FP32 registers of a consumer thread for its share of a 64 x block_n tile, in WGMMA's order:
/// element 4j + 2h + i is row lane / 4 + 8h of the warp's 16, column 8j + lane % 4 * 2 + i.
template <GemmConfig kConfig>
using Accumulator = float[kConfig.block_n / 2];

/// acc = a * b of one k tile for the warpgroup's 64 rows, as one committed group.
template <GemmConfig kConfig>
__device__ __forceinline__ void multiply_k_tile(Accumulator<kConfig>& acc, uint64_t a, uint64_t b) {
  constexpr uint32_t kStep = 32 / 16;  // 32 bytes of k, in units of 16
  ptx::wgmma_fence();
  if constexpr (kConfig.block_n == 64) {
    ptx::wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_0(acc, a, b);
    ptx::wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_1(acc, a + kStep, b + kStep);
    ptx::wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_1(acc, a + 2 * kStep, b + 2 * kStep);
    ptx::wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_1(acc, a + 3 * kStep, b + 3 * kStep);
  } else {
    static_assert(kConfig.block_n == 128);
    ptx::wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_0(acc, a, b);
    ptx::wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_1(acc, a + kStep, b + kStep);
    ptx::wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_1(acc, a + 2 * kStep, b + 2 * kStep);
    ptx::wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_1(acc, a + 3 * kStep, b + 3 * kStep);
  }
  ptx::wgmma_commit_group();
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
  const uint32_t warpgroup_idx = threadIdx.x / 128;
  const uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;  // in the CTA's tile
  const uint64_t a_base =
      ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.a) +
                                   warpgroup_idx * kWarpgroupRows * kBlockK);
  const uint64_t b_base = ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.b));
#pragma unroll
  for (float& element : total) element = 0.0f;
  if (params.num_k_tiles == 0) return;

  ScaleLoader loader(params, tile.m_start + row, tile.n_start);
  ScaleFactors next_factors = loader.next();
  for (uint32_t k_tile = 0; k_tile < params.num_k_tiles; ++k_tile, pipeline.advance()) {
    const ScaleFactors factors = next_factors;
    Accumulator<kConfig> acc;
    pipeline.wait_full();  // the stage's bytes have landed
    multiply_k_tile<kConfig>(acc, a_base + pipeline.stage() * (sizeof(smem.a[0]) / 16),
                             b_base + pipeline.stage() * (sizeof(smem.b[0]) / 16));
    if (k_tile + 1 < params.num_k_tiles) next_factors = loader.next();
    ptx::wgmma_wait_group<0>();  // acc is complete, the stage has been read
    pipeline.release();
    const float scale[2] = {factors.a[0] * factors.b, factors.a[1] * factors.b};
#pragma unroll
    for (uint32_t i = 0; i < kConfig.block_n / 2; ++i) {
      asm volatile("" : "+f"(acc[i])::"memory");
      total[i] = fmaf(acc[i], scale[i / 2 % 2], total[i]);
    }
  }
}

}  // namespace pykernels::gemm
