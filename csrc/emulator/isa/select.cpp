// Choices between two values: selp, slct.
#include "emulator/isa/select.h"

#include "emulator/isa/lanewise.h"
#include "emulator/numerics/convert.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kCompare;
constexpr uint16_t kNegated = 1;  // the predicate, in Instruction::variant

/// selp: a where the predicate holds, else b.
template <typename Lane>
Step selp(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask choice = warp.mask(inst.operands[3]);
  if ((inst.variant & kNegated) != 0) choice = ~choice;
  Lane* result = warp.lanes<Lane>(inst.operands[0]);
  const Lane* a = warp.lanes<Lane>(inst.operands[1]);
  const Lane* b = warp.lanes<Lane>(inst.operands[2]);
  if (active == kFullMask) {
    PK_INDEPENDENT_LANES
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const Lane chosen = a[lane];
      const Lane other = b[lane];
      result[lane] = (choice & kLaneBits.of[lane]) != 0 ? chosen : other;
    }
    return Step::kNext;
  }
  for_lanes(active,
            [&](int lane) { result[lane] = (choice >> lane & 1) != 0 ? a[lane] : b[lane]; });
  return Step::kNext;
}

void add_selp(Table& table, Type type) {
  table.add("selp" + dotted(type), kClass, [type](Builder& builder) {
    expect_operands(builder, 4);
    const std::vector<Operand>& operands = builder.statement().operands;
    Instruction& inst = builder.instruction();
    inst.operands[1] = builder.source(operands[1], type);
    inst.operands[2] = builder.source(operands[2], type);
    bool negated = false;
    inst.operands[3] = builder.predicate(operands[3], &negated);
    inst.variant = negated ? kNegated : 0;
    inst.operands[0] = result(builder, operands[0], type);
    inst.handler = type_bits(type) == 64 ? &selp<uint64_t> : &selp<uint32_t>;
  });
}

/// slct: a where c >= 0, else b; -0 counts as zero and NaN chooses b.
template <typename Lane>
void add_slct(Table& table, Type type) {
  add_row(
      table, "slct" + dotted(type) + ".s32", kClass,
      lanewise<Lane, Lane, Lane, int32_t>([](Lane a, Lane b, int32_t c) { return c >= 0 ? a : b; }),
      type, {type, type, Type::kS32});
  const Handler by_float =
      lanewise<Lane, Lane, Lane, float>([](Lane a, Lane b, float c) { return c >= 0 ? a : b; });
  const Handler by_flushed = lanewise<Lane, Lane, Lane, uint32_t>(
      [](Lane a, Lane b, uint32_t c) { return std::bit_cast<float>(flush_f32(c)) >= 0 ? a : b; });
  add_row(table, "slct" + dotted(type) + ".f32", kClass, by_float, type, {type, type, Type::kF32});
  add_row(table, "slct.ftz" + dotted(type) + ".f32", kClass, by_flushed, type,
          {type, type, Type::kF32});
}

}  // namespace

void add_select_forms(Table& table) {
  for (const Type type : {Type::kB16, Type::kU16, Type::kS16, Type::kB32, Type::kU32, Type::kS32,
                          Type::kF32, Type::kB64, Type::kU64, Type::kS64, Type::kF64}) {
    add_selp(table, type);
  }
  for (const Type type :
       {Type::kB16, Type::kU16, Type::kS16, Type::kB32, Type::kU32, Type::kS32, Type::kF32}) {
    add_slct<uint32_t>(table, type);
  }
  for (const Type type : {Type::kB64, Type::kU64, Type::kS64, Type::kF64}) {
    add_slct<uint64_t>(table, type);
  }
}

}  // namespace pykernels::emulator
