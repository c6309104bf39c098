// FP32, FP64, FP16 and BF16 operations of arithmetic.h.
//
// Directed rounding goes through the host's rounding mode; volatile operands keep the compiler from
// moving or folding the operation across the mode change.

#include "emulator/numerics/arithmetic.h"

#include <cfenv>
#include <cmath>
#include <limits>

namespace pykernels::emulator {
namespace {

int host_rounding(Rounding rounding) {
  switch (rounding) {
    case Rounding::kRz:
      return FE_TOWARDZERO;
    case Rounding::kRm:
      return FE_DOWNWARD;
    case Rounding::kRp:
      return FE_UPWARD;
    case Rounding::kRn:
    case Rounding::kRna:
      break;
  }
  return FE_TONEAREST;
}

/// The host's rounding mode for one scope.
class ScopedRounding {
 public:
  explicit ScopedRounding(Rounding rounding) : saved_(std::fegetround()) {
    std::fesetround(host_rounding(rounding));
  }
  ~ScopedRounding() { std::fesetround(saved_); }
  ScopedRounding(const ScopedRounding&) = delete;
  ScopedRounding& operator=(const ScopedRounding&) = delete;

 private:
  int saved_;
};

float from_bits(uint32_t bits, bool ftz = false) {
  return std::bit_cast<float>(ftz ? flush_f32(bits) : bits);
}

uint32_t to_bits(float value, bool ftz = false) {
  const uint32_t bits = canonical_f32(value);
  return ftz ? flush_f32(bits) : bits;
}

/// Applies `operation` to operands that the compiler cannot see through.
template <typename Value, typename Operation>
Value rounded(Rounding rounding, Value a, Value b, Value c, Operation operation) {
  volatile Value x = a;
  volatile Value y = b;
  volatile Value z = c;
  if (rounding == Rounding::kRn) return operation(x, y, z);
  const ScopedRounding scope(rounding);
  volatile Value result = operation(x, y, z);
  return result;
}

template <typename Operation>
uint32_t rounded_f32(Rounding rounding, bool ftz, uint32_t a, uint32_t b, uint32_t c,
                     Operation operation) {
  return to_bits(
      rounded(rounding, from_bits(a, ftz), from_bits(b, ftz), from_bits(c, ftz), operation), ftz);
}

/// a + b with the lowest bit set if the sum is inexact (round to odd): rounding it again to a
/// format that is at least two bits narrower is rounding the exact sum once. All finite, no
/// overflow.
double add_to_odd(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  const uint64_t bits = std::bit_cast<uint64_t>(sum);
  if (error == 0.0 || (bits & 1) != 0) return sum;
  // The exact sum lies next to an even pattern: one up or down makes it the odd one on the right
  // side.
  const bool away_from_zero = (error > 0.0) == (sum > 0.0);
  return std::bit_cast<double>(away_from_zero ? bits + 1 : bits - 1);
}

double add_exactly_enough(double a, double b) {
  return std::isfinite(a) && std::isfinite(b) ? add_to_odd(a, b) : a + b;
}

/// Result of an approximate function: rounded to nearest, flushed where asked.
uint32_t approximate(double value, bool ftz) { return f64_to_f32(value, Rounding::kRn, ftz); }

/// Fewer bits for the functions that read and write only the upper half of an FP64.
double upper_half(double value) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(value) & 0xFFFFFFFF00000000u);
}

double flush_f64(double value) {
  return std::fabs(value) < std::numeric_limits<double>::min() ? std::copysign(0.0, value) : value;
}

}  // namespace

uint32_t add_f32(uint32_t a, uint32_t b, Rounding rounding, bool ftz) {
  return rounded_f32(rounding, ftz, a, b, 0, [](float x, float y, float) { return x + y; });
}

uint32_t mul_f32(uint32_t a, uint32_t b, Rounding rounding, bool ftz) {
  return rounded_f32(rounding, ftz, a, b, 0, [](float x, float y, float) { return x * y; });
}

uint32_t div_f32(uint32_t a, uint32_t b, Rounding rounding, bool ftz) {
  return rounded_f32(rounding, ftz, a, b, 0, [](float x, float y, float) { return x / y; });
}

uint32_t fma_f32(uint32_t a, uint32_t b, uint32_t c, Rounding rounding, bool ftz) {
  // The product is exact in FP64; the sum, rounded to odd, is rounded once more to FP32.
  const double product = static_cast<double>(from_bits(a, ftz)) * from_bits(b, ftz);
  const double addend = from_bits(c, ftz);
  if (!std::isfinite(product) || !std::isfinite(addend)) {
    return canonical_f32(static_cast<float>(product + addend));
  }
  if (product == -addend) {  // an exact zero: its sign depends on the mode
    const auto term = static_cast<float>(addend);
    const float opposite = std::copysign(term, static_cast<float>(product));
    return add_f32(std::bit_cast<uint32_t>(term), std::bit_cast<uint32_t>(opposite), rounding, ftz);
  }
  return f64_to_f32(add_to_odd(product, addend), rounding, ftz);
}

