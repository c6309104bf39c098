// The two ends of the ring: the producer fills stages by TMA, consumer warpgroups multiply them and
// promote every k tile into FP32 totals.
#pragma once

#include "core/tile.cuh"
#include "gemm/config.h"
#include "gemm/places.cuh"
#include "gemm/storage.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/memory.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_e4m3.cuh"

namespace pykernels::gemm {

/// This CTA's part of a box of `kRows` rows at `tile` in shared memory: all rows, into this CTA; of
/// one that the cluster shares, its part of them, into all CTAs.
struct BoxPart {
  uint32_t first_row;
  Destination to;
};

template <GemmConfig kConfig, uint32_t kRows>
__device__ __forceinline__ BoxPart box_part(const uint8_t* tile, uint32_t full, bool is_shared) {
  const uint32_t address = ptx::cvta_to_shared(tile);
  if constexpr (kConfig.cluster > 1) {
    if (is_shared) {
      const uint32_t first_row = ptx::cluster_ctarank() * (kRows / kConfig.cluster);
      return {first_row, {address + first_row * kBlockK, full, (1 << kConfig.cluster) - 1}};
    }
  }
  return {0, {address, full, 0}};
}

/// Producer thread: one stage for each k tile of the output tile.
template <GemmConfig kConfig, typename Tile>
__device__ __forceinline__ void load_tile(const Params<kConfig>& params,
                                          SharedStorage<kConfig>& smem,
                                          GemmPipeline<kConfig>& pipeline, const Tile& tile) {
  for (uint32_t k_tile = 0; k_tile < params.num_k_tiles; ++k_tile, pipeline.advance()) {
    const uint32_t stage = pipeline.stage();
    const uint32_t full = pipeline.full_barrier();
    const uint32_t k_start = k_tile * kBlockK;
    pipeline.wait_empty();
    pipeline.expect_bytes(kConfig.stage_bytes());
    const BoxPart a =
        box_part<kConfig, kConfig.block_m>(smem.a[stage], full, params.schedule.cluster_n > 1);
    load_a(params, tile, k_start, tile.m_start + a.first_row, a.to);
    const BoxPart b =
        box_part<kConfig, kConfig.block_n>(smem.b[stage], full, params.schedule.cluster_m > 1);
    load_b(params, tile, k_start, tile.n_start + b.first_row, b.to);
  }
  if constexpr (kConfig.has_ring_of_groups()) {
    for (; pipeline.stage() % kGroup != 0; pipeline.advance()) {
      pipeline.wait_empty();
      pipeline.skip(kConfig.num_consumer_warps());
    }
  }
}

/// The scale factor of a k tile in a row of them.
__device__ __forceinline__ float load_scale(const float* row, uint32_t k_tile,
                                            uint32_t stride_bytes) {
  const auto* first = reinterpret_cast<const uint8_t*>(row);
  const uint64_t offset = static_cast<uint64_t>(k_tile) * stride_bytes;
  return ptx::ld_global_f32(reinterpret_cast<const float*>(first + offset));
}

/// Scale factors of the k tiles of one output tile, for a consumer thread's two rows and the one or
/// two blocks of B that the tile's columns belong to.
///
/// The four lanes of a quad hold the same two rows, so each of them loads and multiplies the
/// factors of another k tile, a group of four k tiles ahead, and the quad exchanges them by
/// shuffles. Rows and blocks beyond m and n repeat the last one: their products are never stored.
template <GemmConfig kConfig>
class ScaleLoader {
 public:
  static constexpr uint32_t kNumBlocks = kConfig.num_scale_blocks();

  __device__ __forceinline__ explicit ScaleLoader(const Params<kConfig>& params)
      : stride_a_(params.sfa_stride_k_bytes),
        stride_b_(params.sfb_stride_k_bytes),
        last_k_tile_(params.num_k_tiles - 1) {}

  /// Turns to an output tile and loads its first group.
  template <typename Tile>
  __device__ __forceinline__ void start(const Params<kConfig>& params, const Tile& tile) {
    const uint32_t row = tile.m_start + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const uint32_t last_row = row_end(params, tile) - 1;
    row_a_[0] = sfa_of(params, tile) + min(row, last_row) * params.sfa_stride_m;
    row_a_[1] = sfa_of(params, tile) + min(row + 8, last_row) * params.sfa_stride_m;
    const uint32_t last_block = (params.n - 1) / kScaleRows;
#pragma unroll
    for (uint32_t block = 0; block < kNumBlocks; ++block) {
      const uint32_t column = tile.n_start + block * (kConfig.block_n - 1);
      row_b_[block] =
          sfb_of(params, tile) + min(column / kScaleRows, last_block) * params.sfb_stride_n;
    }
    first_of_second_block_ = kScaleRows - tile.n_start % kScaleRows;
    k_tile_ = threadIdx.x % kGroup;
    if (params.num_k_tiles > 0) load_group();
  }

