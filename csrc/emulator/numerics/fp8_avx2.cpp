// The FP8 model of fp8.h with AVX2 and FMA, lanes over n.
//
// Alignment, truncation and summation are one FMA: an FP32 accumulator that starts at 2^(E+10) has
// an ulp of 2^(E-13), so with rounding toward zero adding a positive product adds exactly its
// truncated magnitude. Positive and negative products go to two accumulators: b is decoded into
// planes of its positive, its negative and again its positive magnitudes, and the sign of a selects
// the first or the second pair of planes by address. 32 products of at most 4 * 2^E cannot leave
// [2^(E+10), 2^(E+11)).
//
// Compiled with -mavx2 -mfma -frounding-math -ffp-contract=off; the kernels run with MXCSR rounding
// toward zero and are not inlined, so that no floating-point operation crosses the mode change.

#include "emulator/numerics/fp8.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "emulator/numerics/round_toward_zero.h"

namespace pykernels::emulator {
namespace {

constexpr int kBlockColumns = 32;  // columns of one pass: 4 vectors, 8 accumulators
constexpr int kK = kFp8StepBytes;
constexpr int kPlanes = 3;  // positive, negative, positive
constexpr int kHeadroomBits = 10;
constexpr uint32_t kResultMask = 0xFFFFFC00u;  // sign, exponent, 13 fraction bits
constexpr int kHugeField = 200;  // above it, no product reaches the accumulator's 2^(E-13)
constexpr int kNoProduct = 255;  // deficit of a zero

/// Exponents are kept as deficits below the format's largest: small bytes whose saturating sum is
/// 255 for a product with a zero, so that the smallest sum is the block's largest exponent.
struct Format {
  int fraction_bits;
  int max_field;  // deficit = max_field - max(field, 1)
  int bias;
  int first_special;  // smallest magnitude code that is infinite or NaN
};

constexpr Format format_of(Fp8Type type) {
  return type == Fp8Type::kE4m3 ? Format{3, 15, 7, 0x7F} : Format{2, 31, 15, 0x7C};
}

struct alignas(64) DecodedA {
  float magnitude[kTileRows][kK];
  uint8_t plane[kTileRows][kK];  // 1 for a negative code
  uint8_t deficit[kTileRows][kK];
  bool special[kTileRows];
};

/// 32 columns of b, each group of 8 in the order 0 2 4 6 1 3 5 7 of the accumulator fragments.
struct alignas(64) DecodedB {
  float planes[kK][kPlanes][kBlockColumns];
  uint8_t deficit[kK][kBlockColumns];
  uint32_t special;  // bit mask of columns
};

constexpr int kColumnOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

inline __m256i deficits(__m256i codes, const Format& format) {
  const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi8(0x7F));
  const __m256i field =
      _mm256_and_si256(_mm256_srl_epi16(magnitude, _mm_cvtsi32_si128(format.fraction_bits)),
                       _mm256_set1_epi8(static_cast<char>(0x7F >> format.fraction_bits)));
  const __m256i deficit = _mm256_sub_epi8(_mm256_set1_epi8(static_cast<char>(format.max_field)),
                                          _mm256_max_epu8(field, _mm256_set1_epi8(1)));
  return _mm256_or_si256(deficit, _mm256_cmpeq_epi8(magnitude, _mm256_setzero_si256()));
}

/// Bit i is set where byte i is an infinity or NaN.
inline uint32_t special_codes(__m256i codes, const Format& format) {
  const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi8(0x7F));
  const __m256i last_finite = _mm256_set1_epi8(static_cast<char>(format.first_special - 1));
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi8(magnitude, last_finite)));
}

/// |value| of 8 sign-extended codes; subnormals through a multiplication by a power of two.
inline __m256 magnitudes(__m256i codes, const Format& format) {
  const __m256i bits = _mm256_sll_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(0x7F)),
                                        _mm_cvtsi32_si128(23 - format.fraction_bits));
  const __m256 scale = _mm256_castsi256_ps(_mm256_set1_epi32((127 + 127 - format.bias) << 23));
  return _mm256_mul_ps(_mm256_castsi256_ps(bits), scale);
}

void decode_a(const Fp8Operand& a, DecodedA* decoded) {
  const Format format = format_of(a.type);
  for (int row = 0; row < kTileRows; ++row) {
    const uint8_t* source = a.data + row * a.pitch;
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    _mm256_store_si256(reinterpret_cast<__m256i*>(decoded->deficit[row]), deficits(codes, format));
    _mm256_store_si256(reinterpret_cast<__m256i*>(decoded->plane[row]),
                       _mm256_and_si256(_mm256_srli_epi16(codes, 7), _mm256_set1_epi8(1)));
    decoded->special[row] = special_codes(codes, format) != 0;
    for (int k = 0; k < kK; k += 8) {
      const __m256i eight =
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source + k)));
      _mm256_store_ps(decoded->magnitude[row] + k, magnitudes(eight, format));
    }
  }
}

