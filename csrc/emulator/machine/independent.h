// A grid whose clusters cannot notice one another runs as one machine a slice of clusters, on
// several threads. What comes out (memory, report, counters) is the same for every number of them.
#pragma once

#include <vector>

#include "emulator/machine/machine.h"

namespace pykernels::emulator {

/// Runs the launches together, to their end. Throws EmulationError where that is not possible.
Report run_launches(const MachineOptions& options, const std::vector<MachineLaunch>& launches);

/// True where the launches are one grid of several clusters that can be run apart: nothing in the
/// program couples them, and no priorities or trace decide over all warps of the grid.
bool runs_in_slices(const MachineOptions& options, const std::vector<MachineLaunch>& launches);

}  // namespace pykernels::emulator
