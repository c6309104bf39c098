// Loads and stores of one thread.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// ld.global.f32 d, [a];      PTX 1.0, sm_10
///
/// A weak load, cached in L1. Any thread. `address`: global memory, aligned to 4 bytes.
__device__ __forceinline__ float ld_global_f32(const float* address) {
  float value;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory");
  return value;
}

/// ld.global.s32 d, [a];      PTX 1.0, sm_10
///
/// A weak load, cached in L1. Any thread. `address`: global memory, aligned to 4 bytes.
__device__ __forceinline__ int32_t ld_global_s32(const int32_t* address) {
  int32_t d;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(d) : "l"(address) : "memory");
  return d;
}

/// ld.acquire.gpu.global.u32 d, [a];      PTX 6.0, sm_70
///
/// Acquires what threads of this GPU released by the value read. Any thread. `address`: global
/// memory, aligned to 4 bytes.
__device__ __forceinline__ uint32_t ld_acquire_gpu_u32(const uint32_t* address) {
  uint32_t d;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(d) : "l"(address) : "memory");
  return d;
}

/// ld.acquire.sys.global.u32 d, [a];      PTX 6.0, sm_70
///
/// As ld_acquire_gpu_u32, also of what other GPUs and the host released.
__device__ __forceinline__ uint32_t ld_acquire_sys_u32(const uint32_t* address) {
  uint32_t d;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(d) : "l"(address) : "memory");
  return d;
}

/// ld.relaxed.gpu.global.u32 d, [a];      PTX 6.0, sm_70
///
/// A value that other threads of this GPU may be writing; orders nothing. Any thread. `address`:
/// global memory, aligned to 4 bytes.
__device__ __forceinline__ uint32_t ld_relaxed_gpu_u32(const uint32_t* address) {
  uint32_t d;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(d) : "l"(address) : "memory");
  return d;
}

/// ld.relaxed.sys.global.u32 d, [a];      PTX 6.0, sm_70
///
/// A value that other threads, GPUs and the host may be writing; orders nothing. Any thread.
/// `address`: global memory, aligned to 4 bytes.
__device__ __forceinline__ uint32_t ld_relaxed_sys_u32(const uint32_t* address) {
  uint32_t d;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(d) : "l"(address) : "memory");
  return d;
}

/// ld.acquire.sys.global.u64 d, [a];      PTX 6.0, sm_70
///
/// As ld_acquire_sys_u32. `address`: aligned to 8 bytes.
__device__ __forceinline__ uint64_t ld_acquire_sys_u64(const uint64_t* address) {
  uint64_t d;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(d) : "l"(address) : "memory");
  return d;
}

/// ld.relaxed.sys.global.u64 d, [a];      PTX 6.0, sm_70
///
/// As ld_relaxed_sys_u32. `address`: aligned to 8 bytes.
__device__ __forceinline__ uint64_t ld_relaxed_sys_u64(const uint64_t* address) {
  uint64_t d;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(d) : "l"(address) : "memory");
  return d;
}

/// st.relaxed.sys.global.u64 [a], b;      PTX 6.0, sm_70
///
/// One store of 8 bytes, whole for every other thread, GPU and the host; orders nothing. Any
/// thread. `address`: global memory or mapped memory of the host, aligned to 8 bytes.
__device__ __forceinline__ void st_relaxed_sys_u64(uint64_t* address, uint64_t b) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(address), "l"(b) : "memory");
}

/// st.release.sys.global.u32 [a], b;      PTX 6.0, sm_70
///
/// Releases what this thread has done or knows of, generic proxy, to whoever acquires the value, on
/// other GPUs and the host too. Any thread. `address`: global memory or mapped memory of the host,
/// aligned to 4 bytes.
__device__ __forceinline__ void st_release_sys_u32(uint32_t* address, uint32_t b) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(b) : "memory");
}

/// st.release.sys.global.u64 [a], b;      PTX 6.0, sm_70
///
/// As st_release_sys_u32. `address`: aligned to 8 bytes.
__device__ __forceinline__ void st_release_sys_u64(uint64_t* address, uint64_t b) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(address), "l"(b) : "memory");
}

