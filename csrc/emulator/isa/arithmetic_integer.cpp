// Integer arithmetic. All of it wraps; where PTX leaves a result open (division by zero) it is what
// the hardware gives: all ones for a quotient, the dividend for a remainder.
#include <algorithm>
#include <limits>

#include "emulator/isa/arithmetic.h"
#include "emulator/isa/lanewise.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kArithmetic;

template <typename Value>
constexpr Type type_of() {
  if constexpr (std::is_same_v<Value, uint16_t>) return Type::kU16;
  if constexpr (std::is_same_v<Value, int16_t>) return Type::kS16;
  if constexpr (std::is_same_v<Value, uint32_t>) return Type::kU32;
  if constexpr (std::is_same_v<Value, int32_t>) return Type::kS32;
  if constexpr (std::is_same_v<Value, uint64_t>) return Type::kU64;
  if constexpr (std::is_same_v<Value, int64_t>) return Type::kS64;
}

/// The integer type of twice the width.
template <typename Value>
struct Wider;
template <>
struct Wider<uint16_t> {
  using type = uint32_t;
};
template <>
struct Wider<int16_t> {
  using type = int32_t;
};
template <>
struct Wider<uint32_t> {
  using type = uint64_t;
};
template <>
struct Wider<int32_t> {
  using type = int64_t;
};
template <>
struct Wider<uint64_t> {
  using type = unsigned __int128;
};
template <>
struct Wider<int64_t> {
  using type = __int128;
};
template <typename Value>
using WiderOf = typename Wider<Value>::type;

/// Where sums and products are formed: unsigned, and no narrower than int, so that nothing
/// overflows.
template <typename Value>
using Ring = std::conditional_t<sizeof(Value) == 8, uint64_t, uint32_t>;

template <typename Value>
Value multiply_high(Value a, Value b) {
  return static_cast<Value>(static_cast<WiderOf<Value>>(a) * static_cast<WiderOf<Value>>(b) >>
                            (8 * sizeof(Value)));
}

template <typename Value>
Value divide(Value a, Value b) {
  if (b == 0) return static_cast<Value>(-1);
  if constexpr (std::is_signed_v<Value>) {
    if (b == -1) return static_cast<Value>(0 - static_cast<Ring<Value>>(a));
  }
  return static_cast<Value>(a / b);
}

template <typename Value>
Value remainder(Value a, Value b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<Value>) {
    if (b == -1) return 0;
  }
  return static_cast<Value>(a % b);
}

template <typename Value>
Value absolute(Value a) {
  return static_cast<Value>(a < 0 ? 0 - static_cast<Ring<Value>>(a) : static_cast<Ring<Value>>(a));
}

/// |a - b| + c
template <typename Value>
Value sum_of_difference(Value a, Value b, Value c) {
  const auto wide_a = static_cast<Ring<Value>>(a);
  const auto wide_b = static_cast<Ring<Value>>(b);
  return static_cast<Value>((a < b ? wide_b - wide_a : wide_a - wide_b) +
                            static_cast<Ring<Value>>(c));
}

int32_t saturate(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, INT32_MIN, INT32_MAX));
}

template <typename Value, typename Operation>
void add_unary(Table& table, const std::string& name, Operation operation) {
  const Type type = type_of<Value>();
  add_row(table, name + dotted(type), kClass, lanewise<Value, Value>(operation), type, {type});
}

template <typename Value, typename Operation>
void add_binary(Table& table, const std::string& name, Operation operation) {
  const Type type = type_of<Value>();
  add_row(table, name + dotted(type), kClass, lanewise<Value, Value, Value>(operation), type,
          {type, type});
}

template <typename Value, typename Operation>
void add_ternary(Table& table, const std::string& name, Operation operation) {
  const Type type = type_of<Value>();
  add_row(table, name + dotted(type), kClass, lanewise<Value, Value, Value, Value>(operation), type,
          {type, type, type});
}

