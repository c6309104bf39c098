// What a module's .version and .target allow; ptxas refuses the rest.
#pragma once

#include <string>

#include "emulator/ir.h"

namespace pykernels::emulator {

/// Why there is no such version of PTX; empty if there is one. Those from 9.0 on count as known.
std::string version_refusal(const std::string& version);
/// Why a module for this target cannot run on sm_90a, or needs a later version; else empty.
std::string target_refusal(const std::string& target, const std::string& version);
/// Why the module's target has not the instruction; empty if it has.
std::string form_refusal(const std::string& target, const Statement& statement);

}  // namespace pykernels::emulator
