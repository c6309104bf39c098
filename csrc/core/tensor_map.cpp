// What cuTensorMapEncodeTiled documents as valid, and the emulator's own layout of the 128 bytes.
#include "core/tensor_map.h"

#include <array>
#include <cstring>

#include "core/check.h"

namespace pykernels {
namespace {

constexpr uint64_t kMaxDim = 1ull << 32;
constexpr uint64_t kMaxStride = 1ull << 40;  // exclusive
constexpr uint32_t kMaxBox = 256;
constexpr uint32_t kMaxElementStride = 8;

/// The 128 bytes of an emulated tensor map. The magic tells them from the driver's and from
/// garbage.
struct EmulatedLayout {
  uint64_t magic;
  uint64_t address;
  uint64_t dims[TensorMapFields::kMaxRank];
  uint64_t strides[TensorMapFields::kMaxRank - 1];
  uint32_t box[TensorMapFields::kMaxRank];
  uint8_t element_strides[TensorMapFields::kMaxRank];
  uint8_t type;
  uint8_t rank;
  uint8_t interleave;
  uint8_t swizzle;
  uint8_t l2_promotion;
  uint8_t fill;
};
static_assert(sizeof(EmulatedLayout) <= sizeof(TensorMap));

constexpr uint64_t kEmulatedMagic = 0x31'70'61'6d'54'6b'79'70;  // "pykTmap1" in memory

bool is_floating_point(TensorMapType type) {
  switch (type) {
    case TensorMapType::kFloat16:
    case TensorMapType::kFloat32:
    case TensorMapType::kFloat64:
    case TensorMapType::kBfloat16:
    case TensorMapType::kFloat32Ftz:
    case TensorMapType::kTfloat32:
    case TensorMapType::kTfloat32Ftz:
      return true;
    default:
      return false;
  }
}

/// The widest inner box of a swizzle mode, in bytes.
uint64_t swizzle_span(TensorMapSwizzle swizzle) {
  return 16ull << static_cast<int>(swizzle);  // 32, 64, 128 for values 1, 2, 3
}

void check_enums(const TensorMapFields& fields) {
  PK_CHECK(fields.type <= TensorMapType::kTfloat32Ftz, "tensor map type must be from 0 to 12, got ",
           static_cast<int>(fields.type));
  PK_CHECK(fields.interleave <= TensorMapInterleave::k32B,
           "tensor map interleave must be from 0 to 2, got ", static_cast<int>(fields.interleave));
  PK_CHECK(fields.swizzle <= TensorMapSwizzle::k128B,
           "tensor map swizzle must be from 0 to 3, got ", static_cast<int>(fields.swizzle));
  PK_CHECK(fields.l2_promotion <= TensorMapL2Promotion::k256B,
           "tensor map L2 promotion must be from 0 to 3, got ",
           static_cast<int>(fields.l2_promotion));
  PK_CHECK(fields.fill <= TensorMapFill::kNan, "tensor map fill must be 0 or 1, got ",
           static_cast<int>(fields.fill));
  PK_CHECK(fields.fill == TensorMapFill::kZeros || is_floating_point(fields.type),
           "tensor map fill NaN needs a floating-point type, got type ",
           static_cast<int>(fields.type));
}

/// The driver documents growing strides too, but accepts any order and 0 (permuted and broadcast
/// tensors rely on it), so that only alignment and range are required here.
void check_global(const TensorMapFields& fields) {
  const uint64_t alignment = fields.interleave == TensorMapInterleave::k32B ? 32 : 16;
  PK_CHECK(fields.address != 0, "tensor map address must not be null");
  PK_CHECK(fields.address % alignment == 0, "tensor map address must be a multiple of ", alignment,
           ", got ", fields.address, " (remainder ", fields.address % alignment, ")");
  for (uint32_t i = 0; i < fields.rank; ++i) {
    PK_CHECK(fields.dims[i] > 0 && fields.dims[i] <= kMaxDim, "tensor map size of dimension ", i,
             " must be from 1 to 2^32, got ", fields.dims[i]);
  }
  for (uint32_t i = 0; i + 1 < fields.rank; ++i) {
    PK_CHECK(fields.strides[i] % alignment == 0 && fields.strides[i] < kMaxStride,
             "tensor map stride of dimension ", i + 1, " must be a multiple of ", alignment,
             " bytes below 2^40, got ", fields.strides[i]);
  }
}

void check_box(const TensorMapFields& fields) {
  for (uint32_t i = 0; i < fields.rank; ++i) {
    PK_CHECK(fields.box[i] > 0 && fields.box[i] <= kMaxBox, "tensor map box of dimension ", i,
             " must be from 1 to 256, got ", fields.box[i]);
    PK_CHECK(fields.element_strides[i] > 0 && fields.element_strides[i] <= kMaxElementStride,
             "tensor map element stride of dimension ", i, " must be from 1 to 8, got ",
             fields.element_strides[i]);
  }
  if (fields.interleave != TensorMapInterleave::kNone) return;
  const uint64_t inner_bytes = uint64_t{fields.box[0]} * element_bytes(fields.type);
  PK_CHECK(inner_bytes % 16 == 0,
           "tensor map box of dimension 0 must be a multiple of 16 bytes, got ", inner_bytes);
  PK_CHECK(fields.swizzle == TensorMapSwizzle::kNone || inner_bytes <= swizzle_span(fields.swizzle),
           "tensor map box of dimension 0 must be at most the swizzle's ",
           swizzle_span(fields.swizzle), " bytes, got ", inner_bytes);
}

}  // namespace

uint32_t element_bytes(TensorMapType type) {
  static constexpr std::array<uint8_t, 13> kBytes = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
  const auto index = static_cast<size_t>(type);
  PK_CHECK(index < kBytes.size(), "tensor map type must be from 0 to 12, got ", index);
  return kBytes[index];
}

void check_tensor_map(const TensorMapFields& fields) {
  check_enums(fields);
  const uint32_t min_rank = fields.interleave == TensorMapInterleave::kNone ? 1 : 3;
  PK_CHECK(fields.rank >= min_rank && fields.rank <= TensorMapFields::kMaxRank,
           "tensor map rank must be from ", min_rank, " to 5, got ", fields.rank);
  PK_CHECK(
      fields.interleave != TensorMapInterleave::k32B || fields.swizzle == TensorMapSwizzle::k32B,
      "tensor map interleave 32B needs swizzle 32B, got swizzle ",
      static_cast<int>(fields.swizzle));
  check_global(fields);
  check_box(fields);
}

TensorMap encode_emulated(const TensorMapFields& fields) {
  EmulatedLayout layout = {};
  layout.magic = kEmulatedMagic;
  layout.address = fields.address;
  std::memcpy(layout.dims, fields.dims, sizeof(layout.dims));
  std::memcpy(layout.strides, fields.strides, sizeof(layout.strides));
  std::memcpy(layout.box, fields.box, sizeof(layout.box));
  for (int i = 0; i < TensorMapFields::kMaxRank; ++i) {
    layout.element_strides[i] = static_cast<uint8_t>(fields.element_strides[i]);
  }
  layout.type = static_cast<uint8_t>(fields.type);
  layout.rank = static_cast<uint8_t>(fields.rank);
  layout.interleave = static_cast<uint8_t>(fields.interleave);
  layout.swizzle = static_cast<uint8_t>(fields.swizzle);
  layout.l2_promotion = static_cast<uint8_t>(fields.l2_promotion);
  layout.fill = static_cast<uint8_t>(fields.fill);
  TensorMap map;
  std::memcpy(map.bytes, &layout, sizeof(layout));
  return map;
}

TensorMapFields decode_emulated(const TensorMap& map) {
  EmulatedLayout layout;
  std::memcpy(&layout, map.bytes, sizeof(layout));
  PK_CHECK(layout.magic == kEmulatedMagic,
           "these 128 bytes are no tensor map of the emulator (magic ", layout.magic, ")");
  TensorMapFields fields;
  fields.address = layout.address;
  std::memcpy(fields.dims, layout.dims, sizeof(layout.dims));
  std::memcpy(fields.strides, layout.strides, sizeof(layout.strides));
  std::memcpy(fields.box, layout.box, sizeof(layout.box));
  for (int i = 0; i < TensorMapFields::kMaxRank; ++i) {
    fields.element_strides[i] = layout.element_strides[i];
  }
  fields.type = static_cast<TensorMapType>(layout.type);
  fields.rank = layout.rank;
  fields.interleave = static_cast<TensorMapInterleave>(layout.interleave);
  fields.swizzle = static_cast<TensorMapSwizzle>(layout.swizzle);
  fields.l2_promotion = static_cast<TensorMapL2Promotion>(layout.l2_promotion);
  fields.fill = static_cast<TensorMapFill>(layout.fill);
  return fields;
}

}  // namespace pykernels
