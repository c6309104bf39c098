// Instructions among the lanes of a warp: shuffles, votes, matches, reductions, elect.sync,
// activemask and bar.warp.sync. Lanes meet by their membermask, wherever the branches before have
// led them.
#include <algorithm>
#include <array>
#include <string>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/isa/table.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

constexpr int kMaskSlot = 5;  // the membermask's operand slot, in all forms

/// Lanes of the membermasks that the active lanes give.
LaneMask required_lanes(Warp& warp, Slot slot, LaneMask active) {
  const uint32_t* masks = warp.lanes<uint32_t>(slot);
  if ((slot & kConstantSlot) != 0) return masks[0];
  LaneMask required = 0;
  for_lanes(active, [&](int lane) { required |= masks[lane]; });
  return required;
}

/// False where the handler must return warp.block_until_converged(*required).
bool members_present(Warp& warp, const Instruction& inst, LaneMask active, LaneMask* required) {
  *required = required_lanes(warp, inst.operands[kMaskSlot], active);
  if (!warp.converged(*required)) return false;
  if (const LaneMask outside = active & ~*required; outside != 0) {
    warp.machine().report("sync",
                          concat("the lane is not in the membermask ", hexadecimal(*required)),
                          warp, inst, __builtin_ctz(outside));
  }
  if (const LaneMask skipping = *required & warp.live() & ~active; skipping != 0) {
    warp.machine().report(
        "sync",
        concat("the membermask ", hexadecimal(*required), " names ", __builtin_popcount(skipping),
               " lanes whose guard keeps them out of the instruction"),
        warp, inst, __builtin_ctz(active));
  }
  return true;
}

/// Calls body(lanes) for the active lanes of each distinct membermask.
template <typename Body>
void for_groups(Warp& warp, const Instruction& inst, LaneMask active, Body body) {
  const uint32_t* masks = warp.lanes<uint32_t>(inst.operands[kMaskSlot]);
  while (active != 0) {
    const uint32_t mask = masks[__builtin_ctz(active)];
    LaneMask group = 0;
    for_lanes(active,
              [&](int lane) { group |= static_cast<LaneMask>(masks[lane] == mask) << lane; });
    body(group);
    active &= ~group;
  }
}

void write_mask(Warp& warp, Slot predicate, LaneMask lanes, bool value) {
  if (predicate == kNoSlot) return;
  LaneMask& mask = warp.mask(predicate);
  mask = value ? mask | lanes : mask & ~lanes;
}

// ---- shfl.sync ----

enum class Shuffle : uint8_t { kUp, kDown, kBfly, kIdx };

/// The lane that `lane` reads, and whether it lies in range: PTX ISA, shfl.sync.
template <Shuffle kMode>
int source_lane(int lane, uint32_t b, uint32_t c, bool* in_range) {
  const int offset = static_cast<int>(b & 31);
  const int segment = static_cast<int>(c >> 8 & 31);
  const int clamp = static_cast<int>(c & 31);
  const int most = (lane & segment) | (clamp & ~segment);
  int source = 0;
  if constexpr (kMode == Shuffle::kUp) source = lane - offset;
  if constexpr (kMode == Shuffle::kDown) source = lane + offset;
  if constexpr (kMode == Shuffle::kBfly) source = lane ^ offset;
  if constexpr (kMode == Shuffle::kIdx) source = (lane & segment) | (offset & ~segment);
  *in_range = kMode == Shuffle::kUp ? source >= most : source <= most;
  return *in_range ? source : lane;
}

/// The value may be undefined in lanes of which no lane takes it: one lane's result for all.
void check_taken(Warp& warp, const Instruction& inst, LaneMask taken) {
  const RegisterAccess* reads = warp.program().accesses.data() + inst.accesses_begin;
  for (int i = 0; i < inst.num_reads; ++i) {
    if (reads[i].slot == inst.operands[2]) return warp.check_written(inst, reads[i], taken);
  }
}

