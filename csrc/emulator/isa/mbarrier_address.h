// Where the mbarriers lie that the lanes of an instruction name.
#pragma once

#include <cstdint>

#include "emulator/isa/memory_access.h"

namespace pykernels::emulator {

// Operand slots of all mbarrier instructions.
inline constexpr int kMbarrierResultSlot = 0;  // state or predicate
inline constexpr int kMbarrierAddressSlot = 1;
inline constexpr int kMbarrierValueSlot = 2;  // count, transaction bytes, parity or state

struct MbarrierLocation {
  Cta* cta = nullptr;
  uint32_t offset = 0;
};

/// The addresses of all lanes of an instruction.
class MbarrierAddresses {
 public:
  MbarrierAddresses(Warp& warp, const Instruction& inst);

  /// Ends the launch where the address is no place for an mbarrier.
  MbarrierLocation location(int lane) const;
  /// nullptr, and a finding, where none was initialised.
  Mbarrier* find(int lane, MbarrierLocation* location) const;
  /// True where all active lanes give the same address.
  bool uniform(LaneMask active) const;

 private:
  void report_missing(int lane, const MbarrierLocation& location) const;

  Warp& warp_;
  const Instruction& inst_;
  uint64_t lanes_[kWarpSize];
};

}  // namespace pykernels::emulator
