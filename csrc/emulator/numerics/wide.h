// FP16, BF16, TF32 and 8-bit integer matrix products of WGMMA, one k step (32 bytes a row) at a
// time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/numerics/fp8.h"

namespace pykernels::emulator {

enum class WideType : uint8_t { kF16, kBf16, kTf32 };

/// One operand gathered out of shared memory or registers: rows x 32 bytes, k contiguous (16
/// elements of FP16 and BF16, 8 of TF32).
struct WideOperand {
  const uint8_t* data;
  size_t pitch;
};

/// d = a * b^T + (scale_d ? d : 0) for 64 rows of a, n of b and one k step.
///
/// A model, not yet compared with hardware: products are exact (TF32 ignores the 13 lower bits of
/// its operands); products and accumulator are aligned to the largest exponent E among the non-zero
/// ones and truncated toward zero to 25 fraction bits below 2^E, two more than FP32 has; the exact
/// sum is truncated to FP32. Exponents of products are sums of the operands' exponents, subnormals
/// counting as the smallest normal one. A zero result is +0, NaN is 0x7FFFFFFF, overflow and
/// infinities follow IEEE arithmetic. This is what published measurements of Hopper's FP16 units
/// agree on (Khattak and Mikaitis, "Accurate Models of NVIDIA Tensor Cores").
void multiply_wide_scalar(AccumulatorTile d, WideOperand a, WideOperand b, WideType type,
                          bool scale_d);

/// One element of multiply_wide_scalar: the products of one k step and the accumulator `c`, bit
/// patterns.
uint32_t dot_wide_scalar(uint32_t c, const uint8_t* a, const uint8_t* b, WideType type);

/// The same bits with AVX2, FMA and F16C, lanes over n. Only where the CPU has them.
void multiply_wide_avx2(AccumulatorTile d, WideOperand a, WideOperand b, WideType type,
                        bool scale_d);

/// Whether this build and this CPU have multiply_wide_avx2.
bool has_wide_avx2();

/// The same bits by the fastest implementation that this CPU runs.
void multiply_wide(AccumulatorTile d, WideOperand a, WideOperand b, WideType type, bool scale_d);

/// d = a * b^T + (scale_d ? d : 0) in 32-bit integers, k = 32; saturating if `satfinite`, else
/// modulo 2^32.
void multiply_int8(AccumulatorTile d, WideOperand a, WideOperand b, bool a_signed, bool b_signed,
                   bool satfinite, bool scale_d);

}  // namespace pykernels::emulator
