// The scale factor of an FP8 block, and the cast of its values. Every operation is correctly
// rounded.
#pragma once

#include "core/scale_format.h"
#include "ptx/convert.cuh"
#include "ptx/types.cuh"

namespace pykernels {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr uint32_t kInfinityBits = 0x7f800000u;
inline constexpr uint32_t kNanBits = 0x7fc00000u;
inline constexpr uint32_t kUe8m0MinBits = 0x00400000u;  // 2^-127, an FP32 subnormal

/// amax / 448 or the power of two above it; 1 where that is zero; NaN for infinity and NaN.
__device__ __forceinline__ float scale_of(uint32_t amax_bits, ScaleFormat format) {
  if (amax_bits >= kInfinityBits) return __uint_as_float(kNanBits);
  const float scale = __fdiv_rn(__uint_as_float(amax_bits), kE4m3Max);
  const uint32_t bits = __float_as_uint(scale);
  if (bits == 0) return 1.0f;
  if (format == ScaleFormat::kFp32) return scale;
  if (bits <= kUe8m0MinBits) return __uint_as_float(kUe8m0MinBits);
  return __uint_as_float((bits + 0x007fffffu) & kInfinityBits);
}

/// x / scale rounded to nearest, for all x of a block: the reciprocal is formed once, then a
/// quotient takes six operations instead of the dozen of div.rn.
///
/// The product x * (1 / scale) is off by less than 2 units in the last place; each of two steps
/// subtracts the exact remainder (fmaf) times the reciprocal, as in div.rn itself, and the second
/// one rounds correctly. Remainders are exact where they are no subnormals: small scales are
/// brought up by 2^64 together with x, and an x below scale * 2^-11 becomes a zero e4m3 anyhow. The
/// remainder is taken as quotient * scale - x, so that a zero keeps its sign.
struct Divider {
  float lift;
  float scale;
  float reciprocal;

  __device__ __forceinline__ explicit Divider(float block_scale)
      : lift(block_scale < 0x1p-64f ? 0x1p64f : 1.0f),
        scale(__fmul_rn(block_scale, lift)),
        reciprocal(__fdiv_rn(1.0f, scale)) {}

  __device__ __forceinline__ float divide(float x) const {
    const float lifted = __fmul_rn(x, lift);
    float quotient = __fmul_rn(lifted, reciprocal);
    quotient = fmaf(fmaf(quotient, scale, -lifted), -reciprocal, quotient);
    return fmaf(fmaf(quotient, scale, -lifted), -reciprocal, quotient);
  }

  /// Four values divided and rounded to e4m3, the first one in bits 7:0.
  __device__ __forceinline__ uint32_t cast_to_e4m3x4(const float (&values)[4]) const {
    float quotients[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) quotients[i] = divide(values[i]);
    const uint32_t low = ptx::cvt_rn_satfinite_e4m3x2_f32(quotients[1], quotients[0]);
    const uint32_t high = ptx::cvt_rn_satfinite_e4m3x2_f32(quotients[3], quotients[2]);
    return low | high << 16;
  }
};

}  // namespace pykernels
