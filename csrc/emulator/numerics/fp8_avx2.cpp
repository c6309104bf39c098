// The FP8 model of fp8.h with AVX2 and FMA: blocks of 32 columns.

#include "emulator/numerics/fp8.h"

#if defined(__x86_64__)

#include "emulator/numerics/fp8_vector.h"

namespace pykernels::emulator {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Float = __m256;
  typedef int32_t Int [[gnu::vector_size(32), gnu::may_alias]];
  typedef uint8_t Bytes [[gnu::vector_size(32), gnu::may_alias]];

  static Float broadcast(const float& value) { return _mm256_broadcast_ss(&value); }

  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static Bytes add_saturated(Bytes a, Bytes b) {
    return reinterpret_cast<Bytes>(
        _mm256_adds_epu8(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
  }

  /// 8 bytes, zero-extended.
  static Int widen(const uint8_t* bytes) {
    return reinterpret_cast<Int>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
  }

  static uint32_t sign_mask(Int values) {
    return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(values)));
  }

  /// Vector j of a row: one group of columns.
  static Int load(const RowView<Avx2>& view, int j) {
    return reinterpret_cast<Int>(load_group(view, j));
  }

  static void store(const RowView<Avx2>& view, int j, Int values) {
    store_group(view, j, reinterpret_cast<__m256i>(values));
  }
};

}  // namespace

void multiply_fp8_avx2(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  multiply_fp8_vector<Avx2>(d, a, b, scale_d);
}

bool has_fp8_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace pykernels::emulator

#else

namespace pykernels::emulator {

void multiply_fp8_avx2(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  multiply_fp8_scalar(d, a, b, scale_d);
}

bool has_fp8_avx2() { return false; }

}  // namespace pykernels::emulator

#endif
