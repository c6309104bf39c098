// Sixteen consecutive values of a row in one thread's registers: loading, unpacking, storing.
#pragma once

#include "core/bfloat16.cuh"
#include "core/words.cuh"
#include "ptx/convert.cuh"
#include "quantize/config.h"

namespace pykernels::quantize {

template <InputType kType>
struct Chunk {
  static constexpr uint32_t kElementBytes = kType == InputType::kFloat32 ? 4 : 2;
  static constexpr uint32_t kWords = kChunk * kElementBytes / 4;

  uint32_t words[kWords];

  /// The first `num_valid` (0 to 16) values from `source` on, a multiple of 16 bytes, and zeros
  /// behind them; past the end of a row nothing is read.
  __device__ __forceinline__ void load(const uint8_t* source, uint32_t num_valid) {
    if (num_valid == kChunk) {
      load_whole(source);
    } else {
      load_values(source, num_valid);
    }
  }

  /// All 16, in accesses of 16 bytes.
  __device__ __forceinline__ void load_whole(const uint8_t* source) {
    load_words<kWords>(source, words);
  }

  /// As `load`, value by value, from any element on.
  __device__ __forceinline__ void load_values(const uint8_t* source, uint32_t num_valid) {
#pragma unroll
    for (uint32_t i = 0; i < kWords; ++i) words[i] = 0;
#pragma unroll
    for (uint32_t i = 0; i < kChunk; ++i) {
      if (i >= num_valid) continue;
      if constexpr (kElementBytes == 4) {
        words[i] = reinterpret_cast<const uint32_t*>(source)[i];
      } else {
        words[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(source)[i]} << (i % 2 * 16);
      }
    }
  }

  __device__ __forceinline__ float value(uint32_t i) const {
    if constexpr (kType == InputType::kFloat32) {
      return __uint_as_float(words[i]);
    } else if constexpr (kType == InputType::kBfloat16) {
      return bfloat16_value(words[i / 2], i % 2);
    } else {
      return ptx::cvt_f32_f16(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
    }
  }

  /// The greatest magnitude as FP32 bits. In this order infinity comes after every number and NaN
  /// after infinity, so one comparison later finds blocks with either.
  __device__ __forceinline__ uint32_t amax_bits() const {
    uint32_t amax = 0;
#pragma unroll
    for (uint32_t i = 0; i < kChunk; ++i) {
      amax = max(amax, __float_as_uint(value(i)) & 0x7fffffffu);
    }
    return amax;
  }
};

/// Writes the first `num_valid` of 16 bytes, in one access where all are valid.
__device__ __forceinline__ void store_bytes(uint8_t* destination, const uint32_t (&words)[4],
                                            uint32_t num_valid) {
  if (num_valid == kChunk) {
    *reinterpret_cast<uint4*>(destination) = make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
#pragma unroll
  for (uint32_t i = 0; i < kChunk; ++i) {
    if (i < num_valid) destination[i] = static_cast<uint8_t>(words[i / 4] >> (i % 4 * 8));
  }
}

}  // namespace pykernels::quantize
