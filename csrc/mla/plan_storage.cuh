// Shared memory of the plan kernel: sizeof is the launch size.
#pragma once

#include "mla/plan_config.h"

namespace pykernels::mla {

/// A request among the parts. Item j, if it is not the first, begins at block
/// block_base + j * block_step. The sum is below 2^31 whatever the terms are, so 32 bits give it.
struct alignas(16) RequestCuts {
  uint64_t start;  // of the request, in cost units from the first request's start
  uint32_t block_base;
  uint32_t block_step;
  uint32_t num_blocks;
  uint32_t num_items;
  int32_t first_slot;
  uint32_t unused;
};

template <PlanConfig kConfig>
struct PlanStorage {
  RequestCuts cuts[kConfig.num_threads()];      // of as many requests as there are threads
  uint32_t first_items[kConfig.num_threads()];  // items of these requests before each of them
  uint64_t cost_sums[kConfig.num_warps()];
  uint64_t count_sums[kConfig.num_warps()];
};

template <PlanConfig kConfig>
constexpr uint32_t plan_body_shared_bytes() {
  return sizeof(PlanStorage<kConfig>);
}

}  // namespace pykernels::mla