/// Transposes 16 vectors of bytes within each 128-bit half: afterwards byte j of half h of out[k]
/// was byte k of half h of in[j].
inline void transpose_bytes(__m256i* rows) {
  __m256i other[16];
#pragma GCC unroll 4
  for (int stage = 0; stage < 4; ++stage) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      other[2 * i] = _mm256_unpacklo_epi8(rows[i], rows[i + 8]);
      other[2 * i + 1] = _mm256_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    std::memcpy(rows, other, sizeof(other));
  }
}

/// Splits 32 codes of one k into the planes.
inline void store_planes(const uint8_t* codes, const Format& format,
                         float (*planes)[kBlockColumns]) {
  for (int i = 0; i < kBlockColumns; i += 8) {
    const __m256i eight =
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
    const __m256 magnitude = magnitudes(eight, format);
    const __m256 negative = _mm256_castsi256_ps(_mm256_srai_epi32(eight, 31));
    const __m256 positive_plane = _mm256_andnot_ps(negative, magnitude);
    _mm256_store_ps(planes[0] + i, positive_plane);
    _mm256_store_ps(planes[1] + i, _mm256_and_ps(negative, magnitude));
    _mm256_store_ps(planes[2] + i, positive_plane);
  }
}

/// Decodes `columns` (a multiple of 8, at most 32) columns from `first`; the others become zeros.
void decode_b(const Fp8Operand& b, int first, int columns, DecodedB* decoded) {
  const Format format = format_of(b.type);
  decoded->special = 0;
  alignas(32) uint8_t transposed[kBlockColumns];
  for (int half = 0; half < kK; half += 16) {
    __m256i rows[16];
    for (int i = 0; i < 16; ++i) {
      __m128i parts[2];
      for (int side = 0; side < 2; ++side) {
        const int position = i + 16 * side;
        const int column = position / 8 * 8 + kColumnOrder[position % 8];
        const uint8_t* source = b.data + (first + column) * b.pitch + half;
        parts[side] = column < columns ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(source))
                                       : _mm_setzero_si128();
      }
      rows[i] = _mm256_set_m128i(parts[1], parts[0]);
    }
    transpose_bytes(rows);
    for (int i = 0; i < 16; ++i) {
      const int k = half + i;
      decoded->special |= special_codes(rows[i], format);
      _mm256_store_si256(reinterpret_cast<__m256i*>(decoded->deficit[k]),
                         deficits(rows[i], format));
      _mm256_store_si256(reinterpret_cast<__m256i*>(transposed), rows[i]);
      store_planes(transposed, format, decoded->planes[k]);
    }
  }
}

/// The registers' lanes of one row: even columns of group j at even[j], odd ones at odd[j].
struct RowView {
  uint32_t* even[4];
  uint32_t* odd[4];
};

inline RowView row_view(const AccumulatorTile& d, int row, int first, int groups) {
  RowView view{};
  for (int j = 0; j < groups; ++j) {
    view.even[j] = &d.at(row, first + 8 * j);
    view.odd[j] = &d.at(row, first + 8 * j + 1);
  }
  return view;
}

inline __m256i load_lanes(const RowView& view, int j) {
  return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(view.odd[j]),
                             reinterpret_cast<const __m128i*>(view.even[j]));
}

/// Biased FP32 exponents of the block: 8 lanes from the smallest deficits and the accumulator's
/// fields.
inline __m256i block_exponent(const uint8_t* smallest_deficits, __m256i c_field, __m256i top) {
  const __m256i deficit =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(smallest_deficits)));
  // Without any product the deficit is 255 and the difference negative: the accumulator's field
  // wins.
  return _mm256_max_epi32(_mm256_sub_epi32(top, deficit), c_field);
}

