// Combine: the kernel's configuration and its one parameter.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"
#include "moe/buffer.h"
#include "moe/dispatch_config.h"

namespace pykernels::moe {

struct CombineConfig {
  uint32_t senders = 10;   // warps
  uint32_t receivers = 6;  // warps

  PK_HOST_DEVICE constexpr uint32_t num_warps() const { return senders + receivers; }
  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return num_warps() * 32; }
};

/// Sixteen bytes of a lane.
inline constexpr uint32_t kVectorBytes = 16;
/// Vectors that a lane loads before it looks at one: bytes in flight. Two rounds are a chunk, four
/// a token of 7168 columns.
inline constexpr uint32_t kVectors = 7;

struct CombineParams {
  BufferParams buffer;
  // What the experts computed, on their rank: the rows that dispatch gave each received token.
  const uint8_t* y = nullptr;  // rows of `hidden` BF16 values, 16-byte aligned
  uint64_t y_row_bytes = 0;
  uint64_t y_expert_bytes = 0;  // of the masked layout, where every expert has room of its own
  FastDivisor y_expert_rows;    // rows of an expert there; else a divisor that leaves one expert
  const int32_t* recv_counts = nullptr;  // [num_ranks]
  const int32_t* number = nullptr;       // [1]: of the dispatch
  const int32_t* rows = nullptr;         // [num_ranks, max_tokens, num_topk]
  const float* row_weights = nullptr;    // nullptr: all 1
  // Of a kernel that stores y beside this one: groups of kCounterColumns columns stored.
  RowCounters done;
  const int32_t* group_rows = nullptr;  // rows of y in all, or of each expert where masked
  // The tokens at home.
  uint8_t* out = nullptr;  // [num_tokens], rows of `hidden` BF16 values
  uint64_t out_row_bytes = 0;
  const int32_t* position_in_rank = nullptr;  // [num_tokens, num_ranks]
  const int32_t* send_counts = nullptr;       // [num_ranks]: tokens that went to each
  uint32_t num_tokens = 0;
  uint32_t payload_bytes = 0;  // 2 * hidden
  uint64_t signature = 0;      // without that
  Phases phases = Phases::kAll;
  FastDivisor rank_divisor;  // num_ranks
};

}  // namespace pykernels::moe
