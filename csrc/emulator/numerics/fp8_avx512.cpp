// The FP8 model of fp8.h with AVX-512 (F, BW, DQ, VL): blocks of 64 columns, whose planes take 24
// KiB of the first-level cache. Eight accumulators hide the latency of 4 cycles of two FMA units.

#include "emulator/numerics/fp8.h"

#if defined(__x86_64__)

#include "emulator/numerics/fp8_vector.h"

namespace pykernels::emulator {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  using Float = __m512;
  typedef int32_t Int [[gnu::vector_size(64), gnu::may_alias]];
  typedef uint8_t Bytes [[gnu::vector_size(64), gnu::may_alias]];

  static Float broadcast(const float& value) { return _mm512_set1_ps(value); }

  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

  static Bytes add_saturated(Bytes a, Bytes b) {
    return reinterpret_cast<Bytes>(
        _mm512_adds_epu8(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
  }

  /// 16 bytes, zero-extended. The unmasked intrinsic makes GCC 12 warn (GCC bug 105593).
  static Int widen(const uint8_t* bytes) {
    return reinterpret_cast<Int>(_mm512_maskz_cvtepu8_epi32(
        0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
  }

  static uint32_t sign_mask(Int values) {
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(values));
  }

  /// Vector j of a row: two groups of columns.
  static Int load(const RowView<Avx512>& view, int j) {
    return reinterpret_cast<Int>(__builtin_shufflevector(
        load_group(view, 2 * j), load_group(view, 2 * j + 1), 0, 1, 2, 3, 4, 5, 6, 7));
  }

  static void store(const RowView<Avx512>& view, int j, Int values) {
    const __m512i groups = reinterpret_cast<__m512i>(values);
    store_group(view, 2 * j, __builtin_shufflevector(groups, groups, 0, 1, 2, 3));
    store_group(view, 2 * j + 1, __builtin_shufflevector(groups, groups, 4, 5, 6, 7));
  }
};

}  // namespace

void multiply_fp8_avx512(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  multiply_fp8_vector<Avx512>(d, a, b, scale_d);
}

bool has_fp8_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace pykernels::emulator

#else

namespace pykernels::emulator {

void multiply_fp8_avx512(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  multiply_fp8_scalar(d, a, b, scale_d);
}

bool has_fp8_avx512() { return false; }

}  // namespace pykernels::emulator

#endif