/// Bit mask of the lanes whose accumulator is huge, infinite or NaN: the caller computes them
/// apart.
template <int kGroups>
inline uint32_t multiply_row(const DecodedA& a, int row, const DecodedB& b, const RowView& view,
                             bool scale_d, __m256i top, __m256i* results) {
  __m256i smallest = _mm256_set1_epi8(-1);
  for (int k = 0; k < kK; ++k) {
    const __m256i sum =
        _mm256_adds_epu8(_mm256_set1_epi8(static_cast<char>(a.deficit[row][k])),
                         _mm256_load_si256(reinterpret_cast<const __m256i*>(b.deficit[k])));
    smallest = _mm256_min_epu8(smallest, sum);
  }
  alignas(32) uint8_t smallest_deficits[kBlockColumns];
  _mm256_store_si256(reinterpret_cast<__m256i*>(smallest_deficits), smallest);

  const __m256 sign_bit = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
  __m256 positive[kGroups];
  __m256 negative[kGroups];
  uint32_t huge = 0;
#pragma GCC unroll 4
  for (int j = 0; j < kGroups; ++j) {
    const __m256i bits = scale_d ? load_lanes(view, j) : _mm256_setzero_si256();
    const __m256i c_field =
        _mm256_srli_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7F800000)), 23);
    const __m256i c_huge = _mm256_cmpgt_epi32(c_field, _mm256_set1_epi32(kHugeField));
    huge |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(c_huge))) << (8 * j);
    const __m256i exponent = _mm256_min_epi32(
        block_exponent(smallest_deficits + 8 * j, c_field, top), _mm256_set1_epi32(kHugeField));
    const __m256 start = _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(kHeadroomBits)), 23));
    const __m256 c = _mm256_andnot_ps(_mm256_castsi256_ps(c_huge), _mm256_castsi256_ps(bits));
    // blendv takes the sign bit of its selector: |c| goes to the accumulator of its sign.
    const __m256 magnitude = _mm256_andnot_ps(sign_bit, c);
    const __m256 added = _mm256_add_ps(start, magnitude);
    positive[j] = _mm256_blendv_ps(added, start, c);
    negative[j] = _mm256_blendv_ps(start, added, c);
  }
  for (int k = 0; k < kK; ++k) {
    const __m256 magnitude = _mm256_broadcast_ss(&a.magnitude[row][k]);
    const float* plane = b.planes[k][a.plane[row][k]];
#pragma GCC unroll 4
    for (int j = 0; j < kGroups; ++j) {
      positive[j] = _mm256_fmadd_ps(magnitude, _mm256_load_ps(plane + 8 * j), positive[j]);
      negative[j] =
          _mm256_fmadd_ps(magnitude, _mm256_load_ps(plane + kBlockColumns + 8 * j), negative[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kGroups; ++j) {
    const __m256 sum = _mm256_sub_ps(positive[j], negative[j]);  // exact
    const __m256 kept =
        _mm256_and_ps(sum, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(kResultMask))));
    results[j] = _mm256_castps_si256(_mm256_add_ps(kept, _mm256_setzero_ps()));  // -0 becomes +0
  }
  return huge;
}

/// Lanes that the vector arithmetic does not cover.
void patch(uint32_t lanes, const RowView& view, const uint8_t* a, Fp8Type a_type,
           const Fp8Operand& b, int first, bool scale_d, __m256i* results) {
  alignas(32) uint32_t values[kBlockColumns];
  std::memcpy(values, results, sizeof(values));
  for (; lanes != 0; lanes &= lanes - 1) {
    const int position = __builtin_ctz(lanes);
    const int group = position / 8;
    const int slot = position % 8;
    const uint32_t* source = slot < 4 ? view.even[group] + slot : view.odd[group] + slot - 4;
    const int column = first + 8 * group + kColumnOrder[slot];
    values[position] =
        dot_fp8_scalar(scale_d ? *source : 0, a, a_type, b.data + column * b.pitch, b.type);
  }
  std::memcpy(results, values, sizeof(values));
}

template <int kGroups>
__attribute__((noinline)) void multiply_block(const AccumulatorTile& d, const Fp8Operand& a,
                                              const DecodedA& decoded_a, const Fp8Operand& b,
                                              const DecodedB& decoded_b, int first, bool scale_d) {
  const Format a_format = format_of(a.type);
  const Format b_format = format_of(b.type);
  const __m256i top = _mm256_set1_epi32(a_format.max_field - a_format.bias + b_format.max_field -
                                        b_format.bias + 127);
  constexpr uint32_t kLanes = kGroups == 4 ? ~0u : (1u << (8 * kGroups % 32)) - 1;
  for (int row = 0; row < kTileRows; ++row) {
    const RowView view = row_view(d, row, first, kGroups);
    __m256i results[4];
    uint32_t apart = multiply_row<kGroups>(decoded_a, row, decoded_b, view, scale_d, top, results);
    apart |= decoded_b.special & kLanes;
    if (decoded_a.special[row]) apart = kLanes;
    if (apart != 0) {
      patch(apart, view, a.data + row * a.pitch, a.type, b, first, scale_d, results);
    }
    for (int j = 0; j < kGroups; ++j) {
      _mm256_storeu2_m128i(reinterpret_cast<__m128i*>(view.odd[j]),
                           reinterpret_cast<__m128i*>(view.even[j]), results[j]);
    }
  }
}

}  // namespace

void multiply_fp8_avx2(AccumulatorTile d, Fp8Operand a, Fp8Operand b, bool scale_d) {
  const RoundTowardZero rounding;
  DecodedA decoded_a;
  DecodedB decoded_b;
  decode_a(a, &decoded_a);
  for (int first = 0; first < d.n; first += kBlockColumns) {
    const int columns = d.n - first < kBlockColumns ? d.n - first : kBlockColumns;
    decode_b(b, first, columns, &decoded_b);
    switch (columns / 8) {
      case 1:
        multiply_block<1>(d, a, decoded_a, b, decoded_b, first, scale_d);
        break;
      case 2:
        multiply_block<2>(d, a, decoded_a, b, decoded_b, first, scale_d);
        break;
      case 3:
        multiply_block<3>(d, a, decoded_a, b, decoded_b, first, scale_d);
        break;
      default:
        multiply_block<4>(d, a, decoded_a, b, decoded_b, first, scale_d);
        break;
    }
  }
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
