// Writing and reading the MLA cache: the kernels' configuration and their parameters; shared by
// host and device.
#pragma once

#include <cstdint>

#include "core/device_error.h"
#include "core/host_device.h"
#include "mla/config.h"

namespace pykernels::mla {

inline constexpr uint32_t kRopeDim = kHeadDim - kHeadDimV;
inline constexpr uint32_t kScaleColumns = 128;                // of the latent part, a scale each
inline constexpr uint32_t kLatentColumns = kHeadDimV / 32;    // of one lane: 16 bytes of e4m3
inline constexpr uint32_t kLatentWords = kLatentColumns / 2;  // of BF16
inline constexpr uint32_t kLanesPerScale = kScaleColumns / kLatentColumns;

struct MlaCacheConfig {
  uint32_t threads = 128;  // few, so that the tokens of a small batch lie on many SMs

  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return threads; }
  /// Each warp takes one.
  PK_HOST_DEVICE constexpr uint32_t tokens_per_cta() const { return threads / 32; }
};

/// The cache in global memory: the token of slot s is token s % page_size of page s / page_size.
struct CacheView {
  uint8_t* tokens = nullptr;
  uint64_t page_stride = 0;   // bytes
  uint64_t token_stride = 0;  // bytes
  uint32_t num_slots = 0;     // below 2^31
  uint32_t page_shift = 0;    // the page size is 1 << page_shift
  bool fp8 = false;           // 656 bytes a token; 576 BF16 otherwise
};

/// The slot of each token of a launch.
struct SlotMapping {
  const void* slots = nullptr;    // int32 or int64; -1: none
  DeviceError* errors = nullptr;  // where a slot that the cache does not have is recorded
  uint32_t num_tokens = 0;
  bool is_int64 = false;
};

/// A vector or a matrix of BF16 or FP32.
struct Factors {
  const uint8_t* values = nullptr;
  uint64_t row_bytes = 0;
  bool is_float32 = false;
};

enum class Rotation : uint32_t {
  kNone = 0,
  kInterleaved = 1,  // columns 2i and 2i + 1 are a pair
  kHalves = 2,       // columns i and i + 32
};

struct MlaCacheWriteParams {
  CacheView cache;
  SlotMapping mapping;
  const uint8_t* kv_latent = nullptr;  // [num_tokens, 512], BF16, rows 16-byte aligned
  const uint8_t* k_rope = nullptr;     // [num_tokens, 64], BF16, rows 16-byte aligned
  uint64_t latent_row_bytes = 0;
  uint64_t rope_row_bytes = 0;
  Factors norm_weight;  // [512]; none: the latent part is stored as it is
  Factors cos;          // [num_tokens, 32], rows 16-byte aligned
  Factors sin;          // as cos
  float norm_eps = 0.0f;
  Rotation rotation = Rotation::kNone;
};

struct MlaCacheReadParams {
  CacheView cache;
  SlotMapping mapping;
  uint8_t* kv_latent = nullptr;  // [num_tokens, 512], BF16, rows 16-byte aligned
  uint8_t* k_rope = nullptr;     // [num_tokens, 64], BF16, rows 16-byte aligned
  uint64_t latent_row_bytes = 0;
  uint64_t rope_row_bytes = 0;
};

}  // namespace pykernels::mla
