// BF16 values as the halves of words.
#pragma once

#include <cstdint>

#include "ptx/types.cuh"

namespace pykernels {

/// The value in bits 15:0 (`index` 0) or 31:16 (1), exact.
__device__ __forceinline__ float bfloat16_value(uint32_t word, uint32_t index) {
  return __uint_as_float(index == 0 ? word << 16 : word & 0xffff0000u);
}

}  // namespace pykernels
