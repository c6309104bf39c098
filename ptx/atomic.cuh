// Reductions in global memory, and accesses to the shared memory of other CTAs that signal a
// barrier there.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// red.release.gpu.global.add.u32 [a], b;      PTX 6.0, sm_70
///
/// Adds to a counter and releases what this thread has done or knows of, generic proxy, to those of
/// this GPU that acquire the counter. Any thread. `address`: global memory, aligned to 4 bytes.
__device__ __forceinline__ void red_release_gpu_add_u32(uint32_t* address, uint32_t b) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(address), "r"(b) : "memory");
}

/// red.release.sys.global.add.u32 [a], b;      PTX 6.0, sm_70
///
/// As red_release_gpu_add_u32, to those of other GPUs and the host as well.
__device__ __forceinline__ void red_release_sys_add_u32(uint32_t* address, uint32_t b) {
  asm volatile("red.release.sys.global.add.u32 [%0], %1;" ::"l"(address), "r"(b) : "memory");
}

/// red.relaxed.gpu.global.add.u64 [a], b;      PTX 6.0, sm_70
///
/// Adds to a counter; orders nothing. Any thread. `address`: global memory, aligned to 8 bytes.
__device__ __forceinline__ void red_relaxed_gpu_add_u64(uint64_t* address, uint64_t b) {
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(address), "l"(b) : "memory");
}

/// atom.acq_rel.gpu.global.add.u32 d, [a], b;      PTX 6.0, sm_70
///
/// Adds to a counter and returns what it was. Releases what this thread has done or knows of to
/// those of this GPU that acquire the counter later, and acquires what they released before. Any
/// thread. `address`: global memory, aligned to 4 bytes.
__device__ __forceinline__ uint32_t atom_acq_rel_gpu_add_u32(uint32_t* address, uint32_t b) {
  uint32_t d;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(d)
               : "l"(address), "r"(b)
               : "memory");
  return d;
}

/// atom.relaxed.gpu.global.max.u32 d, [a], b;      PTX 6.0, sm_70
///
/// Raises a word to at least `b` and returns what it was; orders nothing. Any thread. `address`:
/// global memory, aligned to 4 bytes.
__device__ __forceinline__ uint32_t atom_relaxed_gpu_max_u32(uint32_t* address, uint32_t b) {
  uint32_t d;
  asm volatile("atom.relaxed.gpu.global.max.u32 %0, [%1], %2;"
               : "=r"(d)
               : "l"(address), "r"(b)
               : "memory");
  return d;
}

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
