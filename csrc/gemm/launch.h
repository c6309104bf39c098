// From tensors to the launch of an FP8 GEMM: which kernel, with what grid, maps and parameters.
#pragma once

#include <cstdint>
#include <optional>

#include "core/device.h"
#include "core/launch.h"
#include "core/registry.h"
#include "core/tensor_view.h"
#include "gemm/config.h"

namespace pykernels::gemm {

struct GemmArguments {
  TensorView a;    // [m, k] e4m3
  TensorView sfa;  // [m, ceil(k / 128)] FP32
  TensorView b;    // [n, k] e4m3
  TensorView sfb;  // [ceil(n / 128), ceil(k / 128)] FP32
  TensorView d;    // [m, n] BF16 or FP32
  std::optional<int64_t> num_sms;
  bool batch_invariant = false;
};

/// The launch of the chosen kernel of family fp8_gemm_nt. The arguments have been checked
/// (pykernels/checks.py) and m and n are not 0; what would let the kernel touch foreign memory is
/// checked again and throws ArgumentError.
Launch make_fp8_gemm_nt_launch(Device& device, const GemmArguments& arguments);

/// The same with the kernel and its schedule given, as tests and benches need.
Launch make_fp8_gemm_nt_launch(Device& device, const GemmArguments& arguments,
                               const KernelInfo& kernel, const GemmSchedule& schedule);

}  // namespace pykernels::gemm
