// FP64 arithmetic. PTX leaves the payload of NaN results open; here they are 0x7FF8000000000000.
#include <cmath>

#include "emulator/isa/arithmetic.h"
#include "emulator/isa/lanewise.h"
#include "emulator/numerics/arithmetic.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kArithmetic;
constexpr uint64_t kSign = 1ull << 63;
constexpr uint64_t kInfinity = 0x7FF0000000000000u;
constexpr uint64_t kNan = 0x7FF8000000000000u;

bool is_nan(uint64_t bits) { return (bits & ~kSign) > kInfinity; }

uint64_t finish(double value) {
  const auto bits = std::bit_cast<uint64_t>(value);
  return is_nan(bits) ? kNan : bits;
}

void add_f64_row(Table& table, const std::string& spelling, Handler handler, int sources) {
  if (sources == 1) {
    add_row(table, spelling, kClass, handler, Type::kF64, {Type::kF64});
  } else if (sources == 2) {
    add_row(table, spelling, kClass, handler, Type::kF64, {Type::kF64, Type::kF64});
  } else {
    add_row(table, spelling, kClass, handler, Type::kF64, {Type::kF64, Type::kF64, Type::kF64});
  }
}

template <typename Operation>
void add_unary(Table& table, std::string_view pattern, Operation) {
  const Handler handler =
      lanewise<uint64_t, double>([](double a) { return finish(Operation{}(a)); });
  for (const std::string& spelling : spellings(pattern)) add_f64_row(table, spelling, handler, 1);
}

template <typename Operation>
void add_binary(Table& table, std::string_view pattern, Operation) {
  const Handler handler = lanewise<uint64_t, double, double>(
      [](double a, double b) { return finish(Operation{}(a, b)); });
  for (const std::string& spelling : spellings(pattern)) add_f64_row(table, spelling, handler, 2);
}

template <typename Operation>
void add_ternary(Table& table, std::string_view pattern, Operation) {
  const Handler handler = lanewise<uint64_t, double, double, double>(
      [](double a, double b, double c) { return finish(Operation{}(a, b, c)); });
  for (const std::string& spelling : spellings(pattern)) add_f64_row(table, spelling, handler, 3);
}

template <Rounding kRounding>
void add_directed(Table& table, const std::string& mode) {
  add_binary(table, "add" + mode, [](double a, double b) { return add_f64(a, b, kRounding); });
  add_binary(table, "sub" + mode, [](double a, double b) { return add_f64(a, -b, kRounding); });
  add_binary(table, "mul" + mode, [](double a, double b) { return mul_f64(a, b, kRounding); });
  add_binary(table, "div" + mode, [](double a, double b) { return div_f64(a, b, kRounding); });
  for (const char* name : {"fma", "mad"}) {
    add_ternary(table, name + mode,
                [](double a, double b, double c) { return fma_f64(a, b, c, kRounding); });
  }
  add_unary(table, "rcp" + mode, [](double a) { return div_f64(1.0, a, kRounding); });
  add_unary(table, "sqrt" + mode, [](double a) { return sqrt_f64(a, kRounding); });
}

/// -0 is below +0; a NaN loses.
template <bool kIsMax>
uint64_t choose(uint64_t a, uint64_t b) {
  const auto x = std::bit_cast<double>(a);
  const auto y = std::bit_cast<double>(b);
  uint64_t chosen = (kIsMax ? x > y : x < y) ? a : b;
  if (x == y) chosen = kIsMax ? a & b : a | b;
  if (is_nan(a)) chosen = b;
  if (is_nan(b)) chosen = a;
  return is_nan(a) && is_nan(b) ? kNan : chosen;
}

/// Subnormal operands and results become zeros, as in the hardware's seed of a Newton iteration.
void add_approximations(Table& table) {
  add_unary(table, "rcp.approx.ftz.f64", [](double a) { return rcp_approx_f64(a); });
  add_unary(table, "rsqrt.approx[.ftz].f64", [](double a) { return rsqrt_approx_f64(a); });
}

void add_class_test(Table& table, const std::string& name, Handler handler) {
  table.add("testp." + name + ".f64", InstructionClass::kCompare, [handler](Builder& builder) {
    expect_operands(builder, 2);
    Instruction& inst = builder.instruction();
    inst.operands[1] = builder.source(builder.statement().operands[1], Type::kF64);
    inst.operands[0] = result(builder, builder.statement().operands[0], Type::kPred);
    inst.handler = handler;
  });
}

void add_class_tests(Table& table) {
  const auto add = [&](const char* name, auto test) {
    add_class_test(table, name, lane_test<uint64_t>(test));
  };
  add("finite", [](uint64_t a) { return (a & kInfinity) != kInfinity; });
  add("infinite", [](uint64_t a) { return (a & ~kSign) == kInfinity; });
  add("number", [](uint64_t a) { return !is_nan(a); });
  add("notanumber", [](uint64_t a) { return is_nan(a); });
  add("normal", [](uint64_t a) { return (a & kInfinity) != 0 && (a & kInfinity) != kInfinity; });
  add("subnormal", [](uint64_t a) { return (a & kInfinity) == 0 && (a & ~kSign) != 0; });
}

}  // namespace

void add_double_forms(Table& table) {
  add_binary(table, "add[.rn].f64", [](double a, double b) { return a + b; });
  add_binary(table, "sub[.rn].f64", [](double a, double b) { return a - b; });
  add_binary(table, "mul[.rn].f64", [](double a, double b) { return a * b; });
  add_binary(table, "div.rn.f64", [](double a, double b) { return a / b; });
  add_ternary(table, "fma.rn.f64", [](double a, double b, double c) { return std::fma(a, b, c); });
  add_ternary(table, "mad.rn.f64", [](double a, double b, double c) { return std::fma(a, b, c); });
  add_unary(table, "rcp.rn.f64", [](double a) { return 1.0 / a; });
  add_unary(table, "sqrt.rn.f64", [](double a) { return std::sqrt(a); });
  add_directed<Rounding::kRz>(table, ".rz.f64");
  add_directed<Rounding::kRm>(table, ".rm.f64");
  add_directed<Rounding::kRp>(table, ".rp.f64");
  add_approximations(table);
  add_f64_row(table, "min.f64", lanewise<uint64_t, uint64_t, uint64_t>([](uint64_t a, uint64_t b) {
                return choose<false>(a, b);
              }),
              2);
  add_f64_row(table, "max.f64", lanewise<uint64_t, uint64_t, uint64_t>([](uint64_t a, uint64_t b) {
                return choose<true>(a, b);
              }),
              2);
  add_f64_row(table, "abs.f64", lanewise<uint64_t, uint64_t>([](uint64_t a) { return a & ~kSign; }),
              1);
  add_f64_row(table, "neg.f64", lanewise<uint64_t, uint64_t>([](uint64_t a) { return a ^ kSign; }),
              1);
  add_f64_row(table, "copysign.f64",
              lanewise<uint64_t, uint64_t, uint64_t>(
                  [](uint64_t a, uint64_t b) { return (a & kSign) | (b & ~kSign); }),
              2);
  add_class_tests(table);
}

}  // namespace pykernels::emulator
