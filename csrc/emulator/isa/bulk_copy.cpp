// Bulk copies and reductions, and the groups of all bulk operations.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/gpu_facts.h"
#include "emulator/isa/bulk_copy_forms.h"
#include "emulator/isa/memory_access.h"
#include "emulator/isa/tensor_map_operand.h"
#include "emulator/machine/bulk_operation.h"

namespace pykernels::emulator {
namespace {

enum class Side : uint8_t { kGlobal, kSharedCta, kSharedCluster };

/// A bulk copy or reduction as its statement describes it.
struct BulkForm : SideData {
  Side from = Side::kGlobal;
  Side to = Side::kSharedCta;
  AddressOperand destination;
  AddressOperand source;
  AddressOperand barrier;
  Slot size = kNoSlot;
  Slot mask = kNoSlot;  // .multicast::cluster
  bool has_barrier = false;
  std::optional<Reduction> reduction;
};

/// Sends what goes to one CTA to the same offsets of every CTA of the mask.
void spread(const Issuer& issuer, uint32_t mask, uint32_t offset, uint32_t barrier_offset,
            BulkOperation& operation) {
  Cluster& cluster = *issuer.warp.cta().cluster;
  Machine& machine = issuer.warp.machine();
  if (mask == 0 || mask >> cluster.ctas.size() != 0) {
    machine.fail("sync",
                 concat("multicast mask ", hexadecimal(mask), " must name CTAs of the cluster of ",
                        cluster.ctas.size()),
                 issuer.warp, issuer.instruction, issuer.lane);
  }
  for (uint32_t rank = 0; rank < cluster.ctas.size(); ++rank) {
    if ((mask >> rank & 1) == 0) continue;
    const uint32_t window = kSharedBase + (rank << kClusterRankShift);
    operation.to_shared.push_back(
        shared_range(issuer, window + offset, operation.bytes, 1, SharedOperand::kDestination));
    operation.barriers.push_back(completion_barrier(issuer, window + barrier_offset));
  }
  if (operation.to_shared.size() > 1) rely_on(machine, Fact::kMulticastOrder);
}

// ---- bulk copies ----

/// The number of bytes; ends the launch unless it is a multiple of 16.
uint32_t bulk_bytes(const Issuer& issuer, const BulkForm& form) {
  const uint32_t bytes = issuer.warp.lanes<uint32_t>(form.size)[issuer.lane];
  if (bytes % 16 != 0) {
    issuer.warp.machine().fail(
        "memory", concat("the size of a bulk copy must be a multiple of 16, got ", bytes),
        issuer.warp, issuer.instruction, issuer.lane);
  }
  return bytes;
}

GlobalRange bulk_global(const Issuer& issuer, uint64_t address, uint32_t bytes, AccessKind kind) {
  if (address % 16 != 0) {
    issuer.warp.machine().fail(
        "memory",
        concat("the ", kind == AccessKind::kRead ? "source" : "destination", "'s global address ",
               hexadecimal(address), " must be a multiple of 16"),
        issuer.warp, issuer.instruction, issuer.lane);
  }
  check_global_range(issuer, {address, bytes}, kind);
  return {address, bytes};
}

void issue_copy(const Issuer& issuer, const BulkForm& form) {
  Warp& warp = issuer.warp;
  const uint32_t bytes = bulk_bytes(issuer, form);
  const uint64_t source = form.source.at(warp, issuer.lane);
  const uint64_t destination = form.destination.at(warp, issuer.lane);
  auto operation = std::make_shared<BulkOperation>();
  operation->bytes = bytes;
  operation->reduction = form.reduction;
  if (bytes != 0 && form.from == Side::kGlobal) {
    operation->from_global = bulk_global(issuer, source, bytes, AccessKind::kRead);
  } else if (bytes != 0) {
    operation->from_shared = shared_range(issuer, source, bytes, 16, SharedOperand::kSource);
  }
  if (bytes != 0 && form.to == Side::kGlobal) {
    operation->to_global = bulk_global(issuer, destination, bytes, AccessKind::kWrite);
  }
  if (form.has_barrier) {
    set_shared_destination(issuer, destination, form.barrier.at(warp, issuer.lane), form.mask,
                           *operation);
  }
  if (form.reduction && form.reduction->type >= Type::kF16) {
    rely_on(warp.machine(), Fact::kReduceRounding);
  }
  form.has_barrier ? issue_bulk(issuer, operation) : issue_in_bulk_group(issuer, operation);
}

Step bulk_copy(Warp& warp, const Instruction& inst, LaneMask active) {
  const auto& form = static_cast<const BulkForm&>(*inst.side);
  return for_threads(warp, inst, active, [&](const Issuer& issuer) { issue_copy(issuer, form); });
}

/// `[dst], [src], size {, [mbar]} {, mask} {, policy}`
void build_bulk(Builder& builder, Side from, Side to, std::optional<Reduction> reduction) {
  if (from == Side::kSharedCta && to == Side::kSharedCluster) {
    check_direction(builder, "shared::cluster", true);
  } else {
    check_direction(builder, "global", to == Side::kGlobal);
  }
  auto form = std::make_unique<BulkForm>();
  form->from = from;
  form->to = to;
  form->reduction = reduction;
  const auto read = [&](int index, Side side) {
    return read_address(builder, statement_operand(builder, index),
                        side == Side::kGlobal ? Space::kGlobal : Space::kShared,
                        side != Side::kGlobal);
  };
  form->destination = read(0, to);
  form->source = read(1, from);
  form->size = builder.source(statement_operand(builder, 2), Type::kU32);
  form->has_barrier = to != Side::kGlobal;
  if (form->has_barrier) form->barrier = read(3, to);
  read_trailing(builder, form->has_barrier ? 4 : 3, &form->mask);
  builder.keep(std::move(form));
  builder.instruction().handler = &bulk_copy;
}

// ---- groups ----

AsyncGroups& thread_groups(Warp& warp, int lane) {
  return warp.cta().bulk_groups[static_cast<uint32_t>(warp.index() * kWarpSize + lane)];
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
        agents.push_back(operation->agent.get());
      }
    }
    if (RaceDetector* races = warp.machine().races()) {
      races->wait_for(warp, 1u << lane, agents, false);
    }
  });
  return Step::kNext;
}