  /// Turns to the next four k tiles, the first ones at the first call; load_group follows it.
  __device__ __forceinline__ void next_group() {
#pragma unroll
    for (uint32_t block = 0; block < kNumBlocks; ++block) {
      scales_[block][0] = a_[0] * b_[block];
      scales_[block][1] = a_[1] * b_[block];
    }
  }

  /// Loads the factors of the group after the current one; behind the last k tile its own again.
  __device__ __forceinline__ void load_group() {
    const uint32_t k_tile = min(k_tile_, last_k_tile_);
    a_[0] = load_scale(row_a_[0], k_tile, stride_a_);
    a_[1] = load_scale(row_a_[1], k_tile, stride_a_);
#pragma unroll
    for (uint32_t block = 0; block < kNumBlocks; ++block) {
      b_[block] = load_scale(row_b_[block], k_tile, stride_b_);
    }
    k_tile_ += kGroup;
  }

  /// sfa * sfb of the thread's row 0 or 1 (8 further down) and a block, for k tile `i` of the
  /// group.
  __device__ __forceinline__ float scale(uint32_t block, uint32_t row, uint32_t i) const {
    constexpr uint32_t kQuads = 0x1c1f;
    return __uint_as_float(ptx::shfl_sync_idx_b32(__float_as_uint(scales_[block][row]), i, kQuads));
  }

  /// The tile's first column in its second block, block_n or more if all are in the first one.
  __device__ __forceinline__ uint32_t first_of_second_block() const {
    return first_of_second_block_;
  }

