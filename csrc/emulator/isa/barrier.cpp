// Barriers of a CTA (bar, barrier) and of a cluster (barrier.cluster).
#include <array>
#include <string>
#include <string_view>

#include "core/check.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/sync.h"
#include "emulator/isa/table.h"
#include "emulator/machine/machine.h"

namespace pykernels::emulator {
namespace {

// Bits of Instruction::variant.
constexpr uint16_t kAligned = 1;
constexpr uint16_t kNegated = 2;  // the predicate of .red
constexpr uint16_t kRelaxed = 4;  // barrier.cluster.arrive.relaxed

constexpr int kDestinationSlot = 0;
constexpr int kBarrierSlot = 1;
constexpr int kCountSlot = 2;
constexpr int kPredicateSlot = 3;

enum class Action : uint8_t { kSync, kArrive, kPopc, kAnd, kOr };

// ---- named barriers ----

/// Threads that can still arrive in this generation.
uint32_t threads_left(const Cta& cta, const NamedBarrier& barrier) {
  uint32_t threads = 0;
  for (const auto& warp : cta.warps) {
    const auto index = static_cast<size_t>(warp->index());
    const bool whole = barrier.expected != 0 && (barrier.warps >> index & 1) == 0;
    const LaneMask lanes = whole ? kFullMask : warp->live() & ~barrier.lanes[index];
    if (!warp->finished()) threads += static_cast<uint32_t>(__builtin_popcount(lanes));
  }
  return threads;
}

std::string describe_barrier(const Warp& warp, const Wait& wait) {
  const Cta& cta = const_cast<Warp&>(warp).cta();
  const NamedBarrier& barrier = cta.barriers[wait.detail[0]];
  const uint32_t needed = barrier.expected != 0 ? barrier.expected : cta.live_threads;
  std::string missing;
  for (const auto& other : cta.warps) {
    if ((barrier.warps >> other->index() & 1) != 0) continue;
    missing +=
        concat(missing.empty() ? "" : ", ", other->index(), other->finished() ? " (ended)" : "");
  }
  const uint32_t left = threads_left(cta, barrier);
  return concat("barrier ", wait.detail[0], ", generation ", barrier.generation, ": ",
                barrier.arrived, " of ", needed, " threads have arrived",
                missing.empty() ? "" : concat("; warps that have not: ", missing),
                barrier.arrived + left < needed
                    ? concat("; it can never complete, the CTA has ", left, " more threads")
                    : "");
}

/// The operand's value, the same in all lanes that take part.
uint32_t uniform(Warp& warp, const Instruction& inst, Slot slot, LaneMask active,
                 const char* what) {
  const uint32_t* values = warp.lanes<uint32_t>(slot);
  const uint32_t value = values[__builtin_ctz(active)];
  bool same = true;
  for_lanes(active, [&](int lane) { same &= values[lane] == value; });
  if (!same)
    warp.machine().fail("sync", concat("lanes of a warp give different ", what), warp, inst);
  return value;
}

/// Threads that the barrier waits for: 0 for all that are live.
uint32_t thread_count(Warp& warp, const Instruction& inst, LaneMask active) {
  if (inst.operands[kCountSlot] == kNoSlot) return 0;
  const uint32_t count =
      uniform(warp, inst, inst.operands[kCountSlot], active, "thread counts of a barrier");
  if (count != 0 && count % kWarpSize == 0 && count <= 1024) return count;
  warp.machine().fail(
      "sync",
      concat("the thread count of a barrier must be a multiple of 32 up to 1024, got ", count),
      warp, inst);
}

void check_count(Warp& warp, const Instruction& inst, uint32_t index, NamedBarrier& barrier,
                 uint32_t count) {
  if (barrier.warps == 0) {
    barrier.expected = count;
    barrier.counted = Party{&warp, &inst, -1};
    barrier.miscounted = false;
  } else if (barrier.expected != count && !barrier.miscounted) {
    barrier.miscounted = true;  // what follows from it is no other fault
    const auto text = [](uint32_t threads) {
      return threads == 0 ? std::string("all") : std::to_string(threads);
    };
    const std::string message =
        concat("barrier ", index, " is given ", text(count), " threads, and was given ",
               text(barrier.expected), " by those that wait there");
    warp.machine().report("sync", message, Party{&warp, &inst, -1}, barrier.counted);
  }
}

/// Keeps who arrives, and reports more threads than the barrier counts.
void check_arrival(Warp& warp, const Instruction& inst, uint32_t index, NamedBarrier& barrier,
                   LaneMask active) {
  const Party self{&warp, &inst, active == warp.live() ? -1 : __builtin_ctz(active)};
  const auto arriving = static_cast<uint32_t>(__builtin_popcount(active));
  if (barrier.expected != 0 && !barrier.miscounted &&
      barrier.arrived + arriving > barrier.expected) {
    const std::string message =
        concat("barrier ", index, " counts ", barrier.expected, " threads, of which ",
               barrier.arrived, " have arrived, and ", arriving, " more arrive");
    if (barrier.last.warp != nullptr) {
      warp.machine().report("sync", message, self, barrier.last);
    } else {
      warp.machine().report("sync", message, warp, inst, self.lane);
    }
  }
  barrier.last = self;
}

/// bar.red: what all threads gave, once the generation is complete.
template <Action kAction>
void write_result(Warp& warp, const Instruction& inst, const NamedBarrier& barrier,
                  LaneMask active) {
  if (inst.operands[kDestinationSlot] == kNoSlot) return;
  if constexpr (kAction == Action::kPopc) {
    uint32_t* d = warp.lanes<uint32_t>(inst.operands[kDestinationSlot]);
    for_lanes(active, [&](int lane) { d[lane] = barrier.last_votes; });
  } else if constexpr (kAction == Action::kAnd || kAction == Action::kOr) {
    const bool result = kAction == Action::kAnd ? barrier.last_votes == barrier.last_participants
                                                : barrier.last_votes != 0;
    LaneMask& d = warp.mask(inst.operands[kDestinationSlot]);
    d = result ? d | active : d & ~active;
  }
}

/// Lanes that a guard keeps out do not wait with the others. False for .aligned forms, where the
/// whole warp must take part: a finding.
void leave_behind(Warp& warp, const Instruction& inst, LaneMask active) {
  const LaneMask outside = warp.split().lanes & ~active;
  if (outside == 0) return;
  if ((inst.variant & kAligned) != 0) {
    warp.machine().report("sync",
                          "an .aligned barrier is executed under a guard that differs in the warp",
                          warp, inst, __builtin_ctz(outside));
  }
  warp.part(outside);
}

/// bar{.cta}.ACTION a{, b}; barrier{.cta}.ACTION{.aligned} a{, b};      PTX 1.0 (barrier: 6.0)
///
/// A thread counts once a generation; lanes of a warp that do not exist or have ended count with
/// the warp's first.
template <Action kAction>
Step barrier(Warp& warp, const Instruction& inst, LaneMask active) {
  if ((inst.variant & kAligned) != 0 && !warp.aligned())
    return warp.block_until_converged(kFullMask);
  Cta& cta = warp.cta();
  const uint32_t index = uniform(warp, inst, inst.operands[kBarrierSlot], active, "barriers");
  if (index >= cta.barriers.size()) {
    warp.machine().fail("sync", concat("there are barriers 0 to 15, got ", index), warp, inst);
  }
  NamedBarrier& barrier = cta.barriers[index];
  Split& split = warp.split();
  if (!split.resumed) {
    const uint32_t count = thread_count(warp, inst, active);
    leave_behind(warp, inst, active);
    check_count(warp, inst, index, barrier, count);
    LaneMask votes = 0;
    if constexpr (kAction >= Action::kPopc) {
      votes = warp.mask(inst.operands[kPredicateSlot]) ^
              ((inst.variant & kNegated) != 0 ? kFullMask : 0);
    }
    check_arrival(warp, inst, index, barrier, active);
    split.wait.token = barrier.generation;
    if (RaceDetector* races = warp.machine().races()) races->barrier_arrive(warp, barrier, active);
    cta.arrive(barrier, warp, active, votes);
    warp.machine().note_change();
    if constexpr (kAction == Action::kArrive) return Step::kNext;
  }
  if (barrier.generation == split.wait.token) {
    Wait wait;
    wait.kind = Wait::Kind::kNamedBarrier;
    wait.on = &barrier;
    wait.token = split.wait.token;
    wait.describe = describe_barrier;
    wait.detail[0] = index;
    return warp.block(wait);
  }
  if (RaceDetector* races = warp.machine().races()) {
    races->barrier_wait(warp, barrier, split.wait.token, active);
  }
  write_result<kAction>(warp, inst, barrier, active);
  return Step::kNext;
}

// ---- barrier.cluster ----

std::string describe_cluster(const Warp& warp, const Wait& wait) {
  (void)wait;
  const Cluster& cluster = *const_cast<Warp&>(warp).cta().cluster;
  std::string ranks;
  for (const auto& cta : cluster.ctas) {
    uint32_t arrived = 0;
    for (const auto& other : cta->warps) {
      const LaneMask current =
          (cluster.generation & 1) != 0 ? other->cluster_parity : ~other->cluster_parity;
      arrived += static_cast<uint32_t>(
          __builtin_popcount(other->cluster_arrived & current & other->live()));
    }
    if (arrived == cta->live_threads) continue;
    ranks += concat(ranks.empty() ? "" : ", ", "rank ", cta->rank, " has ", arrived, " of ",
                    cta->live_threads);
  }
  return concat("the cluster barrier, generation ", cluster.generation, ": ", cluster.arrived,
                " of ", cluster.live_threads, " threads have arrived; ", ranks);
}

/// barrier.cluster.arrive{.release, .relaxed}{.aligned};      PTX 7.8, sm_90
Step cluster_arrive(Warp& warp, const Instruction& inst, LaneMask active) {
  if ((inst.variant & kAligned) != 0 && !warp.aligned())
    return warp.block_until_converged(kFullMask);
  if ((inst.variant & kAligned) != 0) check_aligned_guard(warp, inst, active);
  Cluster& cluster = *warp.cta().cluster;
  if (const LaneMask twice = warp.cluster_arrived & active; twice != 0) {
    warp.machine().report("sync",
                          "barrier.cluster.arrive a second time without barrier.cluster.wait", warp,
                          inst, __builtin_ctz(twice));
    active &= ~twice;
  }
  warp.cluster_arrived |= active;
  warp.cluster_parity =
      (cluster.generation & 1) != 0 ? warp.cluster_parity | active : warp.cluster_parity & ~active;
  cluster.arrived += static_cast<uint32_t>(__builtin_popcount(active));
  warp.machine().note_change();
  if (RaceDetector* races = warp.machine().races()) {
    const bool relaxed = (inst.variant & kRelaxed) != 0;
    races->cluster_arrive(warp, active, relaxed ? Semantics::kRelaxed : Semantics::kRelease);
  }
  cluster.complete_if_due();
  return Step::kNext;
}

/// barrier.cluster.wait{.acquire}{.aligned};      PTX 7.8, sm_90
Step cluster_wait(Warp& warp, const Instruction& inst, LaneMask active) {
  if ((inst.variant & kAligned) != 0 && !warp.aligned())
    return warp.block_until_converged(kFullMask);
  Cluster& cluster = *warp.cta().cluster;
  leave_behind(warp, inst, active);
  if (const LaneMask without = active & ~warp.cluster_arrived; without != 0) {
    warp.machine().report("sync", "barrier.cluster.wait without barrier.cluster.arrive before it",
                          warp, inst, __builtin_ctz(without));
  }
  const LaneMask current =
      (cluster.generation & 1) != 0 ? warp.cluster_parity : ~warp.cluster_parity;
  if ((active & warp.cluster_arrived & current) != 0) {
    Wait wait;
    wait.kind = Wait::Kind::kClusterBarrier;
    wait.on = &cluster;
    wait.describe = describe_cluster;
    return warp.block(wait);
  }
  warp.cluster_arrived &= ~active;
  if (RaceDetector* races = warp.machine().races()) races->cluster_wait(warp, active);
  return Step::kNext;
}

// ---- rows ----

/// Operands: destination (.red), barrier, threads, predicate (.red); `least` and `most` leave out
/// what .red adds.
void build_barrier(Builder& builder, Handler handler, bool aligned, int least, Type result) {
  const std::vector<Operand>& operands = builder.statement().operands;
  Instruction& inst = builder.instruction();
  const bool reduces = result != Type::kNone;
  const int first = reduces ? 1 : 0;
  const int last = builder.num_operands() - (reduces ? 1 : 0);
  const int count = last - first;
  if (count < least || count > 2)
    builder.fail(
        concat("a barrier", least == 2 ? " and" : " and perhaps", " a thread count are expected"));
  inst.handler = handler;
  inst.variant = aligned ? kAligned : 0;
  inst.operands[kBarrierSlot] = builder.source(operands[first], Type::kU32);
  if (count == 2) inst.operands[kCountSlot] = builder.source(operands[first + 1], Type::kU32);
  if (!reduces) return;
  bool negated = false;
  inst.operands[kPredicateSlot] = builder.predicate(operands[last], &negated);
  if (negated) inst.variant |= kNegated;
  inst.operands[kDestinationSlot] = builder.destination(operands[0], result);
}

/// `opcode`: bar (always aligned), barrier; with .cta or without.
void add_named_barriers(Table& table, const std::string& opcode, bool always_aligned) {
  struct Row {
    const char* form;
    Handler handler;
    int least;
    Type result;
  };
  static constexpr std::array<Row, 5> kRows = {{
      {".sync", barrier<Action::kSync>, 1, Type::kNone},
      {".arrive", barrier<Action::kArrive>, 2, Type::kNone},
      {".red.popc.u32", barrier<Action::kPopc>, 1, Type::kU32},
      {".red.and.pred", barrier<Action::kAnd>, 1, Type::kPred},
      {".red.or.pred", barrier<Action::kOr>, 1, Type::kPred},
  }};
  for (const Row& row : kRows) {
    for (const bool aligned : {false, true}) {
      if (always_aligned && aligned) continue;
      const Build build = [row, aligned, always_aligned](Builder& builder) {
        build_barrier(builder, row.handler, aligned || always_aligned, row.least, row.result);
      };
      table.add(opcode + (aligned ? ".aligned" : "") + row.form, InstructionClass::kBarrier, build);
    }
  }
}

Build build_cluster_barrier(Handler handler, bool aligned) {
  return [handler, aligned](Builder& builder) {
    if (builder.num_operands() != 0) builder.fail("no operands are expected");
    builder.instruction().handler = handler;
    builder.instruction().variant = aligned ? kAligned : 0;
    if (builder.has_modifier("relaxed")) builder.instruction().variant |= kRelaxed;
  };
}

}  // namespace

void add_barrier_forms(Table& table) {
  add_named_barriers(table, "bar", true);
  add_named_barriers(table, "bar.cta", true);
  add_named_barriers(table, "barrier", false);
  add_named_barriers(table, "barrier.cta", false);
  for (const bool aligned : {false, true}) {
    const std::string suffix = aligned ? ".aligned" : "";
    for (const char* semantics : {"", ".release", ".relaxed"}) {
      table.add("barrier.cluster.arrive" + std::string(semantics) + suffix,
                InstructionClass::kBarrier, build_cluster_barrier(cluster_arrive, aligned));
    }
    for (const char* semantics : {"", ".acquire"}) {
      table.add("barrier.cluster.wait" + std::string(semantics) + suffix,
                InstructionClass::kBarrier, build_cluster_barrier(cluster_wait, aligned));
    }
  }
}

}  // namespace pykernels::emulator
