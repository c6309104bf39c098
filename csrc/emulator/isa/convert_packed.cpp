// cvt to and from packed pairs, cvt to .tf32, and cvt.pack.
#include <algorithm>
#include <utility>

#include "emulator/isa/convert.h"
#include "emulator/isa/lanewise.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kConvert;

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
    result[lane] = encode(lower[lane], format, options) | encode(upper[lane], format, options)
                                                              << shift;
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

/// Packed forms: destination, and one or two sources of the type.
void build_packed(Builder& builder, std::unique_ptr<Conversion> conversion, Handler handler,
                  int sources) {
  expect_operands(builder, sources + 1);
  const std::vector<Operand>& operands = builder.statement().operands;
  Instruction& inst = builder.instruction();
  for (int i = 1; i <= sources; ++i)
    inst.operands[i] = builder.source(operands[i], conversion->from);
  inst.operands[0] = result(builder, operands[0], conversion->to);
  inst.handler = handler;
  builder.keep(std::move(conversion));
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
    return static_cast<uint32_t>(
               std::clamp(int64_t{static_cast<int32_t>(value)}, low, int64_t{kHigh})) &
           kMask;
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

FloatFormat format_of(Type type) {
  switch (type) {
    case Type::kF16:
    case Type::kF16x2:
      return kFormatF16;
    case Type::kBf16:
    case Type::kBf16x2:
      return kFormatBf16;
    case Type::kE4m3x2:
      return kFormatE4m3;
    case Type::kE5m2x2:
      return kFormatE5m2;
    case Type::kTf32:
      return kFormatTf32;
    default:
      return kFormatF32;
  }
}

bool build_packed_conversion(Builder& builder, std::unique_ptr<Conversion>& conversion) {
  const Conversion& c = *conversion;
  const bool to_half_pair = c.to == Type::kF16x2 || c.to == Type::kBf16x2;
  const bool to_fp8_pair = c.to == Type::kE4m3x2 || c.to == Type::kE5m2x2;
  const bool from_fp8_pair = c.from == Type::kE4m3x2 || c.from == Type::kE5m2x2;
  if ((to_half_pair || to_fp8_pair) && !c.has_rounding)
    builder.fail("cvt needs a rounding modifier here");
  if (to_fp8_pair && !c.satfinite) builder.fail("cvt to FP8 needs .satfinite");
  if (c.to == Type::kTf32 && c.from == Type::kF32) {
    build_packed(builder, std::move(conversion), convert_tf32, 1);
    return true;
  }
  if ((to_half_pair || to_fp8_pair) && c.from == Type::kF32) {
    const bool plain =
        c.to == Type::kBf16x2 && c.rounding == Rounding::kRn && !c.relu && !c.satfinite;
    build_packed(builder, std::move(conversion), plain ? bf16_pair_handler() : &convert_pair, 2);
    return true;
  }
  if (to_fp8_pair && (c.from == Type::kF16x2 || c.from == Type::kBf16x2)) {
    build_packed(builder, std::move(conversion), convert_half_pair, 1);
    return true;
  }
  if (c.to == Type::kF16x2 && from_fp8_pair) {
    build_packed(builder, std::move(conversion), widen_pair, 1);
    return true;
  }
  return false;
}

void add_pack_forms(Table& table) {
  add_pack<16, false>(table, "u16");
  add_pack<16, true>(table, "s16");
  add_pack<8, false>(table, "u8");
  add_pack<8, true>(table, "s8");
}

}  // namespace pykernels::emulator
