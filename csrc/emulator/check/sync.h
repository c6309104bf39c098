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

/// Operations in flight that touch the shared memory of a CTA whose last thread has ended.
void report_unfinished_operations(Machine& machine, Cta& cta);

}  // namespace pykernels::emulator
