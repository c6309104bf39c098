// The input type of a quantise kernel, from a tensor's type.
#pragma once

#include "core/check.h"
#include "core/tensor_view.h"
#include "quantize/config.h"

namespace pykernels::quantize {

inline InputType input_type(DataType dtype) {
  switch (dtype) {
    case DataType::kBfloat16:
      return InputType::kBfloat16;
    case DataType::kFloat16:
      return InputType::kFloat16;
    case DataType::kFloat32:
      return InputType::kFloat32;
    default:
      throw ArgumentError(
          concat("x must be bfloat16, float16 or float32, got ", data_type_name(dtype)));
  }
}

}  // namespace pykernels::quantize