 private:
  uint32_t stride_a_;
  uint32_t stride_b_;
  uint32_t last_k_tile_;
  uint32_t k_tile_;        // that this lane loads next
  const float* row_a_[2];  // the thread's rows of factors
  const float* row_b_[kNumBlocks];
  float a_[2] = {0.0f, 0.0f};  // factors on their way
  float b_[kNumBlocks] = {};
  float scales_[kNumBlocks][2];  // of the current group, this lane's k tile
  uint32_t first_of_second_block_;
};

/// FP32 registers of a consumer thread for its share of a 64 x columns tile, in WGMMA's order:
/// element 4j + 2h + i is row lane / 4 + 8h of the warp's 16, column 8j + lane % 4 * 2 + i.
template <GemmConfig kConfig>
using Accumulator = float[kConfig.columns() / 2];

/// One WGMMA of the k tile: 32 of its columns, `kStep` of 4; the first one starts from zero.
/// `zero`: 0, if only one accumulator is there, in a way that the compiler does not know.
template <GemmConfig kConfig, uint32_t kStep>
__device__ __forceinline__ void multiply_step(Accumulator<kConfig>& acc, uint64_t a, uint64_t b,
                                              bool zero) {
  const uint64_t a_step = a + kStep * 2;  // 32 bytes, in units of 16
  const uint64_t b_step = b + kStep * 2;
  if constexpr (!kConfig.has_two_accumulators()) {
    ptx::wgmma_m64k32_f32_e4m3_e4m3(acc, a_step, b_step, kStep == 0 ? zero : true);
  } else if constexpr (kStep == 0) {
    ptx::wgmma_m64k32_f32_e4m3_e4m3_scale_d_0(acc, a_step, b_step);
  } else {
    ptx::wgmma_m64k32_f32_e4m3_e4m3_scale_d_1(acc, a_step, b_step);
  }
}

/// acc = a * b of one k tile for the warpgroup's 64 rows, as one committed group. `a`, `b`:
/// descriptors of the operands.
template <GemmConfig kConfig>
__device__ __forceinline__ void multiply_k_tile(Accumulator<kConfig>& acc, uint64_t a, uint64_t b,
                                                bool zero) {
  ptx::wgmma_fence();
  multiply_step<kConfig, 0>(acc, a, b, zero);
  multiply_step<kConfig, 1>(acc, a, b, zero);
  multiply_step<kConfig, 2>(acc, a, b, zero);
  multiply_step<kConfig, 3>(acc, a, b, zero);
  ptx::wgmma_commit_group();
}

/// total = fmaf(acc, scale of the row and of the column's block, total), of a completed group.
/// `kFirstOfSecond`: the tile's first column in its second block, 0 if only the run knows it.
template <GemmConfig kConfig, uint32_t kFirstOfSecond>
__device__ __forceinline__ void promote(Accumulator<kConfig>& acc,
                                        const ScaleLoader<kConfig>& scales, uint32_t k_tile,
                                        Accumulator<kConfig>& total) {
  constexpr uint32_t kNumBlocks = kConfig.num_scale_blocks();
  constexpr uint32_t kUnit = kConfig.column_unit();  // columns that are always of one block
  float scale[kNumBlocks][2];
#pragma unroll
  for (uint32_t block = 0; block < kNumBlocks; ++block) {
    scale[block][0] = scales.scale(block, 0, k_tile);
    scale[block][1] = scales.scale(block, 1, k_tile);
  }
#pragma unroll
  for (uint32_t column = 0; column < kConfig.block_n; column += kUnit) {
    float of_unit[2] = {scale[0][0], scale[0][1]};
    if constexpr (kNumBlocks > 1) {
      const uint32_t first_of_second =
          kFirstOfSecond > 0 ? kFirstOfSecond : scales.first_of_second_block();
      // The outer units are always of the first and of the last block.
      const bool is_last = column + kUnit == kConfig.block_n;
      if (is_last || (column > 0 && column >= first_of_second)) {
        of_unit[0] = scale[1][0];
        of_unit[1] = scale[1][1];
      }
    }
#pragma unroll
    for (uint32_t i = column / 2; i < (column + kUnit) / 2; ++i) {
      hold_uses(acc[i]);
      total[i] = fmaf(acc[i], of_unit[i / 2 % 2], total[i]);
    }
  }
}

/// Consumer warpgroup: multiplies the k tiles of one output tile, its 64 rows.
///
/// Each k tile starts from zero in the tensor core, which keeps about 14 bits of a sum, and is
/// promoted in FP32: total = fmaf(acc, sfa * sfb, total). Two accumulators take turns, so that the
/// tensor core multiplies one k tile while the one before is promoted. Where a warpgroup has no
/// registers for two, the other warpgroup's products fill the gap.
template <GemmConfig kConfig, uint32_t kFirstOfSecond>
class TileMultiplier {
 public:
  __device__ __forceinline__ TileMultiplier(const SharedStorage<kConfig>& smem,
                                            GemmPipeline<kConfig>& pipeline,
                                            ScaleLoader<kConfig>& scales,
                                            Accumulator<kConfig>& total)
      : pipeline_(pipeline),
        scales_(scales),
        total_(total),
        a_(ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.a) +
                                        uniform(threadIdx.x / 128) * kWarpgroupRows * kBlockK)),
        b_(ptx::descriptor_k_major_128b(ptx::cvta_to_shared(smem.b))) {
    if constexpr (!kConfig.has_two_accumulators()) {
#pragma unroll
      for (float& element : acc_) element = 0.0f;
    }
  }

  /// Turns to the next k tiles, at most kGroup: scale factors of theirs are at hand.
  __device__ __forceinline__ void next_group() { scales_.next_group(); }

  /// The four k tiles of a group.
  __device__ __forceinline__ void multiply_group() {
    if constexpr (kConfig.has_two_accumulators()) {
      Accumulator<kConfig> even, odd;
      const uint32_t stage_0 = issue<0>(even);
      scales_.load_group();
      const uint32_t stage_1 = issue<1>(odd);
      ptx::wgmma_wait_group<1>();  // all but the k tile just issued
      finish(even, stage_0, 0);
      const uint32_t stage_2 = issue<2>(even);
      ptx::wgmma_wait_group<1>();
      finish(odd, stage_1, 1);
      const uint32_t stage_3 = issue<3>(odd);
      ptx::wgmma_wait_group<1>();
      finish(even, stage_2, 2);
      ptx::wgmma_wait_group<0>();
      finish(odd, stage_3, 3);
    } else {
      const uint32_t stage_0 = issue<0>(acc_);
      scales_.load_group();
      complete(stage_0, 0);
      complete(issue<1>(acc_), 1);
      complete(issue<2>(acc_), 2);
      complete(issue<3>(acc_), 3);
    }
    if constexpr (kConfig.has_ring_of_groups()) pipeline_.template advance<kGroup>();
  }

  /// k tile `i` of a group that is not full.
  __device__ __forceinline__ void multiply_single(uint32_t i) {
    if constexpr (kConfig.has_two_accumulators()) {
      Accumulator<kConfig> acc;
      const uint32_t stage = issue<0>(acc);
      ptx::wgmma_wait_group<0>();
      finish(acc, stage, i);
    } else {
      complete(issue<0>(acc_), i);
    }
    if constexpr (kConfig.has_ring_of_groups()) pipeline_.advance();
  }

  /// Leaves out the stages up to the next group, as the producer does.
  __device__ __forceinline__ void skip_to_group() {
    if constexpr (kConfig.has_ring_of_groups()) {
#pragma unroll 1
      while (pipeline_.stage() % kGroup != 0) pipeline_.advance();
    }
  }

 private:
  /// Starts acc = a * b of the next k tile, `kInGroup` of those of a group, and returns its stage.
  template <uint32_t kInGroup>
  __device__ __forceinline__ uint32_t issue(Accumulator<kConfig>& acc) {
    constexpr uint64_t kUnit = 16;  // bytes, of descriptor addresses
    constexpr uint32_t kAhead = kConfig.has_ring_of_groups() ? kInGroup : 0;
    const uint32_t stage = pipeline_.stage() + kAhead;
    pipeline_.wait_full(kAhead);  // the stage's bytes have landed
    multiply_k_tile<kConfig>(acc, a_ + stage * (kConfig.block_m * kBlockK / kUnit),
                             b_ + stage * (kConfig.block_n * kBlockK / kUnit), zero_);
    if constexpr (!kConfig.has_ring_of_groups()) pipeline_.advance();
    return stage;
  }

  /// Waits for the k tile that the only accumulator belongs to.
  __device__ __forceinline__ void complete(uint32_t stage, uint32_t i) {
    ptx::wgmma_wait_group<0>();
    finish(acc_, stage, i);
  }

  /// After the wait for the k tile: acc is complete and its stage has been read.
  __device__ __forceinline__ void finish(Accumulator<kConfig>& acc, uint32_t stage, uint32_t i) {
    pipeline_.release(stage);
    promote<kConfig, kFirstOfSecond>(acc, scales_, i, total_);
  }

  GemmPipeline<kConfig>& pipeline_;
  ScaleLoader<kConfig>& scales_;
  Accumulator<kConfig>& total_;
  Accumulator<kConfig> acc_;  // where there is only one
  bool zero_ = gridDim.y == 0;
  uint64_t a_;  // descriptors of the first stage's operands
  uint64_t b_;
};