/// Only the sources have been read: the groups stay, for a wait that asks for their writes.
Step wait_group_read(Warp& warp, const Instruction& inst, LaneMask active) {
  for_lanes(active, [&](int lane) {
    const auto& committed = thread_groups(warp, lane).committed;
    const auto keep = static_cast<size_t>(inst.immediate);
    std::vector<const AgentRaces*> agents;
    for (size_t i = 0; i + keep < committed.size(); ++i) {
      for (const auto& operation : committed[i]) {
        AsyncQueue::force_source(warp.machine(), *operation);
        agents.push_back(operation->agent.get());
      }
    }
    if (RaceDetector* races = warp.machine().races()) {
      races->wait_for(warp, 1u << lane, agents, true);
    }
  });
  return Step::kNext;
}

void build_wait(Builder& builder, Handler handler) {
  const int64_t pending = builder.integer(statement_operand(builder, 0));
  if (pending < 0) builder.fail(concat("the number of groups must not be negative, got ", pending));
  builder.instruction().immediate = pending;
  builder.instruction().handler = handler;
}

Step no_operation(Warp&, const Instruction&, LaneMask) { return Step::kNext; }

/// `[src], size {, policy}`
void build_bulk_prefetch(Builder& builder) {
  read_address(builder, statement_operand(builder, 0), Space::kGlobal);
  builder.source(statement_operand(builder, 1), Type::kU32);
  Slot no_mask = kNoSlot;
  read_trailing(builder, 2, &no_mask);
  builder.instruction().handler = &no_operation;
}

// ---- rows ----

constexpr auto kClass = InstructionClass::kBulkCopy;

void add_copies(Table& table) {
  for (const std::string hint : kHints) {
    const auto load = [](Side to) {
      return [to](Builder& builder) { build_bulk(builder, Side::kGlobal, to, std::nullopt); };
    };
    const std::string completion = kCompletion;
    table.add("cp.async.bulk.shared::cluster.global" + completion + hint, kClass,
              load(Side::kSharedCluster));
    table.add("cp.async.bulk.shared::cluster.global" + completion + ".multicast::cluster" + hint,
              kClass, load(Side::kSharedCluster));
    table.add("cp.async.bulk.shared::cta.global" + completion + hint, kClass,
              load(Side::kSharedCta));
    table.add("cp.async.bulk.global.shared::cta.bulk_group" + hint, kClass, [](Builder& builder) {
      build_bulk(builder, Side::kSharedCta, Side::kGlobal, std::nullopt);
    });
    table.add("cp.async.bulk.prefetch.L2.global" + hint, kClass, build_bulk_prefetch);
  }
  table.add(std::string("cp.async.bulk.shared::cluster.shared::cta") + kCompletion, kClass,
            [](Builder& builder) {
              build_bulk(builder, Side::kSharedCta, Side::kSharedCluster, std::nullopt);
            });
}

