// q, scales = 1x128 cast of silu(gate) * up, the halves of x's columns, for the rows of groups.
//                                                                                  sm_90a
// Memory-bound and persistent: every value is read once and stays in registers until it is cast;
// of rows that belong to no group nothing is read or written.
#pragma once

#include "core/scale.cuh"
#include "core/warp.cuh"
#include "ptx/arithmetic.cuh"
#include "ptx/control.cuh"
#include "quantize/cast.cuh"
#include "quantize/chunk.cuh"
#include "quantize/row_list.cuh"
#include "quantize/silu_mul_config.h"
#include "quantize/silu_mul_storage.cuh"

namespace pykernels::quantize {

/// gate / (1 + exp(-gate)) * up, with the special function unit's exponential and reciprocal.
__device__ __forceinline__ float silu_mul(float gate, float up) {
  constexpr float kMinusLog2E = -1.44269504088896340736f;
  const float exponential = ptx::ex2_approx_ftz_f32(__fmul_rn(gate, kMinusLog2E));
  const float sigmoid = ptx::rcp_approx_ftz_f32(__fadd_rn(1.0f, exponential));
  return __fmul_rn(__fmul_rn(gate, sigmoid), up);
}

/// 16 columns of a row: where they begin and how many of them exist.
struct SiluMulPosition {
  RowPosition row;
  uint32_t column;
  uint32_t num_valid;
};

/// Values behind the end of the row become zeros.
template <InputType kType>
__device__ __forceinline__ void load_silu_mul(const SiluMulQuantizeParams& params,
                                              const SiluMulPosition& at,
                                              Chunk<InputType::kFloat32>& y) {
  constexpr uint32_t kBytes = Chunk<kType>::kElementBytes;
  const uint8_t* row = static_cast<const uint8_t*>(params.x) + at.row.group * params.x_group_bytes +
                       at.row.row * params.x_row_bytes;
  const uint8_t* source = row + uint64_t{at.column} * kBytes;
  const uint8_t* up_source = source + uint64_t{params.columns} * kBytes;
  const bool is_aligned = params.columns % (16 / kBytes) == 0;  // the second half of the row
  Chunk<kType> gate;
  Chunk<kType> up;
  if (at.num_valid == kChunk && is_aligned) {
    gate.load_whole(source);
    up.load_whole(up_source);
  } else {
    gate.load_values(source, at.num_valid);
    up.load_values(up_source, at.num_valid);
  }
#pragma unroll
  for (uint32_t i = 0; i < kChunk; ++i) {
    y.words[i] = __float_as_uint(silu_mul(gate.value(i), up.value(i)));
  }
}

/// Eight neighbouring lanes take a block. All lanes of a warp reduce, also those whose block does
/// not exist: they stand at the last one, with no valid values.
template <SiluMulQuantizeConfig kConfig>
__device__ __forceinline__ void quantize_block(const SiluMulQuantizeParams& params,
                                               const RowList<kConfig>& rows, uint32_t block,
                                               uint32_t num_blocks) {
  const bool exists = block < num_blocks;
  block = exists ? block : num_blocks - 1;
  const uint32_t place = params.k_blocks.divide(block);
  const uint32_t k_block = block - place * params.k_blocks.divisor;
  SiluMulPosition at;
  at.row = rows.locate(place);
  at.column = k_block * kBlockK + threadIdx.x % kThreadsPerRow * kChunk;
  at.num_valid = exists && at.column < params.columns ? min(params.columns - at.column, kChunk) : 0;
  Chunk<InputType::kFloat32> y;
  if (params.input_type == InputType::kBfloat16) {
    load_silu_mul<InputType::kBfloat16>(params, at, y);
  } else if (params.input_type == InputType::kFloat16) {
    load_silu_mul<InputType::kFloat16>(params, at, y);
  } else {
    load_silu_mul<InputType::kFloat32>(params, at, y);
  }

  const uint32_t amax_bits = max_over_lanes<kThreadsPerRow>(y.amax_bits());
  if (!exists) return;
  const float scale = scale_of(amax_bits, params.scale_format);
  if (threadIdx.x % kThreadsPerRow == 0) {
    params.scales[at.row.group * params.scales_group_stride +
                  at.row.row * params.scales_row_stride + k_block * params.scales_column_stride] =
        scale;
  }
  uint8_t* q_row = params.q + at.row.group * params.q_group_bytes + at.row.row * params.q_row_bytes;
  store_quotients(q_row + at.column, y, Divider(scale), at.num_valid);
}

/// Four blocks to a warp and step. Neighbouring warps of the order lie in different CTAs, so that
/// few rows occupy all SMs.
template <SiluMulQuantizeConfig kConfig>
__device__ __forceinline__ void silu_mul_quantize_body(const SiluMulQuantizeParams& params) {
  extern __shared__ __align__(16) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<SiluMulStorage<kConfig>*>(smem_bytes);
  ptx::griddepcontrol_wait();  // all threads, before any access to global memory
  // All CTAs are resident by the time the last one gets here, so dependents take nothing from them.
  ptx::griddepcontrol_launch_dependents();

  const uint32_t warp = threadIdx.x / 32 * gridDim.x + blockIdx.x;
  const uint32_t step = kConfig.num_warps() * gridDim.x * kBlocksPerWarp;
  RowList<kConfig> rows(params, smem);
  while (rows.next()) {
    const uint32_t num_blocks = rows.num_rows() * params.k_blocks.divisor;
    for (uint32_t first = warp * kBlocksPerWarp; first < num_blocks; first += step) {
      quantize_block(params, rows, first + threadIdx.x % 32 / kThreadsPerRow, num_blocks);
    }
  }
}

}  // namespace pykernels::quantize
