// Memory check: what the findings about bounds, alignment and address windows say.
#pragma once

#include <cstdint>
#include <string>

#include "emulator/machine/memory.h"
#include "emulator/program.h"

namespace pykernels::emulator {

std::string hexadecimal(uint64_t value);

/// "'tile' + 12" or "offset 12": the variable of shared memory that holds the byte, where one is
/// known.
std::string shared_place(const Program& program, uint32_t offset);

std::string alignment_message(Space space, uint64_t address, uint32_t bytes, AccessKind kind);
std::string foreign_rank_message(uint64_t address, uint32_t own_rank);
std::string shared_bounds_message(const Cta& cta, uint64_t address, uint32_t bytes,
                                  AccessKind kind);
std::string window_bounds_message(const char* space, uint64_t address, uint64_t bytes,
                                  uint64_t size, AccessKind kind);
/// `allocation`: the one that holds the range but must not be written, or nullptr.
std::string global_bounds_message(const Allocations& allocations, const Allocation* allocation,
                                  uint64_t address, uint64_t bytes, AccessKind kind);

}  // namespace pykernels::emulator
