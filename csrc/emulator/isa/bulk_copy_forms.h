// What the rows of bulk copies and of tensor copies share.
#pragma once

#include <string>

#include "emulator/isa/memory_access.h"
#include "emulator/machine/bulk_operation.h"

namespace pykernels::emulator {

/// Calls body for every active lane: each thread issues an operation of its own.
template <typename Body>
Step for_threads(Warp& warp, const Instruction& inst, LaneMask active, Body body) {
  for (LaneMask rest = active; rest != 0; rest &= rest - 1) {
    body(Issuer{warp, inst, __builtin_ctz(rest)});
  }
  return Step::kNext;
}

/// Where a load or copy into shared memory goes and what it signals. With `mask` (kNoSlot: none)
/// that is the same offsets in every CTA of the lane's mask.
void set_shared_destination(const Issuer& issuer, uint64_t address, uint64_t barrier, Slot mask,
                            BulkOperation& operation);

const Operand& statement_operand(const Builder& builder, int index);

/// The operands behind the addresses: a CTA mask and a cache policy, as the modifiers ask for them.
void read_trailing(Builder& builder, int index, Slot* mask);

inline constexpr const char* kCompletion = ".mbarrier::complete_tx::bytes";
inline constexpr const char* kHints[] = {"", ".L2::cache_hint"};

/// Rows of cp.async.bulk.tensor, cp.reduce.async.bulk.tensor and the tensor prefetch.
void add_tensor_copy_forms(Table& table);

}  // namespace pykernels::emulator
