// mbarrier objects: init, inval, arrivals, transaction bytes, waits by parity or state.
#include "emulator/check/mbarrier.h"

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/isa/mbarrier_address.h"

namespace pykernels::emulator {
namespace {

constexpr uint32_t kSpuriousFailure = 8;  // one try_wait in so many ends early with false

MemoryOrder mbarrier_order(const Instruction& inst) {
  return {static_cast<Semantics>(inst.variant >> kSemanticsShift & 7),
          static_cast<Scope>(inst.variant >> kScopeShift & 7), false};
}

uint32_t value(Warp& warp, const Instruction& inst, int lane) {
  return warp.lanes<uint32_t>(inst.operands[kMbarrierValueSlot])[lane];
}

/// mbarrier.init{.shared{::cta}}.b64 [addr], count;      PTX 7.0, sm_80
Step mbarrier_init(Warp& warp, const Instruction& inst, LaneMask active) {
  const MbarrierAddresses addresses(warp, inst);
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const MbarrierLocation location = addresses.location(lane);
    const uint32_t count = value(warp, inst, lane);
    if (count == 0 || count > Mbarrier::kMaxCount) {
      warp.machine().fail("sync",
                          concat("the count of an mbarrier must lie in 1 .. 2^20 - 1, got ", count),
                          warp, inst, lane);
    }
    auto& barrier = location.cta->mbarriers[location.offset];
    if (barrier != nullptr) {
      report_mbarrier_misuse(warp, inst, lane, location.offset, *barrier,
                             "initialised again without mbarrier.inval");
      barrier->wake_all();
    }
    barrier = std::make_unique<Mbarrier>(count);
    warp.machine().note_change();
    if (RaceDetector* races = warp.machine().races()) {
      races->mbarrier_init(warp, inst, lane, *barrier);
    }
    if (!location.cta->shared_initialised.empty()) {
      std::fill_n(location.cta->shared_initialised.begin() + location.offset, Mbarrier::kBytes, 1);
    }
  }
  return Step::kNext;
}

/// mbarrier.inval{.shared{::cta}}.b64 [addr];      PTX 7.0, sm_80
Step mbarrier_inval(Warp& warp, const Instruction& inst, LaneMask active) {
  const MbarrierAddresses addresses(warp, inst);
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    MbarrierLocation location;
    Mbarrier* barrier = addresses.find(lane, &location);
    if (barrier == nullptr) continue;
    check_invalidated(warp, inst, lane, *location.cta, location.offset, *barrier);
    barrier->wake_all();  // those that wait find none any more, which is reported there
    warp.machine().note_change();
    location.cta->invalidated[location.offset] = Party{&warp, &inst, lane};
    location.cta->mbarriers.erase(location.offset);
    location.cta->poison(location.offset, Mbarrier::kBytes);
  }
  return Step::kNext;
}

enum class Arrival : uint8_t {
  kPlain,
  kDrop,
  kNoComplete,
  kDropNoComplete,
  kExpectTx,
  kDropExpectTx
};

const char* arrive(Mbarrier& barrier, Arrival arrival, uint32_t count, int64_t tx_bytes) {
  const bool drops = arrival == Arrival::kDrop || arrival == Arrival::kDropNoComplete ||
                     arrival == Arrival::kDropExpectTx;
  if (arrival == Arrival::kNoComplete || arrival == Arrival::kDropNoComplete) {
    if (count >= barrier.pending()) return "an arrival .noComplete would complete the phase";
  }
  if (arrival == Arrival::kExpectTx || arrival == Arrival::kDropExpectTx) {
    if (const char* misuse = barrier.expect_tx(tx_bytes); misuse != nullptr) return misuse;
  }
  return drops ? barrier.arrive_drop(count) : barrier.arrive(count);
}

