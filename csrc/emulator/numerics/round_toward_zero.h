// The host's rounding mode in the vector kernels.
#pragma once

#include <immintrin.h>

namespace pykernels::emulator {

/// MXCSR with rounding toward zero, all exceptions masked, subnormals kept; restored at the end.
/// Inlined always: a copy for a richer processor must not be the one that the linker keeps.
class RoundTowardZero {
 public:
  [[gnu::always_inline]] RoundTowardZero() : saved_(_mm_getcsr()) {
    _mm_setcsr(_MM_MASK_MASK | _MM_ROUND_TOWARD_ZERO);
    asm volatile("" ::: "memory");
  }
  [[gnu::always_inline]] ~RoundTowardZero() {
    asm volatile("" ::: "memory");
    _mm_setcsr(saved_);
  }
  RoundTowardZero(const RoundTowardZero&) = delete;
  RoundTowardZero& operator=(const RoundTowardZero&) = delete;

 private:
  unsigned saved_;
};

}  // namespace pykernels::emulator