void add_reduction(Table& table, const std::string& operation, const std::string& suffix,
                   Type type) {
  Reduction reduction{*reduction_from_name(operation), type, type == Type::kF32};
  if (!reduction.valid()) return;
  const std::string form = "." + operation + suffix + "." + std::string(type_name(type));
  for (const std::string hint : kHints) {
    table.add("cp.reduce.async.bulk.global.shared::cta.bulk_group" + hint + form, kClass,
              [reduction](Builder& builder) {
                build_bulk(builder, Side::kSharedCta, Side::kGlobal, reduction);
              });
  }
  const bool is_float = type >= Type::kF16;
  if (is_float) return;
  table.add("cp.reduce.async.bulk.shared::cluster.shared::cta" + std::string(kCompletion) + form,
            kClass, [reduction](Builder& builder) {
              build_bulk(builder, Side::kSharedCta, Side::kSharedCluster, reduction);
            });
}

void add_reductions(Table& table) {
  for (const char* operation : {"add", "min", "max", "inc", "dec"}) {
    for (const Type type : {Type::kU32, Type::kS32, Type::kU64, Type::kS64}) {
      add_reduction(table, operation, "", type);
    }
  }
  for (const char* operation : {"and", "or", "xor"}) {
    for (const Type type : {Type::kB32, Type::kB64}) add_reduction(table, operation, "", type);
  }
  for (const Type type : {Type::kF32, Type::kF64}) add_reduction(table, "add", "", type);
  for (const Type type : {Type::kF16, Type::kBf16}) {
    add_reduction(table, "add", ".noftz", type);
    add_reduction(table, "min", "", type);
    add_reduction(table, "max", "", type);
  }
}

}  // namespace

void set_shared_destination(const Issuer& issuer, uint64_t address, uint64_t barrier, Slot mask,
                            BulkOperation& operation) {
  const SharedRange range =
      shared_range(issuer, address, operation.bytes, 16, SharedOperand::kDestination);
  if (mask == kNoSlot) {
    operation.to_shared.push_back(range);
    operation.barriers.push_back(completion_barrier(issuer, barrier));
  } else {
    const uint32_t ranks = issuer.warp.lanes<uint32_t>(mask)[issuer.lane] & 0xffff;
    spread(issuer, ranks, range.offset,
           shared_range(issuer, barrier, 8, 8, SharedOperand::kBarrier).offset, operation);
  }
}

const Operand& statement_operand(const Builder& builder, int index) {
  if (index >= builder.num_operands()) builder.fail("operands are missing");
  return builder.statement().operands[static_cast<size_t>(index)];
}

void read_trailing(Builder& builder, int index, Slot* mask) {
  if (builder.has_modifier("multicast::cluster")) {
    *mask = builder.source(statement_operand(builder, index++), Type::kB16);
  }
  if (builder.has_modifier("L2::cache_hint"))
    builder.source(statement_operand(builder, index++), Type::kB64);
  if (builder.num_operands() != index) {
    builder.fail(concat("expected ", index, " operands, got ", builder.num_operands()));
  }
}

void add_bulk_copy_forms(Table& table) {
  add_copies(table);
  add_reductions(table);
  add_tensor_copy_forms(table);
  table.add("cp.async.bulk.commit_group", kClass,
            [](Builder& builder) { builder.instruction().handler = &commit_group; });
  table.add("cp.async.bulk.wait_group", kClass,
            [](Builder& builder) { build_wait(builder, &wait_group); });
  table.add("cp.async.bulk.wait_group.read", kClass,
            [](Builder& builder) { build_wait(builder, &wait_group_read); });
  add_tensor_map_forms(table);
}

}  // namespace pykernels::emulator
