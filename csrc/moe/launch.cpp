// The launches: layout on one CTA, the others on as many as the caller gives them.
#include "moe/launch.h"

#include <array>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/registry.h"
#include "moe/combine_config.h"
#include "moe/layout_config.h"

namespace pykernels::moe {
namespace {

constexpr uint64_t kWindowAlignment = 128;

/// "window of rank 0" and so on: MemoryRange keeps the pointer.
const char* window_name(size_t rank) {
  static const auto names = [] {
    std::array<std::string, kMaxRanks> result;
    for (size_t r = 0; r < kMaxRanks; ++r) result[r] = concat("window of rank ", r);
    return result;
  }();
  return names[rank].c_str();
}

template <typename Value>
Value* pointer(const TensorView& tensor) {
  return reinterpret_cast<Value*>(tensor.address);
}

template <typename Value>
Value* pointer(const std::optional<TensorView>& tensor) {
  return tensor ? pointer<Value>(*tensor) : nullptr;
}

uint64_t row_bytes(const TensorView& tensor) {
  return static_cast<uint64_t>(tensor.strides[0]) * element_bytes(tensor.dtype);
}

BufferParams buffer_params(const Buffer& buffer) {
  BufferParams params;
  for (size_t r = 0; r < buffer.windows.size(); ++r) {
    params.windows[r] = reinterpret_cast<uint8_t*>(buffer.windows[r]);
  }
  params.state = reinterpret_cast<BufferState*>(buffer.state);
  params.record = reinterpret_cast<ErrorRecord*>(buffer.record);
  params.timeout_ns = buffer.timeout_ns;
  params.layout = buffer.layout;
  params.rank = buffer.rank;
  params.num_ranks = static_cast<uint32_t>(buffer.sizes.num_ranks);
  params.num_local_experts = static_cast<uint32_t>(buffer.sizes.num_local_experts());
  params.num_topk = static_cast<uint32_t>(buffer.sizes.num_topk);
  return params;
}

Routing routing_of(const RoutingArguments& arguments) {
  Routing routing;
  routing.topk_idx = pointer<const void>(arguments.topk_idx);
  routing.topk_weights = pointer<const float>(arguments.topk_weights);
  routing.idx_row_stride = arguments.topk_idx.strides[0];
  routing.weights_row_stride = arguments.topk_weights.strides[0];
  routing.num_tokens = static_cast<uint32_t>(arguments.topk_idx.sizes[0]);
  routing.is_int64 = arguments.topk_idx.dtype == DataType::kInt64;
  return routing;
}

Placement placement_of(const PlacementArguments& arguments) {
  return {pointer<int32_t>(arguments.position_in_expert),
          pointer<int32_t>(arguments.position_in_rank), pointer<int32_t>(arguments.expert_counts),
          pointer<int32_t>(arguments.rank_counts)};
}

/// `per_expert`: whether each expert has counters of its own.
RowCounters counters_of(const Buffer& buffer, const std::optional<TensorView>& counters,
                        bool per_expert) {
  RowCounters result;
  if (!counters) return result;
  result.counters = pointer<uint32_t>(counters);
  result.num_counters = static_cast<uint32_t>(counters->num_elements());
  if (per_expert) {
    result.per_expert =
        result.num_counters / static_cast<uint32_t>(buffer.sizes.num_local_experts());
  }
  return result;
}

ReceiveParams receive_of(const Buffer& buffer, const ReceiveArguments& arguments) {
  ReceiveParams params;
  params.x = pointer<uint8_t>(arguments.x);
  params.x_row_bytes = row_bytes(arguments.x);
  params.scales = pointer<float>(arguments.scales);
  params.scales_row_bytes = arguments.scales ? row_bytes(*arguments.scales) : 0;
  params.groups = pointer<int32_t>(arguments.groups);
  params.recv_counts = pointer<int32_t>(arguments.recv_counts);
  params.number = pointer<int32_t>(arguments.number);
  params.rows = pointer<int32_t>(arguments.rows);
  params.row_weights = pointer<float>(arguments.row_weights);
  params.row_topk = pointer<int32_t>(arguments.row_topk);
  params.capacity = static_cast<uint32_t>(arguments.x.sizes[0]);
  if (arguments.counters) {
    params.ready = counters_of(buffer, arguments.counters, arguments.masked);
    params.ready.num_counters /= 2;
    params.ready.per_expert /= 2;
  }
  if (arguments.masked) {
    params.rows_per_expert =
        static_cast<uint32_t>(arguments.x.sizes[0] / buffer.sizes.num_local_experts());
  }
  return params;
}

/// All but the arguments and the memory of tensors.
Launch launch_of(const Buffer& buffer, const char* name, int64_t num_ctas) {
  const KernelInfo& kernel = Registry::instance().get(name);
  Launch launch;
  launch.kernel = kernel.name;
  launch.grid.x = static_cast<uint32_t>(num_ctas);
  launch.block.x = kernel.threads;
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  launch.rank = buffer.rank;
  launch.memory = {{buffer.state, sizeof(BufferState), "state of the buffer"},
                   {buffer.record, sizeof(ErrorRecord), "error record of the buffer"}};
  return launch;
}

void add_windows(Launch& launch, const Buffer& buffer) {
  for (size_t r = 0; r < buffer.windows.size(); ++r) {
    launch.memory.push_back({buffer.windows[r], buffer.layout.bytes, window_name(r)});
  }
}

/// A launch whose kernel waits for the peers' kernels of the same call.
Launch meeting_launch_of(const Buffer& buffer, const char* name, int64_t num_ctas) {
  Launch launch = launch_of(buffer, name, num_ctas);
  launch.awaits_others = true;
  add_windows(launch, buffer);
  return launch;
}

void add_memory(Launch& launch, const TensorView& tensor, const char* name) {
  if (tensor.num_elements() > 0) launch.memory.push_back(tensor.memory_range(name));
}
void add_memory(Launch& launch, const std::optional<TensorView>& tensor, const char* name) {
  if (tensor) add_memory(launch, *tensor, name);
}

void add_memory(Launch& launch, const RoutingArguments& routing,
                const PlacementArguments& placement) {
  add_memory(launch, routing.topk_idx, "topk_idx");
  add_memory(launch, routing.topk_weights, "topk_weights");
  add_memory(launch, placement.position_in_expert, "position_in_expert");
  add_memory(launch, placement.position_in_rank, "position_in_rank");
  add_memory(launch, placement.expert_counts, "expert_counts");
  add_memory(launch, placement.rank_counts, "rank_counts");
}

/// y is [capacity, hidden], or [num_local_experts, rows of each, hidden].
void set_rows(CombineParams& params, const TensorView& y) {
  const int dimension = y.rank - 2;  // of the rows
  const auto bytes = static_cast<int64_t>(element_bytes(y.dtype));
  params.y_row_bytes = static_cast<uint64_t>(y.strides[dimension] * bytes);
  params.y_expert_rows = FastDivisor(1u << 31);
  if (y.rank == 2) return;
  params.y_expert_bytes = static_cast<uint64_t>(y.strides[0] * bytes);
  params.y_expert_rows = FastDivisor(static_cast<uint32_t>(y.sizes[1]));
}

FastDivisor divisor(int64_t by) { return FastDivisor(static_cast<uint32_t>(by)); }

}  // namespace

Buffer::Buffer(const BufferSizes& buffer_sizes, std::vector<uint64_t> window_addresses,
               uint64_t state_address, uint64_t record_address, uint64_t timeout, uint32_t own_rank)
    : sizes(buffer_sizes),
      layout(window_layout(buffer_sizes)),
      windows(std::move(window_addresses)),
      state(state_address),
      record(record_address),
      timeout_ns(timeout),
      rank(own_rank) {
  PK_CHECK(windows.size() == static_cast<size_t>(sizes.num_ranks),
           "there must be a window for each of the ", sizes.num_ranks, " ranks, got ",
           windows.size());
  PK_CHECK(rank < windows.size(), "rank must be below ", windows.size(), ", got ", rank);
  for (const uint64_t window : windows) {
    PK_CHECK(window % kWindowAlignment == 0, "windows must be aligned to ", kWindowAlignment,
             " bytes, got address ", window);
  }
  PK_CHECK(state % alignof(BufferState) == 0 && record % alignof(ErrorRecord) == 0,
           "state and record must be aligned to 8 bytes");
}

std::vector<std::string> kernel_names() {
  return {"moe_layout", "moe_dispatch", "moe_dispatch_quantise", "moe_combine"};
}

Launch make_layout_launch(const Buffer& buffer, const RoutingArguments& routing,
                          const PlacementArguments& placement) {
  LayoutParams params;
  params.routing = routing_of(routing);
  params.placement = placement_of(placement);
  params.buffer = buffer_params(buffer);
  params.num_experts = static_cast<uint32_t>(buffer.sizes.num_experts);
  params.topk_divisor = divisor(buffer.sizes.num_topk);
  params.expert_divisor = divisor(buffer.sizes.num_local_experts());
  Launch launch = launch_of(buffer, "moe_layout", 1);
  launch.arguments = argument_bytes(params);
  add_windows(launch, buffer);  // an error is told to the peers
  add_memory(launch, routing, placement);
  return launch;
}

Launch make_refusal_launch(const Buffer& buffer) {
  LayoutParams params;
  params.buffer = buffer_params(buffer);
  params.refuses = true;
  Launch launch = launch_of(buffer, "moe_layout", 1);
  launch.arguments = argument_bytes(params);
  add_windows(launch, buffer);
  return launch;
}

Launch make_dispatch_launch(const Buffer& buffer, const DispatchArguments& arguments) {
  const bool fp8 = arguments.receive.x.dtype == DataType::kFloat8E4m3;
  const bool quantise = fp8 && arguments.x.dtype == DataType::kBfloat16;
  const int64_t hidden = arguments.x.sizes[1];
  DispatchParams params;
  params.buffer = buffer_params(buffer);
  params.send.routing = routing_of(arguments.routing);
  params.send.placement = placement_of(arguments.placement);
  params.send.x = pointer<const uint8_t>(arguments.x);
  params.send.x_row_bytes = row_bytes(arguments.x);
  if (arguments.scales) {
    params.send.scales = pointer<const float>(arguments.scales);
    params.send.scales_row_stride = arguments.scales->strides[0];
    params.send.scales_column_stride = arguments.scales->strides[1];
  }
  params.send.scale_format = arguments.scale_format;
  params.receive = receive_of(buffer, arguments.receive);
  params.payload_bytes = static_cast<uint32_t>(fp8 ? hidden : 2 * hidden);
  params.num_scales = fp8 ? static_cast<uint32_t>(ceil_div(hidden, kBlockK)) : 0;
  params.signature = signature(Call::kDispatch, params.payload_bytes, fp8);
  params.phases = arguments.phases;
  params.rank_divisor = divisor(buffer.sizes.num_ranks);
  params.expert_divisor = divisor(buffer.sizes.num_local_experts());

  Launch launch = meeting_launch_of(buffer, quantise ? "moe_dispatch_quantise" : "moe_dispatch",
                                    arguments.num_sms);
  launch.arguments = argument_bytes(params);
  add_memory(launch, arguments.x, "x");
  add_memory(launch, arguments.scales, "scales");
  add_memory(launch, arguments.routing, arguments.placement);
  add_memory(launch, arguments.receive.x, "recv_x");
  if (const auto& scales = arguments.receive.scales; scales && scales->num_elements() > 0) {
    // The last row's padding, too.
    launch.memory.push_back({scales->address,
                             static_cast<uint64_t>(scales->sizes[0]) * row_bytes(*scales),
                             "scales of recv_x"});
  }
  add_memory(launch, arguments.receive.groups,
             arguments.receive.masked ? "masked_m" : "group_offsets");
  add_memory(launch, arguments.receive.recv_counts, "recv_counts");
  add_memory(launch, arguments.receive.number, "number");
  add_memory(launch, arguments.receive.rows, "rows");
  add_memory(launch, arguments.receive.row_weights, "row_weights");
  add_memory(launch, arguments.receive.row_topk, "row_topk");
  add_memory(launch, arguments.receive.counters, "counters");
  return launch;
}

Launch make_combine_launch(const Buffer& buffer, const CombineArguments& arguments) {
  CombineParams params;
  params.buffer = buffer_params(buffer);
  params.y = pointer<const uint8_t>(arguments.y);
  set_rows(params, arguments.y);
  params.recv_counts = pointer<const int32_t>(arguments.recv_counts);
  params.number = pointer<const int32_t>(arguments.number);
  params.rows = pointer<const int32_t>(arguments.rows);
  params.row_weights = pointer<const float>(arguments.row_weights);
  params.done = counters_of(buffer, arguments.done, arguments.y.rank == 3);
  params.group_rows = pointer<const int32_t>(arguments.groups);
  if (arguments.groups && arguments.y.rank == 2) {
    params.group_rows += buffer.sizes.num_local_experts();  // the last offset
  }
  params.out = pointer<uint8_t>(arguments.out);
  params.out_row_bytes = row_bytes(arguments.out);
  params.position_in_rank = pointer<const int32_t>(arguments.position_in_rank);
  params.send_counts = pointer<const int32_t>(arguments.send_counts);
  params.num_tokens = static_cast<uint32_t>(arguments.out.sizes[0]);
  params.payload_bytes = static_cast<uint32_t>(2 * arguments.out.sizes[1]);
  params.signature = signature(Call::kCombine, params.payload_bytes, false);
  params.phases = arguments.phases;
  params.rank_divisor = divisor(buffer.sizes.num_ranks);

  Launch launch = meeting_launch_of(buffer, "moe_combine", arguments.num_sms);
  launch.arguments = argument_bytes(params);
  add_memory(launch, arguments.y, "y");
  add_memory(launch, arguments.recv_counts, "recv_counts");
  add_memory(launch, arguments.number, "number");
  add_memory(launch, arguments.rows, "rows");
  add_memory(launch, arguments.row_weights, "row_weights");
  add_memory(launch, arguments.done, "done");
  add_memory(launch, arguments.groups, arguments.y.rank == 3 ? "masked_m" : "group_offsets");
  add_memory(launch, arguments.position_in_rank, "position_in_rank");
  add_memory(launch, arguments.send_counts, "send_counts");
  add_memory(launch, arguments.out, "out");
  return launch;
}

}  // namespace pykernels::moe
