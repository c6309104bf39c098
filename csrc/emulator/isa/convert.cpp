// cvt between scalar types. One general handler takes every form lane by lane; the forms that real
// kernels execute often have handlers of their own. Packed pairs are in convert_packed.cpp.
#include "emulator/isa/convert.h"

#include <algorithm>
#include <cmath>

#include "emulator/isa/lanewise.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kConvert;

bool is_signed(Type type) { return type >= Type::kS8 && type <= Type::kS64; }
bool is_integer(Type type) { return type >= Type::kU8 && type <= Type::kS64; }
bool is_float(Type type) {
  return type == Type::kF16 || type == Type::kBf16 || type == Type::kF32 || type == Type::kF64;
}

// ---- the general scalar conversion ----

uint64_t low_bits(uint64_t value, int bits) {
  return bits == 64 ? value : value & ((1ull << bits) - 1);
}

/// The lower bits, extended as the type says.
uint64_t extend(uint64_t value, Type type) {
  const int shift = 64 - type_bits(type);
  if (!is_signed(type)) return value << shift >> shift;
  return static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift);
}

double read_float(uint64_t bits, const Conversion& c) {
  switch (c.from) {
    case Type::kF64:
      return std::bit_cast<double>(bits);
    case Type::kF32: {
      const auto single = static_cast<uint32_t>(bits);
      return decode(c.ftz ? flush_f32(single) : single, kFormatF32);
    }
    default:
      return decode(static_cast<uint32_t>(bits) & 0xffff, format_of(c.from));
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
    return float_to_integer(value, c.rounding, type_bits(c.to), is_signed(c.to),
                            c.from == Type::kF64);
  }
  if (!c.to_integral) return write_float(value, c);
  Conversion exact = c;
  exact.rounding = Rounding::kRn;
  return write_float(round_to_integral(value, c.rounding), exact);
}

uint64_t convert_lane(uint64_t bits, const Conversion& c) {
  const uint64_t value = is_integer(c.from) ? from_integer(extend(bits, c.from), c)
                                            : from_float(read_float(bits, c), c);
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
    case Type::kU16:
      return integer_handler<uint16_t, From>();
    case Type::kS16:
      return integer_handler<int16_t, From>();
    case Type::kU32:
      return integer_handler<uint32_t, From>();
    case Type::kS32:
      return integer_handler<int32_t, From>();
    case Type::kU64:
      return integer_handler<uint64_t, From>();
    case Type::kS64:
      return integer_handler<int64_t, From>();
    default:
      return nullptr;
  }
}

Handler integer_handler_from(Type to, Type from) {
  switch (from) {
    case Type::kU8:
      return integer_handler_to<uint8_t>(to);
    case Type::kS8:
      return integer_handler_to<int8_t>(to);
    case Type::kU16:
      return integer_handler_to<uint16_t>(to);
    case Type::kS16:
      return integer_handler_to<int16_t>(to);
    case Type::kU32:
      return integer_handler_to<uint32_t>(to);
    case Type::kS32:
      return integer_handler_to<int32_t>(to);
    case Type::kU64:
      return integer_handler_to<uint64_t>(to);
    case Type::kS64:
      return integer_handler_to<int64_t>(to);
    default:
      return nullptr;
  }
}

/// nullptr where only the general handler will do.
Handler find_fast_handler(const Conversion& c) {
  const bool plain =
      !c.ftz && !c.saturate && !c.satfinite && !c.relu && c.rounding == Rounding::kRn;
  if (!plain || c.to_integral) return nullptr;
  if (is_integer(c.to) && is_integer(c.from)) {
    const bool natural = c.to_bits == type_bits(c.to) && c.from_64 == (type_bits(c.from) == 64);
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

// ---- building ----

bool read_rounding(const std::string& name, Conversion& c) {
  static constexpr struct {
    std::string_view name;
    Rounding rounding;
    bool integral;
  } kModes[] = {
      {"rn", Rounding::kRn, false}, {"rz", Rounding::kRz, false},   {"rm", Rounding::kRm, false},
      {"rp", Rounding::kRp, false}, {"rna", Rounding::kRna, false}, {"rni", Rounding::kRn, true},
      {"rzi", Rounding::kRz, true}, {"rmi", Rounding::kRm, true},   {"rpi", Rounding::kRp, true},
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

/// Integers may stand in registers wider than their type; all else has its own width.
Type operand_type(Builder& builder, const Operand& operand, Type type) {
  const int bits = builder.register_bits(operand);
  if (!is_integer(type) || bits <= type_bits(type) || bits > 64) return type;
  return untyped(bits);
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
  const bool needs_rounding =
      (from_float && is_integer(c.to)) || (is_integer(c.from) && to_float) || narrows;
  if (needs_rounding && !c.has_rounding) builder.fail("cvt needs a rounding modifier here");
  if (is_integer(c.to) && is_integer(c.from) && c.has_rounding) {
    builder.fail("cvt between integers takes no rounding modifier");
  }
  if (from_float && is_integer(c.to) && !c.to_integral)
    builder.fail("cvt to an integer needs .rni, .rzi, .rmi or .rpi");
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

void build_convert(Builder& builder) {
  auto conversion = std::make_unique<Conversion>();
  read_modifiers(builder, *conversion);
  if (build_packed_conversion(builder, conversion)) return;
  build_scalar(builder, std::move(conversion));
}

}  // namespace

void add_convert_forms(Table& table) {
  table.add("cvt.*", kClass, build_convert);
  add_pack_forms(table);
}

}  // namespace pykernels::emulator
