// What kernels say to the host: printf, and assertions that end the launch.
#pragma once

#include <functional>
#include <string>

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

/// vprintf: slots result, format, arguments (generic addresses). A line for each active lane.
Step print_formatted(Warp& warp, const Instruction& inst, LaneMask active);
/// __assertfail: slots message, file, line, function, character size.
Step fail_assertion(Warp& warp, const Instruction& inst, LaneMask active);

/// Where printf goes; standard output unless replaced.
using PrintSink = std::function<void(const std::string& text)>;
void set_print_sink(PrintSink sink);

}  // namespace pykernels::emulator
