// FP16 and BF16 arithmetic, single values and pairs: each operation rounded once to nearest even,
// NaN results 0x7FFF. FP16's ex2 and tanh, and BF16's, are the FP64 functions rounded to the
// format.
#include <cmath>

#include "emulator/isa/arithmetic.h"
#include "emulator/isa/lanewise.h"
#include "emulator/numerics/arithmetic.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kArithmetic;
constexpr uint32_t kSign = 0x8000u;
constexpr uint32_t kNan = 0x7FFFu;

// Modifiers that change a result, as bits.
constexpr int kFlush = 1;
constexpr int kSaturate = 2;
constexpr int kRelu = 4;
constexpr int kPropagateNan = 8;
constexpr int kXorSign = 16;

int read_flags(std::string_view spelling) {
  const auto has = [&](std::string_view name) {
    return spelling.find(name) != std::string_view::npos;
  };
  return (has(".ftz") ? kFlush : 0) | (has(".sat") ? kSaturate : 0) | (has(".relu") ? kRelu : 0) |
         (has(".NaN") ? kPropagateNan : 0) | (has(".xorsign") ? kXorSign : 0);
}

/// One element of either format, 16 bits.
struct Element {
  const FloatFormat& format;
  int flags;

  bool is_nan(uint32_t a) const { return (a & ~kSign) > format.infinity(); }
  uint32_t flush(uint32_t a) const { return (a & format.infinity()) == 0 ? a & kSign : a; }
  uint32_t operand(uint32_t a) const { return (flags & kFlush) != 0 ? flush(a) : a; }
  uint32_t finish(uint32_t a) const {
    if ((flags & kFlush) != 0) a = flush(a);
    const bool positive = (a & kSign) == 0 && !is_nan(a);
    if ((flags & kSaturate) != 0) {
      const uint32_t one = static_cast<uint32_t>(format.bias()) << format.fraction_bits;
      return !positive ? 0 : a > one ? one : a;
    }
    if ((flags & kRelu) != 0 && !positive && !is_nan(a)) return 0;
    return is_nan(a) ? kNan : a;
  }
};

struct Add {
  uint32_t operator()(const Element& e, uint32_t a, uint32_t b) const {
    return e.finish(add_half(e.operand(a), e.operand(b), e.format));
  }
};
struct Subtract {
  uint32_t operator()(const Element& e, uint32_t a, uint32_t b) const {
    return e.finish(add_half(e.operand(a), e.operand(b) ^ kSign, e.format));
  }
};
struct Multiply {
  uint32_t operator()(const Element& e, uint32_t a, uint32_t b) const {
    return e.finish(mul_half(e.operand(a), e.operand(b), e.format));
  }
};
struct MultiplyAdd {
  uint32_t operator()(const Element& e, uint32_t a, uint32_t b, uint32_t c) const {
    return e.finish(fma_half(e.operand(a), e.operand(b), e.operand(c), e.format));
  }
};

/// -0 is below +0; a NaN loses unless .NaN.
template <bool kIsMax>
struct Choose {
  uint32_t operator()(const Element& e, uint32_t a, uint32_t b) const {
    a = e.operand(a);
    b = e.operand(b);
    const uint32_t sign = (a ^ b) & kSign;
    if ((e.flags & kXorSign) != 0) {
      a &= ~kSign;
      b &= ~kSign;
    }
    const bool any_nan = e.is_nan(a) || e.is_nan(b);
    const bool both_nan = e.is_nan(a) && e.is_nan(b);
    if ((e.flags & kPropagateNan) != 0 ? any_nan : both_nan) return kNan;
    uint32_t chosen = e.is_nan(a) ? b : a;
    if (!any_nan) {
      const double x = decode(a, e.format);
      const double y = decode(b, e.format);
      chosen = (kIsMax ? x > y : x < y) ? a : b;
      if (x == y) chosen = kIsMax ? a & b : a | b;
    }
    return (e.flags & kXorSign) != 0 ? chosen | sign : chosen;
  }
};

struct Absolute {
  uint32_t operator()(const Element& e, uint32_t a) const { return e.operand(a) & ~kSign; }
};
struct Negate {
  uint32_t operator()(const Element& e, uint32_t a) const { return e.operand(a) ^ kSign; }
};
struct Exponential {
  uint32_t operator()(const Element& e, uint32_t a) const {
    return e.finish(encode(std::exp2(decode(e.operand(a), e.format)), e.format));
  }
};
struct Tangent {
  uint32_t operator()(const Element& e, uint32_t a) const {
    return e.finish(encode(std::tanh(decode(a, e.format)), e.format));
  }
};

