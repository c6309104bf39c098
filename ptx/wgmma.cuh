// Asynchronous warpgroup matrix multiply-accumulate: order, groups and operand descriptors. The
// instructions themselves stand in wgmma_e4m3.cuh and wgmma_bf16.cuh.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// wgmma.fence.sync.aligned;      PTX 8.0, sm_90a
///
/// Orders the warpgroup's earlier register accesses before those of the following mma_async. All
/// warps of the warpgroup, converged; before the first mma_async and after touching accumulators.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// wgmma.commit_group.sync.aligned;      PTX 8.0, sm_90a
///
/// Closes the group of the mma_async issued since the last commit. All warps, converged.
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// wgmma.wait_group.sync.aligned N;      PTX 8.0, sm_90a
///
/// Waits until at most `kPending` of the latest groups are incomplete: the accumulators of the
/// others may be read, their shared operands overwritten (this warp's share of the work: other
/// warps wait for themselves). All warps, converged.
template <uint32_t kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Constant part of the descriptor of a K-major operand in 128B-swizzled rows of 128 bytes, base
/// aligned to 1024 (PTX ISA, "matrix descriptor format"): bits 63:62 = 1, 128-byte swizzle; bits
/// 45:32 = 64, stride between groups of 8 rows, 1024 bytes in units of 16. The base offset is 0;
/// the leading dimension offset, bits 29:16, is not used by swizzled K-major layouts.
inline constexpr uint64_t kDescriptorKMajor128B = (uint64_t{1} << 62) | (uint64_t{64} << 32);

/// The descriptor of the K-major, 128B-swizzled operand at `address` of the shared window, which
/// stands in bits 13:0 in units of 16 bytes: adding 2 steps 32 bytes along k.
__device__ __forceinline__ uint64_t descriptor_k_major_128b(uint32_t address) {
  return kDescriptorKMajor128B | ((address & 0x3ffff) >> 4);
}

/// Constant part of the descriptor of a 16-bit operand whose M or N is contiguous, in 128B-swizzled
/// rows of 64 elements, one row for each k: as above, the stride between groups of 8 rows (of k)
/// in bits 45:32. `kColumnBytes`, in bits 29:16: from 64 columns of M or N to the next 64.
template <uint32_t kColumnBytes>
inline constexpr uint64_t kDescriptorMnMajor128B =
    kDescriptorKMajor128B | (uint64_t{kColumnBytes / 16} << 16);

/// The descriptor of such an operand at `address` of the shared window: adding 8 steps one k.
template <uint32_t kColumnBytes>
__device__ __forceinline__ uint64_t descriptor_mn_major_128b(uint32_t address) {
  return kDescriptorMnMajor128B<kColumnBytes> | ((address & 0x3ffff) >> 4);
}

}  // namespace pykernels::ptx