/// The forms that exist for every integer type.
template <typename Value>
void add_common(Table& table) {
  using Wrap = Ring<Value>;
  add_binary<Value>(table, "add", [](Value a, Value b) {
    return static_cast<Value>(static_cast<Wrap>(a) + static_cast<Wrap>(b));
  });
  add_binary<Value>(table, "sub", [](Value a, Value b) {
    return static_cast<Value>(static_cast<Wrap>(a) - static_cast<Wrap>(b));
  });
  add_binary<Value>(table, "mul.lo", [](Value a, Value b) {
    return static_cast<Value>(static_cast<Wrap>(a) * static_cast<Wrap>(b));
  });
  add_binary<Value>(table, "mul.hi", [](Value a, Value b) { return multiply_high(a, b); });
  add_ternary<Value>(table, "mad.lo", [](Value a, Value b, Value c) {
    return static_cast<Value>(static_cast<Wrap>(a) * static_cast<Wrap>(b) + static_cast<Wrap>(c));
  });
  add_ternary<Value>(table, "mad.hi", [](Value a, Value b, Value c) {
    return static_cast<Value>(static_cast<Wrap>(multiply_high(a, b)) + static_cast<Wrap>(c));
  });
  add_ternary<Value>(table, "sad",
                     [](Value a, Value b, Value c) { return sum_of_difference(a, b, c); });
  add_binary<Value>(table, "div", [](Value a, Value b) { return divide(a, b); });
  add_binary<Value>(table, "rem", [](Value a, Value b) { return remainder(a, b); });
  add_binary<Value>(table, "min", [](Value a, Value b) { return a < b ? a : b; });
  add_binary<Value>(table, "max", [](Value a, Value b) { return a > b ? a : b; });
  if constexpr (std::is_signed_v<Value>) {
    add_unary<Value>(table, "abs", [](Value a) { return absolute(a); });
    add_unary<Value>(table, "neg",
                     [](Value a) { return static_cast<Value>(0 - static_cast<Wrap>(a)); });
  }
}

/// mul.wide and mad.wide: the result is twice as wide as the factors.
template <typename Value>
void add_wide(Table& table) {
  using Wide = WiderOf<Value>;
  const Type type = type_of<Value>();
  const Type wide = type_of<Wide>();
  const std::string suffix = ".wide" + dotted(type);
  add_row(table, "mul" + suffix, kClass, lanewise<Wide, Value, Value>([](Value a, Value b) {
            return static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b));
          }),
          wide, {type, type});
  add_row(
      table, "mad" + suffix, kClass,
      lanewise<Wide, Value, Value, Wide>([](Value a, Value b, Wide c) {
        using Wrap = std::make_unsigned_t<Wide>;
        return static_cast<Wide>(static_cast<Wrap>(static_cast<Wide>(a) * static_cast<Wide>(b)) +
                                 static_cast<Wrap>(c));
      }),
      wide, {type, type, wide});
}

/// The product of the lower 24 bits.
template <typename Value>
int64_t product_24(Value a, Value b) {
  const auto low = [](Value value) {
    return static_cast<int64_t>(static_cast<Value>(static_cast<uint32_t>(value) << 8) >> 8);
  };
  return low(a) * low(b);
}

template <typename Value>
void add_24_bit(Table& table) {
  add_binary<Value>(table, "mul24.lo",
                    [](Value a, Value b) { return static_cast<Value>(product_24(a, b)); });
  add_binary<Value>(table, "mul24.hi",
                    [](Value a, Value b) { return static_cast<Value>(product_24(a, b) >> 16); });
  add_ternary<Value>(table, "mad24.lo", [](Value a, Value b, Value c) {
    return static_cast<Value>(static_cast<uint32_t>(product_24(a, b)) + static_cast<uint32_t>(c));
  });
  add_ternary<Value>(table, "mad24.hi", [](Value a, Value b, Value c) {
    return static_cast<Value>(static_cast<uint32_t>(product_24(a, b) >> 16) +
                              static_cast<uint32_t>(c));
  });
}

void add_saturating(Table& table) {
  add_binary<int32_t>(table, "add.sat",
                      [](int32_t a, int32_t b) { return saturate(int64_t{a} + b); });
  add_binary<int32_t>(table, "sub.sat",
                      [](int32_t a, int32_t b) { return saturate(int64_t{a} - b); });
  add_ternary<int32_t>(table, "mad.hi.sat", [](int32_t a, int32_t b, int32_t c) {
    return saturate(int64_t{multiply_high(a, b)} + c);
  });
  add_ternary<int32_t>(table, "mad24.hi.sat", [](int32_t a, int32_t b, int32_t c) {
    return saturate((product_24(a, b) >> 16) + c);
  });
  add_binary<int32_t>(table, "min.relu",
                      [](int32_t a, int32_t b) { return std::max(std::min(a, b), 0); });
  add_binary<int32_t>(table, "max.relu",
                      [](int32_t a, int32_t b) { return std::max(std::max(a, b), 0); });
}

/// Two 16-bit values in 32 bits.
template <typename Half, typename Operation>
uint32_t pairwise(uint32_t a, uint32_t b, Operation operation) {
  const auto low = static_cast<uint16_t>(operation(static_cast<Half>(a), static_cast<Half>(b)));
  const auto high =
      static_cast<uint16_t>(operation(static_cast<Half>(a >> 16), static_cast<Half>(b >> 16)));
  return low | static_cast<uint32_t>(high) << 16;
}

