// From a chunk of values to its bytes.
#pragma once

#include "core/scale.cuh"
#include "quantize/chunk.cuh"
#include "quantize/config.h"

namespace pykernels::quantize {

/// Writes the first `num_valid` values of the chunk, divided and rounded to e4m3.
template <InputType kType>
__device__ __forceinline__ void store_quotients(uint8_t* destination, const Chunk<kType>& chunk,
                                                const Divider& divider, uint32_t num_valid) {
  uint32_t words[kChunk / 4];
#pragma unroll
  for (uint32_t i = 0; i < kChunk / 4; ++i) {
    float values[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) values[j] = chunk.value(4 * i + j);
    words[i] = divider.cast_to_e4m3x4(values);
  }
  store_bytes(destination, words, num_valid);
}

}  // namespace pykernels::quantize
