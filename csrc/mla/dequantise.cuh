// Cached FP8 values as BF16.
#pragma once

#include "ptx/convert.cuh"

namespace pykernels::mla {

/// Two e4m3 values, in the lower half of `codes`, times their scale: rounded to FP32, then to BF16.
__device__ __forceinline__ uint32_t dequantise(uint32_t codes, float scale) {
  const uint32_t pair = ptx::cvt_rn_f16x2_e4m3x2(static_cast<uint16_t>(codes));
  const float low = ptx::cvt_f32_f16(static_cast<uint16_t>(pair));
  const float high = ptx::cvt_f32_f16(static_cast<uint16_t>(pair >> 16));
  return ptx::cvt_rn_bf16x2_f32(__fmul_rn(high, scale), __fmul_rn(low, scale));
}

}  // namespace pykernels::mla
