// The FP16, BF16 and TF32 model of wide.h with AVX2 and FMA, lanes over n.
//
// The technique of fp8_vector.h in FP64: an accumulator that starts at 2^(E+27) has an ulp of
// 2^(E-25), so with rounding toward zero adding a positive product adds its magnitude truncated to
// 25 fraction bits. 16 products of at most 4 * 2^E cannot leave [2^(E+27), 2^(E+28)).

#include "emulator/numerics/wide.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "emulator/numerics/round_toward_zero.h"

namespace pykernels::emulator {
namespace {

constexpr int kBlockColumns = 16;  // columns of one pass: 4 vectors, 8 accumulators
constexpr int kMaxK = 16;
constexpr int kPlanes = 3;  // positive, negative, positive
constexpr int kHeadroomBits = 27;
constexpr uint16_t kNoProduct = 0xFFFF;  // deficit of a zero: sums of deficits saturate
constexpr uint32_t kExponentMask = 0x7F800000u;

struct Format {
  int element_bytes;
  int max_field;  // deficit = max_field - max(field, 1)
  int bias;
};

constexpr Format format_of(WideType type) {
  switch (type) {
    case WideType::kF16:
      return {2, 31, 15};
    case WideType::kBf16:
      return {2, 255, 127};
    case WideType::kTf32:
      break;
  }
  return {4, 255, 127};
}

struct Element {
  float value;
  uint16_t deficit;
  bool special;
};

inline Element read_element(const uint8_t* source, WideType type) {
  uint32_t bits;  // as FP32; the exponent is that of the source's own format
  int field;
  if (type == WideType::kTf32) {
    std::memcpy(&bits, source, sizeof(bits));
    bits &= ~0x1FFFu;
    field = static_cast<int>(bits >> 23 & 0xFF);
  } else {
    uint16_t half;
    std::memcpy(&half, source, sizeof(half));
    const bool is_f16 = type == WideType::kF16;
    bits = is_f16 ? std::bit_cast<uint32_t>(_cvtsh_ss(half)) : uint32_t{half} << 16;
    field = is_f16 ? half >> 10 & 0x1F : half >> 7 & 0xFF;
  }
  const int max_field = format_of(type).max_field;
  const auto deficit = static_cast<uint16_t>(max_field - std::max(field, 1));
  return {std::bit_cast<float>(bits), (bits << 1) == 0 ? kNoProduct : deficit, field == max_field};
}

struct alignas(64) DecodedA {
  double magnitude[kTileRows][kMaxK];
  uint16_t deficit[kTileRows][kMaxK];
  uint8_t plane[kTileRows][kMaxK];  // 1 for a negative element
  bool special[kTileRows];
};

/// 16 columns of b, each group of 8 in the order 0 2 4 6 1 3 5 7 of the accumulator fragments.
struct alignas(64) DecodedB {
  double planes[kMaxK][kPlanes][kBlockColumns];
  uint16_t deficit[kMaxK][kBlockColumns];
  uint32_t special;  // bit mask of columns
};

constexpr int kColumnOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

inline int column_of(int position) { return position / 8 * 8 + kColumnOrder[position % 8]; }

void decode_a(const WideOperand& a, WideType type, int k_count, DecodedA* decoded) {
  const int bytes = format_of(type).element_bytes;
  for (int row = 0; row < kTileRows; ++row) {
    decoded->special[row] = false;
    for (int k = 0; k < k_count; ++k) {
      const Element element = read_element(a.data + row * a.pitch + k * bytes, type);
      decoded->magnitude[row][k] = __builtin_fabs(static_cast<double>(element.value));
      decoded->deficit[row][k] = element.deficit;
      decoded->plane[row][k] = __builtin_signbit(element.value) ? 1 : 0;
      decoded->special[row] |= element.special;
    }
  }
}

/// Decodes `columns` (8 or 16) columns from `first`; the others become zeros.
void decode_b(const WideOperand& b, WideType type, int k_count, int first, int columns,
              DecodedB* decoded) {
  const int bytes = format_of(type).element_bytes;
  decoded->special = 0;
  for (int position = 0; position < kBlockColumns; ++position) {
    const bool used = position < columns;
    const uint8_t* source = b.data + (first + (used ? column_of(position) : 0)) * b.pitch;
    for (int k = 0; k < k_count; ++k) {
      const Element element =
          used ? read_element(source + k * bytes, type) : Element{0.0f, kNoProduct, false};
      const double positive = std::max(static_cast<double>(element.value), 0.0);
      decoded->planes[k][0][position] = positive;
      decoded->planes[k][1][position] = std::max(-static_cast<double>(element.value), 0.0);
      decoded->planes[k][2][position] = positive;
      decoded->deficit[k][position] = element.deficit;
      decoded->special |= static_cast<uint32_t>(element.special) << position;
    }
  }
}

/// The registers' lanes of one row: vector j holds the even (j even) or odd columns of group j / 2.
struct RowView {
  uint32_t* lanes[4];
};

inline RowView row_view(const AccumulatorTile& d, int row, int first, int vectors) {
  RowView view{};
  for (int j = 0; j < vectors; ++j) view.lanes[j] = &d.at(row, first + j / 2 * 8 + j % 2);
  return view;
}

/// Results of one row, and a bit mask of the lanes that the caller computes apart: accumulators
/// that are infinite or NaN, and sums beyond FP32.
template <int kVectors>
inline uint32_t multiply_row(const DecodedA& a, int row, const DecodedB& b, int k_count,
                             const RowView& view, bool scale_d, int top, __m128* results) {
  __m256i smallest = _mm256_set1_epi16(-1);
  for (int k = 0; k < k_count; ++k) {
    const __m256i sum =
        _mm256_adds_epu16(_mm256_set1_epi16(static_cast<int16_t>(a.deficit[row][k])),
                          _mm256_load_si256(reinterpret_cast<const __m256i*>(b.deficit[k])));
    smallest = _mm256_min_epu16(smallest, sum);
  }
  alignas(32) uint16_t deficits[kBlockColumns];
  _mm256_store_si256(reinterpret_cast<__m256i*>(deficits), smallest);

  const __m256d sign_bit = _mm256_set1_pd(-0.0);
  __m256d positive[kVectors];
  __m256d negative[kVectors];
  uint32_t apart = 0;
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const __m128i bits = scale_d ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(view.lanes[j]))
                                 : _mm_setzero_si128();
    const __m128i exponent_mask = _mm_set1_epi32(static_cast<int>(kExponentMask));
    const __m128i special = _mm_cmpeq_epi32(_mm_and_si128(bits, exponent_mask), exponent_mask);
    apart |= static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(special))) << (4 * j);
    const __m256d c = _mm256_cvtps_pd(_mm_castsi128_ps(_mm_andnot_si128(special, bits)));
    const __m256i c_field =
        _mm256_srli_epi64(_mm256_castpd_si256(_mm256_andnot_pd(sign_bit, c)), 52);
    const __m256i deficit =
        _mm256_cvtepu16_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(deficits + 4 * j)));
    // Without any product the deficit is 65535 and the difference negative. Fields fit 32 bits; the
    // upper halves of the 64-bit lanes are compared too, but only the lower ones are used.
    const __m256i field =
        _mm256_max_epi32(_mm256_sub_epi32(_mm256_set1_epi64x(top), deficit), c_field);
    const __m256d start = _mm256_castsi256_pd(
        _mm256_slli_epi64(_mm256_add_epi32(field, _mm256_set1_epi64x(kHeadroomBits)), 52));
    const __m256d added = _mm256_add_pd(start, _mm256_andnot_pd(sign_bit, c));
    positive[j] = _mm256_blendv_pd(added, start, c);
    negative[j] = _mm256_blendv_pd(start, added, c);
  }
  for (int k = 0; k < k_count; ++k) {
    const __m256d magnitude = _mm256_broadcast_sd(&a.magnitude[row][k]);
    const double* plane = b.planes[k][a.plane[row][k]];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      positive[j] = _mm256_fmadd_pd(magnitude, _mm256_load_pd(plane + 4 * j), positive[j]);
      negative[j] =
          _mm256_fmadd_pd(magnitude, _mm256_load_pd(plane + kBlockColumns + 4 * j), negative[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const __m256d sum = _mm256_sub_pd(positive[j], negative[j]);  // exact
    const __m256d beyond =
        _mm256_cmp_pd(_mm256_andnot_pd(sign_bit, sum), _mm256_set1_pd(0x1p128), _CMP_GE_OQ);
    apart |= static_cast<uint32_t>(_mm256_movemask_pd(beyond)) << (4 * j);
    results[j] = _mm_add_ps(_mm256_cvtpd_ps(sum), _mm_setzero_ps());  // -0 becomes +0
  }
  return apart;
}

/// Lanes that the vector arithmetic does not cover.
void patch(uint32_t lanes, const RowView& view, const uint8_t* a, const WideOperand& b, int first,
           WideType type, bool scale_d, __m128* results) {
  alignas(16) uint32_t values[kBlockColumns];
  std::memcpy(values, results, sizeof(values));
  for (; lanes != 0; lanes &= lanes - 1) {
    const int position = std::countr_zero(lanes);
    const uint32_t c = scale_d ? view.lanes[position / 4][position % 4] : 0;
    values[position] =
        dot_wide_scalar(c, a, b.data + (first + column_of(position)) * b.pitch, type);
  }
  std::memcpy(results, values, sizeof(values));
}

template <int kVectors>
__attribute__((noinline)) void multiply_block(const AccumulatorTile& d, const WideOperand& a,
                                              const DecodedA& decoded_a, const WideOperand& b,
                                              const DecodedB& decoded_b, WideType type, int first,
                                              bool scale_d) {
  const Format format = format_of(type);
  const int k_count = kFp8StepBytes / format.element_bytes;
  const int top = 2 * (format.max_field - format.bias) + 1023;
  constexpr uint32_t kLanes = (1u << (4 * kVectors)) - 1;
  for (int row = 0; row < kTileRows; ++row) {
    const RowView view = row_view(d, row, first, kVectors);
    __m128 results[4];
    uint32_t apart =
        multiply_row<kVectors>(decoded_a, row, decoded_b, k_count, view, scale_d, top, results);
    apart |= decoded_b.special & kLanes;
    if (decoded_a.special[row]) apart = kLanes;
    if (apart != 0) patch(apart, view, a.data + row * a.pitch, b, first, type, scale_d, results);
    for (int j = 0; j < kVectors; ++j) {
      _mm_storeu_ps(reinterpret_cast<float*>(view.lanes[j]), results[j]);
    }
  }
}

}  // namespace

void multiply_wide_avx2(AccumulatorTile d, WideOperand a, WideOperand b, WideType type,
                        bool scale_d) {
  const RoundTowardZero rounding;
  const int k_count = kFp8StepBytes / format_of(type).element_bytes;
  DecodedA decoded_a;
  DecodedB decoded_b;
  decode_a(a, type, k_count, &decoded_a);
  for (int first = 0; first < d.n; first += kBlockColumns) {
    const int columns = std::min(d.n - first, kBlockColumns);
    decode_b(b, type, k_count, first, columns, &decoded_b);
    if (columns == kBlockColumns) {
      multiply_block<4>(d, a, decoded_a, b, decoded_b, type, first, scale_d);
    } else {
      multiply_block<2>(d, a, decoded_a, b, decoded_b, type, first, scale_d);
    }
  }
}

bool has_wide_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace pykernels::emulator

#else

namespace pykernels::emulator {

void multiply_wide_avx2(AccumulatorTile d, WideOperand a, WideOperand b, WideType type,
                        bool scale_d) {
  multiply_wide_scalar(d, a, b, type, scale_d);
}

bool has_wide_avx2() { return false; }

}  // namespace pykernels::emulator

#endif
