// The part of the logic family that works on fields of bits; add_logic_forms adds it.
#pragma once

#include "emulator/isa/table.h"

namespace pykernels::emulator {

/// bfe bfi bfind popc clz brev fns szext bmsk prmt
void add_bit_field_forms(Table& table);

}  // namespace pykernels::emulator
