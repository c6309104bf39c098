// cvt between all scalar types and packed pairs, and cvt.pack. One general handler takes every scalar form
// lane by lane; the forms that real kernels execute often have handlers of their own.
#include <algorithm>
#include <cmath>

#include "emulator/isa/lanewise.h"
#include "emulator/numerics/convert.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kConvert;

/// The modifiers of a cvt, and what its registers look like.
struct Conversion : SideData {
  Type to = Type::kNone;
  Type from = Type::kNone;
  bool has_rounding = false;
  bool to_integral = false;  // .rni and the like
  Rounding rounding = Rounding::kRn;
  bool ftz = false;
  bool saturate = false;
  bool satfinite = false;
  bool relu = false;
  int to_bits = 0;           // of the destination register
  bool from_64 = false;      // lanes are uint64_t
  bool to_64 = false;
};

bool is_signed(Type type) { return type >= Type::kS8 && type <= Type::kS64; }
bool is_integer(Type type) { return type >= Type::kU8 && type <= Type::kS64; }
bool is_float(Type type) {
  return type == Type::kF16 || type == Type::kBf16 || type == Type::kF32 || type == Type::kF64;
}

FloatFormat format_of(Type type) {
  switch (type) {
    case Type::kF16: case Type::kF16x2: return kFormatF16;
    case Type::kBf16: case Type::kBf16x2: return kFormatBf16;
    case Type::kE4m3x2: return kFormatE4m3;
    case Type::kE5m2x2: return kFormatE5m2;
    case Type::kTf32: return kFormatTf32;
    default: return kFormatF32;
  }
}

// ---- the general scalar conversion ----

uint64_t low_bits(uint64_t value, int bits) { return bits == 64 ? value : value & ((1ull << bits) - 1); }

/// The lower bits, extended as the type says.
uint64_t extend(uint64_t value, Type type) {
  const int shift = 64 - type_bits(type);
  if (!is_signed(type)) return value << shift >> shift;
  return static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
}

double read_float(uint64_t bits, const Conversion& c) {
  switch (c.from) {
    case Type::kF64: return std::bit_cast<double>(bits);
    case Type::kF32: {
      const auto single = static_cast<uint32_t>(bits);
      return decode(c.ftz ? flush_f32(single) : single, kFormatF32);
    }
    default: return decode(static_cast<uint32_t>(bits) & 0xffff, format_of(c.from));
  }
}

uint64_t write_float(double value, const Conversion& c) {
  if (c.saturate) value = value > 0.0 ? std::min(value, 1.0) : 0.0;
  if (c.to == Type::kF64) {
    return std::isnan(value) ? 0x7FF8000000000000u : std::bit_cast<uint64_t>(value);
  }
  if (c.to == Type::kF32) return f64_to_f32(value, c.rounding, c.ftz);
  return encode(value, format_of(c.to), {c.rounding, c.satfinite, c.relu});
}

uint64_t from_integer(uint64_t value, const Conversion& c) {
  const bool is_negative = is_signed(c.from) && static_cast<int64_t>(value) < 0;
  if (is_float(c.to)) {
    if (c.saturate) return write_float(is_negative || value == 0 ? 0.0 : 1.0, c);
    if (c.to == Type::kF64) {
      return std::bit_cast<uint64_t>(integer_to_f64(value, is_signed(c.from), c.rounding));
    }
    return integer_to_float(value, is_signed(c.from), format_of(c.to), c.rounding);
  }
  if (!c.saturate) return value;
  const int bits = type_bits(c.to) - (is_signed(c.to) ? 1 : 0);
  const uint64_t highest = low_bits(~0ull, bits);
  if (is_negative) {
    const auto lowest = is_signed(c.to) ? static_cast<int64_t>(~highest) : 0;
    return static_cast<uint64_t>(std::max(static_cast<int64_t>(value), lowest));
  }
  return std::min(value, highest);
}

uint64_t from_float(double value, const Conversion& c) {
  if (is_integer(c.to)) {
    return float_to_integer(value, c.rounding, type_bits(c.to), is_signed(c.to), c.from == Type::kF64);
  }
  if (!c.to_integral) return write_float(value, c);
  Conversion exact = c;
  exact.rounding = Rounding::kRn;
  return write_float(round_to_integral(value, c.rounding), exact);
}

uint64_t convert_lane(uint64_t bits, const Conversion& c) {
  const uint64_t value =
      is_integer(c.from) ? from_integer(extend(bits, c.from), c) : from_float(read_float(bits, c), c);
  // An integer fills its register by its own sign or zeros.
  return low_bits(is_integer(c.to) ? extend(value, c.to) : value, c.to_bits);
}

