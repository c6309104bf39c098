// What distinguishes the quantise kernels from each other, and the one parameter that they take.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/scale_format.h"

namespace pykernels::quantize {

inline constexpr uint32_t kBlockK = 128;  // columns that share a scale factor
inline constexpr uint32_t kChunk = 16;    // values of one thread: 16 bytes of q
inline constexpr uint32_t kThreadsPerRow = kBlockK / kChunk;

enum class InputType : uint32_t { kBfloat16 = 0, kFloat16 = 1, kFloat32 = 2 };

struct QuantizeConfig {
  uint32_t block_m = 1;  // rows that share a scale factor: 1 or 128
  uint32_t threads = 256;

  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return threads; }

  /// Rows that the CTA's threads hold at a time, eight threads a row.
  PK_HOST_DEVICE constexpr uint32_t rows_per_pass() const { return threads / kThreadsPerRow; }

  /// Blocks that one CTA quantises: a 1x128 block takes eight threads, a 128x128 block all of them.
  PK_HOST_DEVICE constexpr uint32_t blocks_per_cta() const {
    return block_m == 1 ? rows_per_pass() : 1;
  }
};

struct QuantizeParams {
  const void* x = nullptr;  // [m, k], rows 16-byte aligned
  uint8_t* q = nullptr;     // [m, k], rows 16-byte aligned
  float* scales = nullptr;  // [ceil(m / block_m), ceil(k / 128)], any strides
  uint64_t x_row_bytes = 0;
  uint64_t q_row_bytes = 0;
  int64_t scales_row_stride = 0;     // elements
  int64_t scales_column_stride = 0;  // elements
  uint32_t m = 0;
  uint32_t k = 0;
  uint32_t k_blocks = 0;  // scale factors in a row
  InputType input_type = InputType::kBfloat16;
  ScaleFormat scale_format = ScaleFormat::kFp32;
};

}  // namespace pykernels::quantize
