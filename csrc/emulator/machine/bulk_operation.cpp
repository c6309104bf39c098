#include "emulator/machine/bulk_operation.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "emulator/check/memory.h"
#include "emulator/check/race/detector.h"
#include "emulator/check/sync.h"
#include "emulator/machine/tensor_copy.h"

namespace pykernels::emulator {
namespace {

std::string place(const SharedRange& range) {
  return concat("shared memory of rank ", range.cta->rank, " at ",
                shared_place(range.cta->warps.front()->program(), range.offset));
}

std::string place(const GlobalRange& range) {
  return concat("global memory at ", hexadecimal(range.address));
}

/// Boxes of tensors count their bytes in global memory when they move: those in bounds.
void count_issue(Machine& machine, const BulkOperation& operation) {
  Counters& counters = machine.counters();
  const uint64_t bytes = operation.bytes;
  if (operation.from_tensor) counters.tma_bytes_loaded += bytes;
  if (operation.to_tensor) counters.tma_bytes_stored += bytes;
  if (operation.from_global) {
    machine.count_global(operation.from_global->address, bytes, AccessKind::kRead);
  }
  if (operation.to_global) {
    machine.count_global(operation.to_global->address, bytes, operation.destination_access());
  }
  if (operation.from_shared) counters.shared_bytes_read += bytes;
  counters.shared_bytes_written += bytes * operation.to_shared.size();
  if (operation.reduction) counters.shared_bytes_read += bytes * operation.to_shared.size();
}

}  // namespace

SharedRange shared_range(const Issuer& issuer, uint64_t address, uint32_t bytes, uint32_t alignment,
                         SharedOperand operand) {
  static constexpr const char* kNames[] = {"destination", "source", "mbarrier"};
  const char* name = kNames[static_cast<size_t>(operand)];
  Machine& machine = issuer.warp.machine();
  const auto shared_address = static_cast<uint32_t>(address);
  SharedRange range;
  range.bytes = bytes;
  range.cta = &machine.cluster_cta(issuer.warp, issuer.instruction, issuer.lane, shared_address,
                                   &range.offset);
  if (shared_address % alignment != 0) {
    machine.fail("memory",
                 concat("the ", name, "'s shared address ", hexadecimal(shared_address),
                        " must be a multiple of ", alignment, " (it is ",
                        shared_address % alignment, " above one)"),
                 issuer.warp, issuer.instruction, issuer.lane);
  }
  const uint64_t size = range.cta->shared.size();
  if (range.offset > size || size - range.offset < bytes) {
    machine.fail(
        "memory",
        concat("the ", name, ": ",
               shared_bounds_message(
                   *range.cta, shared_address, bytes,
                   operand == SharedOperand::kSource ? AccessKind::kRead : AccessKind::kWrite)),
        issuer.warp, issuer.instruction, issuer.lane);
  }
  return range;
}

CompletionBarrier completion_barrier(const Issuer& issuer, uint64_t address) {
  const SharedRange range = shared_range(issuer, address, 8, 8, SharedOperand::kBarrier);
  Machine& machine = issuer.warp.machine();
  const Mbarrier* mbarrier = range.cta->find_mbarrier(range.offset);
  if (mbarrier == nullptr) {
    machine.report("sync", concat("no mbarrier was initialised in ", place(range)), issuer.warp,
                   issuer.instruction, issuer.lane);
  } else if (RaceDetector* races = machine.races()) {
    races->mbarrier_use(issuer.warp, issuer.instruction, 1u << issuer.lane, *range.cta,
                        range.offset, *mbarrier);
  }
  return {range.cta, range.offset};
}

void check_global_range(const Issuer& issuer, const GlobalRange& range, AccessKind kind) {
  Machine& machine = issuer.warp.machine();
  const Allocation* allocation = machine.allocations().find(range.address, range.bytes);
  if (allocation == nullptr || (kind != AccessKind::kRead && !allocation->writable)) {
    machine.fail(
        "memory",
        global_bounds_message(machine.allocations(), allocation, range.address, range.bytes, kind),
        issuer.warp, issuer.instruction, issuer.lane);
  }
  check_before_grid_wait(issuer.warp, issuer.instruction, issuer.lane,
                         {range.address, range.bytes, allocation->name, true}, kind);
}

void BulkOperation::read_source(Machine& machine) {
  if (from_global) {
    const uint8_t* source = resolve_global(machine, from_global->address, from_global->bytes,
                                           AccessKind::kRead, instruction, issuer);
    data.assign(source, source + from_global->bytes);
  } else if (from_tensor) {
    data = gather_box(machine, *from_tensor, instruction, issuer);
  } else if (from_shared && to_tensor) {
    data = read_box(machine, *from_shared, *to_tensor, instruction, issuer);
  } else if (from_shared) {
    const uint8_t* source =
        resolve_shared(machine, *from_shared->cta, from_shared->offset, from_shared->bytes,
                       AccessKind::kRead, instruction, issuer);
    data.assign(source, source + from_shared->bytes);
  }
}

void BulkOperation::deliver_shared(Machine& machine, const SharedRange& range) {
  if (!reduction) return write_box(machine, range, data, swizzle, instruction, issuer);
  uint8_t* destination = resolve_shared(machine, *range.cta, range.offset, range.bytes,
                                        AccessKind::kAtomic, instruction, issuer);
  reduce_bytes(*reduction, destination, data.data(), range.bytes);
}

void BulkOperation::deliver_global(Machine& machine) {
  uint8_t* destination = resolve_global(machine, to_global->address, to_global->bytes,
                                        destination_access(), instruction, issuer);
  if (reduction) {
    reduce_bytes(*reduction, destination, data.data(), data.size());
  } else {
    std::memcpy(destination, data.data(), data.size());
  }
}

void BulkOperation::signal(Machine& machine) {
  for (const CompletionBarrier& barrier : barriers) {
    Mbarrier* mbarrier = barrier.cta->find_mbarrier(barrier.offset);
    if (mbarrier != nullptr && agent != nullptr) {
      machine.races()->complete_tx(*agent, *mbarrier, *barrier.cta);
    }
    const char* misuse = mbarrier == nullptr
                             ? "the mbarrier to be signalled does not exist any more"
                             : mbarrier->complete_tx(bytes);
    if (misuse != nullptr) machine.report("sync", misuse, *issuer, *instruction);
  }
}

void BulkOperation::finish(Machine& machine) {
  for (const SharedRange& range : to_shared) deliver_shared(machine, range);
  if (to_global) deliver_global(machine);
  if (to_tensor) scatter_box(machine, *to_tensor, data, reduction, instruction, issuer);
  signal(machine);
  data = {};
}

std::string BulkOperation::describe() const {
  std::string text = concat("copy of ", bytes, " bytes");
  if (from_global) text += " from " + place(*from_global);
  if (from_tensor) text += " from a tensor";
  if (from_shared) text += " from " + place(*from_shared);
  for (const SharedRange& range : to_shared) text += " to " + place(range);
  if (to_global) text += " to " + place(*to_global);
  if (to_tensor) text += " to a tensor";
  return text;
}

bool BulkOperation::touches(const Cta& cta) const {
  if (finished) return false;
  if (from_shared && !source_read && from_shared->cta == &cta) return true;
  for (const SharedRange& range : to_shared) {
    if (range.cta == &cta) return true;
  }
  for (const CompletionBarrier& barrier : barriers) {
    if (barrier.cta == &cta) return true;
  }
  return false;
}

void issue_bulk(const Issuer& issuer, std::shared_ptr<BulkOperation> operation) {
  Machine& machine = issuer.warp.machine();
  count_issue(machine, *operation);
  for (const SharedRange& range : operation->to_shared) {
    check_overwritten_mbarrier(*range.cta, range.offset, range.bytes, issuer.warp,
                               issuer.instruction, issuer.lane);
  }
  if (!operation->reduction) {
    for (const SharedRange& range : operation->to_shared) poison_box(range, operation->swizzle);
  }
  if (RaceDetector* races = machine.races(); races != nullptr && operation->agent == nullptr) {
    std::vector<uint32_t> ranks;  // of a multicast
    if (operation->to_shared.size() > 1) {
      for (const SharedRange& range : operation->to_shared) ranks.push_back(range.cta->rank);
    }
    races->issue_signalling(*operation, issuer.warp, issuer.instruction, issuer.lane,
                            operation->async_proxy, ranks);
  }
  machine.async().issue(machine, std::move(operation));
}

void issue_in_bulk_group(const Issuer& issuer, std::shared_ptr<BulkOperation> operation) {
  const auto thread = static_cast<uint32_t>(issuer.warp.index() * kWarpSize + issuer.lane);
  issuer.warp.cta().bulk_groups[thread].open.push_back(operation);
  if (RaceDetector* races = issuer.warp.machine().races()) {
    races->issue_in_bulk_group(*operation, issuer.warp, issuer.instruction, issuer.lane);
  }
  issue_bulk(issuer, std::move(operation));
}

}  // namespace pykernels::emulator
