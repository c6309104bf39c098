// Extended-precision integer arithmetic: the carry flag of the thread goes from .cc to addc, subc
// and madc. A subtraction adds the complement, as the hardware does, so that its flag is set where
// nothing was borrowed: NVIDIA's 128-bit division reads it with addc after subc.cc.
#include <algorithm>

#include "emulator/isa/arithmetic.h"
#include "emulator/isa/lanewise.h"

namespace pykernels::emulator {
namespace {

enum class Extended : uint8_t { kAdd, kSub, kMadLow, kMadHigh };

constexpr int kCarryIn = 4;
constexpr int kCarryOut = 5;

template <Extended kOperation, typename Lane, bool kSigned>
Step extended(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr bool kMultiplies = kOperation == Extended::kMadLow || kOperation == Extended::kMadHigh;
  constexpr int kBits = 8 * sizeof(Lane);
  using Signed = std::make_signed_t<Lane>;
  using Wide = std::conditional_t<sizeof(Lane) == 8, unsigned __int128, uint64_t>;
  using WideSigned = std::conditional_t<sizeof(Lane) == 8, __int128, int64_t>;
  const Lane* a = warp.lanes<Lane>(inst.operands[1]);
  const Lane* b = warp.lanes<Lane>(inst.operands[2]);
  const Lane* c = kMultiplies ? warp.lanes<Lane>(inst.operands[3]) : nullptr;
  Lane* d = warp.lanes<Lane>(inst.operands[0]);
  const bool has_carry_in = inst.operands[kCarryIn] != kNoSlot;
  const LaneMask in = has_carry_in ? warp.mask(inst.operands[kCarryIn]) : 0;
  LaneMask out = 0;
  for_lanes(active, [&](int lane) {
    const Wide carry = has_carry_in ? in >> lane & 1 : kOperation == Extended::kSub;
    Wide sum = 0;
    if constexpr (kOperation == Extended::kAdd) {
      sum = static_cast<Wide>(a[lane]) + b[lane] + carry;
    } else if constexpr (kOperation == Extended::kSub) {
      sum = static_cast<Wide>(a[lane]) + static_cast<Lane>(~b[lane]) + carry;
    } else {
      const Wide product =
          kSigned ? static_cast<Wide>(static_cast<WideSigned>(static_cast<Signed>(a[lane])) *
                                      static_cast<WideSigned>(static_cast<Signed>(b[lane])))
                  : static_cast<Wide>(a[lane]) * b[lane];
      const auto part =
          static_cast<Lane>(kOperation == Extended::kMadLow ? product : product >> kBits);
      sum = static_cast<Wide>(part) + c[lane] + carry;
    }
    d[lane] = static_cast<Lane>(sum);
    out |= static_cast<LaneMask>(sum >> kBits & 1) << lane;
  });
  if (inst.operands[kCarryOut] != kNoSlot) {
    LaneMask& flag = warp.mask(inst.operands[kCarryOut]);
    flag = (flag & ~active) | out;
  }
  return Step::kNext;
}

void add_extended(Table& table, const std::string& spelling, Handler handler, Type type,
                  int sources, bool carry_in, bool carry_out) {
  table.add(spelling, InstructionClass::kArithmetic, [=](Builder& builder) {
    expect_operands(builder, sources + 1);
    Slot slots[6] = {kNoSlot, kNoSlot, kNoSlot, kNoSlot, kNoSlot, kNoSlot};
    for (int i = 1; i <= sources; ++i) {
      slots[i] = builder.source(builder.statement().operands[i], type);
    }
    if (carry_in) slots[kCarryIn] = builder.carry(false);
    if (carry_out) slots[kCarryOut] = builder.carry(true);
    slots[0] = result(builder, builder.statement().operands[0], type);
    std::copy(slots, slots + 6, builder.instruction().operands);
    builder.instruction().handler = handler;
  });
}

template <typename Lane, bool kSigned>
void add_type(Table& table, Type type) {
  const std::string suffix = dotted(type);
  const auto add = [&](const std::string& plain, const std::string& carrying, Handler handler,
                       const std::string& part, int sources) {
    add_extended(table, plain + part + ".cc" + suffix, handler, type, sources, false, true);
    add_extended(table, carrying + part + suffix, handler, type, sources, true, false);
    add_extended(table, carrying + part + ".cc" + suffix, handler, type, sources, true, true);
  };
  add("add", "addc", &extended<Extended::kAdd, Lane, kSigned>, "", 2);
  add("sub", "subc", &extended<Extended::kSub, Lane, kSigned>, "", 2);
  add("mad", "madc", &extended<Extended::kMadLow, Lane, kSigned>, ".lo", 3);
  add("mad", "madc", &extended<Extended::kMadHigh, Lane, kSigned>, ".hi", 3);
}

}  // namespace

void add_carry_forms(Table& table) {
  add_type<uint32_t, false>(table, Type::kU32);
  add_type<uint32_t, true>(table, Type::kS32);
  add_type<uint64_t, false>(table, Type::kU64);
  add_type<uint64_t, true>(table, Type::kS64);
}

}  // namespace pykernels::emulator
