// Sync check: barriers misused, launches that overlap without a wait, CTAs that end under
// operations in flight.
#pragma once

#include <optional>
#include <string>

#include "emulator/machine/memory.h"
#include "emulator/machine/warp.h"
#include "emulator/program.h"

namespace pykernels::emulator {

/// A global access ahead of griddepcontrol.wait in a launch that may overlap the one before it.
void report_before_grid_wait(Warp& warp, const Instruction& inst, int lane,
                             const Allocation& allocation);

/// Bytes written over an mbarrier that was not invalidated: a GPU would lose its state with them.
void check_overwritten_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, const Warp& warp,
                                const Instruction& inst, int lane);

/// Lanes that end without griddepcontrol.wait in a launch that may overlap the one before.
void report_exit_before_grid_wait(Warp& warp, LaneMask lanes);

/// An .aligned instruction that has all live lanes of the warp, of which a guard keeps some out.
void check_aligned_guard(Warp& warp, const Instruction& inst, LaneMask active);

/// setmaxnreg is executed by every warp of a warpgroup, in the same order.
void check_register_change(Warp& warp, const Instruction& inst);

/// Who waits for the object: a blocked split of the CTA. No value if no one does.
std::optional<Party> find_waiter(const Cta& cta, const Waitable& object);

/// What a CTA whose last thread has ended leaves behind: transaction bytes that never came, named
/// barriers at which only a part has arrived, setmaxnreg that not all warps have executed.
void report_unfinished_barriers(Machine& machine, Cta& cta);

/// Operations in flight that touch the shared memory of a CTA whose last thread has ended.
void report_unfinished_operations(Machine& machine, Cta& cta);

}  // namespace pykernels::emulator
