// out, lse = the partial results of rows, merged by their log-sum-exps.               sm_90a
//
// A warp takes a slice of a row's columns, 16 bytes a lane of each state, several states in flight:
// memory-bound, and with many splits of few rows bound by latency, so that rows are shared among
// warps. States are added in their order and nothing else enters, so the bits of a row depend on
// its states alone.
#pragma once

#include "core/warp.cuh"
#include "mla/combine_config.h"
#include "ptx/arithmetic.cuh"
#include "ptx/control.cuh"
#include "ptx/convert.cuh"

namespace pykernels::mla {

/// 16 bytes of a row in one lane.
template <bool kIsFp32>
struct Columns {
  static constexpr uint32_t kCount = kIsFp32 ? 4 : 8;

  uint32_t words[4] = {0, 0, 0, 0};

  __device__ __forceinline__ void load(const uint8_t* source) {
    const uint4 vector = *reinterpret_cast<const uint4*>(source);
    words[0] = vector.x;
    words[1] = vector.y;
    words[2] = vector.z;
    words[3] = vector.w;
  }

  __device__ __forceinline__ float value(uint32_t i) const {
    if constexpr (kIsFp32) return __uint_as_float(words[i]);
    const uint32_t word = words[i / 2];
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
  }
};

/// The states of a row, the lane's columns of them, and where their result goes.
struct MergedRow {
  const uint8_t* outs;  // null: the lane has no columns
  const uint8_t* lses;
  uint8_t* out;
  uint8_t* lse;         // null: another warp writes it
  uint32_t num_states;  // 0: the row is left alone
};

__device__ __forceinline__ uint64_t row_offset(const RowStrides& strides, uint32_t request,
                                               uint32_t token, uint32_t head) {
  return request * strides.batch + token * strides.token + head * strides.head;
}

__device__ __forceinline__ MergedRow locate(const CombineParams& params, uint32_t unit) {
  const uint32_t row = params.slices.divide(unit);
  const uint32_t slice = unit - row * params.slices.divisor;
  const uint32_t token_index = params.num_heads.divide(row);
  const uint32_t head = row - token_index * params.num_heads.divisor;
  const uint32_t request = params.seqlen_q.divide(token_index);
  const uint32_t token = token_index - request * params.seqlen_q.divisor;

  uint32_t first_state = 0;
  MergedRow merged;
  merged.num_states = params.num_states;
  if (params.requests != nullptr) {
    const PlannedRequest planned = params.requests[request];
    merged.num_states = planned.num_splits > 1 ? static_cast<uint32_t>(planned.num_splits) : 0;
    first_state = static_cast<uint32_t>(planned.first_slot);
  }
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t column =
      slice * slice_columns(params.input_bytes) + lane * (16 / params.input_bytes);
  merged.outs = params.outs + first_state * params.outs_state_stride +
                row_offset(params.outs_strides, request, token, head) + column * params.input_bytes;
  if (column >= params.num_columns) merged.outs = nullptr;
  merged.lses = params.lses + first_state * params.lses_state_stride +
                row_offset(params.lses_strides, request, token, head);
  merged.out = params.out + row_offset(params.out_strides, request, token, head) +
               column * params.output_bytes;
  merged.lse = params.lse + row_offset(params.lse_strides, request, token, head);
  if (slice != 0 || lane != 0) merged.lse = nullptr;
  return merged;
}

__device__ __forceinline__ float load_lse(const CombineParams& params, const MergedRow& row,
                                          uint32_t state) {
  return *reinterpret_cast<const float*>(row.lses + state * params.lses_state_stride);
}

/// The greatest lse of a row that is a number, in all lanes; NaN shows in the weights.
__device__ __forceinline__ float max_lse(const CombineParams& params, const MergedRow& row) {
  float greatest = -INFINITY;
#pragma unroll 1
  for (uint32_t state = threadIdx.x % 32; state < row.num_states; state += 32) {
    greatest = fmaxf(greatest, load_lse(params, row, state));
  }
#pragma unroll
  for (uint32_t distance = 16; distance > 0; distance /= 2) {
    greatest = fmaxf(greatest, __shfl_xor_sync(kAllLanes, greatest, distance));
  }
  return greatest;
}

/// The sum of the weighted states, and in all lanes that of their weights.
///
/// A state of weight zero is not read: what has no tokens may hold anything.
template <bool kIsFp32>
__device__ __forceinline__ float add_states(const CombineParams& params, const MergedRow& row,
                                            float reference,
                                            float (&total)[Columns<kIsFp32>::kCount]) {
  constexpr float kLog2E = 1.44269504088896340736f;
  constexpr uint32_t kInFlight = 8;
  float weights = 0.0f;  // of the states whose number is the lane's, modulo 32
#pragma unroll 1
  for (uint32_t first = 0; first < row.num_states; first += 32) {
    const uint32_t state = first + threadIdx.x % 32;
    float weight = 0.0f;
    if (state < row.num_states) {
      const float difference = __fsub_rn(load_lse(params, row, state), reference);
      weight = ptx::ex2_approx_ftz_f32(__fmul_rn(difference, kLog2E));
    }
    weights = __fadd_rn(weights, weight);
    const uint32_t count = min(row.num_states - first, 32u);
#pragma unroll 1
    for (uint32_t i = 0; i < count; i += kInFlight) {
      float factors[kInFlight];
      Columns<kIsFp32> columns[kInFlight];
#pragma unroll
      for (uint32_t k = 0; k < kInFlight; ++k) {
        factors[k] = __shfl_sync(kAllLanes, weight, i + k);
        if (factors[k] != 0.0f && row.outs != nullptr) {
          columns[k].load(row.outs + (first + i + k) * params.outs_state_stride);
        }
      }
#pragma unroll
      for (uint32_t k = 0; k < kInFlight; ++k) {
#pragma unroll
        for (uint32_t c = 0; c < Columns<kIsFp32>::kCount; ++c) {
          total[c] = fmaf(factors[k], columns[k].value(c), total[c]);
        }
      }
    }
  }
#pragma unroll
  for (uint32_t distance = 16; distance > 0; distance /= 2) {
    weights = __fadd_rn(weights, __shfl_xor_sync(kAllLanes, weights, distance));
  }
  return weights;
}

template <uint32_t kCount>
__device__ __forceinline__ void store_columns(uint8_t* out, const float (&values)[kCount],
                                              uint32_t output_bytes) {
  if (output_bytes == 4) {
#pragma unroll
    for (uint32_t c = 0; c < kCount; c += 4) {
      reinterpret_cast<float4*>(out)[c / 4] =
          make_float4(values[c], values[c + 1], values[c + 2], values[c + 3]);
    }
    return;
  }
  uint32_t words[kCount / 2];
#pragma unroll
  for (uint32_t c = 0; c < kCount; c += 2) {
    words[c / 2] = ptx::cvt_rn_bf16x2_f32(values[c + 1], values[c]);
  }
  if constexpr (kCount == 4) {
    *reinterpret_cast<uint2*>(out) = make_uint2(words[0], words[1]);
  } else {
    *reinterpret_cast<uint4*>(out) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

template <bool kIsFp32>
__device__ __forceinline__ void merge_row(const CombineParams& params, const MergedRow& row) {
  constexpr float kLn2 = 0.69314718055994530942f;
  constexpr uint32_t kCount = Columns<kIsFp32>::kCount;
  const float greatest = max_lse(params, row);
  // Where no state has tokens, any number in the place of -infinity makes all weights zero.
  const float reference = greatest == -INFINITY ? 0.0f : greatest;
  float values[kCount] = {};
  const float weights = add_states<kIsFp32>(params, row, reference, values);
  const bool is_empty = weights == 0.0f;
  const float scale = is_empty ? 0.0f : __frcp_rn(weights);
#pragma unroll
  for (uint32_t c = 0; c < kCount; ++c) values[c] = __fmul_rn(values[c], scale);
  if (row.outs != nullptr) store_columns(row.out, values, params.output_bytes);
  if (row.lse != nullptr) {
    *reinterpret_cast<float*>(row.lse) =
        is_empty ? -INFINITY : fmaf(ptx::lg2_approx_ftz_f32(weights), kLn2, reference);
  }
}

template <CombineConfig kConfig>
constexpr uint32_t combine_body_shared_bytes() {
  return 0;
}

template <CombineConfig kConfig>
__device__ __forceinline__ void combine_body(const CombineParams& params) {
  ptx::griddepcontrol_wait();  // all threads, before any access to global memory
  ptx::griddepcontrol_launch_dependents();
#pragma unroll 1
  for (uint32_t unit = blockIdx.x * kConfig.num_warps() + threadIdx.x / 32; unit < params.num_units;
       unit += gridDim.x * kConfig.num_warps()) {
    const MergedRow row = locate(params, unit);
    if (row.num_states == 0) continue;
    if (params.input_bytes == 4) {
      merge_row<true>(params, row);
    } else {
      merge_row<false>(params, row);
    }
  }
}

}  // namespace pykernels::mla
