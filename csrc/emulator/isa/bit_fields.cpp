// Bit fields, counting and searching bits, permuting bytes.
#include "emulator/isa/bit_fields.h"

#include <algorithm>

#include "emulator/isa/lanewise.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kLogic;

// ---- bit fields ----

/// bfe: `length` bits from `position`; signed ones extend the topmost bit that exists.
template <typename Value>
Value extract_field(Value a, uint32_t position, uint32_t length) {
  using Bits = std::make_unsigned_t<Value>;
  constexpr uint32_t kBits = 8 * sizeof(Value);
  position &= 0xff;
  length &= 0xff;
  if (length == 0) return 0;
  const uint32_t top = std::min(position + length - 1, kBits - 1);
  const bool negative = std::is_signed_v<Value> && (static_cast<Bits>(a) >> top & 1) != 0;
  const Bits fill = negative ? ~Bits{0} : Bits{0};
  const Bits shifted = position < kBits ? static_cast<Bits>(a) >> position : fill;
  if (position >= kBits) return static_cast<Value>(fill);
  const uint32_t kept = std::min(length, kBits - position);
  const Bits mask = kept >= kBits ? ~Bits{0} : (Bits{1} << kept) - 1;
  return static_cast<Value>((shifted & mask) | (fill & ~mask));
}

/// bfi: the lower `length` bits of a in place of those of b from `position`.
template <typename Bits>
Bits insert_field(Bits a, Bits b, uint32_t position, uint32_t length) {
  constexpr uint32_t kBits = 8 * sizeof(Bits);
  position &= 0xff;
  length &= 0xff;
  if (position >= kBits || length == 0) return b;
  const Bits ones = length >= kBits ? ~Bits{0} : (Bits{1} << length) - 1;
  const Bits mask = ones << position;
  return (b & ~mask) | (a << position & mask);
}

template <typename Value>
void add_fields(Table& table, Type type) {
  add_row(
      table, "bfe" + dotted(type), kClass,
      lanewise<Value, Value, uint32_t, uint32_t>([](Value a, uint32_t position, uint32_t length) {
        return extract_field(a, position, length);
      }),
      type, {type, Type::kU32, Type::kU32});
  if (std::is_signed_v<Value>) return;
  using Bits = std::make_unsigned_t<Value>;
  const Type bits = sizeof(Value) == 8 ? Type::kB64 : Type::kB32;
  add_row(table, "bfi" + dotted(bits), kClass,
          lanewise<Bits, Bits, Bits, uint32_t, uint32_t>(
              [](Bits a, Bits b, uint32_t position, uint32_t length) {
                return insert_field(a, b, position, length);
              }),
          bits, {bits, bits, Type::kU32, Type::kU32});
}

// ---- counting and searching ----

uint32_t leading_zeros(uint32_t a) { return a == 0 ? 32 : static_cast<uint32_t>(__builtin_clz(a)); }
uint32_t leading_zeros(uint64_t a) {
  return a == 0 ? 64 : static_cast<uint32_t>(__builtin_clzll(a));
}

/// bfind: position of the highest bit that differs from the sign, or all ones.
template <typename Value>
uint32_t find_highest(Value a) {
  using Bits = std::make_unsigned_t<Value>;
  const Bits bits = static_cast<Bits>(std::is_signed_v<Value> && a < 0 ? ~a : a);
  return bits == 0 ? ~0u : 8 * sizeof(Value) - 1 - leading_zeros(bits);
}

/// bfind.shiftamt: the left shift that brings that bit to the top.
template <typename Value>
uint32_t shift_to_highest(Value a) {
  const uint32_t position = find_highest(a);
  return position == ~0u ? ~0u : 8 * sizeof(Value) - 1 - position;
}

template <typename Value>
void add_find(Table& table, Type type) {
  add_row(table, "bfind" + dotted(type), kClass,
          lanewise<uint32_t, Value>([](Value a) { return find_highest(a); }), Type::kU32, {type});
  add_row(table, "bfind.shiftamt" + dotted(type), kClass,
          lanewise<uint32_t, Value>([](Value a) { return shift_to_highest(a); }), Type::kU32,
          {type});
}

template <typename Bits>
Bits reverse(Bits a) {
  Bits reversed = 0;
  for (size_t i = 0; i < 8 * sizeof(Bits); ++i) reversed = reversed << 1 | (a >> i & 1);
  return reversed;
}

template <typename Bits>
void add_counts(Table& table, Type type) {
  add_row(table, "popc" + dotted(type), kClass, lanewise<uint32_t, Bits>([](Bits a) {
            return static_cast<uint32_t>(__builtin_popcountll(a));
          }),
          Type::kU32, {type});
  add_row(table, "clz" + dotted(type), kClass,
          lanewise<uint32_t, Bits>([](Bits a) { return leading_zeros(a); }), Type::kU32, {type});
  add_row(table, "brev" + dotted(type), kClass,
          lanewise<Bits, Bits>([](Bits a) { return reverse(a); }), type, {type});
}

