// mov: copies, packing and unpacking, special registers, addresses of variables.
#include <cstring>

#include "emulator/isa/lanewise.h"
#include "emulator/isa/special_registers.h"
#include "emulator/machine/cta.h"
#include "emulator/machine/memory.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kMove;

template <typename Lane>
Step copy(Warp& warp, const Instruction& inst, LaneMask active) {
  Lane* to = warp.lanes<Lane>(inst.operands[0]);
  const Lane* from = warp.lanes<Lane>(inst.operands[1]);
  if (active == kFullMask) {
    std::memmove(to, from, sizeof(Lane) * kWarpSize);
  } else {
    for_lanes(active, [&](int lane) { to[lane] = from[lane]; });
  }
  return Step::kNext;
}

Step copy_wide(Warp& warp, const Instruction& inst, LaneMask active) {
  for_lanes(active, [&](int lane) {
    std::memmove(warp.wide(inst.operands[0], lane), warp.wide(inst.operands[1], lane), 16);
  });
  return Step::kNext;
}

Step copy_predicate(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask value = warp.mask(inst.operands[1]);
  if (inst.variant != 0) value = ~value;
  LaneMask& to = warp.mask(inst.operands[0]);
  to = (to & ~active) | (value & active);
  return Step::kNext;
}

/// The address of a shared variable: the window of the CTA's rank.
template <typename Lane>
Step shared_address(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto address = static_cast<Lane>(static_cast<uint64_t>(inst.immediate) +
                                         (uint64_t{warp.cta().rank} << kClusterRankShift));
  Lane* to = warp.lanes<Lane>(inst.operands[0]);
  for_lanes(active, [&](int lane) { to[lane] = address; });
  return Step::kNext;
}

template <typename Lane>
Step constant_address(Warp& warp, const Instruction& inst, LaneMask active) {
  Lane* to = warp.lanes<Lane>(inst.operands[0]);
  for_lanes(active, [&](int lane) { to[lane] = static_cast<Lane>(inst.immediate); });
  return Step::kNext;
}

template <int kBits>
using Part = std::conditional_t<kBits == 64, uint64_t, uint32_t>;

template <int kBits>
constexpr Part<kBits> kPartMask = static_cast<Part<kBits>>(~uint64_t{0} >> (64 - kBits));

/// mov.b64 d, {a, b}: the first element is the lowest part.
template <typename Whole, int kCount>
Step pack(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr int kBits = 8 * sizeof(Whole) / kCount;
  Whole* to = warp.lanes<Whole>(inst.operands[0]);
  const Part<kBits>* parts[kCount];
  for (int i = 0; i < kCount; ++i) parts[i] = warp.lanes<Part<kBits>>(inst.operands[i + 1]);
  const auto pack_lane = [&](int lane) {
    Whole value = 0;
    for (int i = 0; i < kCount; ++i) {
      value |= static_cast<Whole>(parts[i][lane] & kPartMask<kBits>) << (i * kBits);
    }
    to[lane] = value;
  };
  for_lanes(active, pack_lane);
  return Step::kNext;
}

/// mov.b64 {a, b}, d
template <typename Whole, int kCount>
Step unpack(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr int kBits = 8 * sizeof(Whole) / kCount;
  Whole values[kWarpSize];
  std::memcpy(values, warp.lanes<Whole>(inst.operands[kCount]), sizeof values);
  for (int i = 0; i < kCount; ++i) {
    if (inst.operands[i] == kNoSlot) continue;
    auto* to = warp.lanes<Part<kBits>>(inst.operands[i]);
    for_lanes(active, [&](int lane) {
      to[lane] = static_cast<Part<kBits>>(values[lane] >> (i * kBits)) & kPartMask<kBits>;
    });
  }
  return Step::kNext;
}

Step pack_wide(Warp& warp, const Instruction& inst, LaneMask active) {
  const uint64_t* low = warp.lanes<uint64_t>(inst.operands[1]);
  const uint64_t* high = warp.lanes<uint64_t>(inst.operands[2]);
  for_lanes(active, [&](int lane) {
    uint64_t* to = warp.wide(inst.operands[0], lane);
    to[0] = low[lane];
    to[1] = high[lane];
  });
  return Step::kNext;
}

Step unpack_wide(Warp& warp, const Instruction& inst, LaneMask active) {
  for (int i = 0; i < 2; ++i) {
    if (inst.operands[i] == kNoSlot) continue;
    uint64_t* to = warp.lanes<uint64_t>(inst.operands[i]);
    for_lanes(active, [&](int lane) { to[lane] = warp.wide(inst.operands[2], lane)[i]; });
  }
  return Step::kNext;
}

struct Packing {
  Handler pack = nullptr;
  Handler unpack = nullptr;
  Type part = Type::kNone;
};

