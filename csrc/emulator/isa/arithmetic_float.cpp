// FP32 arithmetic. NaN results of arithmetic are the one canonical NaN 0x7FFFFFFF, as on the GPU.
// Rounding to nearest is the host's own; directed rounding and the .approx functions are
// numerics/arithmetic.h's.
#include <cmath>

#include "emulator/isa/arithmetic.h"
#include "emulator/isa/lanewise.h"
#include "emulator/numerics/arithmetic.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kArithmetic;
constexpr uint32_t kSign = 0x80000000u;

// Modifiers that change a result, as bits.
constexpr int kFlush = 1;
constexpr int kSaturate = 2;
constexpr int kPropagateNan = 4;
constexpr int kXorSign = 8;

int read_flags(std::string_view spelling) {
  const auto has = [&](std::string_view name) {
    return spelling.find(name) != std::string_view::npos;
  };
  return (has(".ftz") ? kFlush : 0) | (has(".sat") ? kSaturate : 0) |
         (has(".NaN") ? kPropagateNan : 0) | (has(".xorsign") ? kXorSign : 0);
}

template <int kFlags>
float operand(uint32_t bits) {
  return std::bit_cast<float>((kFlags & kFlush) != 0 ? flush_f32(bits) : bits);
}

template <int kFlags>
uint32_t finish(float value) {
  if constexpr ((kFlags & kSaturate) != 0) {
    const float raised = value > 0.0f ? value : 0.0f;
    value = raised < 1.0f ? raised : 1.0f;
  }
  const uint32_t bits = canonical_f32(value);
  return (kFlags & kFlush) != 0 ? flush_f32(bits) : bits;
}

template <int kFlags, typename Operation>
Handler unary_handler() {
  return lanewise<uint32_t, uint32_t>(
      [](uint32_t a) { return finish<kFlags>(Operation{}(operand<kFlags>(a))); });
}

template <int kFlags, typename Operation>
Handler binary_handler() {
  return lanewise<uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b) {
    return finish<kFlags>(Operation{}(operand<kFlags>(a), operand<kFlags>(b)));
  });
}

template <int kFlags, typename Operation>
Handler ternary_handler() {
  return lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
    return finish<kFlags>(Operation{}(operand<kFlags>(a), operand<kFlags>(b), operand<kFlags>(c)));
  });
}

void add_f32_row(Table& table, const std::string& spelling, Handler handler, int sources) {
  if (sources == 1) {
    add_row(table, spelling, kClass, handler, Type::kF32, {Type::kF32});
  } else if (sources == 2) {
    add_row(table, spelling, kClass, handler, Type::kF32, {Type::kF32, Type::kF32});
  } else {
    add_row(table, spelling, kClass, handler, Type::kF32, {Type::kF32, Type::kF32, Type::kF32});
  }
}

template <typename Operation>
void add_unary(Table& table, std::string_view pattern, Operation) {
  for (const std::string& spelling : spellings(pattern)) {
    const bool flushes = read_flags(spelling) == kFlush;
    add_f32_row(table, spelling,
                flushes ? unary_handler<kFlush, Operation>() : unary_handler<0, Operation>(), 1);
  }
}

template <typename Operation>
void add_binary(Table& table, std::string_view pattern, Operation) {
  static const Handler handlers[] = {
      binary_handler<0, Operation>(), binary_handler<kFlush, Operation>(),
      binary_handler<kSaturate, Operation>(), binary_handler<kFlush | kSaturate, Operation>()};
  for (const std::string& spelling : spellings(pattern)) {
    add_f32_row(table, spelling, handlers[read_flags(spelling)], 2);
  }
}

template <typename Operation>
void add_ternary(Table& table, std::string_view pattern, Operation) {
  static const Handler handlers[] = {
      ternary_handler<0, Operation>(), ternary_handler<kFlush, Operation>(),
      ternary_handler<kSaturate, Operation>(), ternary_handler<kFlush | kSaturate, Operation>()};
  for (const std::string& spelling : spellings(pattern)) {
    add_f32_row(table, spelling, handlers[read_flags(spelling)], 3);
  }
}

// ---- directed rounding: lane by lane ----

template <auto kFunction, Rounding kRounding, int kFlags, int kSources>
Handler directed_handler() {
  constexpr bool kFtz = (kFlags & kFlush) != 0;
  constexpr auto done = [](uint32_t bits) {
    return (kFlags & kSaturate) != 0 ? saturate_f32(bits) : bits;
  };
  using Done = decltype(done);
  if constexpr (kSources == 1) {
    return lanewise<uint32_t, uint32_t>(
        [](uint32_t a) { return Done{}(kFunction(a, kRounding, kFtz)); });
  } else if constexpr (kSources == 2) {
    return lanewise<uint32_t, uint32_t, uint32_t>(
        [](uint32_t a, uint32_t b) { return Done{}(kFunction(a, b, kRounding, kFtz)); });
  } else {
    return lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
      return Done{}(kFunction(a, b, c, kRounding, kFtz));
    });
  }
}

