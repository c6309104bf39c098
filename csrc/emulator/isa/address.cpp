// Address conversions: cvta, isspacep, mapa, getctarank. The windows are in machine/memory.h.
#include "emulator/isa/lanewise.h"
#include "emulator/machine/machine.h"
#include "emulator/machine/memory.h"

namespace pykernels::emulator {
namespace {

constexpr InstructionClass kClass = InstructionClass::kAddress;
constexpr uint64_t kWindowMask = 15ull << kWindowShift;

constexpr int rank_of(uint64_t shared_address) {
  return static_cast<int>(static_cast<uint32_t>(shared_address) >> kClusterRankShift);
}

template <uint64_t kWindow>
void add_conversions(Table& table, const std::string& space) {
  const Handler to_generic =
      lanewise<uint64_t, uint64_t>([](uint64_t address) { return address | kWindow; });
  const Handler from_generic = lanewise<uint64_t, uint64_t>(
      [](uint64_t address) { return kWindow == 0 ? address : address & ~kWindowMask; });
  add_row(table, "cvta." + space + ".u64", kClass, to_generic, Type::kU64, {Type::kU64});
  add_row(table, "cvta.to." + space + ".u64", kClass, from_generic, Type::kU64, {Type::kU64});
}

/// isspacep.shared::cta, and .shared, which means the same: the CTA's own part of the window.
Step is_own_shared(Warp& warp, const Instruction& inst, LaneMask active) {
  const uint64_t* addresses = warp.lanes<uint64_t>(inst.operands[1]);
  LaneMask holds = 0;
  for_lanes(active, [&](int lane) {
    const uint64_t address = addresses[lane];
    const bool own = rank_of(address) == static_cast<int>(warp.cta().rank);
    if ((address & kWindowMask) == kSharedWindow && own) holds |= 1u << lane;
  });
  LaneMask& result = warp.mask(inst.operands[0]);
  result = (result & ~active) | holds;
  return Step::kNext;
}

void add_space_test(Table& table, const std::string& space, Handler handler) {
  table.add("isspacep." + space, kClass, [handler](Builder& builder) {
    expect_operands(builder, 2);
    Instruction& inst = builder.instruction();
    inst.operands[1] = builder.source(builder.statement().operands[1], Type::kU64);
    inst.operands[0] = result(builder, builder.statement().operands[0], Type::kPred);
    inst.handler = handler;
  });
}

/// mapa: the address of the same variable in the CTA of rank b.
template <typename Lane>
Step map_address(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr Lane kOffsetMask = ~(Lane{0xff} << kClusterRankShift);
  Lane* result = warp.lanes<Lane>(inst.operands[0]);
  const Lane* addresses = warp.lanes<Lane>(inst.operands[1]);
  const uint32_t* ranks = warp.lanes<uint32_t>(inst.operands[2]);
  for_lanes(active, [&](int lane) {
    result[lane] = (addresses[lane] & kOffsetMask) | static_cast<Lane>(ranks[lane] & 0xff)
                                                         << kClusterRankShift;
  });
  return Step::kNext;
}

/// getctarank: the rank of the CTA whose shared memory holds the address.
template <typename Lane>
Step rank_of_address(Warp& warp, const Instruction& inst, LaneMask active) {
  uint32_t* result = warp.lanes<uint32_t>(inst.operands[0]);
  const Lane* addresses = warp.lanes<Lane>(inst.operands[1]);
  for_lanes(active,
            [&](int lane) { result[lane] = static_cast<uint32_t>(rank_of(addresses[lane])); });
  return Step::kNext;
}

}  // namespace

void add_address_forms(Table& table) {
  add_conversions<0>(table, "global");
  add_conversions<0>(table, "const");
  add_conversions<window_of(Space::kShared)>(table, "shared");
  add_conversions<window_of(Space::kShared)>(table, "shared::cta");
  add_conversions<window_of(Space::kShared)>(table, "shared::cluster");
  add_conversions<window_of(Space::kLocal)>(table, "local");
  add_conversions<window_of(Space::kParam)>(table, "param");
  add_conversions<window_of(Space::kParam)>(table, "param::entry");

  add_space_test(table, "shared", is_own_shared);
  add_space_test(table, "shared::cta", is_own_shared);
  add_space_test(table, "shared::cluster", lane_test<uint64_t>([](uint64_t a) {
                   return (a & kWindowMask) == kSharedWindow;
                 }));
  add_space_test(table, "local",
                 lane_test<uint64_t>([](uint64_t a) { return (a & kWindowMask) == kLocalWindow; }));
  for (const char* space : {"param", "param::entry"}) {
    add_space_test(table, space, lane_test<uint64_t>([](uint64_t a) {
                     return (a & kWindowMask) == kParamWindow;
                   }));
  }
  add_space_test(table, "global",
                 lane_test<uint64_t>([](uint64_t a) { return (a & kWindowMask) == 0; }));

  for (const char* space : {"", ".shared::cluster"}) {
    const std::string suffix = space;
    add_row(table, "mapa" + suffix + ".u32", kClass, map_address<uint32_t>, Type::kU32,
            {Type::kU32, Type::kU32});
    add_row(table, "mapa" + suffix + ".u64", kClass, map_address<uint64_t>, Type::kU64,
            {Type::kU64, Type::kU32});
    add_row(table, "getctarank" + suffix + ".u32", kClass, rank_of_address<uint32_t>, Type::kU32,
            {Type::kU32});
    add_row(table, "getctarank" + suffix + ".u64", kClass, rank_of_address<uint64_t>, Type::kU32,
            {Type::kU64});
  }
}

}  // namespace pykernels::emulator
