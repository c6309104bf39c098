// Which kernel a launch takes: the cost model on the device of the call, remembered.
#pragma once

#include <optional>
#include <string>

#include "core/device.h"
#include "gemm/cost.h"
#include "gemm/gpu_model.h"

namespace pykernels::gemm {

/// The constants for a device: by its name, else those of the GPU with the nearest number of SMs,
/// of which take_gpu_warning then tells; with the device's own number of SMs, and on a GPU with
/// what the driver says of its clusters. Made at the first call for a GPU and kept; from any
/// thread.
const GpuModel& gpu_model_of(Device& device);

/// Whether there is something to warn of, at the cost of one load; and that: each unknown GPU once
/// in the process.
bool has_gpu_warning();
std::optional<std::string> take_gpu_warning();

/// choose_config for the device and the registered kernels; `num_sms` of the problem: 0 for all.
/// Each thread remembers what it chose last.
GemmCandidate choose_kernel(Device& device, GemmProblem problem);

}  // namespace pykernels::gemm