/// shfl.sync.MODE.b32 d|p, a, b, c, membermask;      PTX 6.0, sm_30
template <Shuffle kMode>
Step shfl_sync(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask required = 0;
  if (!members_present(warp, inst, active, &required)) return warp.block_until_converged(required);
  std::array<uint32_t, kWarpSize> values;
  std::copy_n(warp.lanes<uint32_t>(inst.operands[2]), kWarpSize, values.begin());
  const uint32_t* b = warp.lanes<uint32_t>(inst.operands[3]);
  const uint32_t* c = warp.lanes<uint32_t>(inst.operands[4]);
  std::array<int, kWarpSize> sources;
  LaneMask in_range = 0;
  LaneMask absent = 0;
  LaneMask taken = 0;
  for_lanes(active, [&](int lane) {
    bool valid = false;
    sources[lane] = source_lane<kMode>(lane, b[lane], c[lane], &valid);
    taken |= LaneMask{1} << sources[lane];
    in_range |= static_cast<LaneMask>(valid) << lane;
    absent |= static_cast<LaneMask>((active >> sources[lane] & 1) == 0) << lane;
  });
  if (absent != 0) {
    const int lane = __builtin_ctz(absent);
    warp.machine().report("sync",
                          concat("reads lane ", sources[lane], ", which does not take part"), warp,
                          inst, lane);
  }
  if (inst.operands[0] != kNoSlot) {
    check_taken(warp, inst, taken & active);
    uint32_t* d = warp.lanes<uint32_t>(inst.operands[0]);
    for_lanes(active, [&](int lane) { d[lane] = values[sources[lane]]; });
  }
  if (inst.operands[1] != kNoSlot) {
    LaneMask& p = warp.mask(inst.operands[1]);
    p = (p & ~active) | in_range;
  }
  return Step::kNext;
}

// ---- vote.sync ----

enum class Vote : uint8_t { kAll, kAny, kUni, kBallot };

/// vote.sync.MODE d, {!}a, membermask;      PTX 6.0, sm_30. `variant` 1: a is negated.
template <Vote kMode>
Step vote_sync(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask required = 0;
  if (!members_present(warp, inst, active, &required)) return warp.block_until_converged(required);
  const LaneMask values =
      inst.variant != 0 ? ~warp.mask(inst.operands[1]) : warp.mask(inst.operands[1]);
  for_groups(warp, inst, active, [&](LaneMask group) {
    const LaneMask votes = values & group;
    if constexpr (kMode == Vote::kBallot) {
      if (inst.operands[0] == kNoSlot) return;
      uint32_t* d = warp.lanes<uint32_t>(inst.operands[0]);
      for_lanes(group, [&](int lane) { d[lane] = votes; });
    } else {
      const bool result = kMode == Vote::kAll   ? votes == group
                          : kMode == Vote::kAny ? votes != 0
                                                : votes == group || votes == 0;
      write_mask(warp, inst.operands[0], group, result);
    }
  });
  return Step::kNext;
}

// ---- match.sync ----

/// match.any.sync.TYPE d, a, membermask;      PTX 6.0, sm_70
template <typename Lane>
Step match_any_sync(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask required = 0;
  if (!members_present(warp, inst, active, &required)) return warp.block_until_converged(required);
  std::array<Lane, kWarpSize> values;
  std::copy_n(warp.lanes<Lane>(inst.operands[2]), kWarpSize, values.begin());
  if (inst.operands[0] == kNoSlot) return Step::kNext;
  uint32_t* d = warp.lanes<uint32_t>(inst.operands[0]);
  for_groups(warp, inst, active, [&](LaneMask group) {
    for_lanes(group, [&](int lane) {
      LaneMask same = 0;
      for_lanes(group, [&](int other) {
        same |= static_cast<LaneMask>(values[other] == values[lane]) << other;
      });
      d[lane] = same;
    });
  });
  return Step::kNext;
}

/// match.all.sync.TYPE d|p, a, membermask;      PTX 6.0, sm_70
template <typename Lane>
Step match_all_sync(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask required = 0;
  if (!members_present(warp, inst, active, &required)) return warp.block_until_converged(required);
  std::array<Lane, kWarpSize> values;
  std::copy_n(warp.lanes<Lane>(inst.operands[2]), kWarpSize, values.begin());
  for_groups(warp, inst, active, [&](LaneMask group) {
    const Lane first = values[__builtin_ctz(group)];
    bool all = true;
    for_lanes(group, [&](int lane) { all &= values[lane] == first; });
    if (inst.operands[0] != kNoSlot) {
      uint32_t* d = warp.lanes<uint32_t>(inst.operands[0]);
      for_lanes(group, [&](int lane) { d[lane] = all ? group : 0; });
    }
    write_mask(warp, inst.operands[1], group, all);
  });
  return Step::kNext;
}

// ---- redux.sync ----

