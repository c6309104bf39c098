// The models of wide.h in plain integers: the oracle of the vector version and its fallback.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "emulator/numerics/wide.h"

namespace pykernels::emulator {
namespace {

constexpr int kFractionBits = 25;  // kept below the block's largest exponent
constexpr int kNoExponent = -100000;
constexpr uint32_t kInfinity = 0x7F800000u;
constexpr int kMaxK = 16;

struct Decoded {
  int32_t significand;  // signed, at most 11 bits
  int32_t exponent;     // floor(log2) of a normal, the smallest normal's for subnormals
  bool nan;
  bool infinite;
};

struct Layout {
  int bytes;
  int exponent_bits;
  int fraction_bits;
};

constexpr Layout layout_of(WideType type) {
  switch (type) {
    case WideType::kF16:
      return {2, 5, 10};
    case WideType::kBf16:
      return {2, 8, 7};
    case WideType::kTf32:
      break;
  }
  return {4, 8, 10};
}

Decoded decode(const uint8_t* source, const Layout& layout) {
  uint32_t bits;
  if (layout.bytes == 2) {
    uint16_t half;
    std::memcpy(&half, source, sizeof(half));
    bits = half;
  } else {
    std::memcpy(&bits, source, sizeof(bits));
    bits >>= 13;
  }
  const int max_field = (1 << layout.exponent_bits) - 1;
  const int field = static_cast<int>(bits >> layout.fraction_bits) & max_field;
  const auto fraction = static_cast<int32_t>(bits & ((1u << layout.fraction_bits) - 1));
  Decoded value{};
  value.exponent = std::max(field, 1) - max_field / 2;
  value.significand = field == 0 ? fraction : fraction | 1 << layout.fraction_bits;
  if (bits >> (layout.exponent_bits + layout.fraction_bits)) value.significand = -value.significand;
  value.nan = field == max_field && fraction != 0;
  value.infinite = field == max_field && fraction == 0;
  return value;
}

int64_t truncate_to(int64_t value, int shift) {
  if (shift >= 0) return value * (int64_t{1} << shift);
  if (shift < -62) return 0;
  const int64_t magnitude = std::llabs(value) >> -shift;
  return value < 0 ? -magnitude : magnitude;
}

/// FP32 bits of sum * 2^unit, truncated toward zero; infinity beyond the largest number.
uint32_t pack_truncated(int64_t sum, int unit) {
  if (sum == 0) return 0;
  const uint32_t sign = sum < 0 ? 0x80000000u : 0;
  const int64_t magnitude = std::llabs(sum);
  const int exponent = std::max(63 - __builtin_clzll(magnitude) + unit, -126);
  const int64_t kept = truncate_to(magnitude, unit - (exponent - 23));
  if (kept == 0) return 0;
  const int64_t code = (static_cast<int64_t>(exponent + 126) << 23) + kept;
  return sign | (code >= kInfinity ? kInfinity : static_cast<uint32_t>(code));
}

bool non_finite(uint32_t c, const Decoded* a, const Decoded* b, int k, uint32_t* result) {
  bool nan = (c & 0x7FFFFFFFu) > kInfinity;
  bool positive = c == kInfinity;
  bool negative = c == (kInfinity | 0x80000000u);
  for (int i = 0; i < k; ++i) {
    nan |= a[i].nan || b[i].nan;
    if (!a[i].infinite && !b[i].infinite) continue;
    const int64_t sign = int64_t{a[i].significand} * b[i].significand;
    nan |= sign == 0;
    positive |= sign > 0;
    negative |= sign < 0;
  }
  if (!nan && !positive && !negative) return false;
  *result =
      nan || (positive && negative) ? kCanonicalNan : kInfinity | (negative ? 0x80000000u : 0u);
  return true;
}

uint32_t dot_decoded(uint32_t c, const Decoded* a, const Decoded* b, int k, int fraction_bits) {
  uint32_t result;
  if (non_finite(c, a, b, k, &result)) return result;
  const int c_field = static_cast<int>(c >> 23 & 0xFF);
  int64_t c_significand = c & 0x7FFFFFu;
  if (c_field != 0) c_significand |= 0x800000;
  if (c >> 31) c_significand = -c_significand;
  const int c_unit = std::max(c_field, 1) - 150;

  int exponent = kNoExponent;
  if (c_significand != 0) exponent = 63 - __builtin_clzll(std::llabs(c_significand)) + c_unit;
  int32_t products[kMaxK];
  for (int i = 0; i < k; ++i) {
    products[i] = a[i].significand * b[i].significand;
    if (products[i] != 0) exponent = std::max(exponent, a[i].exponent + b[i].exponent);
  }
  if (exponent == kNoExponent) return 0;
  const int unit = exponent - kFractionBits;
  int64_t sum = truncate_to(c_significand, c_unit - unit);
  for (int i = 0; i < k; ++i) {
    sum += truncate_to(products[i], a[i].exponent + b[i].exponent - 2 * fraction_bits - unit);
  }
  return pack_truncated(sum, unit);
}

void decode_rows(WideOperand operand, int rows, const Layout& layout, Decoded* decoded) {
  const int k = kFp8StepBytes / layout.bytes;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < k; ++i) {
      decoded[row * k + i] = decode(operand.data + row * operand.pitch + i * layout.bytes, layout);
    }
  }
}

int32_t element_int8(const uint8_t* source, bool is_signed) {
  return is_signed ? static_cast<int8_t>(*source) : *source;
}

}  // namespace

uint32_t dot_wide_scalar(uint32_t c, const uint8_t* a, const uint8_t* b, WideType type) {
  const Layout layout = layout_of(type);
  Decoded a_values[kMaxK];
  Decoded b_values[kMaxK];
  decode_rows({a, 0}, 1, layout, a_values);
  decode_rows({b, 0}, 1, layout, b_values);
  return dot_decoded(c, a_values, b_values, kFp8StepBytes / layout.bytes, layout.fraction_bits);
}

void multiply_wide_scalar(AccumulatorTile d, WideOperand a, WideOperand b, WideType type,
                          bool scale_d) {
  const Layout layout = layout_of(type);
  const int k = kFp8StepBytes / layout.bytes;
  std::vector<Decoded> a_values(kTileRows * k);
  std::vector<Decoded> b_values(d.n * k);
  decode_rows(a, kTileRows, layout, a_values.data());
  decode_rows(b, d.n, layout, b_values.data());
  for (int row = 0; row < kTileRows; ++row) {
    for (int column = 0; column < d.n; ++column) {
      uint32_t& value = d.at(row, column);
      value = dot_decoded(scale_d ? value : 0, &a_values[row * k], &b_values[column * k], k,
                          layout.fraction_bits);
    }
  }
}

void multiply_int8(AccumulatorTile d, WideOperand a, WideOperand b, bool a_signed, bool b_signed,
                   bool satfinite, bool scale_d) {
  for (int row = 0; row < kTileRows; ++row) {
    for (int column = 0; column < d.n; ++column) {
      uint32_t& value = d.at(row, column);
      int64_t sum = scale_d ? static_cast<int32_t>(value) : 0;
      for (int k = 0; k < kFp8StepBytes; ++k) {
        sum += element_int8(a.data + row * a.pitch + k, a_signed) *
               element_int8(b.data + column * b.pitch + k, b_signed);
      }
      if (satfinite) {
        sum = std::clamp<int64_t>(sum, std::numeric_limits<int32_t>::min(),
                                  std::numeric_limits<int32_t>::max());
      }
      value = static_cast<uint32_t>(sum);
    }
  }
}

}  // namespace pykernels::emulator
