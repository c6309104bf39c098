// From tensors to the launches that write and read the MLA cache.
#pragma once

#include <optional>

#include "core/device.h"
#include "core/launch.h"
#include "core/tensor_view.h"
#include "mla/cache_config.h"

namespace pykernels::mla {

/// The cosines and sines of each token's position.
struct Angles {
  TensorView cos;  // [num_tokens, 32], BF16 or FP32, rows of any multiple of 16 bytes
  TensorView sin;  // the same
  bool interleaved = true;
};

struct MlaCacheWriteArguments {
  TensorView kv_latent;     // [num_tokens, 512], BF16, rows of any multiple of 16 bytes
  TensorView k_rope;        // [num_tokens, 64], BF16, rows of any multiple of 16 bytes
  TensorView kv_cache;      // [num_pages, page_size, 1, 576], BF16; [..., 656], bytes, for FP8
  TensorView slot_mapping;  // [num_tokens], int32 or int64, contiguous
  std::optional<TensorView> norm_weight;  // [512], BF16 or FP32, contiguous
  double norm_eps = 0.0;
  std::optional<Angles> angles;
};

struct MlaCacheReadArguments {
  TensorView kv_cache;      // as above
  TensorView slot_mapping;  // as above
  TensorView kv_latent;     // as above, to write into
  TensorView k_rope;        // as above, to write into
};

/// The arguments are checked (pykernels/mla_cache_checks.py) and there are tokens.
Launch make_mla_cache_write_launch(Device& device, const MlaCacheWriteArguments& arguments);
Launch make_mla_cache_read_launch(Device& device, const MlaCacheReadArguments& arguments);

}  // namespace pykernels::mla
