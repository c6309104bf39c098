// The FP8 model of fp8.h on vectors, lanes over n: the algorithm, for one file per instruction set.
//
// Alignment, truncation and summation are one FMA: an FP32 accumulator that starts at 2^(E+10) has
// an ulp of 2^(E-13), so with rounding toward zero adding a positive product adds exactly its
// truncated magnitude. Positive and negative products go to two accumulators: b is decoded into
// planes of its positive, its negative and again its positive magnitudes, and the sign of a selects
// the first or the second pair of planes by address. 32 products of at most 4 * 2^E cannot leave
// [2^(E+10), 2^(E+11)).
//
// A file that includes this is compiled with at least AVX2 and FMA, -frounding-math and
// -ffp-contract=off. Its `Vector`, the template argument, has the width: GCC's vector types, whose
// operators do most of the work, and the instructions that are no operator. The kernels run with
// MXCSR rounding toward zero and are not inlined, so that no floating-point operation crosses the
// mode change.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "emulator/numerics/fp8.h"
#include "emulator/numerics/round_toward_zero.h"

namespace pykernels::emulator {
// Unnamed: each file has its own copy. Of a shared one the linker could keep the code for a richer
// processor than the caller's.
namespace {

constexpr int kK = kFp8StepBytes;
constexpr int kVectors = 4;  // of one pass; with two accumulators each they hide FMA's latency
constexpr int kPlanes = 3;   // positive, negative, positive
constexpr int kDecodeColumns = 32;  // columns of b that are transposed together
constexpr int kHeadroomBits = 10;
constexpr uint32_t kResultMask = 0xFFFFFC00u;  // sign, exponent, 13 fraction bits
constexpr int kHugeField = 200;  // above it, no product reaches the accumulator's 2^(E-13)

/// Columns of one pass: their deficits, a byte each, are one vector.
template <class Vector>
constexpr int kBlockColumns = kVectors * Vector::kLanes;

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

/// A block of columns of b, each group of 8 in the order 0 2 4 6 1 3 5 7 of the accumulator
/// fragments.
template <class Vector>
struct alignas(64) DecodedB {
  float planes[kK][kPlanes][kBlockColumns<Vector>];
  uint8_t deficit[kK][kBlockColumns<Vector>];
  uint64_t special;  // bit mask of columns
};

constexpr int kColumnOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// ---- decoding ----

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

/// |value| of codes, one a lane; subnormals through a multiplication by a power of two.
template <class Vector>
inline typename Vector::Float magnitudes(typename Vector::Int codes, const Format& format) {
  const typename Vector::Int bits = (codes & 0x7F) << (23 - format.fraction_bits);
  const typename Vector::Int scale = typename Vector::Int{} + ((127 + 127 - format.bias) << 23);
  return reinterpret_cast<typename Vector::Float>(bits) *
         reinterpret_cast<typename Vector::Float>(scale);
}

template <class Vector>
void decode_a(const Fp8Operand& a, DecodedA* decoded) {
  using Float = typename Vector::Float;
  const Format format = format_of(a.type);
  for (int row = 0; row < kTileRows; ++row) {
    const uint8_t* source = a.data + row * a.pitch;
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    _mm256_store_si256(reinterpret_cast<__m256i*>(decoded->deficit[row]), deficits(codes, format));
    _mm256_store_si256(reinterpret_cast<__m256i*>(decoded->plane[row]),
                       _mm256_and_si256(_mm256_srli_epi16(codes, 7), _mm256_set1_epi8(1)));
    decoded->special[row] = special_codes(codes, format) != 0;
    for (int k = 0; k < kK; k += Vector::kLanes) {
      *reinterpret_cast<Float*>(decoded->magnitude[row] + k) =
          magnitudes<Vector>(Vector::widen(source + k), format);
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

/// Splits 32 codes of one k into the planes, from column `first` of the block.
template <class Vector>
inline void store_planes(const uint8_t* codes, const Format& format, int first,
                         float (*planes)[kBlockColumns<Vector>]) {
  using Int = typename Vector::Int;
  for (int i = 0; i < kDecodeColumns; i += Vector::kLanes) {
    const Int code = Vector::widen(codes + i);
    const Int magnitude = reinterpret_cast<Int>(magnitudes<Vector>(code, format));
    const Int negative = code << 24 >> 31;
    *reinterpret_cast<Int*>(planes[0] + first + i) = magnitude & ~negative;
    *reinterpret_cast<Int*>(planes[1] + first + i) = magnitude & negative;
    *reinterpret_cast<Int*>(planes[2] + first + i) = magnitude & ~negative;
  }
}

/// 16 k of 32 columns, transposed: zeros from `columns` on.
inline void load_transposed(const Fp8Operand& b, int first, int columns, int k, __m256i* rows) {
  for (int i = 0; i < 16; ++i) {
    __m128i parts[2];
    for (int side = 0; side < 2; ++side) {
      const int position = i + 16 * side;
      const int column = position / 8 * 8 + kColumnOrder[position % 8];
      const uint8_t* source = b.data + (first + column) * b.pitch + k;
      parts[side] = column < columns ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(source))
                                     : _mm_setzero_si128();
    }
    rows[i] = _mm256_set_m128i(parts[1], parts[0]);
  }
  transpose_bytes(rows);
}

/// Decodes `columns` columns of b from `first`, and zeros up to the next multiple of 32.
template <class Vector>
void decode_b(const Fp8Operand& b, int first, int columns, DecodedB<Vector>* decoded) {
  const Format format = format_of(b.type);
  decoded->special = 0;
  alignas(32) uint8_t transposed[kDecodeColumns];
  for (int offset = 0; offset < columns; offset += kDecodeColumns) {
    for (int half = 0; half < kK; half += 16) {
      __m256i rows[16];
      load_transposed(b, first + offset, columns - offset, half, rows);
      for (int i = 0; i < 16; ++i) {
        const int k = half + i;
        decoded->special |= uint64_t{special_codes(rows[i], format)} << offset;
        _mm256_store_si256(reinterpret_cast<__m256i*>(decoded->deficit[k] + offset),
                           deficits(rows[i], format));
        _mm256_store_si256(reinterpret_cast<__m256i*>(transposed), rows[i]);
        store_planes<Vector>(transposed, format, offset, decoded->planes[k]);
      }
    }
  }
}

// ---- one row of a ----

/// The registers' lanes of one row: even columns of group j at even[j], odd ones at odd[j].
template <class Vector>
struct RowView {
  uint32_t* even[kBlockColumns<Vector> / 8];
  uint32_t* odd[kBlockColumns<Vector> / 8];
};

/// Group j, in the order of its two registers.
template <class Vector>
inline __m256i load_group(const RowView<Vector>& view, int j) {
  return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(view.odd[j]),
                             reinterpret_cast<const __m128i*>(view.even[j]));
}

template <class Vector>
inline void store_group(const RowView<Vector>& view, int j, __m256i values) {
  _mm256_storeu2_m128i(reinterpret_cast<__m128i*>(view.odd[j]),
                       reinterpret_cast<__m128i*>(view.even[j]), values);
}

/// The view of `columns` columns from `first` in `kCount` vectors; if the last vector has a group
/// too many, that is at `spare`.
template <class Vector, int kCount>
inline RowView<Vector> row_view(const AccumulatorTile& d, int row, int first, int columns,
                                uint32_t* spare) {
  RowView<Vector> view;
  for (int j = 0; j < kCount * Vector::kLanes / 8; ++j) {
    const bool used = 8 * j < columns;
    view.even[j] = used ? &d.at(row, first + 8 * j) : spare;
    view.odd[j] = used ? &d.at(row, first + 8 * j + 1) : spare;
  }
  return view;
}

/// The smallest sum of deficits of each column.
template <class Vector>
inline typename Vector::Bytes smallest_deficits(const uint8_t* a,
                                                const uint8_t (*b)[kBlockColumns<Vector>]) {
  using Bytes = typename Vector::Bytes;
  Bytes smallest = ~Bytes{};
  for (int k = 0; k < kK; ++k) {
    const Bytes sum = Vector::add_saturated(Bytes{} + a[k], *reinterpret_cast<const Bytes*>(b[k]));
    smallest = sum < smallest ? sum : smallest;
  }
  return smallest;
}

/// Results of one row, and a bit mask of the lanes whose accumulator is huge, infinite or NaN: the
/// caller computes them apart. `top` is the biased FP32 exponent of a product without deficit.
template <class Vector, int kCount>
inline uint64_t multiply_row(const DecodedA& a, int row, const DecodedB<Vector>& b,
                             const RowView<Vector>& view, bool scale_d, int top,
                             typename Vector::Int* results) {
  using Int = typename Vector::Int;
  using Float = typename Vector::Float;
  constexpr int kLanes = Vector::kLanes;
  alignas(64) uint8_t deficits[kBlockColumns<Vector>];
  *reinterpret_cast<typename Vector::Bytes*>(deficits) =
      smallest_deficits<Vector>(a.deficit[row], b.deficit);

  Float positive[kCount];
  Float negative[kCount];
  uint64_t huge = 0;
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) {
    const Int bits = scale_d ? Vector::load(view, j) : Int{};
    const Int field = bits >> 23 & 0xFF;
    const Int is_huge = field > kHugeField;
    huge |= uint64_t{Vector::sign_mask(is_huge)} << (kLanes * j);
    // Without any product the deficit is 255 and the exponent negative: the accumulator's field
    // wins.
    Int exponent = top - Vector::widen(deficits + kLanes * j);
    exponent = exponent > field ? exponent : field;
    exponent = exponent > kHugeField ? Int{} + kHugeField : exponent;
    const Int start = (exponent + kHeadroomBits) << 23;
    const Int magnitude = bits & 0x7FFFFFFF & ~is_huge;
    const Int is_negative = bits >> 31;
    positive[j] =
        reinterpret_cast<Float>(start) + reinterpret_cast<Float>(magnitude & ~is_negative);
    negative[j] = reinterpret_cast<Float>(start) + reinterpret_cast<Float>(magnitude & is_negative);
  }
  for (int k = 0; k < kK; ++k) {
    const Float magnitude = Vector::broadcast(a.magnitude[row][k]);
    const float* plane = b.planes[k][a.plane[row][k]];
    const float* next_plane = plane + kBlockColumns<Vector>;
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      positive[j] = Vector::multiply_add(
          magnitude, *reinterpret_cast<const Float*>(plane + kLanes * j), positive[j]);
      negative[j] = Vector::multiply_add(
          magnitude, *reinterpret_cast<const Float*>(next_plane + kLanes * j), negative[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) {
    const Float sum = positive[j] - negative[j];  // exact
    const Int kept = reinterpret_cast<Int>(sum) & static_cast<int>(kResultMask);
    // -0 becomes +0.
    results[j] = reinterpret_cast<Int>(reinterpret_cast<Float>(kept) + Float{});
  }
  return huge;
}

// ---- the product ----

/// Lanes that the vector arithmetic does not cover.
template <class Vector>
void patch(uint64_t lanes, const RowView<Vector>& view, const uint8_t* a, Fp8Type a_type,
           const Fp8Operand& b, int first, bool scale_d, typename Vector::Int* results) {
  uint32_t values[kBlockColumns<Vector>];
  std::memcpy(values, results, sizeof(values));
  for (; lanes != 0; lanes &= lanes - 1) {
    const int position = __builtin_ctzll(lanes);
    const int group = position / 8;
    const int slot = position % 8;
    const uint32_t* source = slot < 4 ? view.even[group] + slot : view.odd[group] + slot - 4;
    const int column = first + 8 * group + kColumnOrder[slot];
    values[position] =
        dot_fp8_scalar(scale_d ? *source : 0, a, a_type, b.data + column * b.pitch, b.type);
  }
  std::memcpy(results, values, sizeof(values));
}

/// All rows of `columns` columns from `first`, which lie in `kCount` vectors.
template <class Vector, int kCount>
__attribute__((noinline)) void multiply_block(const AccumulatorTile& d, const Fp8Operand& a,
                                              const DecodedA& decoded_a, const Fp8Operand& b,
                                              const DecodedB<Vector>& decoded_b, int first,
                                              int columns, bool scale_d) {
  const Format a_format = format_of(a.type);
  const Format b_format = format_of(b.type);
  const int top = a_format.max_field - a_format.bias + b_format.max_field - b_format.bias + 127;
  const uint64_t lanes = ~uint64_t{0} >> (64 - columns);
  uint32_t spare[4] = {};
  for (int row = 0; row < kTileRows; ++row) {
    const RowView<Vector> view = row_view<Vector, kCount>(d, row, first, columns, spare);
    typename Vector::Int results[kVectors];
    uint64_t apart =
        multiply_row<Vector, kCount>(decoded_a, row, decoded_b, view, scale_d, top, results);
    apart |= decoded_b.special;
    if (decoded_a.special[row]) apart = lanes;
    apart &= lanes;
    if (apart != 0) {
      patch<Vector>(apart, view, a.data + row * a.pitch, a.type, b, first, scale_d, results);
    }
    for (int j = 0; j < kCount; ++j) Vector::store(view, j, results[j]);
  }
}

template <class Vector>
void multiply_fp8_vector(const AccumulatorTile& d, const Fp8Operand& a, const Fp8Operand& b,
                         bool scale_d) {
  const RoundTowardZero rounding;
  DecodedA decoded_a;
  DecodedB<Vector> decoded_b;
  decode_a<Vector>(a, &decoded_a);
  for (int first = 0; first < d.n; first += kBlockColumns<Vector>) {
    const int columns = d.n - first < kBlockColumns<Vector> ? d.n - first : kBlockColumns<Vector>;
    decode_b<Vector>(b, first, columns, &decoded_b);
    switch ((columns + Vector::kLanes - 1) / Vector::kLanes) {
      case 1:
        multiply_block<Vector, 1>(d, a, decoded_a, b, decoded_b, first, columns, scale_d);
        break;
      case 2:
        multiply_block<Vector, 2>(d, a, decoded_a, b, decoded_b, first, columns, scale_d);
        break;
      case 3:
        multiply_block<Vector, 3>(d, a, decoded_a, b, decoded_b, first, columns, scale_d);
        break;
      default:
        multiply_block<Vector, 4>(d, a, decoded_a, b, decoded_b, first, columns, scale_d);
        break;
    }
  }
}

}  // namespace
}  // namespace pykernels::emulator
