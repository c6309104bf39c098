// From tensors to the launches that merge partial results.
#pragma once

#include "core/device.h"
#include "core/launch.h"
#include "core/tensor_view.h"
#include "mla/combine_config.h"
#include "mla/launch.h"

namespace pykernels::mla {

struct MergeStatesArguments {
  TensorView outs;  // [num_states, batch, seqlen_q, num_heads, head_dim_v], BF16 or FP32
  TensorView lses;  // [num_states, batch, num_heads, seqlen_q], FP32
  TensorView out;   // [batch, seqlen_q, num_heads, head_dim_v], BF16 or FP32
  TensorView lse;   // [batch, num_heads, seqlen_q], FP32
};

/// The arguments are checked (pykernels/merge_states.py) and no size is 0. Throws ArgumentError for
/// more rows than the kernel counts.
Launch make_merge_states_launch(Device& device, const MergeStatesArguments& arguments);

/// Merges what make_mla_decode_launch leaves of split requests; behind that launch. Reads no more
/// of the arguments than the plan, out and lse. Only where the plan has slots: without, no request
/// is ever split.
Launch make_mla_combine_launch(Device& device, const MlaDecodeArguments& arguments);

}  // namespace pykernels::mla
