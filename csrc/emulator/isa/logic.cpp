// Logic and shifts.
#include <algorithm>

#include "emulator/isa/bit_fields.h"
#include "emulator/isa/lanewise.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kLogic;

// ---- and, or, xor, not, cnot ----

enum class Logic : uint8_t { kAnd, kOr, kXor, kNot };

template <Logic kOperation, typename Lane>
Lane combine(Lane a, Lane b) {
  if constexpr (kOperation == Logic::kAnd) return a & b;
  if constexpr (kOperation == Logic::kOr) return a | b;
  return a ^ b;
}

// Bits of the variant of operations on predicates: which sources are negated.
constexpr uint16_t kNegatedFirst = 1;
constexpr uint16_t kNegatedSecond = 2;

template <Logic kOperation>
Step combine_predicates(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask a = warp.mask(inst.operands[1]);
  if ((inst.variant & kNegatedFirst) != 0) a = ~a;
  LaneMask value = ~a;
  if constexpr (kOperation != Logic::kNot) {
    LaneMask b = warp.mask(inst.operands[2]);
    if ((inst.variant & kNegatedSecond) != 0) b = ~b;
    value = combine<kOperation>(a, b);
  }
  LaneMask& result = warp.mask(inst.operands[0]);
  result = (result & ~active) | (value & active);
  return Step::kNext;
}

void add_predicate_row(Table& table, std::string_view spelling, Handler handler, int sources) {
  table.add(spelling, kClass, [handler, sources](Builder& builder) {
    expect_operands(builder, sources + 1);
    const std::vector<Operand>& operands = builder.statement().operands;
    Instruction& inst = builder.instruction();
    for (int i = 1; i <= sources; ++i) {
      bool negated = false;
      inst.operands[i] = builder.predicate(operands[i], &negated);
      if (negated) inst.variant |= i == 1 ? kNegatedFirst : kNegatedSecond;
    }
    inst.operands[0] = result(builder, operands[0], Type::kPred);
    inst.handler = handler;
  });
}

template <Logic kOperation>
void add_logic(Table& table, const std::string& name) {
  const auto narrow = lanewise<uint32_t, uint32_t, uint32_t>(
      [](uint32_t a, uint32_t b) { return combine<kOperation>(a, b); });
  const auto wide = lanewise<uint64_t, uint64_t, uint64_t>(
      [](uint64_t a, uint64_t b) { return combine<kOperation>(a, b); });
  add_row(table, name + ".b16", kClass, narrow, Type::kB16, {Type::kB16, Type::kB16});
  add_row(table, name + ".b32", kClass, narrow, Type::kB32, {Type::kB32, Type::kB32});
  add_row(table, name + ".b64", kClass, wide, Type::kB64, {Type::kB64, Type::kB64});
  add_predicate_row(table, name + ".pred", &combine_predicates<kOperation>, 2);
}

template <typename Value>
void add_not(Table& table, Type type) {
  add_row(table, "not" + dotted(type), kClass,
          lanewise<Value, Value>([](Value a) { return static_cast<Value>(~a); }), type, {type});
  add_row(table, "cnot" + dotted(type), kClass,
          lanewise<Value, Value>([](Value a) { return static_cast<Value>(a == 0); }), type, {type});
}

// ---- shifts: amounts beyond the width clamp ----

template <typename Value>
Value shift_left(Value a, uint32_t amount) {
  constexpr uint32_t kBits = 8 * sizeof(Value);
  using Wide = LaneOf<Value>;
  const auto shifted =
      static_cast<Value>(static_cast<Wide>(a) << (amount & (8 * sizeof(Wide) - 1)));
  return amount < kBits ? shifted : Value{0};
}

template <typename Value>
Value shift_right(Value a, uint32_t amount) {
  constexpr uint32_t kBits = 8 * sizeof(Value);
  if constexpr (std::is_signed_v<Value>) {
    return static_cast<Value>(a >> (amount < kBits ? amount : kBits - 1));
  } else {
    const auto shifted = static_cast<Value>(a >> (amount & (kBits - 1)));
    return amount < kBits ? shifted : Value{0};
  }
}

template <typename Value>
void add_shift_right(Table& table, Type type) {
  add_row(table, "shr" + dotted(type), kClass,
          lanewise<Value, Value, uint32_t>([](Value a, uint32_t b) { return shift_right(a, b); }),
          type, {type, Type::kU32});
}

template <typename Value>
void add_shift_left(Table& table, Type type) {
  add_row(table, "shl" + dotted(type), kClass,
          lanewise<Value, Value, uint32_t>([](Value a, uint32_t b) { return shift_left(a, b); }),
          type, {type, Type::kU32});
}

