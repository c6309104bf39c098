// Asynchronous warpgroup matrix multiply-accumulate and its operand descriptors.
//
// The mma_async wrappers are volatile, so that their order stays, but have no "memory" clobber: the
// accumulators are operands, and the shared memory that they read is ordered by the barriers
// around them.
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

/// wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 d, a, b, 0, 1, 1;      PTX 8.0, sm_90a
///
/// d = a * b for a [64, 32] and b [64, 32] of e4m3 in shared memory, given by descriptors. The
/// first of a chain: d is written only (scale-d 0). Asynchronous; d may be used after wait_group.
/// All warps of a warpgroup, converged, after wgmma_fence.
__device__ __forceinline__ void wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_0(float (&d)[32], uint64_t a,
                                                                        uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, 0, 1, 1;"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]),
        "=f"(d[7]), "=f"(d[8]), "=f"(d[9]), "=f"(d[10]), "=f"(d[11]), "=f"(d[12]), "=f"(d[13]),
        "=f"(d[14]), "=f"(d[15]), "=f"(d[16]), "=f"(d[17]), "=f"(d[18]), "=f"(d[19]), "=f"(d[20]),
        "=f"(d[21]), "=f"(d[22]), "=f"(d[23]), "=f"(d[24]), "=f"(d[25]), "=f"(d[26]), "=f"(d[27]),
        "=f"(d[28]), "=f"(d[29]), "=f"(d[30]), "=f"(d[31])
      : "l"(a), "l"(b));
}

/// wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 d, a, b, 1, 1, 1;      PTX 8.0, sm_90a
///
/// d += a * b, else as the scale_d_0 form.
/// All warps of a warpgroup, converged, after wgmma_fence.
__device__ __forceinline__ void wgmma_m64n64k32_f32_e4m3_e4m3_scale_d_1(float (&d)[32], uint64_t a,
                                                                        uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, 1, 1, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b));
}

/// wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 d, a, b, 0, 1, 1;      PTX 8.0, sm_90a
///
/// d = a * b for a [64, 32] and b [128, 32] of e4m3 in shared memory, given by descriptors. The
/// first of a chain: d is written only (scale-d 0). Asynchronous; d may be used after wait_group.
/// All warps of a warpgroup, converged, after wgmma_fence.
__device__ __forceinline__ void wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_0(float (&d)[64], uint64_t a,
                                                                         uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 0, 1, 1;"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]),
        "=f"(d[7]), "=f"(d[8]), "=f"(d[9]), "=f"(d[10]), "=f"(d[11]), "=f"(d[12]), "=f"(d[13]),
        "=f"(d[14]), "=f"(d[15]), "=f"(d[16]), "=f"(d[17]), "=f"(d[18]), "=f"(d[19]), "=f"(d[20]),
        "=f"(d[21]), "=f"(d[22]), "=f"(d[23]), "=f"(d[24]), "=f"(d[25]), "=f"(d[26]), "=f"(d[27]),
        "=f"(d[28]), "=f"(d[29]), "=f"(d[30]), "=f"(d[31]), "=f"(d[32]), "=f"(d[33]), "=f"(d[34]),
        "=f"(d[35]), "=f"(d[36]), "=f"(d[37]), "=f"(d[38]), "=f"(d[39]), "=f"(d[40]), "=f"(d[41]),
        "=f"(d[42]), "=f"(d[43]), "=f"(d[44]), "=f"(d[45]), "=f"(d[46]), "=f"(d[47]), "=f"(d[48]),
        "=f"(d[49]), "=f"(d[50]), "=f"(d[51]), "=f"(d[52]), "=f"(d[53]), "=f"(d[54]), "=f"(d[55]),
        "=f"(d[56]), "=f"(d[57]), "=f"(d[58]), "=f"(d[59]), "=f"(d[60]), "=f"(d[61]), "=f"(d[62]),
        "=f"(d[63])
      : "l"(a), "l"(b));
}

/// wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 d, a, b, 1, 1, 1;      PTX 8.0, sm_90a
///
/// d += a * b, else as the scale_d_0 form.
/// All warps of a warpgroup, converged, after wgmma_fence.
__device__ __forceinline__ void wgmma_m64n128k32_f32_e4m3_e4m3_scale_d_1(float (&d)[64], uint64_t a,
                                                                         uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b));
}

}  // namespace pykernels::ptx
