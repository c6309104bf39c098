// From tensors to the launch of a quantise kernel.
#pragma once

#include <cstdint>

#include "core/launch.h"
#include "core/tensor_view.h"
#include "quantize/config.h"

namespace pykernels::quantize {

struct QuantizeArguments {
  TensorView x;       // [m, k], BF16, FP16 or FP32
  TensorView q;       // [m, k], e4m3
  TensorView scales;  // [ceil(m / block_m), ceil(k / 128)], FP32
  uint32_t block_m = 1;
  ScaleFormat scale_format = ScaleFormat::kFp32;
};

/// The arguments are checked (pykernels/checks.py) and m and k are not 0. Throws ArgumentError for
/// a block_m that no kernel has, or more blocks than a grid takes.
Launch make_quantize_launch(const QuantizeArguments& arguments);

}  // namespace pykernels::quantize
