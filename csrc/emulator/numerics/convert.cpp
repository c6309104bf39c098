// Conversions of convert.h through exact integer significands.

#include "emulator/numerics/convert.h"

#include <cmath>
#include <limits>

namespace pykernels::emulator {
namespace {

constexpr int kF64FractionBits = 52;
constexpr int kF64Bias = 1023;

/// floor(value / 2^shift), rounded up by one unit as the mode says. shift is at least 0.
uint64_t shift_rounded(uint64_t value, int shift, bool negative, Rounding rounding) {
  if (shift == 0) return value;
  const bool beyond = shift > 63;
  const uint64_t kept = beyond ? 0 : value >> shift;
  const uint64_t rest = beyond ? value : value & ((uint64_t{1} << shift) - 1);
  if (rest == 0) return kept;
  switch (rounding) {
    case Rounding::kRz:
      return kept;
    case Rounding::kRm:
      return kept + (negative ? 1 : 0);
    case Rounding::kRp:
      return kept + (negative ? 0 : 1);
    case Rounding::kRn:
    case Rounding::kRna:
      break;
  }
  if (beyond && shift > 64) return kept;  // less than half of a unit
  const uint64_t half = uint64_t{1} << (shift - 1);
  if (rest != half) return kept + (rest > half ? 1 : 0);
  return kept + (rounding == Rounding::kRna ? 1 : kept & 1);
}

/// The code for a magnitude too large for the format.
uint32_t overflowed(const FloatFormat& format, bool negative, const ConvertOptions& options) {
  if (options.satfinite) return format.max_finite();
  const bool stays_finite = options.rounding == Rounding::kRz ||
                            (options.rounding == Rounding::kRm && !negative) ||
                            (options.rounding == Rounding::kRp && negative);
  if (stays_finite) return format.max_finite();
  return format.has_infinity ? format.infinity() : format.canonical_nan();
}

/// significand * 2^unit_exponent, not zero, as the magnitude code of the format.
uint32_t encode_magnitude(uint64_t significand, int unit_exponent, bool negative,
                          const FloatFormat& format, const ConvertOptions& options) {
  const int leading = 63 - std::countl_zero(significand);
  const int min_exponent = 1 - format.bias();
  const int exponent =
      leading + unit_exponent < min_exponent ? min_exponent : leading + unit_exponent;
  // One unit of the result is 2^(exponent - fraction_bits).
  const int shift = exponent - format.fraction_bits - unit_exponent;
  const uint64_t kept = shift >= 0 ? shift_rounded(significand, shift, negative, options.rounding)
                                   : significand << -shift;
  // Adding, not or-ing: the leading bit carries into the exponent field, and so does a rounding up.
  const int64_t field = exponent - min_exponent;
  const uint64_t code = (static_cast<uint64_t>(field) << format.fraction_bits) + kept;
  if (code > format.max_finite()) return overflowed(format, negative, options);
  return static_cast<uint32_t>(code);
}

}  // namespace

uint32_t encode(double value, const FloatFormat& format, ConvertOptions options) {
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const bool negative = bits >> 63 != 0;
  const int field = static_cast<int>(bits >> kF64FractionBits & 0x7FF);
  const uint64_t fraction = bits & ((uint64_t{1} << kF64FractionBits) - 1);
  if (field == 0x7FF && fraction != 0) return format.canonical_nan();
  if (options.relu && negative) return 0;
  const uint32_t sign = negative ? format.sign_bit() : 0;
  if (field == 0x7FF) {
    if (options.satfinite) return sign | format.max_finite();
    return format.has_infinity ? sign | format.infinity() : format.canonical_nan();
  }
  const uint64_t significand = field == 0 ? fraction : fraction | uint64_t{1} << kF64FractionBits;
  if (significand == 0) return sign;
  const int unit_exponent = (field == 0 ? 1 : field) - kF64Bias - kF64FractionBits;
  return sign | encode_magnitude(significand, unit_exponent, negative, format, options);
}

double decode(uint32_t bits, const FloatFormat& format) {
  const uint32_t magnitude = bits & (format.sign_bit() - 1);
  const bool negative = (bits & format.sign_bit()) != 0;
  double value;
  if (magnitude > (format.has_infinity ? format.infinity() : format.max_finite())) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  if (format.has_infinity && magnitude == format.infinity()) {
    value = std::numeric_limits<double>::infinity();
  } else {
    const int field = static_cast<int>(magnitude >> format.fraction_bits);
    const uint32_t fraction = magnitude & ((1u << format.fraction_bits) - 1);
    const uint32_t significand = field == 0 ? fraction : fraction | 1u << format.fraction_bits;
    value =
        std::ldexp(significand, (field == 0 ? 1 : field) - format.bias() - format.fraction_bits);
  }
  return negative ? -value : value;
}

uint32_t f32_to_tf32(float value, ConvertOptions options) {
  const uint32_t code = encode(value, kFormatTf32, options);
  return code == kFormatTf32.canonical_nan() ? 0x7FFFFFFFu : code << 13;
}

uint32_t f16_to_f32(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7FFFu;
  if (magnitude > 0x7C00u) return 0x7FFFFFFFu;
  if (magnitude == 0x7C00u) return sign | 0x7F800000u;
  // The fields moved up are the value times 2^-112; a product with a power of two is exact.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return sign | std::bit_cast<uint32_t>(scaled);
}

uint32_t e4m3_to_f16(uint32_t bits) {
  if ((bits & 0x7Fu) == 0x7Fu) return 0x7FFFu;
  return encode(decode(bits, kFormatE4m3), kFormatF16);
}

uint32_t e5m2_to_f16(uint32_t bits) {
  return (bits & 0x7Fu) > 0x7Cu ? 0x7FFFu : (bits & 0xFFu) << 8;
}

uint32_t f64_to_f32(double value, Rounding rounding, bool ftz) {
  const uint32_t bits = encode(value, kFormatF32, {rounding});
  return ftz ? flush_f32(bits) : bits;
}

double round_to_integral(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::kRz:
      return std::trunc(value);
    case Rounding::kRm:
      return std::floor(value);
    case Rounding::kRp:
      return std::ceil(value);
    case Rounding::kRna:
      return std::round(value);
    case Rounding::kRn:
      break;
  }
  if (!(std::fabs(value) < 0x1p52)) return value;
  // Ties to even, and independent of the host's rounding mode: what is left after floor is exact.
  const double below = std::floor(value);
  const double rest = value - below;
  const bool up = rest > 0.5 || (rest == 0.5 && std::fmod(below, 2.0) != 0.0);
  return std::copysign(up ? below + 1.0 : below, value);
}

