// How kernels leave a DeviceError.
#pragma once

#include "core/device_error.h"
#include "ptx/memory.cuh"

namespace pykernels {

/// Writes the device's record. One thread.
__device__ __forceinline__ void write_error(DeviceError* errors, const DeviceError& error) {
  const uint64_t index = error.index;
  const uint64_t limit = static_cast<uint32_t>(error.limit);
  ptx::st_relaxed_sys_b128(errors, static_cast<uint64_t>(error.kind) | index << 32,
                           static_cast<uint32_t>(error.value) | limit << 32);
}

}  // namespace pykernels