/// mbarrier.arrive{_drop}{.expect_tx, .noComplete}{.sem.scope}{.space}.b64 state, [addr]{, value};
/// PTX 7.0, sm_80
///
/// Each lane arrives by itself; `state` is the phase's state before its arrival.
template <Arrival kArrival>
Step mbarrier_arrive(Warp& warp, const Instruction& inst, LaneMask active) {
  constexpr bool kTransaction =
      kArrival == Arrival::kExpectTx || kArrival == Arrival::kDropExpectTx;
  const MbarrierAddresses addresses(warp, inst);
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    MbarrierLocation location;
    Mbarrier* barrier = addresses.find(lane, &location);
    if (barrier == nullptr) continue;
    const uint32_t operand =
        inst.operands[kMbarrierValueSlot] == kNoSlot ? 1 : value(warp, inst, lane);
    const uint64_t state = barrier->state();
    warp.machine().note_change();
    if (location.cta == &warp.cta())
      barrier->set_next(warp.index() * kWarpSize + lane, state >> 20);
    if (kTransaction && operand != 0) barrier->expecting = Party{&warp, &inst, lane};
    if (RaceDetector* races = warp.machine().races()) {
      races->mbarrier_use(warp, inst, 1u << lane, *location.cta, location.offset, *barrier);
      races->mbarrier_arrive(warp, lane, *location.cta, *barrier, mbarrier_order(inst));
    }
    const char* misuse =
        arrive(*barrier, kArrival, kTransaction ? 1 : operand, kTransaction ? operand : 0);
    if (misuse != nullptr)
      report_mbarrier_misuse(warp, inst, lane, location.offset, *barrier, misuse);
    if (inst.operands[kMbarrierResultSlot] != kNoSlot)
      warp.lanes<uint64_t>(inst.operands[kMbarrierResultSlot])[lane] = state;
  }
  return Step::kNext;
}

/// mbarrier.{expect_tx, complete_tx}{.relaxed.scope}{.space}.b64 [addr], bytes;      PTX 8.0, sm_90
template <bool kComplete>
Step mbarrier_tx(Warp& warp, const Instruction& inst, LaneMask active) {
  const MbarrierAddresses addresses(warp, inst);
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    MbarrierLocation location;
    Mbarrier* barrier = addresses.find(lane, &location);
    if (barrier == nullptr) continue;
    const int64_t bytes = value(warp, inst, lane);
    warp.machine().note_change();
    if (RaceDetector* races = warp.machine().races()) {
      races->mbarrier_use(warp, inst, 1u << lane, *location.cta, location.offset, *barrier);
    }
    if (!kComplete && bytes != 0) barrier->expecting = Party{&warp, &inst, lane};
    const char* misuse = kComplete ? barrier->complete_tx(bytes) : barrier->expect_tx(bytes);
    if (misuse != nullptr)
      report_mbarrier_misuse(warp, inst, lane, location.offset, *barrier, misuse);
  }
  return Step::kNext;
}

std::string describe_wait(const Warp& warp, const Wait& wait) {
  const auto offset = static_cast<uint32_t>(wait.detail[0]);
  Cta& cta = const_cast<Warp&>(warp).cta();
  const Mbarrier* barrier = cta.find_mbarrier(offset);
  return concat("mbarrier at ", shared_place(warp.program(), offset), ", the phase of ",
                wait.token != 0 ? "state " : "parity ", wait.detail[1], "; it is in ",
                barrier == nullptr ? "no phase: it was invalidated" : barrier->describe(),
                barrier == nullptr || wait.token != 0 ? "" : describe_lapped(warp, wait, *barrier));
}

/// Lanes whose phase has completed. One without an mbarrier counts, so that its loop ends.
template <bool kParity>
LaneMask completed_lanes(Warp& warp, const Instruction& inst, const MbarrierAddresses& addresses,
                         LaneMask active) {
  LaneMask done = 0;
  const auto lane_done = [&](int lane) {
    MbarrierLocation location;
    const Mbarrier* barrier = addresses.find(lane, &location);
    if (barrier == nullptr) return true;
    if (location.cta != &warp.cta()) {
      warp.machine().fail("sync", "a thread can wait only on an mbarrier of its own CTA", warp,
                          inst, lane);
    }
    if constexpr (kParity) return barrier->phase_done(value(warp, inst, lane));
    return barrier->state_done(warp.lanes<uint64_t>(inst.operands[kMbarrierValueSlot])[lane]);
  };
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    done |= static_cast<LaneMask>(lane_done(lane)) << lane;
  }
  return done;
}

