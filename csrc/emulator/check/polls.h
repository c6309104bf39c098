// What an instruction in a polling loop looks at, for reports of launches that never end.
#pragma once

#include <string>

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

/// "'flag' + 0 in global memory", or an mbarrier and its state, of the first of the lanes; empty
/// where the instruction is neither a load nor a wait.
std::string polled(Warp& warp, const Instruction& inst, LaneMask lanes);

}  // namespace pykernels::emulator
