// The FP8 model of fp8.h in plain integers: the oracle of the vector version and its fallback.

#include <algorithm>
#include <cstdlib>

#include "emulator/numerics/fp8.h"

namespace pykernels::emulator {
namespace {

constexpr int kFractionBits = 13;  // kept below the block's largest exponent
constexpr int kMinAlignExponent = -132;
constexpr int kNoExponent = -100000;  // of a zero
constexpr int kMinNormalExponent = -126;
constexpr uint32_t kInfinity = 0x7F800000u;

/// value = significand * 2^exponent_of_unit.
struct Decoded {
  int significand;       // signed, at most 4 bits
  int exponent;          // floor(log2) of a normal, the smallest normal's for subnormals
  int exponent_of_unit;  // of the significand's lowest bit
  bool nan;
  bool infinite;
};

Decoded decode(uint8_t code, Fp8Type type) {
  const int fraction_bits = type == Fp8Type::kE4m3 ? 3 : 2;
  const int bias = type == Fp8Type::kE4m3 ? 7 : 15;
  const int magnitude = code & 0x7F;
  const int field = magnitude >> fraction_bits;
  const int fraction = magnitude & ((1 << fraction_bits) - 1);
  Decoded value{};
  value.exponent = std::max(field, 1) - bias;
  value.exponent_of_unit = value.exponent - fraction_bits;
  value.significand = field == 0 ? fraction : fraction + (1 << fraction_bits);
  if (code & 0x80) value.significand = -value.significand;
  if (type == Fp8Type::kE4m3) {
    value.nan = magnitude == 0x7F;
  } else {
    value.nan = magnitude > 0x7C;
    value.infinite = magnitude == 0x7C;
  }
  return value;
}

/// value * 2^(unit_exponent - unit) truncated toward zero, for |value| < 2^24.
int64_t truncate_to(int64_t value, int unit_exponent, int unit) {
  const int shift = unit_exponent - unit;
  if (shift >= 0) return value * (int64_t{1} << shift);
  if (shift < -40) return 0;
  const int64_t magnitude = std::llabs(value) >> -shift;
  return value < 0 ? -magnitude : magnitude;
}

/// FP32 bits of sum * 2^unit_exponent, truncated to 14 significant bits and to multiples of 2^-139.
uint32_t pack_truncated(int64_t sum, int unit_exponent) {
  if (sum == 0) return 0;
  const uint32_t sign = sum < 0 ? 0x80000000u : 0;
  const uint64_t magnitude = static_cast<uint64_t>(std::llabs(sum));
  const int leading = 63 - __builtin_clzll(magnitude);
  const int exponent = std::max(leading + unit_exponent, kMinNormalExponent);
  const int64_t kept =
      truncate_to(static_cast<int64_t>(magnitude), unit_exponent, exponent - kFractionBits);
  if (kept == 0) return 0;
  // kept has its implicit bit at 13 if normal: adding, not or-ing, carries it into the exponent
  // field.
  const uint32_t field = static_cast<uint32_t>(exponent - kMinNormalExponent);
  return sign | ((field << 23) + (static_cast<uint32_t>(kept) << (23 - kFractionBits)));
}

/// Infinities and NaN by IEEE rules; false if all is finite.
bool non_finite(uint32_t c, const Decoded* a, const Decoded* b, uint32_t* result) {
  bool nan = (c & 0x7FFFFFFFu) > kInfinity;
  bool positive = c == kInfinity;
  bool negative = c == (kInfinity | 0x80000000u);
  // The sign of an infinity is that of its significand: its field is the largest, so it is not
  // zero.
  for (int k = 0; k < kFp8StepBytes; ++k) {
    nan |= a[k].nan || b[k].nan;
    if (!a[k].infinite && !b[k].infinite) continue;
    const int sign = a[k].significand * b[k].significand;
    nan |= sign == 0;
    positive |= sign > 0;
    negative |= sign < 0;
  }
  if (!nan && !positive && !negative) return false;
  *result =
      nan || (positive && negative) ? kCanonicalNan : kInfinity | (negative ? 0x80000000u : 0u);
  return true;
}

}  // namespace

uint32_t dot_fp8_scalar(uint32_t c, const uint8_t* a, Fp8Type a_type, const uint8_t* b,
                        Fp8Type b_type) {
  Decoded a_values[kFp8StepBytes];
  Decoded b_values[kFp8StepBytes];
  for (int k = 0; k < kFp8StepBytes; ++k) {
    a_values[k] = decode(a[k], a_type);
    b_values[k] = decode(b[k], b_type);
  }
  uint32_t result;
  if (non_finite(c, a_values, b_values, &result)) return result;

  const int c_field = static_cast<int>(c >> 23 & 0xFF);
  int64_t c_significand = c & 0x7FFFFFu;
  if (c_field != 0) c_significand |= 0x800000;
  if (c >> 31) c_significand = -c_significand;
  const int c_unit = std::max(c_field, 1) - 150;

  int exponent = kNoExponent;
  if (c_significand != 0) exponent = 63 - __builtin_clzll(std::llabs(c_significand)) + c_unit;
  for (int k = 0; k < kFp8StepBytes; ++k) {
    if (a_values[k].significand * b_values[k].significand == 0) continue;
    exponent = std::max(exponent, a_values[k].exponent + b_values[k].exponent);
  }
  exponent = std::max(exponent, kMinAlignExponent);

  const int unit = exponent - kFractionBits;
  int64_t sum = truncate_to(c_significand, c_unit, unit);
  for (int k = 0; k < kFp8StepBytes; ++k) {
    sum += truncate_to(a_values[k].significand * b_values[k].significand,
                       a_values[k].exponent_of_unit + b_values[k].exponent_of_unit, unit);
  }
  return pack_truncated(sum, unit);
}

void multiply_fp8_scalar(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  for (int row = 0; row < kTileRows; ++row) {
    for (int column = 0; column < d.n; ++column) {
      uint32_t& value = d.at(row, column);
      value = dot_fp8_scalar(scale_d ? value : 0, a.data + row * a.pitch, a.type,
                             b.data + column * b.pitch, b.type);
    }
  }
}

}  // namespace pykernels::emulator
