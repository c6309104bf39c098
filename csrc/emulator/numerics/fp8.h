// FP8 matrix products as Hopper's WGMMA computes them, one k32 step at a time, on accumulators that
// stay where the instruction keeps them: in the fragments of the four warps' registers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pykernels::emulator {

enum class Fp8Type : uint8_t { kE4m3, kE5m2 };

constexpr int kTileRows = 64;      // rows of every WGMMA
constexpr int kFp8StepBytes = 32;  // k of one FP8 WGMMA
constexpr int kMaxTileColumns = 256;
constexpr uint32_t kCanonicalNan = 0x7FFFFFFFu;

/// One operand gathered out of shared memory: `rows` x 32 bytes, k contiguous.
struct Fp8Operand {
  const uint8_t* data;
  size_t pitch;  // bytes from one row (a) or column (b) of the product to the next
  Fp8Type type;
};

/// The FP32 accumulators of one warpgroup: `registers[warp * n / 2 + index]` points at the 32 lanes
/// of one register, as bit patterns.
struct AccumulatorTile {
  uint32_t* const* registers;
  int n;

  /// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNkK", matrix D.
  [[gnu::always_inline]] uint32_t& at(int row, int column) const {
    const int warp = row / 16;
    const int index = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
    const int lane = row % 8 * 4 + column % 8 / 2;
    return registers[warp * (n / 2) + index][lane];
  }
};

/// d = a * b^T + (scale_d ? d : 0) for 64 rows of a, n of b and k = 32. (scalar)
///
/// The model is the published one of Hopper's FP8 tensor cores (`mmaemu`, preset `hopper`):
/// products are exact; products and accumulator are aligned to the largest exponent E among the
/// non-zero ones and truncated toward zero to 13 fraction bits below 2^E; the exact sum is
/// truncated to 13 fraction bits below its own leading bit (2^-139 at least); a zero result is +0.
/// Exponents of products are sums of the operands' exponents, subnormals counting as the smallest
/// normal one. NaN results are 0x7FFFFFFF; infinities follow IEEE arithmetic.
void multiply_fp8_scalar(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d);

/// One element of multiply_fp8_scalar: 32 products of `a` and `b` and the accumulator `c`, bit
/// patterns.
uint32_t dot_fp8_scalar(uint32_t c, const uint8_t* a, Fp8Type a_type, const uint8_t* b,
                        Fp8Type b_type);

/// The same bits with AVX2 and FMA, lanes over n. Only where the CPU has both.
void multiply_fp8_avx2(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d);

/// Whether this build and this CPU have multiply_fp8_avx2.
bool has_fp8_avx2();

/// The same bits with AVX-512 (F, BW, DQ and VL). Only where the CPU has them.
void multiply_fp8_avx512(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d);

/// Whether this build and this CPU have multiply_fp8_avx512.
bool has_fp8_avx512();

/// The same bits by the fastest implementation that this CPU runs.
void multiply_fp8(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d);

}  // namespace pykernels::emulator
