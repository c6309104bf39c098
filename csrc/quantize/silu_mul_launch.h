// From tensors to the launch of the fused SwiGLU cast.
#pragma once

#include "core/device.h"
#include "core/launch.h"
#include "core/tensor_view.h"
#include "quantize/silu_mul_config.h"

namespace pykernels::quantize {

struct SiluMulQuantizeArguments {
  TensorView x;       // [t, 2 * i], BF16, FP16 or FP32; with kMasked [num_groups, max_m, 2 * i]
  TensorView q;       // [t, i] or [num_groups, max_m, i], e4m3
  TensorView scales;  // [t, ceil(i / 128)] or [num_groups, max_m, ceil(i / 128)], FP32
  ScaleFormat scale_format = ScaleFormat::kFp32;
  GroupSource source = GroupSource::kNone;
  TensorView groups;  // int32: group_offsets [num_groups + 1], m_indices [t], masked_m [num_groups]
};

/// The arguments are checked (pykernels/checks.py) and no size is 0. Throws ArgumentError for more
/// scale factors than the kernel counts.
Launch make_silu_mul_quantize_launch(Device& device, const SiluMulQuantizeArguments& arguments);

}  // namespace pykernels::quantize