Step convert_general(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& c = static_cast<const Conversion&>(*inst.side);
  for_lanes(active, [&](int lane) {
    const uint64_t bits = c.from_64 ? warp.lanes<uint64_t>(inst.operands[1])[lane]
                                    : warp.lanes<uint32_t>(inst.operands[1])[lane];
    const uint64_t value = convert_lane(bits, c);
    if (c.to_64) {
      warp.lanes<uint64_t>(inst.operands[0])[lane] = value;
    } else {
      warp.lanes<uint32_t>(inst.operands[0])[lane] = static_cast<uint32_t>(value);
    }
  });
  return Step::kNext;
}

// ---- fast handlers ----

template <typename To, typename From>
Handler integer_handler() {
  return lanewise<To, From>([](From value) { return static_cast<To>(value); });
}

template <typename From>
Handler integer_handler_to(Type to) {
  switch (to) {
    case Type::kU16: return integer_handler<uint16_t, From>();
    case Type::kS16: return integer_handler<int16_t, From>();
    case Type::kU32: return integer_handler<uint32_t, From>();
    case Type::kS32: return integer_handler<int32_t, From>();
    case Type::kU64: return integer_handler<uint64_t, From>();
    case Type::kS64: return integer_handler<int64_t, From>();
    default: return nullptr;
  }
}

Handler integer_handler_from(Type to, Type from) {
  switch (from) {
    case Type::kU8: return integer_handler_to<uint8_t>(to);
    case Type::kS8: return integer_handler_to<int8_t>(to);
    case Type::kU16: return integer_handler_to<uint16_t>(to);
    case Type::kS16: return integer_handler_to<int16_t>(to);
    case Type::kU32: return integer_handler_to<uint32_t>(to);
    case Type::kS32: return integer_handler_to<int32_t>(to);
    case Type::kU64: return integer_handler_to<uint64_t>(to);
    case Type::kS64: return integer_handler_to<int64_t>(to);
    default: return nullptr;
  }
}

/// nullptr where only the general handler will do.
Handler find_fast_handler(const Conversion& c) {
  const bool plain = !c.ftz && !c.saturate && !c.satfinite && !c.relu && c.rounding == Rounding::kRn;
  if (!plain || c.to_integral) return nullptr;
  if (is_integer(c.to) && is_integer(c.from)) {
    const bool natural =
        c.to_bits == type_bits(c.to) && c.from_64 == (type_bits(c.from) == 64);
    return natural ? integer_handler_from(c.to, c.from) : nullptr;
  }
  if (c.from_64 || c.to_64) return nullptr;
  if (c.to == Type::kF32 && c.from == Type::kS32) {
    return lanewise<float, int32_t>([](int32_t value) { return static_cast<float>(value); });
  }
  if (c.to == Type::kF32 && c.from == Type::kU32) {
    return lanewise<float, uint32_t>([](uint32_t value) { return static_cast<float>(value); });
  }
  if (c.to == Type::kF32 && c.from == Type::kBf16) {
    return lanewise<uint32_t, uint32_t>([](uint32_t value) { return value << 16; });
  }
  if (c.to == Type::kF32 && c.from == Type::kF16) {
    return lanewise<uint32_t, uint32_t>([](uint32_t value) { return f16_to_f32(value & 0xffff); });
  }
  if (c.to == Type::kBf16 && c.from == Type::kF32) {
    return lanewise<uint32_t, uint32_t>([](uint32_t value) { return f32_to_bf16_rn(value); });
  }
  return nullptr;
}

// ---- packed pairs ----

/// Two FP32 values into a pair: the first source is the upper element.
Step convert_pair(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& c = static_cast<const Conversion&>(*inst.side);
  const FloatFormat format = format_of(c.to);
  const int shift = type_bits(c.to) / 2;
  const ConvertOptions options{c.rounding, c.satfinite, c.relu};
  const float* upper = warp.lanes<float>(inst.operands[1]);
  const float* lower = warp.lanes<float>(inst.operands[2]);
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) {
    result[lane] = encode(lower[lane], format, options) | encode(upper[lane], format, options) << shift;
  });
  return Step::kNext;
}

/// An FP16 or BF16 pair into an FP8 pair.
Step convert_half_pair(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& c = static_cast<const Conversion&>(*inst.side);
  const FloatFormat from = format_of(c.from);
  const FloatFormat to = format_of(c.to);
  const ConvertOptions options{c.rounding, c.satfinite, c.relu};
  const uint32_t* source = warp.lanes<uint32_t>(inst.operands[1]);
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) {
    const uint32_t pair = source[lane];
    result[lane] = encode(decode(pair & 0xffff, from), to, options) |
                   encode(decode(pair >> 16, from), to, options) << 8;
  });
  return Step::kNext;
}

