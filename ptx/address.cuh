// State-space addresses: shared-window addresses of pointers, and their images in a peer CTA.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// cvta.to.shared.u64 a, b;      PTX 2.0, sm_20
///
/// The shared-window address of a generic pointer into this CTA's shared memory. Any thread.
/// The compiler's own intrinsic, so that it can fold the addresses of shared variables.
__device__ __forceinline__ uint32_t cvta_to_shared(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// mapa.shared::cluster.u32 d, a, b;      PTX 7.8, sm_90
///
/// The shared::cluster address, in CTA `cta_rank` of the cluster, of what `address` (shared::cta
/// window) names in this CTA. Any thread; pure arithmetic, hence not volatile.
__device__ __forceinline__ uint32_t mapa_shared_cluster(uint32_t address, uint32_t cta_rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(cta_rank));
  return mapped;
}

}  // namespace pykernels::ptx
