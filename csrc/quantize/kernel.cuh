// q = e4m3(x / scale), scale = amax / 448, over blocks of 1x128 or 128x128.       sm_90a
//
// Memory-bound: every value is read once, in 16-byte accesses, and stays in registers between the
// search for the greatest magnitude and the cast.
#pragma once

#include "core/scale.cuh"
#include "core/warp.cuh"
#include "ptx/barrier.cuh"
#include "ptx/control.cuh"
#include "quantize/cast.cuh"
#include "quantize/chunk.cuh"
#include "quantize/config.h"
#include "quantize/storage.cuh"

namespace pykernels::quantize {

enum class NamedBarrier : uint32_t { kAmax = 0 };

/// Where a thread's chunk begins and how many of its values exist.
struct ChunkPosition {
  uint32_t row;
  uint32_t column;
  uint32_t num_valid;

  __device__ __forceinline__ ChunkPosition(const QuantizeParams& params, uint32_t row,
                                           uint32_t k_block)
      : row(row), column(k_block * kBlockK + threadIdx.x % kThreadsPerRow * kChunk) {
    const uint32_t remaining = column < params.k ? params.k - column : 0;
    num_valid = row < params.m ? min(remaining, kChunk) : 0;
  }
};

/// The greatest of `value` over the CTA, in every thread.
template <QuantizeConfig kConfig>
__device__ __forceinline__ uint32_t max_over_cta(uint32_t value) {
  extern __shared__ __align__(16) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<kConfig>*>(smem_bytes);
  value = max_over_lanes<32>(value);
  if (threadIdx.x % 32 == 0) smem.warp_amax[threadIdx.x / 32] = value;
  // Every warp's word is there for all to read.
  ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kAmax), kConfig.num_threads());
#pragma unroll
  for (uint32_t warp = 0; warp < kConfig.num_threads() / 32; ++warp) {
    value = max(value, smem.warp_amax[warp]);
  }
  return value;
}

template <InputType kType>
__device__ __forceinline__ void load_chunk(const QuantizeParams& params, const ChunkPosition& at,
                                           Chunk<kType>& chunk) {
  const uint8_t* row = static_cast<const uint8_t*>(params.x) + at.row * params.x_row_bytes;
  chunk.load(row + uint64_t{at.column} * Chunk<kType>::kElementBytes, at.num_valid);
}

template <InputType kType>
__device__ __forceinline__ void store_chunk(const QuantizeParams& params, const ChunkPosition& at,
                                            const Chunk<kType>& chunk, const Divider& divider) {
  uint8_t* row = params.q + at.row * params.q_row_bytes;
  store_quotients(row + at.column, chunk, divider, at.num_valid);
}

__device__ __forceinline__ void store_scale(const QuantizeParams& params, uint32_t m_block,
                                            uint32_t k_block, float scale) {
  params.scales[m_block * params.scales_row_stride + k_block * params.scales_column_stride] = scale;
}

/// Eight neighbouring lanes take a 1x128 block. All lanes of a warp reduce, also those whose block
/// does not exist.
template <QuantizeConfig kConfig, InputType kType>
__device__ __forceinline__ void quantize_row_blocks(const QuantizeParams& params) {
  const uint32_t block = blockIdx.x * kConfig.blocks_per_cta() + threadIdx.x / kThreadsPerRow;
  const uint32_t row = block / params.k_blocks;  // at least m where the block does not exist
  const uint32_t k_block = block % params.k_blocks;
  const ChunkPosition at(params, row, k_block);
  Chunk<kType> chunk;
  load_chunk(params, at, chunk);

  const uint32_t amax_bits = max_over_lanes<kThreadsPerRow>(chunk.amax_bits());
  if (row >= params.m) return;
  const float scale = scale_of(amax_bits, params.scale_format);
  if (threadIdx.x % kThreadsPerRow == 0) store_scale(params, row, k_block, scale);
  store_chunk(params, at, chunk, Divider(scale));
}

/// The CTA takes a 128x128 block, every thread one chunk of each of its passes.
template <QuantizeConfig kConfig, InputType kType>
__device__ __forceinline__ void quantize_square_block(const QuantizeParams& params) {
  constexpr uint32_t kPasses = kConfig.block_m / kConfig.rows_per_pass();
  const uint32_t m_block = blockIdx.x / params.k_blocks;
  const uint32_t k_block = blockIdx.x % params.k_blocks;
  const uint32_t first_row = m_block * kConfig.block_m + threadIdx.x / kThreadsPerRow;

  Chunk<kType> chunks[kPasses];
  uint32_t amax_bits = 0;
#pragma unroll
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    const ChunkPosition at(params, first_row + pass * kConfig.rows_per_pass(), k_block);
    load_chunk(params, at, chunks[pass]);
  }
#pragma unroll
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    amax_bits = max(amax_bits, chunks[pass].amax_bits());
  }

  const float scale = scale_of(max_over_cta<kConfig>(amax_bits), params.scale_format);
  if (threadIdx.x == 0) store_scale(params, m_block, k_block, scale);
  const Divider divider(scale);
#pragma unroll
  for (uint32_t pass = 0; pass < kPasses; ++pass) {
    const ChunkPosition at(params, first_row + pass * kConfig.rows_per_pass(), k_block);
    store_chunk(params, at, chunks[pass], divider);
  }
}

template <QuantizeConfig kConfig, InputType kType>
__device__ __forceinline__ void quantize_blocks(const QuantizeParams& params) {
  if constexpr (kConfig.block_m == 1) {
    quantize_row_blocks<kConfig, kType>(params);
  } else {
    quantize_square_block<kConfig, kType>(params);
  }
}

template <QuantizeConfig kConfig>
__device__ __forceinline__ void quantize_body(const QuantizeParams& params) {
  ptx::griddepcontrol_wait();               // all threads, before any access to global memory
  ptx::griddepcontrol_launch_dependents();  // a CTA has one tile, which is also its last
  switch (params.input_type) {
    case InputType::kBfloat16:
      return quantize_blocks<kConfig, InputType::kBfloat16>(params);
    case InputType::kFloat16:
      return quantize_blocks<kConfig, InputType::kFloat16>(params);
    case InputType::kFloat32:
      return quantize_blocks<kConfig, InputType::kFloat32>(params);
  }
}

}  // namespace pykernels::quantize
