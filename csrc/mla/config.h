// MLA decode: the kernels' configuration and their one parameter; shared by host and device.
#pragma once

#include <cstdint>

#include "core/device_error.h"
#include "core/host_device.h"
#include "core/math.h"
#include "core/tensor_map.h"
#include "mla/plan.h"

namespace pykernels::mla {

inline constexpr uint32_t kSharedBytesPerBlock = 232448;  // sm_90's most dynamic shared memory
inline constexpr uint32_t kHeadDim = 576;      // of q and the cache: latent part, then rope part
inline constexpr uint32_t kHeadDimV = 512;     // the latent part, which is the value too
inline constexpr uint32_t kGroupColumns = 64;  // columns of a 128-byte row in shared memory
inline constexpr uint32_t kNumGroups = kHeadDim / kGroupColumns;
inline constexpr uint32_t kNumValueGroups = kHeadDimV / kGroupColumns;
inline constexpr uint32_t kGroupBytes = kBlockTokens * 128;  // a group's columns of one block
inline constexpr uint32_t kNumStages = 2;                    // blocks in shared memory
inline constexpr uint32_t kMinMapPage = 8;  // tokens of a page that TMA can load: 1024 bytes of a
                                            // group's rows, the repeat of the swizzle
// The public FP8 layout of a cached token: 512 e4m3, 4 FP32 scales of 128 each, 64 BF16 (rope).
inline constexpr uint32_t kFp8TokenBytes = 656;
inline constexpr uint32_t kFp8ScaleOffset = 512;
inline constexpr uint32_t kFp8RopeOffset = 528;

inline constexpr uint32_t kLaunchRegisters = 168;  // of 384 threads, in steps of 8

struct MlaDecodeConfig {
  uint32_t block_rows = 64;  // rows (query tokens times heads) of a CTA: 64, or 8 to 32 transposed
  uint32_t cluster = 1;      // CTAs that share the cache's blocks: neighbouring tiles of rows
  bool fp8 = false;          // the cache's layout

  /// The transposed schedule: tokens and value columns on M, rows on N.
  PK_HOST_DEVICE constexpr bool is_transposed() const { return block_rows < 64; }
  PK_HOST_DEVICE constexpr uint32_t num_consumer_threads() const { return 256; }
  PK_HOST_DEVICE constexpr uint32_t num_producer_threads() const { return 128; }
  PK_HOST_DEVICE constexpr uint32_t num_threads() const {
    return num_consumer_threads() + num_producer_threads();
  }

  /// Registers of a thread by its role: of 168 for each at launch, which they share anew. Those of
  /// 64 rows hold 128 of output, those of 32 rows, too; producers of an FP8 cache hold a block on
  /// its way.
  PK_HOST_DEVICE constexpr uint32_t consumer_registers() const {
    if (!fp8) return 232;
    if (block_rows == 64) return 208;
    return block_rows == 32 ? 200 : 152;
  }
  PK_HOST_DEVICE constexpr uint32_t producer_registers() const {
    return 3 * kLaunchRegisters - 2 * consumer_registers();
  }
};

/// Bytes between neighbours in each dimension of a tensor over requests, query tokens and heads.
struct RowStrides {
  uint64_t batch = 0;
  uint64_t token = 0;
  uint64_t head = 0;
};

struct MlaDecodeParams {
  TensorMap map_kv;  // BF16, pages of kMinMapPage tokens and more
  Plan plan;
  const uint8_t* q_nope = nullptr;  // BF16, 512 columns
  const uint8_t* q_rope = nullptr;  // BF16, 64 columns
  const uint8_t* kv_cache = nullptr;
  const int32_t* block_table = nullptr;
  const int32_t* cache_seqlens = nullptr;
  uint8_t* out = nullptr;  // BF16, 512 columns
  uint8_t* lse = nullptr;  // FP32
  DeviceError* errors = nullptr;
  RowStrides q_nope_strides;
  RowStrides q_rope_strides;
  RowStrides out_strides;
  RowStrides lse_strides;
  uint64_t page_stride = 0;   // bytes
  uint64_t token_stride = 0;  // bytes
  int64_t block_table_stride = 0;
  uint32_t num_pages = 0;
  uint32_t page_shift = 0;  // the page size is 1 << page_shift
  uint32_t max_length = 0;  // tokens that a row of the block table reaches
  uint32_t batch = 0;
  uint32_t seqlen_q = 1;
  uint32_t num_rows =
      1;  // seqlen_q * num_heads: row r is head r % num_heads of token r / num_heads
  FastDivisor num_heads;
  float scale_log2 = 0.0f;    // softmax_scale * log2(e)
  uint64_t cache_policy = 0;  // of TMA's loads, see cache_policy.h
  bool causal = true;
  bool has_map = false;  // pages have kMinMapPage tokens or more, and there is one
};

}  // namespace pykernels::mla
