// The plan of a step: which CTAs take which blocks of which requests; shared by host and device.
#pragma once

#include <cstdint>

namespace pykernels::mla {

inline constexpr uint32_t kBlockTokens = 64;  // cached tokens that a CTA takes at a time

/// A range of one request's blocks, which the CTAs of one part (one for each tile of rows) take.
/// begin == end: the request has no tokens; its rows are written all the same.
struct alignas(16) WorkItem {
  int32_t request = 0;
  int32_t begin_block = 0;
  int32_t end_block = 0;
  int32_t slot = 0;  // of the partial results, kWholeRequest if the request is not split
};

inline constexpr int32_t kWholeRequest = -1;

/// What the plan was made for, and where a split request's partial results lie.
struct alignas(16) PlannedRequest {
  int32_t length = 0;      // cache_seqlens at the update, as it was given
  int32_t num_splits = 0;  // 1 for a request that is not split, one without tokens too
  int32_t first_slot = 0;  // of num_splits consecutive ones, if it is split
  int32_t unused = 0;
};

/// The plan's tensors in global memory. Part p takes items[part_offsets[p]] up to, not including,
/// items[part_offsets[p + 1]].
struct Plan {
  WorkItem* items = nullptr;
  int32_t* part_offsets = nullptr;     // [num_parts + 1]
  PlannedRequest* requests = nullptr;  // [max_batch]
  float* partial_out = nullptr;        // [num_slots, seqlen_q * num_heads, 512], normalised
  float* partial_lse = nullptr;        // [num_slots, seqlen_q * num_heads], natural logarithm
};

}  // namespace pykernels::mla
