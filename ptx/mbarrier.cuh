// Transaction barriers in shared memory. `mbar`: shared-window address of the 8-byte object.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// mbarrier.init.shared::cta.b64 [mbar], count;      PTX 7.8, sm_80
///
/// Starts phase 0, which completes after `count` arrivals and once no bytes are pending. One
/// thread; others may use the barrier after a CTA or cluster barrier, TMA and the cluster's other
/// CTAs after fence_mbarrier_init_release_cluster as well.
__device__ __forceinline__ void mbarrier_init(uint32_t mbar, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbar), "r"(count) : "memory");
}

/// mbarrier.arrive.release.cta.shared::cta.b64 _, [mbar];      PTX 8.0, sm_90
///
/// One arrival at a barrier of this CTA. Releases the thread's earlier accesses, generic proxy, at
/// CTA scope to the waiters on this phase. Any thread.
__device__ __forceinline__ void mbarrier_arrive(uint32_t mbar) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(mbar) : "memory");
}

/// mbarrier.arrive.release.cta.shared::cta.b64 _, [mbar], count;      PTX 8.0, sm_90
///
/// As mbarrier_arrive, `count` arrivals at one time.
__device__ __forceinline__ void mbarrier_arrive_count(uint32_t mbar, uint32_t count) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(mbar), "r"(count)
               : "memory");
}

/// mbarrier.arrive.release.cta.shared::cluster.b64 _, [mbar];      PTX 8.0, sm_90
///
/// One arrival at a barrier of any CTA of the cluster; `mbar` is a shared::cluster address
/// (mapa_shared_cluster). Releases at CTA scope only, which keeps ptxas from a GPU-wide fence: it
/// tells a peer that operations which this thread has seen complete, such as WGMMA's reads, are
/// over, but does not publish generic writes to it. Any thread; the target CTA must not have
/// exited.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t mbar) {
  asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(mbar) : "memory");
}

/// mbarrier.arrive.release.cluster.shared::cluster.b64 _, [mbar];      PTX 8.0, sm_90
///
/// One arrival at a barrier of any CTA of the cluster; `mbar` is a shared::cluster address
/// (mapa_shared_cluster). Releases the thread's earlier accesses, generic proxy, at cluster scope;
/// ptxas puts a GPU-wide fence before it. Any thread; the target CTA must not have exited.
__device__ __forceinline__ void mbarrier_arrive_release_cluster(uint32_t mbar) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(mbar)
               : "memory");
}

/// mbarrier.arrive.release.cluster.shared::cluster.b64 _, [mbar], count;      PTX 8.0, sm_90
///
/// As mbarrier_arrive_release_cluster, `count` arrivals at one time.
__device__ __forceinline__ void mbarrier_arrive_count_release_cluster(uint32_t mbar,
                                                                      uint32_t count) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(mbar),
               "r"(count)
               : "memory");
}

/// mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [mbar], tx_bytes;      PTX 8.0, sm_90
///
/// Adds `tx_bytes` to the bytes that the phase waits for, then arrives. Asynchronous copies take
/// away the bytes as they complete. Any thread.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t mbar, uint32_t tx_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(mbar),
               "r"(tx_bytes)
               : "memory");
}

/// mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [mbar], parity;      PTX 8.0, sm_90
///
/// True once the phase of this parity has completed; may suspend the thread and may return early
/// with false, so callers loop. Acquires at CTA scope what was released into the phase, and what
/// asynchronous copies wrote before they completed on it. Any thread.
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint32_t mbar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n\t"
      ".reg .pred p;\n\t"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t"
      "}"
      : "=r"(done)
      : "r"(mbar), "r"(parity)
      : "memory");
  return done != 0;
}

/// mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [mbar], parity;      PTX 8.0, sm_90
///
/// As mbarrier_try_wait_parity, acquiring at cluster scope: what other CTAs of the cluster have
/// released into the phase or stored by st.async, too. ptxas invalidates the SM's L1 behind it.
__device__ __forceinline__ bool mbarrier_try_wait_parity_acquire_cluster(uint32_t mbar,
                                                                         uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n\t"
      ".reg .pred p;\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.u32 %0, 1, 0, p;\n\t"
      "}"
      : "=r"(done)
      : "r"(mbar), "r"(parity)
      : "memory");
  return done != 0;
}

}  // namespace pykernels::ptx
