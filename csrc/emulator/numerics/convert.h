// Conversions between floating-point formats, and from and to integers, with PTX's rounding modes
// and special values. Pure functions on bit patterns; nothing here knows the machine.
#pragma once

#include <bit>
#include <cstdint>

namespace pykernels::emulator {

enum class Rounding : uint8_t {
  kRn,   // to nearest, ties to even
  kRz,   // toward zero
  kRm,   // toward minus infinity
  kRp,   // toward plus infinity
  kRna,  // to nearest, ties away from zero
};

/// A binary format of at most 32 bits: sign, exponent field, fraction.
struct FloatFormat {
  int exponent_bits;
  int fraction_bits;
  bool has_infinity;  // else the topmost code is NaN and the one below it the largest number

  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr uint32_t sign_bit() const { return 1u << (exponent_bits + fraction_bits); }
  constexpr uint32_t canonical_nan() const { return sign_bit() - 1; }
  constexpr uint32_t infinity() const { return ((1u << exponent_bits) - 1) << fraction_bits; }
  constexpr uint32_t max_finite() const {
    return has_infinity ? infinity() - 1 : canonical_nan() - 1;
  }
};

inline constexpr FloatFormat kFormatF32{8, 23, true};
inline constexpr FloatFormat kFormatTf32{8, 10, true};  // 19 bits; PTX keeps them in the upper ones
inline constexpr FloatFormat kFormatBf16{8, 7, true};
inline constexpr FloatFormat kFormatF16{5, 10, true};
inline constexpr FloatFormat kFormatE5m2{5, 2, true};
inline constexpr FloatFormat kFormatE4m3{4, 3, false};

/// How a conversion treats what its format does not hold.
struct ConvertOptions {
  Rounding rounding = Rounding::kRn;
  bool satfinite = false;  // beyond the largest number, and infinities: the largest number
  bool relu = false;       // negative: +0
};

/// Rounds to the format. NaN becomes the canonical NaN (all ones below the sign).
uint32_t encode(double value, const FloatFormat& format, ConvertOptions options = {});

/// Exact. NaN becomes a quiet NaN.
double decode(uint32_t bits, const FloatFormat& format);

// ---- FP32 to narrower formats ----

inline uint32_t f32_to_f16(float value, ConvertOptions options = {}) {
  return encode(value, kFormatF16, options);
}

inline uint32_t f32_to_bf16(float value, ConvertOptions options = {}) {
  return encode(value, kFormatBf16, options);
}

/// The common cvt.rn.bf16.f32 without a branch, on bit patterns, for loops over lanes.
constexpr uint32_t f32_to_bf16_rn(uint32_t bits) {
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FFFu : rounded;
}

/// cvt.rn.satfinite.e4m3x2.f32, one element.
inline uint32_t f32_to_e4m3(float value, bool relu = false) {
  return encode(value, kFormatE4m3, {Rounding::kRn, true, relu});
}

/// cvt.rn.satfinite.e5m2x2.f32, one element.
inline uint32_t f32_to_e5m2(float value, bool relu = false) {
  return encode(value, kFormatE5m2, {Rounding::kRn, true, relu});
}

/// An FP32 pattern whose 13 lower bits are zero (cvt.{rna,rn,rz}.tf32.f32); NaN is 0x7FFFFFFF.
uint32_t f32_to_tf32(float value, ConvertOptions options);

// ---- narrow formats to wider ones ----

inline uint32_t bf16_to_f32(uint32_t bits) { return bits << 16; }  // keeps the payload of a NaN
uint32_t f16_to_f32(uint32_t bits);                                // NaN is 0x7FFFFFFF
uint32_t e4m3_to_f16(uint32_t bits);                               // exact; NaN is 0x7FFF
uint32_t e5m2_to_f16(uint32_t bits);

// ---- FP64 ----

/// cvt.{rn,rz,rm,rp}.f32.f64; ftz flushes a subnormal result.
uint32_t f64_to_f32(double value, Rounding rounding, bool ftz = false);

// ---- integers ----

/// A whole number as the rounding mode says (cvt.rni.f32.f32 and so on); NaN and infinities stay.
double round_to_integral(double value, Rounding rounding);

/// cvt.{rni,rzi,rmi,rpi} to an integer of `bits` bits. Out of range saturates. NaN gives 0, or only
/// the top bit set where source or destination has 64 bits, as PTX says. The result is sign- or
/// zero-extended to 64 bits.
uint64_t float_to_integer(double value, Rounding rounding, int bits, bool is_signed,
                          bool source_is_f64);

/// A 64-bit integer (already extended) rounded to the format, or to FP64.
uint32_t integer_to_float(uint64_t value, bool is_signed, const FloatFormat& format,
                          Rounding rounding);
double integer_to_f64(uint64_t value, bool is_signed, Rounding rounding);

// ---- flushing and NaN ----

constexpr bool is_nan_f32(uint32_t bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

/// Subnormals become zeros of their sign.
constexpr uint32_t flush_f32(uint32_t bits) {
  return (bits & 0x7F800000u) == 0 ? bits & 0x80000000u : bits;
}

/// The one NaN that FP32 instructions produce.
constexpr uint32_t canonical_f32(uint32_t bits) { return is_nan_f32(bits) ? 0x7FFFFFFFu : bits; }

inline uint32_t canonical_f32(float value) { return canonical_f32(std::bit_cast<uint32_t>(value)); }

}  // namespace pykernels::emulator
