// The launch: one CTA per 128x128 block, or one per as many 1x128 blocks as it has groups of
// threads.
#include "quantize/launch.h"

#include <limits>

#include "core/check.h"
#include "core/registry.h"
#include "quantize/input_type.h"

namespace pykernels::quantize {
namespace {

uint64_t row_bytes(const TensorView& tensor) {
  return static_cast<uint64_t>(tensor.strides[0]) * element_bytes(tensor.dtype);
}

QuantizeParams make_params(const QuantizeArguments& arguments) {
  QuantizeParams params;
  params.x = reinterpret_cast<const void*>(arguments.x.address);
  params.q = reinterpret_cast<uint8_t*>(arguments.q.address);
  params.scales = reinterpret_cast<float*>(arguments.scales.address);
  params.x_row_bytes = row_bytes(arguments.x);
  params.q_row_bytes = row_bytes(arguments.q);
  params.scales_row_stride = arguments.scales.strides[0];
  params.scales_column_stride = arguments.scales.strides[1];
  params.m = static_cast<uint32_t>(arguments.x.sizes[0]);
  params.k = static_cast<uint32_t>(arguments.x.sizes[1]);
  params.k_blocks = static_cast<uint32_t>(arguments.scales.sizes[1]);
  params.input_type = input_type(arguments.x.dtype);
  params.scale_format = arguments.scale_format;
  return params;
}

}  // namespace

Launch make_quantize_launch(const QuantizeArguments& arguments) {
  PK_CHECK(arguments.block_m == 1 || arguments.block_m == 128, "block_m must be 1 or 128, got ",
           arguments.block_m);
  const KernelInfo& kernel =
      Registry::instance().get(arguments.block_m == 1 ? "quantize_1x128" : "quantize_128x128");
  const QuantizeConfig config{.block_m = arguments.block_m, .threads = kernel.threads};
  const uint64_t num_blocks = static_cast<uint64_t>(arguments.scales.num_elements());
  // The kernel counts blocks in 32 bits, the ones of the last CTA that do not exist included.
  PK_CHECK(num_blocks <= std::numeric_limits<int32_t>::max(),
           "x must have at most 2147483647 scale factors, got ", num_blocks, "; split the call");

  Launch launch;
  launch.kernel = kernel.name;
  launch.grid.x =
      static_cast<uint32_t>((num_blocks + config.blocks_per_cta() - 1) / config.blocks_per_cta());
  launch.block.x = kernel.threads;
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  launch.arguments = argument_bytes(make_params(arguments));
  launch.memory = {arguments.x.memory_range("x"), arguments.q.memory_range("q"),
                   arguments.scales.memory_range("scales")};
  return launch;
}

}  // namespace pykernels::quantize
