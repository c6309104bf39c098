// The part of the comparison family that chooses between values; add_compare_forms adds it.
#pragma once

#include "emulator/isa/table.h"

namespace pykernels::emulator {

/// selp and slct
void add_select_forms(Table& table);

}  // namespace pykernels::emulator
