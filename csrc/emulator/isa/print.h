// What kernels say to the host: printf, and assertions that end the launch.
#pragma once

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

/// vprintf: slots result, format, arguments (generic addresses). Prints once for each active lane,
/// to standard output.
Step print_formatted(Warp& warp, const Instruction& inst, LaneMask active);
/// __assertfail: slots message, file, line, function, character size.
Step fail_assertion(Warp& warp, const Instruction& inst, LaneMask active);

}  // namespace pykernels::emulator
