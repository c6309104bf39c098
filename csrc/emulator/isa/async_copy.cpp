// cp.async: copies of 4 to 16 bytes a thread from global to shared memory, their groups, and their
// arrival on mbarriers.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/sync.h"
#include "emulator/isa/memory_access.h"
#include "emulator/machine/bulk_operation.h"

namespace pykernels::emulator {
namespace {

/// What the lanes of one instruction copy.
class CopyOperation : public AsyncOperation {
 public:
  struct Piece {
    SharedRange to;
    uint64_t from = 0;
    uint32_t from_bytes = 0;  // the rest of the range is filled with zeros
    int lane = 0;
    std::shared_ptr<AgentRaces> agent;  // of the race detector: each lane is one
  };

  std::vector<Piece> pieces;

  void finish(Machine& machine) override {
    for (const Piece& piece : pieces) {
      if (RaceDetector* races = machine.races()) races->set_current(piece.agent.get());
      uint8_t* destination = resolve_shared(machine, *piece.to.cta, piece.to.offset, piece.to.bytes,
                                            AccessKind::kWrite, instruction, issuer);
      std::memset(destination, 0, piece.to.bytes);
      if (piece.from_bytes == 0) continue;
      std::memcpy(destination,
                  resolve_global(machine, piece.from, piece.from_bytes, AccessKind::kRead,
                                 instruction, issuer),
                  piece.from_bytes);
    }
  }

  const AgentRaces* agent_of(int lane) const {
    const auto piece = std::find_if(pieces.begin(), pieces.end(),
                                    [&](const Piece& other) { return other.lane == lane; });
    return piece == pieces.end() ? nullptr : piece->agent.get();
  }

  std::string describe() const override {
    return concat("cp.async of ", pieces.size(), " lanes to shared memory");
  }

  bool touches(const Cta& cta) const override {
    return !finished && !pieces.empty() && pieces.front().to.cta == &cta;
  }
};

/// cp.async.mbarrier.arrive: arrives once the thread's copies before it are complete.
class ArriveOperation : public AsyncOperation {
 public:
  CompletionBarrier barrier;
  int lane = 0;
  std::vector<std::shared_ptr<AsyncOperation>> copies;

  void finish(Machine& machine) override {
    Mbarrier* mbarrier = barrier.cta->find_mbarrier(barrier.offset);
    for (const auto& copy : copies) {
      AsyncQueue::force(machine, *copy);
      const AgentRaces* agent = static_cast<const CopyOperation&>(*copy).agent_of(lane);
      if (agent != nullptr && mbarrier != nullptr)
        machine.races()->complete_tx(*agent, *mbarrier, *barrier.cta);
    }
    copies.clear();
    const char* misuse = mbarrier == nullptr ? "the mbarrier to arrive on does not exist any more"
                                             : mbarrier->arrive(1);
    if (misuse != nullptr) machine.report("sync", misuse, *issuer, *instruction);
  }

  std::string describe() const override {
    return concat("arrival of cp.async on the mbarrier at offset ", barrier.offset);
  }

