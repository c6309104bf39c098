#include "emulator/isa/arithmetic.h"

namespace pykernels::emulator {

void add_arithmetic_forms(Table& table) {
  add_integer_forms(table);
  add_carry_forms(table);
  add_float_forms(table);
  add_double_forms(table);
  add_half_forms(table);
}

}  // namespace pykernels::emulator
