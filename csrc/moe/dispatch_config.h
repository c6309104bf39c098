// Dispatch: the kernel's configuration and its one parameter.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"
#include "core/scale_format.h"
#include "moe/buffer.h"
#include "moe/layout_config.h"

namespace pykernels::moe {

struct DispatchConfig {
  uint32_t senders = 4;    // warps
  uint32_t receivers = 8;  // warps
  bool quantise = false;   // x is BF16 and travels as FP8

  PK_HOST_DEVICE constexpr uint32_t num_warps() const { return senders + receivers; }
  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return num_warps() * 32; }
};

/// Bytes of a token that a warp moves at a time: of 7168 columns FP8 all, of BF16 half. A multiple
/// of 128, so that a chunk of FP8 begins with a scale factor of its own.
inline constexpr uint32_t kChunkBytes = 7168;
inline constexpr uint32_t kChunkScales = kChunkBytes / kBlockK;
inline constexpr uint32_t kNumStages = 2;  // of a warp

/// Which parts of a call a launch does.
enum class Phases : uint32_t {
  kSend = 1,
  kCounts = 2,  // of dispatch: where rows will stand, once all peers have told their counts
  kReceive = 4,
  kSendAndCounts = kSend | kCounts,
  kCountsAndReceive = kCounts | kReceive,
  kAll = kSend | kCounts | kReceive,
};

PK_HOST_DEVICE constexpr bool includes(Phases phases, Phases part) {
  return (static_cast<uint32_t>(phases) & static_cast<uint32_t>(part)) != 0;
}

/// A batch that this rank sends.
struct SendParams {
  Routing routing;
  Placement placement;
  const uint8_t* x = nullptr;     // [num_tokens], rows of `hidden` values, 16-byte aligned
  const float* scales = nullptr;  // [num_tokens, num_scales], any strides; of FP8 alone
  uint64_t x_row_bytes = 0;       // from a row to the next
  int64_t scales_row_stride = 0;  // elements
  int64_t scales_column_stride = 0;
  ScaleFormat scale_format = ScaleFormat::kFp32;  // of a cast in the send
};

/// Where the tokens go that this rank receives.
struct ReceiveParams {
  uint8_t* x = nullptr;     // rows of row_bytes
  float* scales = nullptr;  // rows of scales_row_stride elements, a multiple of 4
  uint64_t x_row_bytes = 0;
  uint64_t scales_row_bytes = 0;
  int32_t* groups = nullptr;       // group_offsets [num_local_experts + 1], or masked_m
  int32_t* recv_counts = nullptr;  // [num_ranks]: tokens from each
  int32_t* number = nullptr;       // [1]: of the call, by which combines know each other
  int32_t* rows = nullptr;         // [num_ranks, max_tokens, num_topk]; -1 behind the last
  float* row_weights = nullptr;
  int32_t* row_topk = nullptr;
  uint32_t capacity = 0;         // rows of x
  uint32_t rows_per_expert = 0;  // where every expert has room of its own (masked); else 0
  RowCounters ready;             // rows that are there, for a kernel beside; see RowCounters
};

struct DispatchParams {
  BufferParams buffer;
  SendParams send;
  ReceiveParams receive;
  uint32_t payload_bytes = 0;  // values of a token as they travel
  uint32_t num_scales = 0;     // factors of a token; 0 of BF16
  uint64_t signature = 0;
  Phases phases = Phases::kAll;
  FastDivisor rank_divisor;    // num_ranks
  FastDivisor expert_divisor;  // num_local_experts
};

}  // namespace pykernels::moe