uint32_t sqrt_f32(uint32_t a, Rounding rounding, bool ftz) {
  return rounded_f32(rounding, ftz, a, 0, 0, [](float x, float, float) { return std::sqrt(x); });
}

double add_f64(double a, double b, Rounding rounding) {
  return rounded(rounding, a, b, 0.0, [](double x, double y, double) { return x + y; });
}

double mul_f64(double a, double b, Rounding rounding) {
  return rounded(rounding, a, b, 0.0, [](double x, double y, double) { return x * y; });
}

double div_f64(double a, double b, Rounding rounding) {
  return rounded(rounding, a, b, 0.0, [](double x, double y, double) { return x / y; });
}

double fma_f64(double a, double b, double c, Rounding rounding) {
  return rounded(rounding, a, b, c, [](double x, double y, double z) { return std::fma(x, y, z); });
}

double sqrt_f64(double a, Rounding rounding) {
  return rounded(rounding, a, 0.0, 0.0, [](double x, double, double) { return std::sqrt(x); });
}

uint32_t add_half(uint32_t a, uint32_t b, const FloatFormat& format) {
  return encode(add_exactly_enough(decode(a, format), decode(b, format)), format);
}

uint32_t mul_half(uint32_t a, uint32_t b, const FloatFormat& format) {
  return encode(decode(a, format) * decode(b, format), format);
}

uint32_t fma_half(uint32_t a, uint32_t b, uint32_t c, const FloatFormat& format) {
  const double product = decode(a, format) * decode(b, format);
  return encode(add_exactly_enough(product, decode(c, format)), format);
}

uint32_t min_f32(uint32_t a, uint32_t b, bool propagate_nan) {
  if (is_nan_f32(a) || is_nan_f32(b)) {
    if (propagate_nan || (is_nan_f32(a) && is_nan_f32(b))) return 0x7FFFFFFFu;
    return is_nan_f32(a) ? b : a;
  }
  if (from_bits(a) == from_bits(b)) return a | b;  // -0 if one is
  return from_bits(a) < from_bits(b) ? a : b;
}

uint32_t max_f32(uint32_t a, uint32_t b, bool propagate_nan) {
  if (is_nan_f32(a) || is_nan_f32(b)) {
    if (propagate_nan || (is_nan_f32(a) && is_nan_f32(b))) return 0x7FFFFFFFu;
    return is_nan_f32(a) ? b : a;
  }
  if (from_bits(a) == from_bits(b)) return a & b;
  return from_bits(a) > from_bits(b) ? a : b;
}

uint32_t saturate_f32(uint32_t a) {
  const float value = from_bits(a);
  if (!(value > 0.0f)) return 0;  // NaN, negatives and both zeros
  return value >= 1.0f ? 0x3F800000u : a;
}

uint32_t ex2_approx(uint32_t a, bool ftz) {
  return approximate(std::exp2(static_cast<double>(from_bits(a, ftz))), ftz);
}

uint32_t lg2_approx(uint32_t a, bool ftz) {
  return approximate(std::log2(static_cast<double>(from_bits(a, ftz))), ftz);
}

uint32_t rcp_approx(uint32_t a, bool ftz) {
  return approximate(1.0 / static_cast<double>(from_bits(a, ftz)), ftz);
}

uint32_t rsqrt_approx(uint32_t a, bool ftz) {
  return approximate(1.0 / std::sqrt(static_cast<double>(from_bits(a, ftz))), ftz);
}

uint32_t sqrt_approx(uint32_t a, bool ftz) {
  return approximate(std::sqrt(static_cast<double>(from_bits(a, ftz))), ftz);
}

uint32_t sin_approx(uint32_t a, bool ftz) {
  return approximate(std::sin(static_cast<double>(from_bits(a, ftz))), ftz);
}

uint32_t cos_approx(uint32_t a, bool ftz) {
  return approximate(std::cos(static_cast<double>(from_bits(a, ftz))), ftz);
}

uint32_t tanh_approx(uint32_t a) {
  return approximate(std::tanh(static_cast<double>(from_bits(a))), false);
}

uint32_t div_approx(uint32_t a, uint32_t b, bool ftz) {
  const uint32_t magnitude = b & 0x7FFFFFFFu;
  if (magnitude > 0x7E800000u && magnitude < 0x7F800000u) {  // 2^126 < |b| < infinity
    if ((a & 0x7FFFFFFFu) >= 0x7F800000u) return 0x7FFFFFFFu;
    return (a ^ b) & 0x80000000u;
  }
  return div_full(a, b, ftz);
}

uint32_t div_full(uint32_t a, uint32_t b, bool ftz) {
  return approximate(static_cast<double>(from_bits(a, ftz)) / from_bits(b, ftz), ftz);
}

double rcp_approx_f64(double a) { return flush_f64(upper_half(1.0 / flush_f64(upper_half(a)))); }

double rsqrt_approx_f64(double a) { return upper_half(1.0 / std::sqrt(flush_f64(upper_half(a)))); }

}  // namespace pykernels::emulator
