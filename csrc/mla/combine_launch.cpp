// The launches: a warp for each slice of a row.
#include "mla/combine_launch.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/math.h"
#include "core/registry.h"

namespace pykernels::mla {
namespace {

/// Bytes along three dimensions of a tensor.
RowStrides row_strides(const TensorView& tensor, int batch, int token, int head) {
  const int64_t bytes = element_bytes(tensor.dtype);
  return {static_cast<uint64_t>(tensor.strides[batch] * bytes),
          static_cast<uint64_t>(tensor.strides[token] * bytes),
          static_cast<uint64_t>(tensor.strides[head] * bytes)};
}

/// `out` is [batch, seqlen_q, num_heads, columns], `lse` [batch, num_heads, seqlen_q].
void set_result(CombineParams& params, const TensorView& out, const TensorView& lse) {
  const int64_t num_columns = out.sizes[3];
  const int64_t slices = ceil_div(num_columns, slice_columns(params.input_bytes));
  const int64_t num_rows = out.sizes[0] * out.sizes[1] * out.sizes[2];
  constexpr int64_t kMaxUnits = std::numeric_limits<int32_t>::max();
  PK_CHECK(num_rows <= kMaxUnits / slices, "out must have at most ", kMaxUnits / slices,
           " rows of ", num_columns, " columns, got ", num_rows, "; split the call");
  params.out = reinterpret_cast<uint8_t*>(out.address);
  params.lse = reinterpret_cast<uint8_t*>(lse.address);
  params.out_strides = row_strides(out, 0, 1, 2);
  params.lse_strides = row_strides(lse, 0, 2, 1);
  params.num_units = static_cast<uint32_t>(num_rows * slices);
  params.num_columns = static_cast<uint32_t>(num_columns);
  params.slices = FastDivisor(static_cast<uint32_t>(slices));
  params.seqlen_q = FastDivisor(static_cast<uint32_t>(out.sizes[1]));
  params.num_heads = FastDivisor(static_cast<uint32_t>(out.sizes[2]));
  params.output_bytes = element_bytes(out.dtype);
}

Launch make_launch(Device& device, const CombineParams& params) {
  const KernelInfo& kernel = Registry::instance().get("mla_combine");
  const int64_t num_resident = device.max_active_clusters(kernel, {1, 1, 1});
  PK_CHECK(num_resident > 0, "the device cannot run kernel ", kernel.name);
  const CombineConfig config{.threads = kernel.threads};
  Launch launch;
  launch.kernel = kernel.name;
  const int64_t num_ctas = ceil_div(params.num_units, config.num_warps());
  // What the device holds at a time: rows of requests that are not split cost a look each, no CTA.
  launch.grid.x = static_cast<uint32_t>(std::min(num_ctas, num_resident));
  launch.block.x = kernel.threads;
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  launch.arguments = argument_bytes(params);
  return launch;
}

}  // namespace

Launch make_merge_states_launch(Device& device, const MergeStatesArguments& arguments) {
  const TensorView& outs = arguments.outs;
  const TensorView& lses = arguments.lses;
  CombineParams params;
  params.outs = reinterpret_cast<const uint8_t*>(outs.address);
  params.lses = reinterpret_cast<const uint8_t*>(lses.address);
  params.outs_strides = row_strides(outs, 1, 2, 3);
  params.lses_strides = row_strides(lses, 1, 3, 2);
  params.outs_state_stride = static_cast<uint64_t>(outs.strides[0]) * element_bytes(outs.dtype);
  params.lses_state_stride = static_cast<uint64_t>(lses.strides[0]) * sizeof(float);
  params.num_states = static_cast<uint32_t>(outs.sizes[0]);
  params.input_bytes = element_bytes(outs.dtype);
  set_result(params, arguments.out, arguments.lse);
  Launch launch = make_launch(device, params);
  launch.memory = {outs.memory_range("outs"), lses.memory_range("lses"),
                   arguments.out.memory_range("out"), arguments.lse.memory_range("lse")};
  return launch;
}

Launch make_mla_combine_launch(Device& device, const MlaDecodeArguments& arguments) {
  const PlanTensors& plan = arguments.plan;
  const uint64_t num_heads = static_cast<uint64_t>(arguments.out.sizes[2]);
  const uint64_t num_rows = static_cast<uint64_t>(arguments.out.sizes[1]) * num_heads;
  CombineParams params;
  params.requests = reinterpret_cast<const PlannedRequest*>(plan.requests.address);
  params.outs = reinterpret_cast<const uint8_t*>(plan.partial_out.address);
  params.lses = reinterpret_cast<const uint8_t*>(plan.partial_lse.address);
  constexpr uint64_t kRowBytes = kHeadDimV * sizeof(float);
  params.outs_strides = {.batch = 0, .token = num_heads * kRowBytes, .head = kRowBytes};
  params.lses_strides = {.batch = 0, .token = num_heads * sizeof(float), .head = sizeof(float)};
  params.outs_state_stride = num_rows * kRowBytes;
  params.lses_state_stride = num_rows * sizeof(float);
  set_result(params, arguments.out, arguments.lse);
  Launch launch = make_launch(device, params);
  launch.memory = {plan.requests.memory_range("plan.requests"),
                   plan.partial_out.memory_range("plan.partial_out"),
                   plan.partial_lse.memory_range("plan.partial_lse"),
                   arguments.out.memory_range("out"), arguments.lse.memory_range("lse")};
  return launch;
}

}  // namespace pykernels::mla
