// What the lanes of a warp compute together.
#pragma once

#include "ptx/types.cuh"

namespace pykernels {

inline constexpr uint32_t kAllLanes = 0xffffffff;  // a membermask

/// `combine` over the values of the lanes up to this one. A converged warp.
template <typename Value, typename Combine>
__device__ __forceinline__ Value inclusive_scan(Value value, Combine&& combine) {
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const Value below = __shfl_up_sync(kAllLanes, value, distance);
    if (threadIdx.x % 32 >= distance) value = combine(value, below);
  }
  return value;
}

/// The sum of the values of the lanes up to this one. A converged warp.
__device__ __forceinline__ uint32_t inclusive_sum(uint32_t value) {
  return inclusive_scan(value, [](uint32_t a, uint32_t b) { return a + b; });
}

/// The greatest of `value` over groups of `kLanes` neighbouring lanes, in each of them. A converged
/// warp.
template <uint32_t kLanes>
__device__ __forceinline__ uint32_t max_over_lanes(uint32_t value) {
#pragma unroll
  for (uint32_t distance = kLanes / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

}  // namespace pykernels