/// name.{rz,rm,rp}{.ftz}{.sat}.f32; `pattern` is what follows the rounding mode.
template <auto kFunction, int kSources, Rounding kRounding>
void add_mode(Table& table, const std::string& name, const std::string& mode,
              const std::string& pattern) {
  static const Handler handlers[] = {
      directed_handler<kFunction, kRounding, 0, kSources>(),
      directed_handler<kFunction, kRounding, kFlush, kSources>(),
      directed_handler<kFunction, kRounding, kSaturate, kSources>(),
      directed_handler<kFunction, kRounding, kFlush | kSaturate, kSources>()};
  for (const std::string& spelling : spellings(name + mode + pattern)) {
    add_f32_row(table, spelling, handlers[read_flags(spelling)], kSources);
  }
}

template <auto kFunction, int kSources>
void add_directed(Table& table, const std::string& name, const std::string& pattern) {
  add_mode<kFunction, kSources, Rounding::kRz>(table, name, ".rz", pattern);
  add_mode<kFunction, kSources, Rounding::kRm>(table, name, ".rm", pattern);
  add_mode<kFunction, kSources, Rounding::kRp>(table, name, ".rp", pattern);
}

uint32_t sub_f32(uint32_t a, uint32_t b, Rounding rounding, bool ftz) {
  return add_f32(a, is_nan_f32(b) ? b : b ^ kSign, rounding, ftz);
}

uint32_t reciprocal_f32(uint32_t a, Rounding rounding, bool ftz) {
  return rcp_f32(a, rounding, ftz);
}

// ---- min, max: -0 is below +0, a NaN loses unless .NaN ----

template <bool kIsMax, int kFlags>
uint32_t choose(uint32_t a, uint32_t b) {
  if constexpr ((kFlags & kFlush) != 0) {
    a = flush_f32(a);
    b = flush_f32(b);
  }
  const uint32_t sign = (a ^ b) & kSign;
  if constexpr ((kFlags & kXorSign) != 0) {
    a &= ~kSign;
    b &= ~kSign;
  }
  const auto x = std::bit_cast<float>(a);
  const auto y = std::bit_cast<float>(b);
  const bool takes_a = kIsMax ? x > y : x < y;
  uint32_t chosen = takes_a ? a : b;
  chosen = x == y ? (kIsMax ? a & b : a | b) : chosen;
  const bool a_is_nan = is_nan_f32(a);
  const bool b_is_nan = is_nan_f32(b);
  chosen = a_is_nan ? b : chosen;
  chosen = b_is_nan ? a : chosen;
  if ((kFlags & kXorSign) != 0) chosen |= sign;
  const bool is_nan = (kFlags & kPropagateNan) != 0 ? (a_is_nan | b_is_nan) : (a_is_nan & b_is_nan);
  return is_nan ? 0x7FFFFFFFu : chosen;
}

template <bool kIsMax, int kFlags>
Handler choose_handler() {
  return lanewise<uint32_t, uint32_t, uint32_t>(
      [](uint32_t a, uint32_t b) { return choose<kIsMax, kFlags>(a, b); });
}

template <bool kIsMax>
void add_choice(Table& table, const std::string& name) {
  constexpr int kNan = kPropagateNan;
  for (const std::string& spelling : spellings(name + "[.ftz][.NaN][.xorsign.abs].f32")) {
    Handler handler = nullptr;
    switch (read_flags(spelling)) {
      case 0:
        handler = choose_handler<kIsMax, 0>();
        break;
      case kFlush:
        handler = choose_handler<kIsMax, kFlush>();
        break;
      case kNan:
        handler = choose_handler<kIsMax, kNan>();
        break;
      case kFlush | kNan:
        handler = choose_handler<kIsMax, kFlush | kNan>();
        break;
      case kXorSign:
        handler = choose_handler<kIsMax, kXorSign>();
        break;
      case kXorSign | kFlush:
        handler = choose_handler<kIsMax, kXorSign | kFlush>();
        break;
      case kXorSign | kNan:
        handler = choose_handler<kIsMax, kXorSign | kNan>();
        break;
      default:
        handler = choose_handler<kIsMax, kXorSign | kFlush | kNan>();
        break;
    }
    add_f32_row(table, spelling, handler, 2);
  }
}

// ---- approximate functions ----

template <auto kFunction>
void add_approximate(Table& table, const std::string& name) {
  add_f32_row(table, name + ".f32",
              lanewise<uint32_t, uint32_t>([](uint32_t a) { return kFunction(a, false); }), 1);
  add_f32_row(table, name + ".ftz.f32",
              lanewise<uint32_t, uint32_t>([](uint32_t a) { return kFunction(a, true); }), 1);
}

template <auto kFunction>
void add_approximate_division(Table& table, const std::string& name) {
  add_f32_row(table, name + ".f32",
              lanewise<uint32_t, uint32_t, uint32_t>(
                  [](uint32_t a, uint32_t b) { return kFunction(a, b, false); }),
              2);
  add_f32_row(table, name + ".ftz.f32",
              lanewise<uint32_t, uint32_t, uint32_t>(
                  [](uint32_t a, uint32_t b) { return kFunction(a, b, true); }),
              2);
}

