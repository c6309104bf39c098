// Handlers of the control instructions that are the machine's business: register reallocation,
// dependent launches, sleeping. isa/control.cpp has their rows.
#pragma once

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

/// setmaxnreg.{inc,dec}.sync.aligned.u32; `immediate`: registers a thread, `variant` 1: inc. An
/// increase waits for the CTA's pool.
Step set_max_registers(Warp& warp, const Instruction& inst, LaneMask active);
/// griddepcontrol.wait: the launch that this one depends on has ended and its writes are visible.
Step grid_dependency_wait(Warp& warp, const Instruction& inst, LaneMask active);
/// griddepcontrol.launch_dependents: the dependent launch may start once every CTA has said so or
/// ended.
Step grid_launch_dependents(Warp& warp, const Instruction& inst, LaneMask active);
/// nanosleep: passes the turn to other warps.
Step nanosleep(Warp& warp, const Instruction& inst, LaneMask active);

}  // namespace pykernels::emulator
