// Sets of lanes in words, for findings.
#pragma once

#include <string>

#include "emulator/machine/warp.h"

namespace pykernels::emulator {

/// "3", "0-3", "0-3, 8", of the bits set.
std::string ranges(uint32_t bits);
/// "lane 3", "lanes 0-3, 8".
std::string lanes_text(LaneMask lanes);
/// Why lanes are missing that an instruction of a whole warp needs: "24 do not run (lanes 8-31)" of
/// those that have ended or never existed, "a guard keeps out lanes 0-7", or both.
std::string missing_lanes_text(const Warp& warp, LaneMask active);

}  // namespace pykernels::emulator