/// st.shared::cta.v2.f32 [a], {b0, b1};      PTX 7.8, sm_30
///
/// A weak store, generic proxy. Any thread. `address`: shared window, aligned to 8 bytes.
__device__ __forceinline__ void st_shared_v2_f32(uint32_t address, float b0, float b1) {
  asm volatile("st.shared::cta.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(b0), "f"(b1) : "memory");
}

/// st.shared::cta.f32 [a], b;      PTX 7.8, sm_30
///
/// A weak store, generic proxy. Any thread. `address`: shared window, aligned to 4 bytes.
__device__ __forceinline__ void st_shared_f32(uint32_t address, float b) {
  asm volatile("st.shared::cta.f32 [%0], %1;" ::"r"(address), "f"(b) : "memory");
}

/// ld.shared::cta.v2.f32 {d0, d1}, [a];      PTX 7.8, sm_30
///
/// A weak load, generic proxy. Any thread. `address`: shared window, aligned to 8 bytes.
__device__ __forceinline__ void ld_shared_v2_f32(uint32_t address, float (&d)[2]) {
  asm volatile("ld.shared::cta.v2.f32 {%0, %1}, [%2];"
               : "=f"(d[0]), "=f"(d[1])
               : "r"(address)
               : "memory");
}

/// ld.shared::cta.v4.f32 {d0, d1, d2, d3}, [a];      PTX 7.8, sm_30
///
/// A weak load, generic proxy. Any thread. `address`: shared window, aligned to 16 bytes.
__device__ __forceinline__ void ld_shared_v4_f32(uint32_t address, float (&d)[4]) {
  asm volatile("ld.shared::cta.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(address)
               : "memory");
}

/// ld.shared::cta.v4.b32 {d0, d1, d2, d3}, [a];      PTX 7.8, sm_30
///
/// A weak load, generic proxy. Any thread. `address`: shared window, aligned to 16 bytes.
__device__ __forceinline__ void ld_shared_v4_b32(uint32_t address, uint32_t (&d)[4]) {
  asm volatile("ld.shared::cta.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

/// st.shared::cta.v4.b32 [a], {b0, b1, b2, b3};      PTX 7.8, sm_30
///
/// A weak store, generic proxy. Any thread. `address`: shared window, aligned to 16 bytes.
__device__ __forceinline__ void st_shared_v4_b32(uint32_t address, const uint32_t (&b)[4]) {
  asm volatile("st.shared::cta.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(b[0]), "r"(b[1]),
               "r"(b[2]), "r"(b[3])
               : "memory");
}

/// st.relaxed.sys.global.b128 [a], b;      PTX 8.3, sm_70
///
/// One relaxed store of 16 bytes, whole for every other thread and the host; orders nothing. Any
/// thread. `address`: global memory or mapped memory of the host, aligned to 16 bytes.
__device__ __forceinline__ void st_relaxed_sys_b128(void* address, uint64_t low, uint64_t high) {
  asm volatile(
      "{\n\t"
      ".reg .b128 b;\n\t"
      "mov.b128 b, {%1, %2};\n\t"
      "st.relaxed.sys.global.b128 [%0], b;\n\t"
      "}" ::"l"(address),
      "l"(low), "l"(high)
      : "memory");
}

/// st.global.v4.b32 [a], {b0, b1, b2, b3};      PTX 2.0, sm_20
///
/// A weak store. Any thread. `address`: global memory, aligned to 16 bytes.
__device__ __forceinline__ void st_global_v4_b32(void* address, const uint32_t (&b)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(b[0]), "r"(b[1]),
               "r"(b[2]), "r"(b[3])
               : "memory");
}

/// ld.global.v4.b32 {d0, d1, d2, d3}, [a];      PTX 2.0, sm_20
///
/// Weak load of 16 bytes. Any thread. `address`: global, aligned to 16 bytes.
__device__ __forceinline__ void ld_global_v4_b32(const void* address, uint32_t (&d)[4]) {
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "l"(address)
               : "memory");
}

/// ld.global.nc.L1::no_allocate.L2::256B.v4.s32 {d0, d1, d2, d3}, [a];      PTX 7.4, sm_75
///
/// 16 bytes of memory that nothing writes while the kernel runs, on a way that does not fill L1;
/// L2 fetches 256 bytes. Any thread. `address`: global, aligned to 16 bytes.
__device__ __forceinline__ void ld_global_nc_v4_s32(const void* address, uint32_t (&d)[4]) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.s32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "l"(address)
               : "memory");
}

}  // namespace pykernels::ptx