/// fns: position of the n-th set bit from `base`, upwards (n > 0) or downwards; all ones if there
/// is none.
uint32_t find_nth_set(uint32_t mask, uint32_t base, int32_t n) {
  if (base > 31) return ~0u;
  if (n == 0) return (mask >> base & 1) != 0 ? base : ~0u;
  const int step = n > 0 ? 1 : -1;
  int64_t missing = n > 0 ? n : -static_cast<int64_t>(n);
  for (int i = static_cast<int>(base); i >= 0 && i < 32; i += step) {
    if ((mask >> i & 1) != 0 && --missing == 0) return static_cast<uint32_t>(i);
  }
  return ~0u;
}

/// szext: the lower n bits, extended by sign or zeros; bmsk: n ones from bit a.
template <typename Value, bool kWraps>
Value extend_from(Value a, uint32_t n) {
  n = kWraps ? n & 31 : std::min(n, 32u);
  if (n == 0) return 0;
  return static_cast<Value>(static_cast<Value>(static_cast<uint32_t>(a) << (32 - n)) >> (32 - n));
}

template <bool kWraps>
uint32_t bit_mask(uint32_t a, uint32_t n) {
  if (kWraps) {
    a &= 31;
    n &= 31;
  } else if (a > 31) {
    return 0;
  }
  const uint32_t ones = n > 31 ? ~0u : (1u << n) - 1;
  return ones << a;
}

template <bool kWraps>
void add_masks(Table& table, const std::string& mode) {
  add_row(table, "szext." + mode + ".u32", kClass,
          lanewise<uint32_t, uint32_t, uint32_t>(
              [](uint32_t a, uint32_t n) { return extend_from<uint32_t, kWraps>(a, n); }),
          Type::kU32, {Type::kU32, Type::kU32});
  add_row(table, "szext." + mode + ".s32", kClass,
          lanewise<int32_t, int32_t, uint32_t>(
              [](int32_t a, uint32_t n) { return extend_from<int32_t, kWraps>(a, n); }),
          Type::kS32, {Type::kS32, Type::kU32});
  add_row(table, "bmsk." + mode + ".b32", kClass,
          lanewise<uint32_t, uint32_t, uint32_t>(
              [](uint32_t a, uint32_t n) { return bit_mask<kWraps>(a, n); }),
          Type::kB32, {Type::kB32, Type::kB32});
}

// ---- prmt ----

uint32_t pick_byte(uint64_t bytes, uint32_t selector) {
  const auto byte = static_cast<uint32_t>(bytes >> (8 * (selector & 7)) & 0xff);
  if ((selector & 8) == 0) return byte;
  return (byte & 0x80) != 0 ? 0xff : 0;
}

/// Bytes of b:a chosen by four selectors of 4 bits; the top bit of one replicates the byte's sign.
uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= pick_byte(bytes, selector >> (4 * i) & 15) << (8 * i);
  return value;
}

/// The selectors that the named modes stand for, by the two lowest bits of c.
struct PermuteMode {
  const char* name;
  uint16_t selectors[4];
};
constexpr PermuteMode kPermuteModes[] = {
    {"f4e", {0x3210, 0x4321, 0x5432, 0x6543}}, {"b4e", {0x5670, 0x6701, 0x7012, 0x0123}},
    {"rc8", {0x0000, 0x1111, 0x2222, 0x3333}}, {"ecl", {0x3210, 0x3211, 0x3222, 0x3333}},
    {"ecr", {0x0000, 0x1110, 0x2210, 0x3210}}, {"rc16", {0x1010, 0x3232, 0x1010, 0x3232}},
};

template <size_t kMode>
void add_permute_mode(Table& table) {
  add_row(table, std::string("prmt.b32.") + kPermuteModes[kMode].name, kClass,
          lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
            return permute(a, b, kPermuteModes[kMode].selectors[c & 3]);
          }),
          Type::kB32, {Type::kB32, Type::kB32, Type::kB32});
}

}  // namespace

void add_bit_field_forms(Table& table) {
  add_fields<uint32_t>(table, Type::kU32);
  add_fields<int32_t>(table, Type::kS32);
  add_fields<uint64_t>(table, Type::kU64);
  add_fields<int64_t>(table, Type::kS64);
  add_find<uint32_t>(table, Type::kU32);
  add_find<int32_t>(table, Type::kS32);
  add_find<uint64_t>(table, Type::kU64);
  add_find<int64_t>(table, Type::kS64);
  add_counts<uint32_t>(table, Type::kB32);
  add_counts<uint64_t>(table, Type::kB64);
  add_row(table, "fns.b32", kClass,
          lanewise<uint32_t, uint32_t, uint32_t, int32_t>(
              [](uint32_t mask, uint32_t base, int32_t n) { return find_nth_set(mask, base, n); }),
          Type::kB32, {Type::kB32, Type::kB32, Type::kS32});
  add_masks<true>(table, "wrap");
  add_masks<false>(table, "clamp");
  add_row(table, "prmt.b32", kClass,
          lanewise<uint32_t, uint32_t, uint32_t, uint32_t>(
              [](uint32_t a, uint32_t b, uint32_t c) { return permute(a, b, c); }),
          Type::kB32, {Type::kB32, Type::kB32, Type::kB32});
  add_permute_mode<0>(table);
  add_permute_mode<1>(table);
  add_permute_mode<2>(table);
  add_permute_mode<3>(table);
  add_permute_mode<4>(table);
  add_permute_mode<5>(table);
}

}  // namespace pykernels::emulator
