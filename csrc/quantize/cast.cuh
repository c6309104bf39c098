// From a chunk of values to its bytes: the maximum over a block's lanes, division and cast.
#pragma once

#include "ptx/convert.cuh"
#include "quantize/chunk.cuh"
#include "quantize/config.h"
#include "quantize/scale.cuh"

namespace pykernels::quantize {

/// The greatest of `value` over groups of `kLanes` neighbouring lanes, in each of them.
template <uint32_t kLanes>
__device__ __forceinline__ uint32_t max_over_lanes(uint32_t value) {
#pragma unroll
  for (uint32_t distance = kLanes / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

/// Writes the first `num_valid` values of the chunk, divided and rounded to e4m3.
template <InputType kType>
__device__ __forceinline__ void store_quotients(uint8_t* destination, const Chunk<kType>& chunk,
                                                const Divider& divider, uint32_t num_valid) {
  uint32_t words[kChunk / 4];
#pragma unroll
  for (uint32_t i = 0; i < kChunk / 4; ++i) {
    float quotients[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) quotients[j] = divider.divide(chunk.value(4 * i + j));
    const uint32_t low = ptx::cvt_rn_satfinite_e4m3x2_f32(quotients[1], quotients[0]);
    const uint32_t high = ptx::cvt_rn_satfinite_e4m3x2_f32(quotients[3], quotients[2]);
    words[i] = low | high << 16;
  }
  store_bytes(destination, words, num_valid);
}

}  // namespace pykernels::quantize
