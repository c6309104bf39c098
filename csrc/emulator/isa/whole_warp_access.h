// Accesses in which the 32 lanes reach neighbouring elements, or one and the same: told by their
// bases alone, and done in one step. What is inlined here is most of the time of a kernel that
// streams global memory.
#pragma once

#include <cstdint>

#include "emulator/isa/memory_access.h"

namespace pykernels::emulator {

/// Where the elements of 32 lanes lie.
enum class Pattern : uint8_t { kScattered, kRow, kSame };

template <typename Base>
[[gnu::always_inline]] inline Pattern pattern_of(const Base* base, uint32_t bytes) {
  const Base step = base[1] - base[0];
  if (step != 0 && step != bytes) return Pattern::kScattered;  // most that are so end here
  Base differs = 0;
  Base expected = base[0];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    differs |= base[lane] ^ expected;
    expected += step;
  }
  if (differs != 0) return Pattern::kScattered;
  return step == 0 ? Pattern::kSame : Pattern::kRow;
}

/// Of elements of `bytes`, with the bases in `slot`.
[[gnu::always_inline]] inline Pattern pattern_of(Warp& warp, const Instruction& inst, Slot slot,
                                                 uint32_t bytes) {
  if (slot == kNoSlot) return Pattern::kSame;
  return (inst.variant & kBase64) != 0 ? pattern_of(warp.lanes<uint64_t>(slot), bytes)
                                       : pattern_of(warp.lanes<uint32_t>(slot), bytes);
}

/// Lane 0's address, as lane_addresses gives it.
inline uint64_t first_address(Warp& warp, const Instruction& inst, Slot slot) {
  const uint64_t window = (inst.variant & kClusterAddress) != 0 ? kSharedWindow : 0;
  const auto offset = static_cast<uint64_t>(inst.immediate);
  if (slot == kNoSlot) {
    const uint64_t rank = window == 0 ? 0 : uint64_t{warp.cta().rank} << kClusterRankShift;
    return (window | rank) + offset;
  }
  if ((inst.variant & kBase64) != 0) return (*warp.lanes<uint64_t>(slot) + offset) | window;
  return static_cast<uint32_t>(*warp.lanes<uint32_t>(slot) + static_cast<uint32_t>(offset)) |
         window;
}

/// A row (or one element) of global memory that is read where no check follows the lanes: a pointer
/// to it, with its bytes counted, or nullptr, and nothing done, where they need a closer look.
[[gnu::always_inline]] inline const uint8_t* read_global_at_once(Warp& warp,
                                                                 const Instruction& inst,
                                                                 uint64_t address, uint32_t bytes,
                                                                 Pattern pattern) {
  Machine& machine = warp.machine();
  const Space space = access_space(inst);
  const bool is_global =
      space == Space::kGlobal || (space == Space::kGeneric && space_of(address) == Space::kGlobal);
  if (!is_global || (address & (bytes - 1)) != 0) return nullptr;
  if (machine.races() != nullptr || warp.before_grid_wait() != 0) return nullptr;
  const uint64_t all = uint64_t{bytes} * kWarpSize;
  const uint64_t span = pattern == Pattern::kRow ? all : bytes;
  if (machine.allocations().find(address, span) == nullptr) return nullptr;
  machine.count_global(address, span, AccessKind::kRead, all);
  return reinterpret_cast<const uint8_t*>(address);
}

/// Rows of any space, under any check. The same result.
uint8_t* access_row(Warp& warp, const Instruction& inst, uint64_t first, uint32_t bytes,
                    AccessKind kind);

/// One element of shared memory that all 32 lanes read. The same result.
const uint8_t* read_same(Warp& warp, const Instruction& inst, uint64_t address, uint32_t bytes);

}  // namespace pykernels::emulator
