// Sync check: barriers misused, launches that overlap without a wait, CTAs that end under
// operations in flight.
#pragma once

#include <string>

#include "emulator/machine/memory.h"
#include "emulator/program.h"

namespace pykernels::emulator {

/// A global access ahead of griddepcontrol.wait in a launch that may overlap the one before it.
void report_before_grid_wait(Warp& warp, const Instruction& inst, int lane,
                             const Allocation& allocation);

/// Bytes written over an mbarrier that was not invalidated: a GPU would lose its state with them.
void check_overwritten_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, const Warp& warp,
                                const Instruction& inst, int lane);

/// Operations in flight that touch the shared memory of a CTA whose last thread has ended.
void report_unfinished_operations(Machine& machine, Cta& cta);

}  // namespace pykernels::emulator