uint64_t float_to_integer(double value, Rounding rounding, int bits, bool is_signed,
                          bool source_is_f64) {
  const uint64_t top = uint64_t{1} << (bits - 1);
  if (std::isnan(value)) {
    if (!source_is_f64 && bits < 64) return 0;
    return is_signed && bits < 64 ? ~uint64_t{0} << (bits - 1) : top;
  }
  const double whole = round_to_integral(value, rounding);
  const double limit = std::ldexp(1.0, is_signed ? bits - 1 : bits);
  if (is_signed) {
    if (whole >= limit) return top - 1;
    if (whole < -limit) return ~uint64_t{0} << (bits - 1);
    return static_cast<uint64_t>(static_cast<int64_t>(whole));
  }
  if (whole >= limit) return top | (top - 1);
  return whole <= 0.0 ? 0 : static_cast<uint64_t>(whole);
}

uint32_t integer_to_float(uint64_t value, bool is_signed, const FloatFormat& format,
                          Rounding rounding) {
  const bool negative = is_signed && value >> 63 != 0;
  const uint64_t magnitude = negative ? 0 - value : value;
  if (magnitude == 0) return 0;
  const uint32_t sign = negative ? format.sign_bit() : 0;
  return sign | encode_magnitude(magnitude, 0, negative, format, {rounding});
}

double integer_to_f64(uint64_t value, bool is_signed, Rounding rounding) {
  const bool negative = is_signed && value >> 63 != 0;
  const uint64_t magnitude = negative ? 0 - value : value;
  const int excess = 64 - std::countl_zero(magnitude) - (kF64FractionBits + 1);
  const int shift = excess > 0 ? excess : 0;
  const double rounded =
      std::ldexp(static_cast<double>(shift_rounded(magnitude, shift, negative, rounding)), shift);
  return negative ? -rounded : rounded;
}

}  // namespace pykernels::emulator
