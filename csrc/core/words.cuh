// Words between registers and global memory, in accesses of 16 bytes.
#pragma once

#include <cstdint>

#include "ptx/types.cuh"

namespace pykernels {

/// `kNumWords` (a multiple of 4) words from `source` on, a multiple of 16 bytes.
template <uint32_t kNumWords>
__device__ __forceinline__ void load_words(const uint8_t* source, uint32_t* words) {
#pragma unroll
  for (uint32_t i = 0; i < kNumWords; i += 4) {
    const uint4 vector = *reinterpret_cast<const uint4*>(source + 4 * i);
    words[i] = vector.x;
    words[i + 1] = vector.y;
    words[i + 2] = vector.z;
    words[i + 3] = vector.w;
  }
}

/// The inverse.
template <uint32_t kNumWords>
__device__ __forceinline__ void store_words(uint8_t* destination, const uint32_t* words) {
#pragma unroll
  for (uint32_t i = 0; i < kNumWords; i += 4) {
    *reinterpret_cast<uint4*>(destination + 4 * i) =
        make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
  }
}

}  // namespace pykernels