/// The lanes know what the phases that they have waited for have released. A parity tells the last
/// one that has completed.
template <bool kParity>
void acquire_phase(Warp& warp, const Instruction& inst, const MbarrierAddresses& addresses,
                   bool uniform, LaneMask done) {
  RaceDetector& races = *warp.machine().races();
  while (done != 0) {
    const int lane = __builtin_ctz(done);
    const LaneMask lanes = uniform ? done : 1u << lane;
    const MbarrierLocation location = addresses.location(lane);
    if (Mbarrier* barrier = location.cta->find_mbarrier(location.offset)) {
      const uint64_t phase =
          kParity ? barrier->phase() - 1
                  : warp.lanes<uint64_t>(inst.operands[kMbarrierValueSlot])[lane] >> 20;
      races.mbarrier_use(warp, inst, lanes, *location.cta, location.offset, *barrier);
      races.mbarrier_wait(warp, lanes, *barrier, phase, mbarrier_order(inst));
    }
    done &= ~lanes;
  }
}

/// What lanes that have waited may wait for next, for reports of a deadlock. `uniform`: all on one
/// mbarrier.
void keep_next(Warp& warp, const MbarrierAddresses& addresses, LaneMask done, bool uniform) {
  Mbarrier* barrier = nullptr;
  for (LaneMask rest = done; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (!uniform || rest == done) {
      const MbarrierLocation location = addresses.location(lane);
      barrier = location.cta->find_mbarrier(location.offset);
    }
    if (barrier != nullptr) barrier->set_next(warp.index() * kWarpSize + lane, barrier->phase());
  }
}

/// True where the lanes give the same phase, so that one wait serves all.
template <bool kParity>
bool same_phase(Warp& warp, const Instruction& inst, LaneMask active) {
  const int first = __builtin_ctz(active);
  bool same = true;
  for_lanes(active, [&](int lane) {
    if constexpr (kParity) {
      same &= ((value(warp, inst, lane) ^ value(warp, inst, first)) & 1) == 0;
    } else {
      const uint64_t* states = warp.lanes<uint64_t>(inst.operands[kMbarrierValueSlot]);
      same &= states[lane] == states[first];
    }
  });
  return same;
}

/// mbarrier.{test_wait, try_wait}{.parity}{.sem.scope}{.space}.b64 p, [addr], phase{, hint};
/// PTX 7.0 (8.0), sm_80 (90)
///
/// try_wait may legally end early with p = false, so the seed decides between blocking and that: a
/// kernel that does not loop on p fails under some seed. It never blocks for a part of the split:
/// the others might have to arrive.
template <bool kTry, bool kParity>
Step mbarrier_wait(Warp& warp, const Instruction& inst, LaneMask active) {
  const MbarrierAddresses addresses(warp, inst);
  const bool uniform = addresses.uniform(active) && same_phase<kParity>(warp, inst, active);
  const LaneMask asked = uniform ? active & -active : active;
  LaneMask done = completed_lanes<kParity>(warp, inst, addresses, asked);
  if (uniform && done != 0) done = active;
  if constexpr (kTry) {
    const bool may_block = uniform && done == 0 && active == warp.split().lanes;
    if (may_block && (warp.split().resumed || !warp.random().one_in(kSpuriousFailure))) {
      const int lane = __builtin_ctz(active);
      const MbarrierLocation location = addresses.location(lane);
      Wait wait;
      wait.kind = Wait::Kind::kMbarrier;
      wait.on = location.cta->find_mbarrier(location.offset);
      wait.token = kParity ? 0 : 1;
      wait.describe = describe_wait;
      wait.detail[0] = location.offset;
      wait.detail[1] = kParity ? value(warp, inst, lane) & 1
                               : warp.lanes<uint64_t>(inst.operands[kMbarrierValueSlot])[lane];
      return warp.block(wait);
    }
  }
  if (done != 0 && warp.machine().races() != nullptr) {
    acquire_phase<kParity>(warp, inst, addresses, uniform, done);
  }
  if (done != active) warp.yield();
  if (warp.machine().options().check_sync) keep_next(warp, addresses, done, uniform);
  if (inst.operands[kMbarrierResultSlot] != kNoSlot) {
    LaneMask& p = warp.mask(inst.operands[kMbarrierResultSlot]);
    p = (p & ~active) | done;
  }
  return Step::kNext;
}