/// An FP8 pair into an FP16 pair, exactly.
Step widen_pair(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& c = static_cast<const Conversion&>(*inst.side);
  const auto widen = [&](uint32_t bits) {
    const uint32_t value = c.from == Type::kE4m3x2 ? e4m3_to_f16(bits) : e5m2_to_f16(bits);
    const bool negative = (value & 0x8000) != 0 && (value & 0x7fff) <= 0x7c00;
    return c.relu && negative ? 0 : value;
  };
  const uint32_t* source = warp.lanes<uint32_t>(inst.operands[1]);
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) {
    result[lane] = widen(source[lane] & 0xff) | widen(source[lane] >> 8 & 0xff) << 16;
  });
  return Step::kNext;
}

Step convert_tf32(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& c = static_cast<const Conversion&>(*inst.side);
  const float* source = warp.lanes<float>(inst.operands[1]);
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) {
    result[lane] = f32_to_tf32(source[lane], {c.rounding, c.satfinite, c.relu});
  });
  return Step::kNext;
}

Handler bf16_pair_handler() {
  return lanewise<uint32_t, uint32_t, uint32_t>([](uint32_t upper, uint32_t lower) {
    return f32_to_bf16_rn(lower) | f32_to_bf16_rn(upper) << 16;
  });
}

// ---- building ----

bool read_rounding(const std::string& name, Conversion& c) {
  static constexpr struct {
    std::string_view name;
    Rounding rounding;
    bool integral;
  } kModes[] = {
      {"rn", Rounding::kRn, false},  {"rz", Rounding::kRz, false},   {"rm", Rounding::kRm, false},
      {"rp", Rounding::kRp, false},  {"rna", Rounding::kRna, false}, {"rni", Rounding::kRn, true},
      {"rzi", Rounding::kRz, true},  {"rmi", Rounding::kRm, true},   {"rpi", Rounding::kRp, true},
  };
  for (const auto& mode : kModes) {
    if (mode.name != name) continue;
    c.rounding = mode.rounding;
    c.to_integral = mode.integral;
    c.has_rounding = true;
    return true;
  }
  return false;
}

void read_modifiers(const Builder& builder, Conversion& c) {
  for (const std::string& name : builder.statement().modifiers) {
    if (const Type type = type_from_name(name); type != Type::kNone) {
      if (c.from != Type::kNone) builder.fail("cvt takes two types");
      (c.to == Type::kNone ? c.to : c.from) = type;
    } else if (name == "ftz") {
      c.ftz = true;
    } else if (name == "sat") {
      c.saturate = true;
    } else if (name == "satfinite") {
      c.satfinite = true;
    } else if (name == "relu") {
      c.relu = true;
    } else if (!read_rounding(name, c)) {
      builder.fail("unknown modifier '." + name + "' of cvt");
    }
  }
  if (c.from == Type::kNone) builder.fail("cvt takes two types");
}

Type bits_type(int bits) {
  switch (bits) {
    case 8: return Type::kB8;
    case 16: return Type::kB16;
    case 32: return Type::kB32;
    case 64: return Type::kB64;
    default: return Type::kNone;
  }
}

/// Integers may stand in registers wider than their type; all else has its own width.
Type operand_type(Builder& builder, const Operand& operand, Type type) {
  const int bits = builder.register_bits(operand);
  if (!is_integer(type) || bits <= type_bits(type) || bits > 64) return type;
  return bits_type(bits);
}

/// What the ISA asks of rounding: needed where precision may be lost, forbidden where it cannot be.
void check_scalar(Builder& builder, const Conversion& c) {
  const bool to_float = is_float(c.to);
  const bool from_float = is_float(c.from);
  if ((!to_float && !is_integer(c.to)) || (!from_float && !is_integer(c.from))) {
    builder.fail("unknown conversion");
  }
  const auto precision = [](Type type) { return type == Type::kBf16 ? 16 : type_bits(type); };
  const bool narrows = to_float && from_float &&
                       (precision(c.to) < precision(c.from) ||
                        (precision(c.to) == precision(c.from) && c.to != c.from));
  const bool needs_rounding = (from_float && is_integer(c.to)) || (is_integer(c.from) && to_float) || narrows;
  if (needs_rounding && !c.has_rounding) builder.fail("cvt needs a rounding modifier here");
  if (is_integer(c.to) && is_integer(c.from) && c.has_rounding) {
    builder.fail("cvt between integers takes no rounding modifier");
  }
  if (from_float && is_integer(c.to) && !c.to_integral) builder.fail("cvt to an integer needs .rni, .rzi, .rmi or .rpi");
  if (c.rounding == Rounding::kRna) builder.fail("rounding mode .rna is for .tf32");
}

