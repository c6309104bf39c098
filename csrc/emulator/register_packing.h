// Gives the registers of a program slots of the register file. PTX has a fresh register for nearly
// every value; registers that are never live together share a slot, so that the file stays small
// and in cache.
#pragma once

#include <cstdint>
#include <vector>

#include "emulator/program.h"

namespace pykernels::emulator {

struct VirtualRegister {
  int bits = 0;               // 1 for a predicate
  bool pinned = false;        // has a slot of its own: written by operations in flight
  bool asynchronous = false;  // WGMMA in flight reads or writes it
};

/// How control leaves an instruction.
struct Flow {
  bool falls_through = true;
  bool has_target = false;   // Instruction::target
  bool conditional = false;  // its writes may not happen
};

struct RegisterLayout {
  std::vector<Slot> slots;  // by register
  uint32_t bytes = 0;
};

/// `program` with its instructions, targets and accesses; slots in them are not looked at.
/// Registers that one instruction names never share, so handlers may write one destination before
/// reading all sources. Lanes at different places of the program do not disturb each other: every
/// lane has its own part of a slot.
RegisterLayout pack_registers(const Program& program, const std::vector<Flow>& flows,
                              const std::vector<VirtualRegister>& registers);

}  // namespace pykernels::emulator
