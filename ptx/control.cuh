// Control of the kernel as a whole: register reallocation, programmatic dependent launch.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// setmaxnreg.inc.sync.aligned.u32 imm;      PTX 8.0, sm_90a
///
/// Raises the warp's registers to `kRegisters` (24 to 256, a multiple of 8); waits until the CTA
/// has released enough. All warps of a warpgroup, converged.
template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters) : "memory");
}

/// setmaxnreg.dec.sync.aligned.u32 imm;      PTX 8.0, sm_90a
///
/// Releases the warp's registers above `kRegisters`. All warps of a warpgroup, converged.
template <uint32_t kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters) : "memory");
}

/// griddepcontrol.wait;      PTX 7.8, sm_90
///
/// Waits until the grids that this one depends on have completed and their writes are visible.
/// Nothing to wait for unless the launch is programmatic. Any thread.
__device__ __forceinline__ void griddepcontrol_wait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// griddepcontrol.launch_dependents;      PTX 7.8, sm_90
///
/// Lets the grids that depend on this one start once every CTA has executed it or exited. One
/// thread of a CTA is enough; orders nothing.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace pykernels::ptx