void build_scalar(Builder& builder, std::unique_ptr<Conversion> conversion) {
  Conversion& c = *conversion;
  check_scalar(builder, c);
  expect_operands(builder, 2);
  const std::vector<Operand>& operands = builder.statement().operands;
  const Type from = operand_type(builder, operands[1], c.from);
  const Type to = operand_type(builder, operands[0], c.to);
  Instruction& inst = builder.instruction();
  inst.operands[1] = builder.source(operands[1], from);
  inst.operands[0] = result(builder, operands[0], to);
  c.to_bits = std::max(builder.register_bits(operands[0]), type_bits(c.to));
  c.from_64 = type_bits(from) == 64;
  c.to_64 = type_bits(to) == 64;
  inst.handler = find_fast_handler(c);
  if (inst.handler != nullptr) return;
  inst.handler = convert_general;
  builder.keep(std::move(conversion));
}

/// Packed forms: destination, and one or two sources of the type.
void build_packed(Builder& builder, std::unique_ptr<Conversion> conversion, Handler handler, int sources) {
  expect_operands(builder, sources + 1);
  const std::vector<Operand>& operands = builder.statement().operands;
  Instruction& inst = builder.instruction();
  for (int i = 1; i <= sources; ++i) inst.operands[i] = builder.source(operands[i], conversion->from);
  inst.operands[0] = result(builder, operands[0], conversion->to);
  inst.handler = handler;
  builder.keep(std::move(conversion));
}

void build_convert(Builder& builder) {
  auto conversion = std::make_unique<Conversion>();
  Conversion& c = *conversion;
  read_modifiers(builder, c);
  const bool to_half_pair = c.to == Type::kF16x2 || c.to == Type::kBf16x2;
  const bool to_fp8_pair = c.to == Type::kE4m3x2 || c.to == Type::kE5m2x2;
  const bool from_fp8_pair = c.from == Type::kE4m3x2 || c.from == Type::kE5m2x2;
  if ((to_half_pair || to_fp8_pair) && !c.has_rounding) builder.fail("cvt needs a rounding modifier here");
  if (to_fp8_pair && !c.satfinite) builder.fail("cvt to FP8 needs .satfinite");
  if (c.to == Type::kTf32 && c.from == Type::kF32) {
    return build_packed(builder, std::move(conversion), convert_tf32, 1);
  }
  if ((to_half_pair || to_fp8_pair) && c.from == Type::kF32) {
    const bool plain = c.to == Type::kBf16x2 && c.rounding == Rounding::kRn && !c.relu && !c.satfinite;
    return build_packed(builder, std::move(conversion), plain ? bf16_pair_handler() : &convert_pair, 2);
  }
  if (to_fp8_pair && (c.from == Type::kF16x2 || c.from == Type::kBf16x2)) {
    return build_packed(builder, std::move(conversion), convert_half_pair, 1);
  }
  if (c.to == Type::kF16x2 && from_fp8_pair) {
    return build_packed(builder, std::move(conversion), widen_pair, 1);
  }
  build_scalar(builder, std::move(conversion));
}

// ---- cvt.pack ----

/// d = sat(a) : sat(b) [: the lower part of c], a above b; elements of kBits bits.
template <int kBits, bool kSigned>
inline constexpr int64_t kHighest = (int64_t{1} << (kSigned ? kBits - 1 : kBits)) - 1;

template <int kBits, bool kSigned>
uint32_t pack(uint32_t a, uint32_t b, uint32_t c) {
  constexpr int64_t kHigh = kHighest<kBits, kSigned>;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  const auto clamp = [](uint32_t value) {
    const int64_t low = kSigned ? -kHigh - 1 : 0;
    return static_cast<uint32_t>(std::clamp(int64_t{static_cast<int32_t>(value)}, low, int64_t{kHigh})) & kMask;
  };
  const uint32_t pair = clamp(a) << kBits | clamp(b);
  return kBits == 16 ? pair : c << (2 * kBits) | pair;
}

template <int kBits, bool kSigned>
void add_pack(Table& table, const std::string& type) {
  const std::string name = "cvt.pack.sat." + type + ".s32";
  if constexpr (kBits == 16) {
    add_row(table, name, kClass, lanewise<uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b) {
              return pack<kBits, kSigned>(a, b, 0);
            }),
            Type::kB32, {Type::kB32, Type::kB32});
  } else {
    add_row(table, name + ".b32", kClass,
            lanewise<uint32_t, uint32_t, uint32_t, uint32_t>(
                [](uint32_t a, uint32_t b, uint32_t c) { return pack<kBits, kSigned>(a, b, c); }),
            Type::kB32, {Type::kB32, Type::kB32, Type::kB32});
  }
}

}  // namespace

void add_convert_forms(Table& table) {
  table.add("cvt.*", kClass, build_convert);
  add_pack<16, false>(table, "u16");
  add_pack<16, true>(table, "s16");
  add_pack<8, false>(table, "u8");
  add_pack<8, true>(table, "s8");
}

}  // namespace pykernels::emulator