template <typename Half>
void add_pairs(Table& table, const std::string& suffix) {
  const auto add = [&](const std::string& name, auto operation) {
    using Operation = decltype(operation);
    add_row(table, name + suffix, kClass,
            lanewise<uint32_t, uint32_t, uint32_t>(
                [](uint32_t a, uint32_t b) { return pairwise<Half>(a, b, Operation{}); }),
            Type::kB32, {Type::kB32, Type::kB32});
  };
  add("add", [](int a, int b) { return a + b; });
  add("min", [](int a, int b) { return std::min(a, b); });
  add("max", [](int a, int b) { return std::max(a, b); });
  if (!std::is_signed_v<Half>) return;
  add("min.relu", [](int a, int b) { return std::max(std::min(a, b), 0); });
  add("max.relu", [](int a, int b) { return std::max(std::max(a, b), 0); });
}

/// dp4a: four products of bytes; dp2a: two products of a 16-bit half and a byte of b's lower or
/// upper half.
template <typename A, typename B>
void add_dot_products(Table& table, const std::string& types) {
  const auto add = [&](const std::string& name, Handler handler) {
    add_row(table, name + types, kClass, handler, Type::kB32, {Type::kB32, Type::kB32, Type::kB32});
  };
  using Half = std::conditional_t<std::is_signed_v<A>, int16_t, uint16_t>;
  add("dp4a",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        for (int i = 0; i < 32; i += 8) {
          c += static_cast<uint32_t>(static_cast<A>(a >> i) * static_cast<B>(b >> i));
        }
        return c;
      }));
  add("dp2a.lo",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        return c + static_cast<uint32_t>(static_cast<Half>(a) * static_cast<B>(b)) +
               static_cast<uint32_t>(static_cast<Half>(a >> 16) * static_cast<B>(b >> 8));
      }));
  add("dp2a.hi",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        return c + static_cast<uint32_t>(static_cast<Half>(a) * static_cast<B>(b >> 16)) +
               static_cast<uint32_t>(static_cast<Half>(a >> 16) * static_cast<B>(b >> 24));
      }));
}

/// vabsdiff2, vabsdiff4: absolute differences of parts; .add: their sum and c.
template <typename Part>
void add_part_differences(Table& table, const std::string& types) {
  constexpr int kBits = 8 * sizeof(Part);
  constexpr uint32_t kMask = (1u << kBits) - 1;
  constexpr auto difference = [](uint32_t a, uint32_t b, int shift) {
    const int value = static_cast<Part>(a >> shift) - static_cast<Part>(b >> shift);
    return static_cast<uint32_t>(value < 0 ? -value : value);
  };
  using Difference = decltype(difference);
  const std::string name = "vabsdiff" + std::to_string(32 / kBits) + types;
  const auto add = [&](const std::string& spelling, Handler handler) {
    add_row(table, spelling, kClass, handler, Type::kB32, {Type::kB32, Type::kB32, Type::kB32});
  };
  add(name, lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t) {
        uint32_t value = 0;
        for (int i = 0; i < 32; i += kBits) value |= (Difference{}(a, b, i) & kMask) << i;
        return value;
      }));
  add(name + ".add",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        for (int i = 0; i < 32; i += kBits) c += Difference{}(a, b, i);
        return c;
      }));
}

}  // namespace

void add_integer_forms(Table& table) {
  add_common<uint16_t>(table);
  add_common<int16_t>(table);
  add_common<uint32_t>(table);
  add_common<int32_t>(table);
  add_common<uint64_t>(table);
  add_common<int64_t>(table);
  add_wide<uint16_t>(table);
  add_wide<int16_t>(table);
  add_wide<uint32_t>(table);
  add_wide<int32_t>(table);
  add_24_bit<uint32_t>(table);
  add_24_bit<int32_t>(table);
  add_saturating(table);
  add_pairs<uint16_t>(table, ".u16x2");
  add_pairs<int16_t>(table, ".s16x2");
  add_part_differences<uint8_t>(table, ".u32.u32.u32");
  add_part_differences<uint16_t>(table, ".u32.u32.u32");
  add_part_differences<int8_t>(table, ".u32.s32.s32");
  add_part_differences<int16_t>(table, ".u32.s32.s32");
  add_dot_products<uint8_t, uint8_t>(table, ".u32.u32");
  add_dot_products<uint8_t, int8_t>(table, ".u32.s32");
  add_dot_products<int8_t, uint8_t>(table, ".s32.u32");
  add_dot_products<int8_t, int8_t>(table, ".s32.s32");
}

}  // namespace pykernels::emulator
