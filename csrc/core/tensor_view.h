// A tensor as the host path sees it: where it lies, its type, sizes and strides. Owns nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/launch.h"

namespace pykernels {

enum class DataType : uint8_t {
  kFloat8E4m3,
  kFloat8E5m2,
  kBfloat16,
  kFloat16,
  kFloat32,
  kFloat64,
  kUint8,
  kInt8,
  kInt32,
  kInt64,
};

uint32_t element_bytes(DataType dtype);

/// torch's name without "torch.", for example "float8_e4m3fn".
std::string_view data_type_name(DataType dtype);

/// The inverse. Throws ArgumentError for a name that no kernel takes.
DataType data_type_from_name(std::string_view name);

struct TensorView {
  static constexpr int kMaxRank = 5;

  uint64_t address = 0;
  DataType dtype = DataType::kUint8;
  int rank = 0;
  int64_t sizes[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};  // elements

  int64_t num_elements() const;

  /// From the first byte to behind the last one, gaps included; 0 for an empty tensor.
  uint64_t spanned_bytes() const;

  /// The bytes that a launch may touch through this tensor. `name` is a string literal.
  MemoryRange memory_range(const char* name) const { return {address, spanned_bytes(), name}; }

  /// "float32[16, 4] with strides [4, 1]", for error messages.
  std::string describe() const;

  friend bool operator==(const TensorView&, const TensorView&) = default;
};

}  // namespace pykernels
