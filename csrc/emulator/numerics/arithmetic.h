// Correctly rounded FP32, FP64, FP16 and BF16 operations with PTX's rounding modes, and documented
// stand-ins for its approximate functions. Pure functions; NaN results are canonical.
#pragma once

#include <bit>
#include <cstdint>

#include "emulator/numerics/convert.h"

namespace pykernels::emulator {

/// add, sub (negate b first), mul and div of FP32 patterns. ftz flushes subnormal inputs and
/// results.
uint32_t add_f32(uint32_t a, uint32_t b, Rounding rounding, bool ftz = false);
uint32_t mul_f32(uint32_t a, uint32_t b, Rounding rounding, bool ftz = false);
uint32_t div_f32(uint32_t a, uint32_t b, Rounding rounding, bool ftz = false);
uint32_t fma_f32(uint32_t a, uint32_t b, uint32_t c, Rounding rounding, bool ftz = false);
uint32_t sqrt_f32(uint32_t a, Rounding rounding, bool ftz = false);
inline uint32_t rcp_f32(uint32_t a, Rounding rounding, bool ftz = false) {
  return div_f32(0x3F800000u, a, rounding, ftz);
}

/// d[lane] = a[lane] * b[lane] + c[lane] for 32 lanes, rounded once to nearest; d may be one of the
/// others. With the host's FMA where it has one.
void fma_f32_lanes(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d);

double add_f64(double a, double b, Rounding rounding);
double mul_f64(double a, double b, Rounding rounding);
double div_f64(double a, double b, Rounding rounding);
double fma_f64(double a, double b, double c, Rounding rounding);
double sqrt_f64(double a, Rounding rounding);

/// FP16 and BF16 operations, rounded once to nearest even (PTX has no other mode for them).
uint32_t add_half(uint32_t a, uint32_t b, const FloatFormat& format);
uint32_t mul_half(uint32_t a, uint32_t b, const FloatFormat& format);
uint32_t fma_half(uint32_t a, uint32_t b, uint32_t c, const FloatFormat& format);

/// min and max: -0 is below +0; a NaN operand is ignored, or wins if `propagate_nan`.
uint32_t min_f32(uint32_t a, uint32_t b, bool propagate_nan = false);
uint32_t max_f32(uint32_t a, uint32_t b, bool propagate_nan = false);

/// .sat: clamps to [0, 1]; NaN becomes +0.
uint32_t saturate_f32(uint32_t a);

/// The .approx functions: computed in FP64 and rounded to nearest, so within 1 ulp of the exact
/// value, where the hardware is within the bounds of the PTX ISA (ex2 2 ulp, lg2 2^-22, rcp 1 ulp,
/// rsqrt 2^-22.4, sqrt 1 ulp, div 2 ulp, sin and cos 2^-20.5, tanh 2^-11). Compare by tolerance,
/// never bitwise. Special values are as the ISA says.
uint32_t ex2_approx(uint32_t a, bool ftz = false);
uint32_t lg2_approx(uint32_t a, bool ftz = false);
uint32_t rcp_approx(uint32_t a, bool ftz = false);
uint32_t rsqrt_approx(uint32_t a, bool ftz = false);
uint32_t sqrt_approx(uint32_t a, bool ftz = false);
uint32_t sin_approx(uint32_t a, bool ftz = false);
uint32_t cos_approx(uint32_t a, bool ftz = false);
uint32_t tanh_approx(uint32_t a);
/// div.approx: zero for 2^126 < |b| < 2^128 (NaN where a is infinite too), as the ISA says.
uint32_t div_approx(uint32_t a, uint32_t b, bool ftz = false);
/// div.full: the whole range.
uint32_t div_full(uint32_t a, uint32_t b, bool ftz = false);
/// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64: from and to the upper 32 bits, the lower ones zero.
double rcp_approx_f64(double a);
double rsqrt_approx_f64(double a);

}  // namespace pykernels::emulator
