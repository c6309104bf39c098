// Tensor maps as instructions see them: read from memory, and edited in place by tensormap.replace.
#pragma once

#include "emulator/isa/table.h"
#include "emulator/machine/bulk_operation.h"

namespace pykernels::emulator {

/// The map at a generic address. Ends the launch where the 128 bytes are no map of the emulator,
/// lie off the 64-byte alignment, or describe what TMA cannot do.
TensorMapFields read_tensor_map(const Issuer& issuer, uint64_t address);

/// tensormap.replace and tensormap.cp_fenceproxy.
void add_tensor_map_forms(Table& table);

}  // namespace pykernels::emulator
