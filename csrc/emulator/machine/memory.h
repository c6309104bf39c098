// Addresses: the windows of generic addresses, the allocations that global accesses may touch, and
// the one way in which handlers and asynchronous agents reach memory.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "emulator/ir.h"
#include "emulator/program.h"

namespace pykernels::emulator {

class Cta;
class Machine;
class Warp;

// Generic addresses: global memory is the host's own addresses (below 2^47), the other windows lie
// above. A shared::cluster address holds the CTA's rank in its cluster at bit 24, in 32-bit form
// too. The 32-bit shared window of a CTA starts at kSharedBase | rank << kClusterRankShift, so that
// address 0 is never valid and a CTA's own addresses carry its rank, as on hardware.
inline constexpr int kWindowShift = 60;
inline constexpr uint64_t kSharedWindow = 1ull << kWindowShift;  // + 32-bit shared address
inline constexpr uint64_t kLocalWindow = 2ull << kWindowShift;   // + offset in the thread's memory
inline constexpr uint64_t kParamWindow = 3ull << kWindowShift;   // + offset in the parameter block
inline constexpr uint32_t kSharedBase = 0x400;  // 1024: keeps 1024-byte alignment of offsets
inline constexpr uint32_t kClusterRankShift = 24;

/// What is added to an address in the space for its generic address.
constexpr uint64_t window_of(Space space) {
  switch (space) {
    case Space::kShared:
      return kSharedWindow;
    case Space::kLocal:
      return kLocalWindow;
    case Space::kParam:
      return kParamWindow;
    default:
      return 0;
  }
}

/// The space that a generic address lies in.
constexpr Space space_of(uint64_t address) {
  switch (address >> kWindowShift) {
    case kSharedWindow >> kWindowShift:
      return Space::kShared;
    case kLocalWindow >> kWindowShift:
      return Space::kLocal;
    case kParamWindow >> kWindowShift:
      return Space::kParam;
    default:
      return Space::kGlobal;
  }
}

/// Where a shared address, of any form, lies in the shared memory of its CTA.
constexpr uint32_t shared_offset(uint64_t address) {
  return (static_cast<uint32_t>(address) & ((1u << kClusterRankShift) - 1)) - kSharedBase;
}

struct Allocation {
  uint64_t address = 0;
  uint64_t bytes = 0;
  std::string name;
  bool writable = true;

  /// All of [begin, begin + count).
  bool holds(uint64_t begin, uint64_t count) const {
    const uint64_t offset = begin - address;
    return offset <= bytes && count <= bytes - offset;
  }
};

class Allocations {
 public:
  void add(Allocation allocation);
  /// The allocation that holds all of [address, address + bytes), or nullptr.
  const Allocation* find(uint64_t address, uint64_t bytes) const {
    for (const Allocation* allocation : recent_) {
      if (allocation != nullptr && allocation->holds(address, bytes)) return allocation;
    }
    return search(address, bytes);
  }
  /// "12 bytes beyond the end of 'out' (0x.., 4096 bytes)", for findings.
  std::string describe(uint64_t address, uint64_t bytes) const;

 private:
  const Allocation* search(uint64_t address, uint64_t bytes) const;

  std::vector<Allocation> sorted_;                        // overlapping ones merged for lookup
  mutable std::array<const Allocation*, 2> recent_ = {};  // found last
};

enum class AccessKind : uint8_t { kRead, kWrite, kAtomic };

/// Resolves one lane's access to host memory. Reports findings (bounds, alignment, uninitialised
/// shared memory when the init check is on); an access that cannot be carried out (outside any
/// allocation) throws EmulationError through Machine::fail. `space` kGeneric resolves by window.
/// `bytes` is the width of the access, which must be naturally aligned.
uint8_t* resolve(Warp& warp, Space space, uint64_t address, uint32_t bytes, AccessKind kind,
                 int lane);

/// The same for all lanes at once: if all active lanes fall in one
/// allocation or in the CTA's own shared memory with natural alignment, returns true and fills
/// `pointers`. Handlers fall back to resolve() lane by lane otherwise.
bool resolve_all(Warp& warp, Space space, const uint64_t* addresses, uint32_t bytes,
                 AccessKind kind, LaneMask active, uint8_t** pointers);

/// The same where all 32 lanes access neighbouring elements of `bytes` each, the first of them at
/// `address`: a pointer to the first, or nullptr where the lanes must be looked at one by one.
uint8_t* resolve_row(Warp& warp, Space space, uint64_t address, uint32_t bytes, AccessKind kind);

/// For asynchronous agents (TMA, bulk copies, WGMMA): a range of a CTA's shared memory, by offset.
uint8_t* resolve_shared(Machine& machine, Cta& cta, uint32_t offset, uint32_t bytes,
                        AccessKind kind, const Instruction* instruction, Warp* issuer);
/// A range of global memory.
uint8_t* resolve_global(Machine& machine, uint64_t address, uint64_t bytes, AccessKind kind,
                        const Instruction* instruction, Warp* issuer);

}  // namespace pykernels::emulator