  bool touches(const Cta& cta) const override { return !finished && barrier.cta == &cta; }
};

struct CopyForm : SideData {
  AddressOperand destination;
  AddressOperand source;
  uint32_t bytes = 16;
  Slot source_bytes = kNoSlot;
  Slot ignore_source = kNoSlot;  // predicate
  bool ignore_negated = false;
};

AsyncGroups& thread_groups(Warp& warp, int lane) {
  return warp.cta().copy_groups[static_cast<uint32_t>(warp.index() * kWarpSize + lane)];
}

/// Bytes that the lane reads; the rest of its range becomes zero.
uint32_t source_bytes(Warp& warp, const CopyForm& form, const Issuer& issuer) {
  if (form.ignore_source != kNoSlot) {
    const bool ignored = (warp.mask(form.ignore_source) >> issuer.lane & 1) != 0;
    return ignored != form.ignore_negated ? 0 : form.bytes;
  }
  if (form.source_bytes == kNoSlot) return form.bytes;
  const uint32_t bytes = warp.lanes<uint32_t>(form.source_bytes)[issuer.lane];
  if (bytes > form.bytes) {
    warp.machine().fail("memory",
                        concat("src-size must be at most cp-size ", form.bytes, ", got ", bytes),
                        warp, issuer.instruction, issuer.lane);
  }
  return bytes;
}

CopyOperation::Piece make_piece(const Issuer& issuer, const CopyForm& form) {
  Warp& warp = issuer.warp;
  CopyOperation::Piece piece;
  piece.to = shared_range(issuer, form.destination.at(warp, issuer.lane), form.bytes, form.bytes,
                          SharedOperand::kDestination);
  piece.from = form.source.at(warp, issuer.lane);
  piece.from_bytes = source_bytes(warp, form, issuer);
  if (piece.from_bytes == 0) return piece;
  if (piece.from % form.bytes != 0) {
    warp.machine().fail(
        "memory",
        concat("global address ", hexadecimal(piece.from), " must be a multiple of ", form.bytes),
        warp, issuer.instruction, issuer.lane);
  }
  check_global_range(issuer, {piece.from, piece.from_bytes}, AccessKind::kRead);
  return piece;
}

Step copy(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const CopyForm&>(*inst.side);
  auto operation = std::make_shared<CopyOperation>();
  Counters& counters = warp.machine().counters();
  for_lanes(active, [&](int lane) {
    CopyOperation::Piece piece = make_piece({warp, inst, lane}, form);
    check_overwritten_mbarrier(*piece.to.cta, piece.to.offset, piece.to.bytes, warp, inst, lane);
    piece.to.cta->poison(piece.to.offset, piece.to.bytes);
    piece.lane = lane;
    if (RaceDetector* races = warp.machine().races()) {
      piece.agent = races->issue_copy(warp, inst, lane);
    }
    warp.machine().count_global(piece.from, piece.from_bytes, AccessKind::kRead);
    counters.shared_bytes_written += form.bytes;
    operation->pieces.push_back(piece);
    thread_groups(warp, lane).open.push_back(operation);
  });
  warp.machine().async().issue(warp.machine(), operation);
  return Step::kNext;
}

Step commit_group(Warp& warp, const Instruction& inst, LaneMask active) {
  (void)inst;
  for_lanes(active, [&](int lane) { thread_groups(warp, lane).commit(); });
  return Step::kNext;
}

Step wait_group(Warp& warp, const Instruction& inst, LaneMask active) {
  for_lanes(active, [&](int lane) {
    const auto groups = thread_groups(warp, lane).take_older(static_cast<size_t>(inst.immediate));
    std::vector<const AgentRaces*> agents;
    for (const auto& group : groups) {
      for (const auto& operation : group) {
        AsyncQueue::force(warp.machine(), *operation);
        const AgentRaces* agent = static_cast<const CopyOperation&>(*operation).agent_of(lane);
        if (agent != nullptr) agents.push_back(agent);
      }
    }
    if (RaceDetector* races = warp.machine().races()) {
      races->wait_for(warp, 1u << lane, agents, false);
    }
  });
  return Step::kNext;
}

Step wait_all(Warp& warp, const Instruction& inst, LaneMask active) {
  for_lanes(active, [&](int lane) { thread_groups(warp, lane).commit(); });
  return wait_group(warp, inst, active);
}

struct ArriveForm : SideData {
  AddressOperand barrier;
  bool increments = true;  // without .noinc
};

Step arrive(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const ArriveForm&>(*inst.side);
  for_lanes(active, [&](int lane) {
    auto operation = std::make_shared<ArriveOperation>();
    operation->lane = lane;
    operation->barrier = completion_barrier({warp, inst, lane}, form.barrier.at(warp, lane));
    Mbarrier* mbarrier = operation->barrier.cta->find_mbarrier(operation->barrier.offset);
    if (mbarrier == nullptr) return;
    if (form.increments) mbarrier->add_pending();
    const AsyncGroups& groups = thread_groups(warp, lane);
    for (const auto& group : groups.committed) {
      operation->copies.insert(operation->copies.end(), group.begin(), group.end());
    }
    operation->copies.insert(operation->copies.end(), groups.open.begin(), groups.open.end());
    warp.machine().async().issue(warp.machine(), operation);
  });
  return Step::kNext;
}

/// `[dst], [src], cp-size {, src-size | ignore-src} {, policy}`
void build_copy(Builder& builder, bool only_16_bytes) {
  const std::vector<Operand>& operands = builder.statement().operands;
  check_direction(builder, "global", false);
  const size_t hints = builder.has_modifier("L2::cache_hint") ? 1 : 0;
  if (operands.size() < 3 + hints || operands.size() > 4 + hints) {
    builder.fail("wrong number of operands");
  }
  auto form = std::make_unique<CopyForm>();
  form->destination = read_address(builder, operands[0], Space::kShared, true);
  form->source = read_address(builder, operands[1], Space::kGlobal);
  const int64_t bytes = builder.integer(operands[2]);
  if (bytes != 16 && (only_16_bytes || (bytes != 4 && bytes != 8))) {
    builder.fail(concat("cp-size must be ", only_16_bytes ? "16" : "4, 8 or 16", ", got ", bytes));
  }
  form->bytes = static_cast<uint32_t>(bytes);
  if (operands.size() == 4 + hints) {
    if (builder.register_bits(operands[3]) == 1) {
      form->ignore_source = builder.predicate(operands[3], &form->ignore_negated);
    } else {
      form->source_bytes = builder.source(operands[3], Type::kU32);
    }
  }
  if (hints != 0) builder.source(operands.back(), Type::kB64);
  builder.keep(std::move(form));
  builder.instruction().handler = &copy;
}

void build_arrive(Builder& builder, Space space, bool increments) {
  auto form = std::make_unique<ArriveForm>();
  if (builder.num_operands() != 1) builder.fail("expected [mbar]");
  form->barrier = read_address(builder, builder.statement().operands[0], space, true);
  form->increments = increments;
  builder.keep(std::move(form));
  builder.instruction().handler = &arrive;
}

void build_wait(Builder& builder) {
  if (builder.num_operands() != 1) builder.fail("expected the number of groups");
  const int64_t pending = builder.integer(builder.statement().operands[0]);
  if (pending < 0) builder.fail(concat("the number of groups must not be negative, got ", pending));
  builder.instruction().immediate = pending;
  builder.instruction().handler = &wait_group;
}

}  // namespace

void add_async_copy_forms(Table& table) {
  constexpr auto kClass = InstructionClass::kMemory;
  for (const std::string space : {".shared", ".shared::cta"}) {
    for (const std::string hint : {"", ".L2::cache_hint"}) {
      for (const std::string size : {"", ".L2::64B", ".L2::128B", ".L2::256B"}) {
        for (const bool only_16_bytes : {false, true}) {
          table.add(std::string("cp.async.") + (only_16_bytes ? "cg" : "ca") + space + ".global" +
                        hint + size,
                    kClass,
                    [only_16_bytes](Builder& builder) { build_copy(builder, only_16_bytes); });
        }
      }
    }
  }
  table.add("cp.async.commit_group", kClass,
            [](Builder& builder) { builder.instruction().handler = &commit_group; });
  table.add("cp.async.wait_group", kClass, build_wait);
  table.add("cp.async.wait_all", kClass,
            [](Builder& builder) { builder.instruction().handler = &wait_all; });
  const std::pair<const char*, Space> spaces[] = {
      {"", Space::kGeneric}, {".shared", Space::kShared}, {".shared::cta", Space::kShared}};
  for (const auto& [name, space] : spaces) {
    for (const bool increments : {true, false}) {
      table.add(
          std::string("cp.async.mbarrier.arrive") + (increments ? "" : ".noinc") + name + ".b64",
          InstructionClass::kMbarrier, [space = space, increments](Builder& builder) {
            build_arrive(builder, space, increments);
          });
    }
  }
}

}  // namespace pykernels::emulator