/// The k tiles of one output tile, added to totals of zero.
template <GemmConfig kConfig, uint32_t kFirstOfSecond>
__device__ __forceinline__ void multiply_k_tiles(uint32_t num_k_tiles,
                                                 const SharedStorage<kConfig>& smem,
                                                 GemmPipeline<kConfig>& pipeline,
                                                 ScaleLoader<kConfig>& scales,
                                                 Accumulator<kConfig>& total) {
  TileMultiplier<kConfig, kFirstOfSecond> multiplier(smem, pipeline, scales, total);
  for (; num_k_tiles >= kGroup; num_k_tiles -= kGroup) {
    multiplier.next_group();
    multiplier.multiply_group();
  }
  multiplier.next_group();
#pragma unroll 1
  for (uint32_t i = 0; i < num_k_tiles; ++i) multiplier.multiply_single(i);
  multiplier.skip_to_group();
}

/// Consumer warpgroup: total = dequant(A) @ dequant(B).T of its 64 rows of the tile that `scales`
/// has started.
template <GemmConfig kConfig>
__device__ __forceinline__ void multiply_tile(uint32_t num_k_tiles,
                                              const SharedStorage<kConfig>& smem,
                                              GemmPipeline<kConfig>& pipeline,
                                              ScaleLoader<kConfig>& scales,
                                              Accumulator<kConfig>& total) {
#pragma unroll
  for (float& element : total) element = 0.0f;
  constexpr uint32_t kUnit = kConfig.column_unit();
  if constexpr (!kConfig.has_two_loops()) {
    multiply_k_tiles<kConfig, 0>(num_k_tiles, smem, pipeline, scales, total);
  } else if (scales.first_of_second_block() == kUnit) {
    multiply_k_tiles<kConfig, kUnit>(num_k_tiles, smem, pipeline, scales, total);
  } else {
    multiply_k_tiles<kConfig, 2 * kUnit>(num_k_tiles, smem, pipeline, scales, total);
  }
}

}  // namespace pykernels::gemm