/// mbarrier.pending_count.b64 count, state;      PTX 7.0, sm_80
Step mbarrier_pending_count(Warp& warp, const Instruction& inst, LaneMask active) {
  if (inst.operands[kMbarrierResultSlot] == kNoSlot) return Step::kNext;
  uint32_t* count = warp.lanes<uint32_t>(inst.operands[kMbarrierResultSlot]);
  const uint64_t* state = warp.lanes<uint64_t>(inst.operands[kMbarrierValueSlot]);
  for_lanes(active, [&](int lane) {
    count[lane] = static_cast<uint32_t>(state[lane]) & Mbarrier::kMaxCount;
  });
  return Step::kNext;
}

// ---- rows ----

void expect_operands(const Builder& builder, int least, int most) {
  const int count = builder.num_operands();
  if (count < least || count > most) {
    builder.fail(concat("expected ", least, least == most ? "" : concat(" to ", most),
                        " operands, got ", count));
  }
}

void build_object(Builder& builder, const Operand& operand, std::string_view space) {
  MemoryModifiers modifiers;
  modifiers.space = space.empty() ? Space::kGeneric : Space::kShared;
  modifiers.cluster = space == ".shared::cluster";
  // An arrival releases and a wait acquires unless they say .relaxed; the CTA is the scope unless
  // they name one.
  modifiers.semantics =
      builder.has_modifier("relaxed") ? Semantics::kRelaxed : Semantics::kAcquireRelease;
  modifiers.scope = builder.has_modifier("cluster") ? Scope::kCluster : Scope::kCta;
  build_address(builder, operand, modifiers, kMbarrierAddressSlot);
}

/// [addr]{, value}
Build build_plain(Handler handler, std::string_view space, int num_operands) {
  return [handler, space, num_operands](Builder& builder) {
    expect_operands(builder, num_operands, num_operands);
    const std::vector<Operand>& operands = builder.statement().operands;
    builder.instruction().handler = handler;
    build_object(builder, operands[0], space);
    if (num_operands == 2)
      builder.instruction().operands[kMbarrierValueSlot] = builder.source(operands[1], Type::kB32);
  };
}

/// {state, }[addr]{, value}
Build build_arrive(Handler handler, std::string_view space, bool needs_value) {
  return [handler, space, needs_value](Builder& builder) {
    const std::vector<Operand>& operands = builder.statement().operands;
    const int first = !operands.empty() && operands[0].kind == Operand::Kind::kAddress ? 0 : 1;
    expect_operands(builder, first + (needs_value ? 2 : 1), first + 2);
    Instruction& inst = builder.instruction();
    inst.handler = handler;
    build_object(builder, operands[first], space);
    if (builder.num_operands() == first + 2) {
      inst.operands[kMbarrierValueSlot] = builder.source(operands[first + 1], Type::kB32);
    }
    if (first == 0) return;
    if (space == ".shared::cluster" && operands[0].kind != Operand::Kind::kSink) {
      builder.fail("an arrival on .shared::cluster has no state: '_' must stand there");
    }
    inst.operands[kMbarrierResultSlot] = builder.destination(operands[0], Type::kB64);
  };
}

/// p, [addr], phase{, hint}
Build build_wait(Handler handler, std::string_view space, bool parity, bool may_hint) {
  return [handler, space, parity, may_hint](Builder& builder) {
    expect_operands(builder, 3, may_hint ? 4 : 3);
    const std::vector<Operand>& operands = builder.statement().operands;
    Instruction& inst = builder.instruction();
    inst.handler = handler;
    build_object(builder, operands[1], space);
    inst.operands[kMbarrierValueSlot] =
        builder.source(operands[2], parity ? Type::kB32 : Type::kB64);
    if (builder.num_operands() == 4) builder.source(operands[3], Type::kB32);
    inst.operands[kMbarrierResultSlot] = builder.destination(operands[0], Type::kPred);
  };
}

