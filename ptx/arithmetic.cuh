// Approximate functions of the special function unit. Pure register instructions: not volatile.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// ex2.approx.ftz.f32 d, a;      PTX 1.4, sm_10
///
/// 2 to the power of a, off by at most 2 units in the last place; subnormal operands and results
/// become zeros of the same sign. +0 for -infinity, +infinity from 128 on, NaN for NaN.
__device__ __forceinline__ float ex2_approx_ftz_f32(float a) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
  return d;
}

/// lg2.approx.ftz.f32 d, a;      PTX 1.4, sm_10
///
/// The logarithm of a to base 2, off by at most 2^-22, and for a below 0.5 or above 2 by at most
/// 2^-22 of the result; subnormal operands and results become zeros of the same sign. -infinity for
/// zero, +infinity for +infinity, NaN below zero and for NaN.
__device__ __forceinline__ float lg2_approx_ftz_f32(float a) {
  float d;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
  return d;
}

/// rcp.approx.ftz.f32 d, a;      PTX 1.4, sm_10
///
/// 1 / a, off by at most 1 unit in the last place; subnormal operands and results become zeros of
/// the same sign. +0 for +infinity, +infinity for +0, NaN for NaN.
__device__ __forceinline__ float rcp_approx_ftz_f32(float a) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
  return d;
}

}  // namespace pykernels::ptx
