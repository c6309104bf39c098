// The online softmax in base 2: probabilities refer to a maximum that is raised only when it must.
#pragma once

#include "core/warp.cuh"
#include "mla/config.h"
#include "ptx/arithmetic.cuh"

namespace pykernels::mla {

/// What a row's maximum starts from, below all scores: finite, so that differences of it are.
inline constexpr float kNoMax = -3.0e38f;

/// By how much, in powers of two, scores may exceed the maximum that probabilities refer to:
/// these stay below 2^8, of which BF16 and FP32 keep as many bits as of values below 1. Raising it
/// means to multiply all of the output; so that happens in few blocks but the first.
inline constexpr float kMaxExcess = 8.0f;

/// The maximum to refer to from now on, for the greatest of new scores.
__device__ __forceinline__ float raised_max(float max, float greatest) {
  return greatest > __fadd_rn(max, kMaxExcess) ? greatest : max;
}

/// What results that refer to `from` are multiplied with to refer to `to`.
__device__ __forceinline__ float rescaling(float from, float to) {
  return ptx::ex2_approx_ftz_f32(__fsub_rn(from, to));
}

__device__ __forceinline__ float probability(float score, float scale_log2, float max) {
  return ptx::ex2_approx_ftz_f32(fmaf(score, scale_log2, -max));
}

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fffffff); }

/// The sum of a row's probabilities as it is used: NaN where a row saw tokens and yet has none. The
/// maximum is rounded, by more than exponentials of FP32 reach where scores pass some 2^31; up to
/// there, all probabilities share that error, which their sum takes out again.
__device__ __forceinline__ float checked_sum(float max, float sum) {
  return sum == 0.0f && max != kNoMax ? not_a_number() : sum;
}

/// Natural logarithm of sum times 2^max; -infinity for a row that saw no token.
__device__ __forceinline__ float log_sum_exp(float max, float sum) {
  constexpr float kLn2 = 0.693147180559945309f;
  if (sum == 0.0f) return minus_infinity();
  return __fmul_rn(__fadd_rn(max, ptx::lg2_approx_ftz_f32(sum)), kLn2);
}

/// What the output is multiplied with at the end; 0 for a row that saw no token.
__device__ __forceinline__ float normalisation(float sum) {
  return sum == 0.0f ? 0.0f : ptx::rcp_approx_ftz_f32(sum);
}

}  // namespace pykernels::mla