struct Add {
  static uint32_t apply(uint32_t a, uint32_t b) { return a + b; }
};
struct MinUnsigned {
  static uint32_t apply(uint32_t a, uint32_t b) { return std::min(a, b); }
};
struct MaxUnsigned {
  static uint32_t apply(uint32_t a, uint32_t b) { return std::max(a, b); }
};
struct MinSigned {
  static uint32_t apply(uint32_t a, uint32_t b) {
    return static_cast<int32_t>(a) < static_cast<int32_t>(b) ? a : b;
  }
};
struct MaxSigned {
  static uint32_t apply(uint32_t a, uint32_t b) {
    return static_cast<int32_t>(a) > static_cast<int32_t>(b) ? a : b;
  }
};
struct And {
  static uint32_t apply(uint32_t a, uint32_t b) { return a & b; }
};
struct Or {
  static uint32_t apply(uint32_t a, uint32_t b) { return a | b; }
};
struct Xor {
  static uint32_t apply(uint32_t a, uint32_t b) { return a ^ b; }
};

/// redux.sync.OP.TYPE d, a, membermask;      PTX 7.0, sm_80
template <typename Operation>
Step redux_sync(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask required = 0;
  if (!members_present(warp, inst, active, &required)) return warp.block_until_converged(required);
  std::array<uint32_t, kWarpSize> values;
  std::copy_n(warp.lanes<uint32_t>(inst.operands[2]), kWarpSize, values.begin());
  if (inst.operands[0] == kNoSlot) return Step::kNext;
  uint32_t* d = warp.lanes<uint32_t>(inst.operands[0]);
  for_groups(warp, inst, active, [&](LaneMask group) {
    uint32_t result = values[__builtin_ctz(group)];
    for_lanes(group & (group - 1),
              [&](int lane) { result = Operation::apply(result, values[lane]); });
    for_lanes(group, [&](int lane) { d[lane] = result; });
  });
  return Step::kNext;
}

// ---- elect.sync, activemask, bar.warp.sync ----

/// elect.sync d|p, membermask;      PTX 8.0, sm_90. The lowest lane that takes part is always the
/// one.
Step elect_sync(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask required = 0;
  if (!members_present(warp, inst, active, &required)) return warp.block_until_converged(required);
  for_groups(warp, inst, active, [&](LaneMask group) {
    const int leader = __builtin_ctz(group);
    if (inst.operands[0] != kNoSlot) {
      uint32_t* d = warp.lanes<uint32_t>(inst.operands[0]);
      for_lanes(group, [&](int lane) { d[lane] = static_cast<uint32_t>(leader); });
    }
    write_mask(warp, inst.operands[1], group, false);
    write_mask(warp, inst.operands[1], 1u << leader, true);
  });
  return Step::kNext;
}

/// activemask.b32 d;      PTX 6.2, sm_30
Step activemask(Warp& warp, const Instruction& inst, LaneMask active) {
  if (inst.operands[0] == kNoSlot) return Step::kNext;
  uint32_t* d = warp.lanes<uint32_t>(inst.operands[0]);
  for_lanes(active, [&](int lane) { d[lane] = active; });
  return Step::kNext;
}

/// bar.warp.sync membermask;      PTX 6.0, sm_30. Lanes may meet from different instructions of
/// this form.
Step bar_warp_sync(Warp& warp, const Instruction& inst, LaneMask active) {
  LaneMask required = required_lanes(warp, inst.operands[kMaskSlot], active);
  if (!warp.converged(required)) {
    if (!warp.meet(bar_warp_sync, required)) return warp.block_until_converged(required);
  } else if (!members_present(warp, inst, active, &required)) {
    return warp.block_until_converged(required);
  }
  if (RaceDetector* races = warp.machine().races()) races->warp_sync(warp, required);
  return Step::kNext;
}

// ---- rows ----

void expect_operands(const Builder& builder, int least, int most) {
  const int count = builder.num_operands();
  if (count < least || count > most) {
    builder.fail(concat("expected ", least, least == most ? "" : concat(" or ", most),
                        " operands, got ", count));
  }
}

/// d or d|p into slots 0 and 1.
void build_destinations(Builder& builder, const Operand& operand) {
  Instruction& inst = builder.instruction();
  if (operand.kind == Operand::Kind::kPair) {
    inst.operands[0] = builder.destination(operand.elements[0], Type::kB32);
    inst.operands[1] = builder.destination(operand.elements[1], Type::kPred);
  } else {
    inst.operands[0] = builder.destination(operand, Type::kB32);
  }
}

Build build_shuffle(Handler handler) {
  return [handler](Builder& builder) {
    expect_operands(builder, 5, 5);
    const std::vector<Operand>& operands = builder.statement().operands;
    Instruction& inst = builder.instruction();
    inst.handler = handler;
    for (int i = 1; i < 5; ++i) inst.operands[i + 1] = builder.source(operands[i], Type::kB32);
    build_destinations(builder, operands[0]);
  };
}

