// Which implementation of the FP8 model this CPU runs.

#include "emulator/numerics/fp8.h"

namespace pykernels::emulator {

void multiply_fp8(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  static const bool has_avx2 = has_fp8_avx2();
  if (has_avx2) {
    multiply_fp8_avx2(d, a, b, scale_d);
  } else {
    multiply_fp8_scalar(d, a, b, scale_d);
  }
}

}  // namespace pykernels::emulator
