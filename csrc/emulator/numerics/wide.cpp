// Which implementation of the FP16, BF16 and TF32 model this CPU runs.

#include "emulator/numerics/wide.h"

namespace pykernels::emulator {

void multiply_wide(AccumulatorTile d, WideOperand a, WideOperand b, WideType type, bool scale_d) {
  static const bool has_avx2 = has_wide_avx2();
  if (has_avx2) {
    multiply_wide_avx2(d, a, b, type, scale_d);
  } else {
    multiply_wide_scalar(d, a, b, type, scale_d);
  }
}

}  // namespace pykernels::emulator
