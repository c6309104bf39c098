// Init check: reads of registers and shared memory that nothing has written.
#pragma once

#include <cstdint>

#include "emulator/program.h"

namespace pykernels::emulator {

class Cta;
class Machine;
class Warp;

void report_unwritten_register(Warp& warp, const Instruction& inst, const RegisterAccess& access,
                               LaneMask lanes);

/// True if all of the bytes have been written, or the check is off.
bool shared_is_written(const Cta& cta, uint32_t offset, uint32_t bytes);

/// Reports the first unwritten byte of the range; `lane` -1 for an asynchronous agent.
void report_unwritten_shared(Machine& machine, Cta& cta, uint32_t offset, uint32_t bytes,
                             const Warp& warp, const Instruction& inst, int lane);

}  // namespace pykernels::emulator