Build build_vote(Handler handler, Type result) {
  return [handler, result](Builder& builder) {
    expect_operands(builder, 3, 3);
    const std::vector<Operand>& operands = builder.statement().operands;
    Instruction& inst = builder.instruction();
    bool negated = false;
    inst.handler = handler;
    inst.operands[1] = builder.predicate(operands[1], &negated);
    inst.variant = negated ? 1 : 0;
    inst.operands[kMaskSlot] = builder.source(operands[2], Type::kB32);
    inst.operands[0] = builder.destination(operands[0], result);
  };
}

/// d{|p}, a, membermask
Build build_reduction(Handler handler, Type type) {
  return [handler, type](Builder& builder) {
    expect_operands(builder, 3, 3);
    const std::vector<Operand>& operands = builder.statement().operands;
    Instruction& inst = builder.instruction();
    inst.handler = handler;
    inst.operands[2] = builder.source(operands[1], type);
    inst.operands[kMaskSlot] = builder.source(operands[2], Type::kB32);
    build_destinations(builder, operands[0]);
  };
}

void add_votes(Table& table) {
  constexpr InstructionClass kWarp = InstructionClass::kWarp;
  table.add("vote.sync.all.pred", kWarp, build_vote(vote_sync<Vote::kAll>, Type::kPred));
  table.add("vote.sync.any.pred", kWarp, build_vote(vote_sync<Vote::kAny>, Type::kPred));
  table.add("vote.sync.uni.pred", kWarp, build_vote(vote_sync<Vote::kUni>, Type::kPred));
  table.add("vote.sync.ballot.b32", kWarp, build_vote(vote_sync<Vote::kBallot>, Type::kB32));
}

void add_reductions(Table& table) {
  constexpr InstructionClass kWarp = InstructionClass::kWarp;
  const auto add = [&](const char* form, Handler handler, Type type = Type::kB32) {
    table.add(form, kWarp, build_reduction(handler, type));
  };
  add("match.any.sync.b32", match_any_sync<uint32_t>);
  add("match.any.sync.b64", match_any_sync<uint64_t>, Type::kB64);
  add("match.all.sync.b32", match_all_sync<uint32_t>);
  add("match.all.sync.b64", match_all_sync<uint64_t>, Type::kB64);
  add("redux.sync.add.u32", redux_sync<Add>);
  add("redux.sync.add.s32", redux_sync<Add>);
  add("redux.sync.min.u32", redux_sync<MinUnsigned>);
  add("redux.sync.min.s32", redux_sync<MinSigned>);
  add("redux.sync.max.u32", redux_sync<MaxUnsigned>);
  add("redux.sync.max.s32", redux_sync<MaxSigned>);
  add("redux.sync.and.b32", redux_sync<And>);
  add("redux.sync.or.b32", redux_sync<Or>);
  add("redux.sync.xor.b32", redux_sync<Xor>);
}

}  // namespace

void add_warp_forms(Table& table) {
  constexpr InstructionClass kWarp = InstructionClass::kWarp;
  table.add("shfl.sync.up.b32", kWarp, build_shuffle(shfl_sync<Shuffle::kUp>));
  table.add("shfl.sync.down.b32", kWarp, build_shuffle(shfl_sync<Shuffle::kDown>));
  table.add("shfl.sync.bfly.b32", kWarp, build_shuffle(shfl_sync<Shuffle::kBfly>));
  table.add("shfl.sync.idx.b32", kWarp, build_shuffle(shfl_sync<Shuffle::kIdx>));
  add_votes(table);
  add_reductions(table);
  table.add("elect.sync", kWarp, [](Builder& builder) {
    expect_operands(builder, 2, 2);
    builder.instruction().handler = elect_sync;
    builder.instruction().operands[kMaskSlot] =
        builder.source(builder.statement().operands[1], Type::kB32);
    build_destinations(builder, builder.statement().operands[0]);
  });
  table.add("activemask.b32", kWarp, [](Builder& builder) {
    expect_operands(builder, 1, 1);
    builder.instruction().handler = activemask;
    build_destinations(builder, builder.statement().operands[0]);
  });
  table.add("bar.warp.sync", InstructionClass::kBarrier, [](Builder& builder) {
    expect_operands(builder, 1, 1);
    builder.instruction().handler = bar_warp_sync;
    builder.instruction().operands[kMaskSlot] =
        builder.source(builder.statement().operands[0], Type::kB32);
  });
}

}  // namespace pykernels::emulator
