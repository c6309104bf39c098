// Tensor maps: what a TMA instruction knows of a tensor in global memory, in the driver's terms.
#pragma once

#include <cstdint>
#include <string>

namespace pykernels {

/// Element types of a tensor map, with the values of the driver's CUtensorMapDataType.
enum class TensorMapType : uint8_t {
  kUint8 = 0,
  kUint16 = 1,
  kUint32 = 2,
  kInt32 = 3,
  kUint64 = 4,
  kInt64 = 5,
  kFloat16 = 6,
  kFloat32 = 7,
  kFloat64 = 8,
  kBfloat16 = 9,
  kFloat32Ftz = 10,
  kTfloat32 = 11,
  kTfloat32Ftz = 12,
};

/// Values of CUtensorMapInterleave.
enum class TensorMapInterleave : uint8_t { kNone = 0, k16B = 1, k32B = 2 };

/// Values of CUtensorMapSwizzle.
enum class TensorMapSwizzle : uint8_t { kNone = 0, k32B = 1, k64B = 2, k128B = 3 };

/// Values of CUtensorMapL2promotion.
enum class TensorMapL2Promotion : uint8_t { kNone = 0, k64B = 1, k128B = 2, k256B = 3 };

/// Values of CUtensorMapFloatOOBfill.
enum class TensorMapFill : uint8_t { kZeros = 0, kNan = 1 };

/// The arguments of cuTensorMapEncodeTiled. Dimension 0 is the contiguous one.
struct TensorMapFields {
  static constexpr int kMaxRank = 5;

  TensorMapType type = TensorMapType::kUint8;
  uint32_t rank = 0;
  uint64_t address = 0;
  uint64_t dims[kMaxRank] = {};         // elements
  uint64_t strides[kMaxRank - 1] = {};  // bytes, of dimension 1 and up
  uint32_t box[kMaxRank] = {};          // elements
  uint32_t element_strides[kMaxRank] = {1, 1, 1, 1, 1};
  TensorMapInterleave interleave = TensorMapInterleave::kNone;
  TensorMapSwizzle swizzle = TensorMapSwizzle::kNone;
  TensorMapL2Promotion l2_promotion = TensorMapL2Promotion::kNone;
  TensorMapFill fill = TensorMapFill::kZeros;

  friend bool operator==(const TensorMapFields&, const TensorMapFields&) = default;
};

/// The 128 opaque bytes that a kernel takes as a __grid_constant__ parameter. What is inside is the
/// business of the Device that encoded it: the driver's layout on a GPU, ours in the emulator.
struct alignas(64) TensorMap {
  uint8_t bytes[128] = {};
};

uint32_t element_bytes(TensorMapType type);

/// Throws ArgumentError unless the fields are what cuTensorMapEncodeTiled documents as valid
/// (alignment of address and strides, box sizes, the inner box against the swizzle).
void check_tensor_map(const TensorMapFields& fields);

/// The emulator's layout of the 128 bytes, also what the recording driver's encoder writes.
TensorMap encode_emulated(const TensorMapFields& fields);

/// The inverse. Throws ArgumentError if the bytes were not written by encode_emulated.
TensorMapFields decode_emulated(const TensorMap& map);

}  // namespace pykernels
