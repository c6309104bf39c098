#include "emulator/machine/reduction.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "emulator/numerics/arithmetic.h"
#include "emulator/numerics/convert.h"

namespace pykernels::emulator {
namespace {

constexpr std::pair<std::string_view, ReductionOperation> kNames[] = {
    {"add", ReductionOperation::kAdd},      {"min", ReductionOperation::kMin},
    {"max", ReductionOperation::kMax},      {"inc", ReductionOperation::kInc},
    {"dec", ReductionOperation::kDec},      {"and", ReductionOperation::kAnd},
    {"or", ReductionOperation::kOr},        {"xor", ReductionOperation::kXor},
    {"exch", ReductionOperation::kExchange}};

template <typename Unsigned, typename Value>
uint64_t combine_integer(ReductionOperation operation, Unsigned old_value, Unsigned operand) {
  const bool less = static_cast<Value>(old_value) < static_cast<Value>(operand);
  switch (operation) {
    case ReductionOperation::kAdd:
      return static_cast<Unsigned>(old_value + operand);
    case ReductionOperation::kMin:
      return less ? old_value : operand;
    case ReductionOperation::kMax:
      return less ? operand : old_value;
    case ReductionOperation::kInc:
      return old_value >= operand ? 0 : old_value + 1;
    case ReductionOperation::kDec:
      return old_value == 0 || old_value > operand ? operand : old_value - 1;
    case ReductionOperation::kAnd:
      return old_value & operand;
    case ReductionOperation::kOr:
      return old_value | operand;
    case ReductionOperation::kXor:
      return old_value ^ operand;
    case ReductionOperation::kExchange:
      return operand;
  }
  return operand;
}

/// The smaller of two numbers of a 16-bit format, -0 below +0; a NaN loses.
uint32_t min_half(uint32_t a, uint32_t b, const FloatFormat& format, bool maximum) {
  const bool a_nan = (a & 0x7fff) > format.infinity();
  const bool b_nan = (b & 0x7fff) > format.infinity();
  if (a_nan || b_nan) return a_nan && b_nan ? format.canonical_nan() : a_nan ? b : a;
  // Sign and magnitude as integers of the same order.
  const auto order = [](uint32_t bits) {
    return (bits & 0x8000) != 0 ? -static_cast<int32_t>(bits & 0x7fff) - 1
                                : static_cast<int32_t>(bits);
  };
  return (order(a) < order(b)) != maximum ? a : b;
}

uint32_t combine_half(ReductionOperation operation, uint32_t a, uint32_t b,
                      const FloatFormat& format) {
  if (operation == ReductionOperation::kAdd) return add_half(a, b, format);
  return min_half(a, b, format, operation == ReductionOperation::kMax);
}

uint64_t combine_pair(ReductionOperation operation, uint64_t a, uint64_t b,
                      const FloatFormat& format) {
  const auto low = combine_half(operation, a & 0xffff, b & 0xffff, format);
  const auto high = combine_half(operation, a >> 16 & 0xffff, b >> 16 & 0xffff, format);
  return uint64_t{high} << 16 | low;
}

uint64_t combine_f64(uint64_t a, uint64_t b) {
  return std::bit_cast<uint64_t>(
      add_f64(std::bit_cast<double>(a), std::bit_cast<double>(b), Rounding::kRn));
}

bool is_signed(Type type) { return type == Type::kS32 || type == Type::kS64; }
bool is_unsigned(Type type) { return type == Type::kU32 || type == Type::kU64; }
bool is_bits(Type type) { return type == Type::kB32 || type == Type::kB64; }
bool is_half(Type type) {
  return type == Type::kF16 || type == Type::kBf16 || type == Type::kF16x2 || type == Type::kBf16x2;
}

}  // namespace

std::optional<ReductionOperation> reduction_from_name(std::string_view name) {
  const auto* found = std::find_if(std::begin(kNames), std::end(kNames),
                                   [&](const auto& entry) { return entry.first == name; });
  if (found == std::end(kNames)) return std::nullopt;
  return found->second;
}

bool Reduction::valid() const {
  switch (operation) {
    case ReductionOperation::kAdd:
      return is_signed(type) || is_unsigned(type) || is_half(type) || type == Type::kF32 ||
             type == Type::kF64;
    case ReductionOperation::kMin:
    case ReductionOperation::kMax:
      return is_signed(type) || is_unsigned(type) || is_half(type);
    case ReductionOperation::kInc:
    case ReductionOperation::kDec:
      return type == Type::kU32;
    case ReductionOperation::kAnd:
    case ReductionOperation::kOr:
    case ReductionOperation::kXor:
      return is_bits(type) || is_signed(type) || is_unsigned(type);
    case ReductionOperation::kExchange:
      return is_bits(type) || type == Type::kB128;
  }
  return false;
}

uint64_t Reduction::combine(uint64_t old_value, uint64_t operand) const {
  const auto old32 = static_cast<uint32_t>(old_value);
  const auto operand32 = static_cast<uint32_t>(operand);
  switch (type) {
    case Type::kS32:
      return combine_integer<uint32_t, int32_t>(operation, old32, operand32);
    case Type::kS64:
      return combine_integer<uint64_t, int64_t>(operation, old_value, operand);
    case Type::kU64:
    case Type::kB64:
      return combine_integer<uint64_t, uint64_t>(operation, old_value, operand);
    case Type::kF32:
      return add_f32(old32, operand32, Rounding::kRn, flush_subnormals);
    case Type::kF64:
      return combine_f64(old_value, operand);
    case Type::kF16:
      return combine_half(operation, old32, operand32, kFormatF16);
    case Type::kBf16:
      return combine_half(operation, old32, operand32, kFormatBf16);
    case Type::kF16x2:
      return combine_pair(operation, old_value, operand, kFormatF16);
    case Type::kBf16x2:
      return combine_pair(operation, old_value, operand, kFormatBf16);
    default:
      return combine_integer<uint32_t, uint32_t>(operation, old32, operand32);
  }
}

void reduce_bytes(const Reduction& reduction, uint8_t* destination, const uint8_t* source,
                  uint64_t bytes) {
  const auto width = static_cast<uint64_t>(type_bits(reduction.type) / 8);
  for (uint64_t at = 0; at + width <= bytes; at += width) {
    uint64_t old_value = 0;
    uint64_t operand = 0;
    std::memcpy(&old_value, destination + at, width);
    std::memcpy(&operand, source + at, width);
    const uint64_t result = reduction.combine(old_value, operand);
    std::memcpy(destination + at, &result, width);
  }
}

}  // namespace pykernels::emulator
