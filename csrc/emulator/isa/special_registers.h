// The special registers: who a thread is, where it runs, what time it is.
#pragma once

#include <string_view>

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

/// Of runs in which a kernel reads %envreg, which cooperative groups look for the grid's barrier
/// in.
inline constexpr const char* kCooperativeNote =
    "%envreg is read and holds 0: cooperative launches, with grid.sync(), are not emulated";

/// Writes the value for the active lanes into slot 0 as 32 or 64 bits; nullptr for an unknown name,
/// such as
/// "%tid" without a component.
Handler special_register_handler(std::string_view name, bool is_64);

}  // namespace pykernels::emulator
