// The layout of a rank's batch: the kernel's configuration and its one parameter.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/math.h"
#include "moe/buffer.h"

namespace pykernels::moe {

struct LayoutConfig {
  uint32_t threads = 1024;

  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return threads; }
  PK_HOST_DEVICE constexpr uint32_t num_warps() const { return threads / 32; }
};

/// Routing as the router gives it.
struct Routing {
  const void* topk_idx = nullptr;  // [num_tokens, num_topk], int32 or int64; -1: dropped
  const float* topk_weights = nullptr;
  int64_t idx_row_stride = 0;  // elements
  int64_t weights_row_stride = 0;
  uint32_t num_tokens = 0;
  bool is_int64 = false;
};

/// Where the tokens go, of one rank's batch.
struct Placement {
  int32_t* position_in_expert = nullptr;  // [num_tokens, num_topk]: rows that this rank sends to
                                          // the expert before; -1 for no expert
  int32_t* position_in_rank = nullptr;  // [num_tokens, num_ranks]: tokens sent to the rank before;
                                        // -1 where the token does not go there
  int32_t* expert_counts = nullptr;     // [num_experts]: rows
  int32_t* rank_counts = nullptr;       // [num_ranks]: tokens
};

struct LayoutParams {
  Routing routing;
  Placement placement;
  BufferParams buffer;
  uint32_t num_experts = 1;
  bool refuses = false;        // the host has refused a call: the peers are told, and that is all
  FastDivisor topk_divisor;    // num_topk
  FastDivisor expert_divisor;  // num_local_experts
};

}  // namespace pykernels::moe
