// Small device helpers that every tiled kernel needs.
#pragma once

#include "ptx/warp.cuh"

namespace pykernels {

/// A value that is the same in all lanes of a converged warp, in a form that the compiler can see
/// is uniform: it then stays in uniform registers, which descriptors need.
__device__ __forceinline__ uint32_t uniform(uint32_t value) {
  constexpr uint32_t kWholeWarp = 0x1f;
  return ptx::shfl_sync_idx_b32(value, 0, kWholeWarp);
}

/// Keeps every use of `value` that follows in the program behind this point. The compiler takes an
/// accumulator as written where its WGMMA is issued; what reads it must stay behind the wait.
__device__ __forceinline__ void hold_uses(float& value) {
  asm volatile("" : "+f"(value)::"memory");
}

/// Keeps a value that a loop needs in its register: the compiler would rather compute it anew.
__device__ __forceinline__ void hold_value(uint32_t& value) { asm volatile("" : "+r"(value)); }

/// Where 16-byte unit `unit` of row `row` stands in a tile of 128-byte rows with 128B swizzle (PTX
/// ISA, "swizzling modes"), which starts at a multiple of 1024.
__device__ __forceinline__ constexpr uint32_t swizzled_128b(uint32_t row, uint32_t unit) {
  return row * 128 + (unit ^ row % 8) * 16;
}

}  // namespace pykernels