/// The flags are the instruction's variant: these operations cost more than a test of them.
template <typename Operation, bool kIsBf16, bool kIsPair, int kSources>
Step half_handler(Warp& warp, const Instruction& inst, LaneMask active) {
  const Element element{kIsBf16 ? kFormatBf16 : kFormatF16, inst.variant};
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  const uint32_t* sources[kSources];
  for (int i = 0; i < kSources; ++i) sources[i] = warp.lanes<uint32_t>(inst.operands[i + 1]);
  const auto evaluate = [&](int lane, int shift) {
    const auto value = [&](int i) { return sources[i][lane] >> shift & 0xffff; };
    if constexpr (kSources == 1) return Operation{}(element, value(0));
    if constexpr (kSources == 2) return Operation{}(element, value(0), value(1));
    if constexpr (kSources == 3) return Operation{}(element, value(0), value(1), value(2));
  };
  for_lanes(active, [&](int lane) {
    const uint32_t low = evaluate(lane, 0);
    result[lane] = kIsPair ? low | evaluate(lane, 16) << 16 : low;
  });
  return Step::kNext;
}

void add_half_row(Table& table, const std::string& spelling, Handler handler, Type type,
                  int sources) {
  const int flags = read_flags(spelling);
  table.add(spelling, kClass, [=](Builder& builder) {
    expect_operands(builder, sources + 1);
    const std::vector<Operand>& operands = builder.statement().operands;
    Instruction& inst = builder.instruction();
    for (int i = 1; i <= sources; ++i) inst.operands[i] = builder.source(operands[i], type);
    inst.operands[0] = result(builder, operands[0], type);
    inst.variant = static_cast<uint16_t>(flags);
    inst.handler = handler;
  });
}

template <typename Operation, int kSources>
void add_f16(Table& table, const std::string& pattern) {
  for (const std::string& spelling : spellings(pattern)) {
    add_half_row(table, spelling + ".f16", half_handler<Operation, false, false, kSources>,
                 Type::kF16, kSources);
    add_half_row(table, spelling + ".f16x2", half_handler<Operation, false, true, kSources>,
                 Type::kF16x2, kSources);
  }
}

template <typename Operation, int kSources>
void add_bf16(Table& table, const std::string& pattern) {
  for (const std::string& spelling : spellings(pattern)) {
    add_half_row(table, spelling + ".bf16", half_handler<Operation, true, false, kSources>,
                 Type::kBf16, kSources);
    add_half_row(table, spelling + ".bf16x2", half_handler<Operation, true, true, kSources>,
                 Type::kBf16x2, kSources);
  }
}

}  // namespace

void add_half_forms(Table& table) {
  add_f16<Add, 2>(table, "add[.rn][.ftz][.sat]");
  add_f16<Subtract, 2>(table, "sub[.rn][.ftz][.sat]");
  add_f16<Multiply, 2>(table, "mul[.rn][.ftz][.sat]");
  add_f16<MultiplyAdd, 3>(table, "fma.rn[.ftz][.sat]");
  add_f16<MultiplyAdd, 3>(table, "fma.rn[.ftz].relu");
  add_f16<Choose<false>, 2>(table, "min[.ftz][.NaN][.xorsign.abs]");
  add_f16<Choose<true>, 2>(table, "max[.ftz][.NaN][.xorsign.abs]");
  add_f16<Absolute, 1>(table, "abs[.ftz]");
  add_f16<Negate, 1>(table, "neg[.ftz]");
  add_f16<Exponential, 1>(table, "ex2.approx");
  add_f16<Tangent, 1>(table, "tanh.approx");
  add_bf16<Add, 2>(table, "add[.rn]");
  add_bf16<Subtract, 2>(table, "sub[.rn]");
  add_bf16<Multiply, 2>(table, "mul[.rn]");
  add_bf16<MultiplyAdd, 3>(table, "fma.rn[.relu]");
  add_bf16<Choose<false>, 2>(table, "min[.NaN][.xorsign.abs]");
  add_bf16<Choose<true>, 2>(table, "max[.NaN][.xorsign.abs]");
  add_bf16<Absolute, 1>(table, "abs");
  add_bf16<Negate, 1>(table, "neg");
  add_bf16<Exponential, 1>(table, "ex2.approx.ftz");
  add_bf16<Tangent, 1>(table, "tanh.approx");
}

}  // namespace pykernels::emulator
