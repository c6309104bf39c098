// Bulk copies, tensor copies and asynchronous stores in flight: where their bytes come from, where
// they go, and which mbarriers they signal.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor_map.h"
#include "emulator/machine/async.h"
#include "emulator/machine/cta.h"
#include "emulator/machine/machine.h"
#include "emulator/machine/memory.h"
#include "emulator/machine/reduction.h"

namespace pykernels::emulator {

/// The thread that issues an operation, and its instruction.
struct Issuer {
  Warp& warp;
  const Instruction& instruction;
  int lane;
};

struct GlobalRange {
  uint64_t address = 0;
  uint64_t bytes = 0;
};

struct SharedRange {
  Cta* cta = nullptr;
  uint32_t offset = 0;  // in cta->shared
  uint32_t bytes = 0;
};

/// A box of a tensor: what one TMA instruction moves. Dimension 0 is the contiguous one.
struct TensorBox {
  TensorMapFields map;
  int32_t coordinates[TensorMapFields::kMaxRank] = {};
};

/// An mbarrier that an operation signals with complete_tx.
struct CompletionBarrier {
  Cta* cta = nullptr;
  uint32_t offset = 0;
};

// ---- at issue: addresses checked where the guilty instruction is known ----

/// What an address in shared memory is to its instruction, for findings.
enum class SharedOperand : uint8_t { kDestination, kSource, kBarrier };

/// The bytes that a shared address names, in the CTA of its rank. Ends the launch where they lie
/// outside of its shared memory or off the alignment.
SharedRange shared_range(const Issuer& issuer, uint64_t address, uint32_t bytes, uint32_t alignment,
                         SharedOperand operand);
/// The mbarrier at a shared address; one that was never initialised is a finding.
CompletionBarrier completion_barrier(const Issuer& issuer, uint64_t address);
/// Ends the launch where the range lies outside of the allocations; checks griddepcontrol.wait.
void check_global_range(const Issuer& issuer, const GlobalRange& range, AccessKind kind);

/// An operation of two steps: the bytes are fetched, then delivered and signalled.
class BulkOperation : public AsyncOperation {
 public:
  // One of these is the source.
  std::optional<GlobalRange> from_global;
  std::optional<SharedRange> from_shared;
  std::optional<TensorBox> from_tensor;
  std::vector<uint8_t> data;  // fetched bytes, or the value of an asynchronous store

  // One of these is the destination: several CTAs with multicast.
  std::optional<GlobalRange> to_global;
  std::vector<SharedRange> to_shared;
  std::optional<TensorBox> to_tensor;
  TensorMapSwizzle swizzle = TensorMapSwizzle::kNone;  // of the shared side
  std::optional<Reduction> reduction;

  std::vector<CompletionBarrier> barriers;  // signalled with `bytes` each
  uint32_t bytes = 0;
  bool async_proxy = true;  // false for st.async and red.async: generic ones

  AccessKind destination_access() const {
    return reduction ? AccessKind::kAtomic : AccessKind::kWrite;
  }

  void read_source(Machine& machine) override;
  void finish(Machine& machine) override;
  bool signals() const override { return !barriers.empty(); }
  std::string describe() const override;
  bool touches(const Cta& cta) const override;

 private:
  void deliver_shared(Machine& machine, const SharedRange& range);
  void deliver_global(Machine& machine);
  void signal(Machine& machine);
};

/// Poisons the destination, counts the bytes and puts the operation into the queue.
void issue_bulk(const Issuer& issuer, std::shared_ptr<BulkOperation> operation);
/// The same, for operations that the thread's bulk groups wait for.
void issue_in_bulk_group(const Issuer& issuer, std::shared_ptr<BulkOperation> operation);

}  // namespace pykernels::emulator
