// SwiGLU fused with the 1x128 cast: the kernel's configuration and its one parameter.
#pragma once

#include <cstdint>

#include "core/device_error.h"
#include "core/group_source.h"
#include "core/host_device.h"
#include "core/math.h"
#include "quantize/config.h"

namespace pykernels::quantize {

struct SiluMulQuantizeConfig {
  uint32_t threads = 640;
  uint32_t ctas_per_sm = 2;  // bounds the registers: bytes in flight need warps

  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return threads; }
  PK_HOST_DEVICE constexpr uint32_t num_warps() const { return threads / 32; }

  /// Entries that CTAs list at a time, at most one a thread; a power of two, for the search.
  PK_HOST_DEVICE constexpr uint32_t list_entries() const {
    uint32_t entries = 32;
    while (2 * entries <= threads) entries *= 2;
    return entries;
  }
};

inline constexpr uint32_t kBlocksPerWarp = 32 / kThreadsPerRow;

struct SiluMulQuantizeParams {
  const void* x = nullptr;  // num_groups times [rows, 2 * columns], all rows 16-byte aligned
  uint8_t* q = nullptr;     // num_groups times [rows, columns], all rows 16-byte aligned
  float* scales = nullptr;  // num_groups times [rows, k_blocks], any strides
  const int32_t* groups = nullptr;  // group_offsets, m_indices or masked_m
  DeviceError* errors = nullptr;    // where a wrong value in `groups` is recorded
  uint64_t x_group_bytes = 0;       // kMasked; one group otherwise
  uint64_t q_group_bytes = 0;
  uint64_t x_row_bytes = 0;
  uint64_t q_row_bytes = 0;
  int64_t scales_group_stride = 0;  // elements
  int64_t scales_row_stride = 0;
  int64_t scales_column_stride = 0;
  uint32_t rows = 0;         // t; with kMasked max_m
  uint32_t columns = 0;      // i: of each half of x, and of q
  uint32_t num_entries = 0;  // of `groups`
  FastDivisor k_blocks;      // scale factors in a row
  // CTAs share the rows in chunks: those of a row of the grid take the blocks of one together.
  uint32_t num_chunks = 1;
  uint32_t entries_per_chunk = 0;  // kIndices, kMasked: of `groups`, at most list_entries()
  uint32_t search_step = 0;  // kMasked: half the least power of two not below a chunk's groups
  GroupSource source = GroupSource::kNone;
  InputType input_type = InputType::kBfloat16;
  ScaleFormat scale_format = ScaleFormat::kFp32;
};

}  // namespace pykernels::quantize
