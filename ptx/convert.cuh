// Conversions between floating-point formats. Pure register instructions: not volatile.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// cvt.rn.bf16x2.f32 d, a, b;      PTX 7.8, sm_90
///
/// Two FP32 values rounded to nearest even and packed: `high` in bits 31:16, `low` in 15:0.
__device__ __forceinline__ uint32_t cvt_rn_bf16x2_f32(float high, float low) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// cvt.rn.satfinite.e4m3x2.f32 d, a, b;      PTX 7.8, sm_89
///
/// Two FP32 values rounded to nearest even e4m3 and packed: `high` in bits 15:8, `low` in 7:0.
/// Magnitudes above 448, infinities too, become 448; NaN becomes 0x7f.
__device__ __forceinline__ uint16_t cvt_rn_satfinite_e4m3x2_f32(float high, float low) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

/// cvt.rn.f16x2.e4m3x2 d, a;      PTX 7.8, sm_89
///
/// The two e4m3 values of `pair` as FP16, exact: that of bits 15:8 in bits 31:16.
__device__ __forceinline__ uint32_t cvt_rn_f16x2_e4m3x2(uint16_t pair) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
  return halves;
}

/// cvt.f32.f16 d, a;      PTX 1.0, sm_53
///
/// The FP16 value as FP32, exact. `half`: its 16 bits.
__device__ __forceinline__ float cvt_f32_f16(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

}  // namespace pykernels::ptx
