// Warp-wide operations of arithmetic.h that deserve the host's vector units.

#include <cmath>
#include <cstring>

#include "emulator/numerics/arithmetic.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pykernels::emulator {
namespace {

constexpr int kLanes = 32;

void fma_lanes_scalar(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d) {
  for (int lane = 0; lane < kLanes; ++lane) {
    d[lane] = fma_f32(a[lane], b[lane], c[lane], Rounding::kRn);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void fma_lanes_vector(const uint32_t* a, const uint32_t* b,
                                                          const uint32_t* c, uint32_t* d) {
  const __m256 canonical = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  for (int lane = 0; lane < kLanes; lane += 8) {
    const __m256 x = _mm256_loadu_ps(reinterpret_cast<const float*>(a + lane));
    const __m256 y = _mm256_loadu_ps(reinterpret_cast<const float*>(b + lane));
    const __m256 z = _mm256_loadu_ps(reinterpret_cast<const float*>(c + lane));
    const __m256 value = _mm256_fmadd_ps(x, y, z);
    const __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    _mm256_storeu_ps(reinterpret_cast<float*>(d + lane), _mm256_blendv_ps(value, canonical, nan));
  }
}
#endif

}  // namespace

void fma_f32_lanes(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d) {
#if defined(__x86_64__)
  static const bool has_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_fma) {
    fma_lanes_vector(a, b, c, d);
    return;
  }
#endif
  fma_lanes_scalar(a, b, c, d);
}

}  // namespace pykernels::emulator
