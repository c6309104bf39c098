// From tensors to the launches of the MoE all-to-all.
#pragma once

#include <optional>
#include <vector>

#include "core/device.h"
#include "core/launch.h"
#include "core/scale_format.h"
#include "core/tensor_view.h"
#include "moe/buffer.h"
#include "moe/dispatch_config.h"

namespace pykernels::moe {

/// A rank's buffer: the windows of all ranks, by rank, in its address space; its own state and
/// record. Owns nothing.
struct Buffer {
  BufferSizes sizes;
  WindowLayout layout;
  std::vector<uint64_t> windows;
  uint64_t state = 0;   // BufferState, zero after a reset
  uint64_t record = 0;  // ErrorRecord, in memory that the host reads too
  uint64_t timeout_ns = 0;
  uint32_t rank = 0;

  /// Throws ArgumentError unless there is a window for each rank and all addresses are aligned.
  Buffer(const BufferSizes& sizes, std::vector<uint64_t> windows, uint64_t state, uint64_t record,
         uint64_t timeout_ns, uint32_t rank);
};

struct RoutingArguments {
  TensorView topk_idx;      // [num_tokens, num_topk], int32 or int64, rows contiguous
  TensorView topk_weights;  // [num_tokens, num_topk], FP32, rows contiguous
};

/// Contiguous int32; see Placement.
struct PlacementArguments {
  TensorView position_in_expert;
  TensorView position_in_rank;
  TensorView expert_counts;
  TensorView rank_counts;
};

/// See ReceiveParams. int32 but for x, scales and row_weights; contiguous but for rows of x,
/// scales.
struct ReceiveArguments {
  TensorView x;                      // [capacity, hidden]
  std::optional<TensorView> scales;  // [capacity, num_scales], row stride a multiple of 4
  TensorView groups;                 // [num_local_experts + 1], or [num_local_experts] where masked
  TensorView recv_counts;
  TensorView number;
  TensorView rows;
  TensorView row_weights;
  TensorView row_topk;
  std::optional<TensorView> counters;  // [2, ...], contiguous: ready, and zeros for done
  bool masked = false;
};

struct DispatchArguments {
  TensorView x;                      // [num_tokens, hidden], BF16 or FP8
  std::optional<TensorView> scales;  // [num_tokens, num_scales], FP32, any strides
  RoutingArguments routing;
  PlacementArguments placement;
  ReceiveArguments receive;
  ScaleFormat scale_format = ScaleFormat::kFp32;  // where BF16 becomes FP8
  Phases phases = Phases::kAll;
  int64_t num_sms = 1;
};

struct CombineArguments {
  TensorView y;            // [capacity, hidden] or [num_local_experts, capacity, hidden], BF16
  TensorView recv_counts;  // as dispatch left them
  TensorView number;
  TensorView rows;
  std::optional<TensorView> row_weights;  // none: all 1
  std::optional<TensorView> done;         // int32, contiguous; see RowCounters
  std::optional<TensorView> groups;       // with it: group_offsets or masked_m
  TensorView position_in_rank;
  TensorView send_counts;
  TensorView out;  // [num_tokens, hidden], BF16
  Phases phases = Phases::kAll;
  int64_t num_sms = 1;
};

/// The kernels' names, for loading them ahead of the first wait.
std::vector<std::string> kernel_names();

/// All arguments are checked (pykernels/moe/checks.py).
Launch make_layout_launch(const Buffer& buffer, const RoutingArguments& routing,
                          const PlacementArguments& placement);
/// Takes the place of a call with wrong arguments: tells the peers, who else would wait for it.
Launch make_refusal_launch(const Buffer& buffer);
Launch make_dispatch_launch(const Buffer& buffer, const DispatchArguments& arguments);
Launch make_combine_launch(const Buffer& buffer, const CombineArguments& arguments);

}  // namespace pykernels::moe
