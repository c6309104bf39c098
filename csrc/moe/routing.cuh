// Reading the router's choices.
#pragma once

#include "moe/layout_config.h"
#include "ptx/types.cuh"

namespace pykernels::moe {

/// The k-th choice of a token, as the router gives it.
__device__ __forceinline__ int64_t choice(const Routing& routing, uint32_t token, uint32_t k) {
  const int64_t place = token * routing.idx_row_stride + k;
  return routing.is_int64 ? static_cast<const int64_t*>(routing.topk_idx)[place]
                          : static_cast<const int32_t*>(routing.topk_idx)[place];
}

}  // namespace pykernels::moe