void add_approximations(Table& table) {
  add_approximate<ex2_approx>(table, "ex2.approx");
  add_approximate<lg2_approx>(table, "lg2.approx");
  add_approximate<rcp_approx>(table, "rcp.approx");
  add_approximate<rsqrt_approx>(table, "rsqrt.approx");
  add_approximate<sqrt_approx>(table, "sqrt.approx");
  add_approximate<sin_approx>(table, "sin.approx");
  add_approximate<cos_approx>(table, "cos.approx");
  add_approximate_division<div_approx>(table, "div.approx");
  add_approximate_division<div_full>(table, "div.full");
  add_f32_row(table, "tanh.approx.f32",
              lanewise<uint32_t, uint32_t>([](uint32_t a) { return tanh_approx(a); }), 1);
}

// ---- signs and classes ----

void add_signs(Table& table) {
  add_f32_row(table, "abs.f32", lanewise<uint32_t, uint32_t>([](uint32_t a) { return a & ~kSign; }),
              1);
  add_f32_row(table, "abs.ftz.f32",
              lanewise<uint32_t, uint32_t>([](uint32_t a) { return flush_f32(a) & ~kSign; }), 1);
  add_f32_row(table, "neg.f32", lanewise<uint32_t, uint32_t>([](uint32_t a) { return a ^ kSign; }),
              1);
  add_f32_row(table, "neg.ftz.f32",
              lanewise<uint32_t, uint32_t>([](uint32_t a) { return flush_f32(a) ^ kSign; }), 1);
  // The sign of a with the magnitude of b.
  add_f32_row(table, "copysign.f32",
              lanewise<uint32_t, uint32_t, uint32_t>(
                  [](uint32_t a, uint32_t b) { return (a & kSign) | (b & ~kSign); }),
              2);
}

void add_class_test(Table& table, const std::string& name, Handler handler) {
  table.add("testp." + name + ".f32", InstructionClass::kCompare, [handler](Builder& builder) {
    expect_operands(builder, 2);
    Instruction& inst = builder.instruction();
    inst.operands[1] = builder.source(builder.statement().operands[1], Type::kF32);
    inst.operands[0] = result(builder, builder.statement().operands[0], Type::kPred);
    inst.handler = handler;
  });
}

void add_class_tests(Table& table) {
  constexpr uint32_t kInfinity = 0x7F800000u;
  const auto add = [&](const char* name, auto test) {
    add_class_test(table, name, lane_test<uint32_t>(test));
  };
  add("finite", [](uint32_t a) { return (a & kInfinity) != kInfinity; });
  add("infinite", [](uint32_t a) { return (a & ~kSign) == kInfinity; });
  add("number", [](uint32_t a) { return !is_nan_f32(a); });
  add("notanumber", [](uint32_t a) { return is_nan_f32(a); });
  add("normal", [](uint32_t a) { return (a & kInfinity) != 0 && (a & kInfinity) != kInfinity; });
  add("subnormal", [](uint32_t a) { return (a & kInfinity) == 0 && (a & ~kSign) != 0; });
}

}  // namespace

void add_float_forms(Table& table) {
  add_binary(table, "add[.rn][.ftz][.sat].f32", [](float a, float b) { return a + b; });
  add_binary(table, "sub[.rn][.ftz][.sat].f32", [](float a, float b) { return a - b; });
  add_binary(table, "mul[.rn][.ftz][.sat].f32", [](float a, float b) { return a * b; });
  add_binary(table, "div.rn[.ftz].f32", [](float a, float b) { return a / b; });
  add_ternary(table, "fma.rn[.ftz][.sat].f32",
              [](float a, float b, float c) { return std::fma(a, b, c); });
  add_ternary(table, "mad.rn[.ftz][.sat].f32",
              [](float a, float b, float c) { return std::fma(a, b, c); });
  add_unary(table, "rcp.rn[.ftz].f32", [](float a) { return 1.0f / a; });
  add_unary(table, "sqrt.rn[.ftz].f32", [](float a) { return std::sqrt(a); });
  add_directed<add_f32, 2>(table, "add", "[.ftz][.sat].f32");
  add_directed<sub_f32, 2>(table, "sub", "[.ftz][.sat].f32");
  add_directed<mul_f32, 2>(table, "mul", "[.ftz][.sat].f32");
  add_directed<div_f32, 2>(table, "div", "[.ftz].f32");
  add_directed<fma_f32, 3>(table, "fma", "[.ftz][.sat].f32");
  add_directed<fma_f32, 3>(table, "mad", "[.ftz][.sat].f32");
  add_directed<reciprocal_f32, 1>(table, "rcp", "[.ftz].f32");
  add_directed<sqrt_f32, 1>(table, "sqrt", "[.ftz].f32");
  add_choice<false>(table, "min");
  add_choice<true>(table, "max");
  add_approximations(table);
  add_signs(table);
  add_class_tests(table);
}

}  // namespace pykernels::emulator
