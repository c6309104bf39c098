// The parts of the arithmetic family, one per file; add_arithmetic_forms adds them all.
#pragma once

#include "emulator/isa/table.h"

namespace pykernels::emulator {

void add_integer_forms(Table& table);  // add sub mul mad div rem min max abs neg sad dot products
void add_carry_forms(Table& table);    // add.cc addc sub.cc subc mad.cc madc
void add_float_forms(Table& table);    // f32
void add_double_forms(Table& table);   // f64
void add_half_forms(Table& table);     // f16, bf16 and their pairs

}  // namespace pykernels::emulator
