// Whether a program's clusters have a legal way to notice one another while they run.
#pragma once

#include "emulator/ir.h"

namespace pykernels::emulator {

/// True for an instruction by which a cluster can wait for another, see what another has written,
/// or have its result depend on the order in which they run: strong accesses and atomics outside
/// of shared memory, reductions into global memory, clocks, printing. Weak accesses of several
/// clusters to one place, at least one a write, are races, and couple nothing.
bool couples_clusters(const Statement& statement);

}  // namespace pykernels::emulator
