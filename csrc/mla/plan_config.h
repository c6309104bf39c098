// The plan of a step: the kernel's configuration and its one parameter.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "mla/plan.h"

namespace pykernels::mla {

/// What an item costs beside its blocks, in blocks: q comes in and results go out, in FP32 where
/// the request is split (64 rows: 74 KB + 131 KB, 2.8 blocks of 74 KB), and the ring of blocks
/// fills and drains, about two blocks' time. FlashMLA's scheduler counts 5 too.
inline constexpr uint32_t kItemOverhead = 5;

/// Of a batch-invariant plan: a request has a split for so many blocks begun, up to the greatest
/// number, which bounds what the partial results occupy. Two items' overhead beside eight blocks.
inline constexpr uint32_t kBlocksPerSplit = 8;
inline constexpr uint32_t kMaxInvariantSplits = 16;

struct PlanConfig {
  uint32_t threads = 512;  // a power of two, for the search among as many requests

  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return threads; }
  PK_HOST_DEVICE constexpr uint32_t num_warps() const { return threads / 32; }
};

struct PlanParams {
  const int32_t* cache_seqlens = nullptr;  // [batch]
  WorkItem* items = nullptr;
  int32_t* part_offsets = nullptr;
  PlannedRequest* requests = nullptr;
  uint32_t batch = 0;
  uint32_t max_batch = 0;
  uint32_t num_parts = 1;
  uint32_t num_items = 0;   // that `items` holds
  uint32_t max_splits = 0;  // of a request, where its length alone decides; 0 where parts do
};

}  // namespace pykernels::mla