constexpr std::array<std::string_view, 3> kOwnSpaces = {"", ".shared", ".shared::cta"};
constexpr std::array<std::string_view, 4> kSpaces = {"", ".shared", ".shared::cta",
                                                     ".shared::cluster"};
constexpr InstructionClass kClass = InstructionClass::kMbarrier;

void add_objects(Table& table) {
  for (const std::string_view space : kOwnSpaces) {
    table.add(concat("mbarrier.init", space, ".b64"), kClass, build_plain(mbarrier_init, space, 2));
    table.add(concat("mbarrier.inval", space, ".b64"), kClass,
              build_plain(mbarrier_inval, space, 1));
  }
  for (const std::string_view space : kSpaces) {
    for (const char* order : {"", ".relaxed.cta", ".relaxed.cluster"}) {
      table.add(concat("mbarrier.expect_tx", order, space, ".b64"), kClass,
                build_plain(mbarrier_tx<false>, space, 2));
      table.add(concat("mbarrier.complete_tx", order, space, ".b64"), kClass,
                build_plain(mbarrier_tx<true>, space, 2));
    }
  }
}

void add_arrivals(Table& table) {
  struct Row {
    const char* form;
    Handler handler;
    bool needs_value;
  };
  static constexpr std::array<Row, 6> kRows = {{
      {"mbarrier.arrive", mbarrier_arrive<Arrival::kPlain>, false},
      {"mbarrier.arrive.expect_tx", mbarrier_arrive<Arrival::kExpectTx>, true},
      {"mbarrier.arrive.noComplete", mbarrier_arrive<Arrival::kNoComplete>, true},
      {"mbarrier.arrive_drop", mbarrier_arrive<Arrival::kDrop>, false},
      {"mbarrier.arrive_drop.expect_tx", mbarrier_arrive<Arrival::kDropExpectTx>, true},
      {"mbarrier.arrive_drop.noComplete", mbarrier_arrive<Arrival::kDropNoComplete>, true},
  }};
  for (const Row& row : kRows) {
    for (const std::string_view space : kSpaces) {
      for (const char* order :
           {"", ".release.cta", ".release.cluster", ".relaxed.cta", ".relaxed.cluster"}) {
        table.add(concat(row.form, order, space, ".b64"), kClass,
                  build_arrive(row.handler, space, row.needs_value));
      }
    }
  }
}

void add_waits(Table& table) {
  for (const std::string_view space : kOwnSpaces) {
    for (const char* order :
         {"", ".acquire.cta", ".acquire.cluster", ".relaxed.cta", ".relaxed.cluster"}) {
      const std::string rest = concat(order, space, ".b64");
      table.add("mbarrier.test_wait" + rest, kClass,
                build_wait(mbarrier_wait<false, false>, space, false, false));
      table.add("mbarrier.test_wait.parity" + rest, kClass,
                build_wait(mbarrier_wait<false, true>, space, true, false));
      table.add("mbarrier.try_wait" + rest, kClass,
                build_wait(mbarrier_wait<true, false>, space, false, true));
      table.add("mbarrier.try_wait.parity" + rest, kClass,
                build_wait(mbarrier_wait<true, true>, space, true, true));
    }
  }
}

}  // namespace

void add_mbarrier_forms(Table& table) {
  add_objects(table);
  add_arrivals(table);
  add_waits(table);
  table.add("mbarrier.pending_count.b64", kClass, [](Builder& builder) {
    expect_operands(builder, 2, 2);
    const std::vector<Operand>& operands = builder.statement().operands;
    builder.instruction().handler = mbarrier_pending_count;
    builder.instruction().operands[kMbarrierValueSlot] = builder.source(operands[1], Type::kB64);
    builder.instruction().operands[kMbarrierResultSlot] =
        builder.destination(operands[0], Type::kB32);
  });
}

}  // namespace pykernels::emulator