/// shf: 32 bits of b:a shifted; .wrap takes the amount modulo 32, .clamp stops at 32.
void add_funnel_shifts(Table& table) {
  const auto add = [&](const char* name, Handler handler) {
    add_row(table, name, kClass, handler, Type::kB32, {Type::kB32, Type::kB32, Type::kU32});
  };
  constexpr auto joined = [](uint32_t a, uint32_t b) { return uint64_t{b} << 32 | a; };
  add("shf.l.wrap.b32",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        return static_cast<uint32_t>(decltype(joined){}(a, b) << (c & 31) >> 32);
      }));
  add("shf.r.wrap.b32",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        return static_cast<uint32_t>(decltype(joined){}(a, b) >> (c & 31));
      }));
  add("shf.l.clamp.b32",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        return static_cast<uint32_t>(decltype(joined){}(a, b) << std::min(c, 32u) >> 32);
      }));
  add("shf.r.clamp.b32",
      lanewise<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
        return static_cast<uint32_t>(decltype(joined){}(a, b) >> std::min(c, 32u));
      }));
}

// ---- lop3 ----

/// Bit i of the table is the result for a, b, c out of i = a * 4 + b * 2 + c.
uint32_t look_up(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t term =
        ((i & 4) != 0 ? a : ~a) & ((i & 2) != 0 ? b : ~b) & ((i & 1) != 0 ? c : ~c);
    result |= (table >> i & 1) != 0 ? term : 0;
  }
  return result;
}

constexpr uint16_t kAndCombine = 4;
constexpr int kLop3Predicate = 4;
constexpr int kLop3Combined = 5;

Step lop3(Warp& warp, const Instruction& inst, LaneMask active) {
  const uint32_t* a = warp.lanes<uint32_t>(inst.operands[1]);
  const uint32_t* b = warp.lanes<uint32_t>(inst.operands[2]);
  const uint32_t* c = warp.lanes<uint32_t>(inst.operands[3]);
  const auto table = static_cast<uint32_t>(inst.immediate);
  uint32_t values[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane)
    values[lane] = look_up(a[lane], b[lane], c[lane], table);
  if (inst.operands[0] != kNoSlot) {
    uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
    for_lanes(active, [&](int lane) { result[lane] = values[lane]; });
  }
  if (inst.operands[kLop3Predicate] == kNoSlot) return Step::kNext;
  LaneMask holds = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) holds |= values[lane] != 0 ? kLaneBits.of[lane] : 0;
  LaneMask other = warp.mask(inst.operands[kLop3Combined]);
  if ((inst.variant & kNegatedFirst) != 0) other = ~other;
  holds = (inst.variant & kAndCombine) != 0 ? holds & other : holds | other;
  LaneMask& predicate = warp.mask(inst.operands[kLop3Predicate]);
  predicate = (predicate & ~active) | (holds & active);
  return Step::kNext;
}

/// lop3.b32 d, a, b, c, table; lop3.{or,and}.b32 d|p, a, b, c, table, q
void build_lop3(Builder& builder) {
  const bool with_predicate = builder.has_modifier("or") || builder.has_modifier("and");
  expect_operands(builder, with_predicate ? 6 : 5);
  const std::vector<Operand>& operands = builder.statement().operands;
  Instruction& inst = builder.instruction();
  for (int i = 1; i <= 3; ++i) inst.operands[i] = builder.source(operands[i], Type::kB32);
  inst.immediate = builder.integer(operands[4]);
  if (inst.immediate < 0 || inst.immediate > 255) builder.fail("the table of lop3 has 8 bits");
  const Operand* destination = &operands[0];
  if (with_predicate) {
    bool negated = false;
    inst.operands[kLop3Combined] = builder.predicate(operands[5], &negated);
    inst.variant = (negated ? kNegatedFirst : 0) | (builder.has_modifier("and") ? kAndCombine : 0);
    if (destination->kind != Operand::Kind::kPair) builder.fail("the destination must be d|p");
    inst.operands[kLop3Predicate] = predicate_result(builder, destination->elements[1]);
    destination = &destination->elements[0];
  }
  inst.operands[0] = builder.destination(*destination, Type::kB32);
  inst.handler = lop3;
}

}  // namespace

void add_logic_forms(Table& table) {
  add_logic<Logic::kAnd>(table, "and");
  add_logic<Logic::kOr>(table, "or");
  add_logic<Logic::kXor>(table, "xor");
  add_predicate_row(table, "not.pred", &combine_predicates<Logic::kNot>, 1);
  add_not<uint16_t>(table, Type::kB16);
  add_not<uint32_t>(table, Type::kB32);
  add_not<uint64_t>(table, Type::kB64);
  add_shift_left<uint16_t>(table, Type::kB16);
  add_shift_left<uint32_t>(table, Type::kB32);
  add_shift_left<uint64_t>(table, Type::kB64);
  add_shift_right<uint16_t>(table, Type::kB16);
  add_shift_right<uint32_t>(table, Type::kB32);
  add_shift_right<uint64_t>(table, Type::kB64);
  add_shift_right<uint16_t>(table, Type::kU16);
  add_shift_right<uint32_t>(table, Type::kU32);
  add_shift_right<uint64_t>(table, Type::kU64);
  add_shift_right<int16_t>(table, Type::kS16);
  add_shift_right<int32_t>(table, Type::kS32);
  add_shift_right<int64_t>(table, Type::kS64);
  add_funnel_shifts(table);
  add_bit_field_forms(table);
  table.add("lop3.b32", kClass, build_lop3);
  table.add("lop3.or.b32", kClass, build_lop3);
  table.add("lop3.and.b32", kClass, build_lop3);
}

}  // namespace pykernels::emulator
