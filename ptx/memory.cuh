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

/// st.shared::cta.v2.f32 [a], {b0, b1};      PTX 7.8, sm_30
///
/// A weak store, generic proxy. Any thread. `address`: shared window, aligned to 8 bytes.
__device__ __forceinline__ void st_shared_v2_f32(uint32_t address, float b0, float b1) {
  asm volatile("st.shared::cta.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(b0), "f"(b1) : "memory");
}

}  // namespace pykernels::ptx
