// Warp-wide moves of 8x8 matrices of 16-bit elements between registers and shared memory.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [a], {r0, r1, r2, r3};      PTX 7.8, sm_90
///
/// Stores four 8x8 matrices; lanes 8i to 8i+7 give in `address` the 16-byte rows of matrix i. Lane
/// l holds in each register elements 2(l%4) and 2(l%4)+1 of row l/4. Generic proxy. A converged
/// warp. `address`: shared window, aligned to 16 bytes.
__device__ __forceinline__ void stmatrix_m8n8_x4_b16(uint32_t address, uint32_t r0, uint32_t r1,
                                                     uint32_t r2, uint32_t r3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(r0), "r"(r1), "r"(r2), "r"(r3)
      : "memory");
}

/// stmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 [a], {r0, r1};      PTX 7.8, sm_90
///
/// Stores two transposed 8x8 matrices; lanes 8i to 8i+7 give in `address` the 16-byte rows of the
/// transposed matrix i, those of the other lanes are ignored. Lane l holds in each register
/// elements 2(l%4) and 2(l%4)+1 of row l/4 before the transposition. Generic proxy. A converged
/// warp. `address`: shared window, aligned to 16 bytes.
__device__ __forceinline__ void stmatrix_m8n8_x2_trans_b16(uint32_t address, uint32_t r0,
                                                           uint32_t r1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 [%0], {%1, %2};" ::"r"(address),
               "r"(r0), "r"(r1)
               : "memory");
}

}  // namespace pykernels::ptx
