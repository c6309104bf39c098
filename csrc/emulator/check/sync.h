// Sync check: barriers misused, launches that overlap without a wait, CTAs that end under
// operations in flight.
#pragma once

#include <optional>
#include <string>

#include "emulator/machine/memory.h"
#include "emulator/machine/warp.h"
#include "emulator/program.h"

namespace pykernels::emulator {

/// Lanes that know the launch before to be over without griddepcontrol.wait of their own have
/// waited: with the race check on those that something orders behind a thread that has, else all of
/// a CTA in which one has. Returns the rest.
LaneMask learn_grid_waits(Warp& warp);

/// A global access ahead of griddepcontrol.wait, in a launch that may overlap those before it: a
/// finding where they may write the bytes, or where they may read what is written.
void check_before_grid_wait(Warp& warp, const Instruction& inst, int lane,
                            const Allocation& accessed, AccessKind kind);

/// Bytes written over an mbarrier that was not invalidated: a GPU would lose its state with them.
void check_overwritten_mbarrier(const Cta& cta, uint32_t offset, uint32_t bytes, const Warp& warp,
                                const Instruction& inst, int lane);

/// The lanes are about to end in a launch that may overlap the one before: the last ones of a CTA
/// in which no thread has waited are a finding.
void check_exit_before_grid_wait(Warp& warp, LaneMask lanes);

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
