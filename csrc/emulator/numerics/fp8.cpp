// Which implementation of the FP8 model this CPU runs.

#include "emulator/numerics/fp8.h"

namespace pykernels::emulator {
namespace {

auto* fastest() {
  if (has_fp8_avx512()) return &multiply_fp8_avx512;
  if (has_fp8_avx2()) return &multiply_fp8_avx2;
  return &multiply_fp8_scalar;
}

}  // namespace

void multiply_fp8(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  static auto* const multiply = fastest();
  multiply(d, a, b, scale_d);
}

}  // namespace pykernels::emulator