Packing find_packing(int bits, size_t count) {
  if (bits == 32 && count == 2) return {pack<uint32_t, 2>, unpack<uint32_t, 2>, Type::kB16};
  if (bits == 32 && count == 4) return {pack<uint32_t, 4>, unpack<uint32_t, 4>, Type::kB8};
  if (bits == 64 && count == 2) return {pack<uint64_t, 2>, unpack<uint64_t, 2>, Type::kB32};
  if (bits == 64 && count == 4) return {pack<uint64_t, 4>, unpack<uint64_t, 4>, Type::kB16};
  if (bits == 128 && count == 2) return {pack_wide, unpack_wide, Type::kB64};
  return {};
}

void build_pack(Builder& builder, Type type, const Packing& packing) {
  const Operand& parts = builder.statement().operands[1];
  Instruction& inst = builder.instruction();
  for (size_t i = 0; i < parts.elements.size(); ++i) {
    inst.operands[i + 1] = builder.source(parts.elements[i], packing.part);
  }
  inst.operands[0] = result(builder, builder.statement().operands[0], type);
  inst.handler = packing.pack;
}

void build_unpack(Builder& builder, Type type, const Packing& packing) {
  const Operand& parts = builder.statement().operands[0];
  Instruction& inst = builder.instruction();
  inst.operands[parts.elements.size()] = builder.source(builder.statement().operands[1], type);
  for (size_t i = 0; i < parts.elements.size(); ++i) {
    inst.operands[i] = builder.destination(parts.elements[i], packing.part);
  }
  inst.handler = packing.unpack;
}

/// The address of a variable: of shared memory it depends on the CTA's rank.
void build_symbol(Builder& builder, Type type) {
  const Operand& symbol = builder.statement().operands[1];
  const bool is_64 = type_bits(type) == 64;
  if (!is_64 && type_bits(type) != 32) builder.fail("an address needs 32 or 64 bits");
  const Space space = builder.symbol_space(symbol);
  if (space == Space::kGeneric) builder.fail("'" + symbol.symbol + "' is no variable");
  Operand address;
  address.kind = Operand::Kind::kAddress;
  address.bits = symbol.bits;
  address.elements.push_back(symbol);
  address.elements[0].bits = 0;
  Instruction& inst = builder.instruction();
  Slot base = kNoSlot;
  bool base_is_64 = true;
  builder.address(address, space, &base, &base_is_64, &inst.immediate);
  inst.operands[0] = result(builder, builder.statement().operands[0], type);
  if (space == Space::kShared) {
    inst.handler = is_64 ? &shared_address<uint64_t> : &shared_address<uint32_t>;
  } else {
    inst.handler = is_64 ? &constant_address<uint64_t> : &constant_address<uint32_t>;
  }
}

void build_special(Builder& builder, Type type) {
  const Operand& source = builder.statement().operands[1];
  const int bits = type_bits(type);
  const Handler handler =
      bits == 32 || bits == 64 ? special_register_handler(source.symbol, bits == 64) : nullptr;
  if (handler == nullptr) builder.fail("'" + source.symbol + "' cannot be read this way");
  builder.instruction().operands[0] = result(builder, builder.statement().operands[0], type);
  builder.instruction().handler = handler;
}

Handler copy_handler(int bits) {
  return bits == 128 ? &copy_wide : bits == 64 ? &copy<uint64_t> : &copy<uint32_t>;
}

void build_move(Builder& builder, Type type) {
  expect_operands(builder, 2);
  const std::vector<Operand>& operands = builder.statement().operands;
  for (int i = 0; i < 2; ++i) {
    if (operands[i].kind != Operand::Kind::kVector) continue;
    const Packing packing = find_packing(type_bits(type), operands[i].elements.size());
    if (packing.pack == nullptr) builder.fail("parts of this number do not make up the type");
    return i == 0 ? build_unpack(builder, type, packing) : build_pack(builder, type, packing);
  }
  if (operands[1].kind == Operand::Kind::kSymbol) return build_symbol(builder, type);
  if (operands[1].kind == Operand::Kind::kSpecial) return build_special(builder, type);
  Instruction& inst = builder.instruction();
  inst.operands[1] = builder.source(operands[1], type);
  inst.operands[0] = result(builder, operands[0], type);
  inst.handler = copy_handler(type_bits(type));
}

void build_predicate_move(Builder& builder) {
  expect_operands(builder, 2);
  Instruction& inst = builder.instruction();
  bool negated = false;
  inst.operands[1] = builder.predicate(builder.statement().operands[1], &negated);
  inst.variant = negated ? 1 : 0;
  inst.operands[0] = result(builder, builder.statement().operands[0], Type::kPred);
  inst.handler = copy_predicate;
}

}  // namespace

void add_move_forms(Table& table) {
  for (const Type type :
       {Type::kB16, Type::kU16, Type::kS16, Type::kB32, Type::kU32, Type::kS32, Type::kF32,
        Type::kB64, Type::kU64, Type::kS64, Type::kF64, Type::kB128}) {
    table.add("mov" + dotted(type), kClass,
              [type](Builder& builder) { build_move(builder, type); });
  }
  table.add("mov.pred", kClass, build_predicate_move);
}

}  // namespace pykernels::emulator
