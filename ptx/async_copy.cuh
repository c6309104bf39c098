// Copies of 16 bytes a thread from global to shared memory that the thread does not wait for.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// cp.async.cg.shared.global.L2::256B [dst], [src], 16, src_bytes;      PTX 7.4, sm_80
///
/// Copies the first `src_bytes` (0 to 16) bytes and fills the rest of the 16 with zeros; with 0
/// nothing is read. Passes by L1. Asynchronous, generic proxy. Any thread. `dst`: shared window;
/// `src`: global; both multiples of 16.
__device__ __forceinline__ void cp_async_cg_16(uint32_t dst, const void* src, uint32_t src_bytes) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src),
               "r"(src_bytes)
               : "memory");
}

/// cp.async.wait_all;      PTX 7.0, sm_80
///
/// Waits until all cp.async that this thread has issued are complete; their writes are visible to
/// it. Any thread.
__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// cp.async.mbarrier.arrive.noinc.shared::cta.b64 [mbar];      PTX 7.8, sm_80
///
/// Arrives on `mbar`, as one of the arrivals that it was initialised for, once all cp.async that
/// this thread has issued before are complete. Whoever then passes `mbar` sees what they wrote;
/// WGMMA and TMA do behind a proxy fence. Any thread. `mbar`: shared window.
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(uint32_t mbar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mbar) : "memory");
}

}  // namespace pykernels::ptx
