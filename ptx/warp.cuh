// Exchange within a warp, and identities.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// shfl.sync.idx.b32 d, a, lane, segment, 0xffffffff;      PTX 6.0, sm_30
///
/// The value of lane `lane` of the segment that this lane belongs to. `segment`: bits 12:8 hold the
/// lane bits that stay (0x1c00: segments of 4, 0: the whole warp), bits 4:0 the highest lane, 0x1f.
/// A converged warp.
__device__ __forceinline__ uint32_t shfl_sync_idx_b32(uint32_t value, uint32_t lane,
                                                      uint32_t segment) {
  uint32_t received;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, %3, 0xffffffff;"
               : "=r"(received)
               : "r"(value), "r"(lane), "r"(segment));
  return received;
}

/// bar.warp.sync 0xffffffff;      PTX 6.0, sm_30
///
/// Waits for all lanes of the warp and orders their earlier accesses before the later ones of all
/// of them, generic proxy. Every lane.
__device__ __forceinline__ void bar_warp_sync() {
  asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
}

/// mov.u32 d, %cluster_ctarank;      PTX 7.8, sm_90
///
/// Rank of this CTA in its cluster. Any thread; constant, hence not volatile.
__device__ __forceinline__ uint32_t cluster_ctarank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// mov.u64 d, %globaltimer;      PTX 3.1, sm_30
///
/// Nanoseconds of a clock that all SMs share; how often it advances is the driver's affair, about
/// each microsecond. Any thread.
__device__ __forceinline__ uint64_t globaltimer() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

}  // namespace pykernels::ptx
