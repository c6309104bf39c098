// Accesses to the shared memory of other CTAs that signal a barrier there.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32
///     [a], {b0, b1, b2, b3}, [mbar];      PTX 8.1, sm_90
///
/// Stores 16 bytes in a CTA of the cluster and takes them off the pending bytes of `mbar` there; a
/// thread that has seen the phase complete, acquiring at cluster scope, may read them.
/// Asynchronous. Any thread; the target CTA must not have exited. `address`, `mbar`:
/// shared::cluster addresses (mapa_shared_cluster) of one CTA; `address` aligned to 16 bytes.
__device__ __forceinline__ void st_async_v4_f32(uint32_t address, const float* b, uint32_t mbar) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
      "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "f"(b[0]), "f"(b[1]), "f"(b[2]), "f"(b[3]), "r"(mbar)
      : "memory");
}

}  // namespace pykernels::ptx
