// From tensors to the launches of MLA decode.
#pragma once

#include <optional>
#include <string>

#include "core/device.h"
#include "core/launch.h"
#include "core/tensor_view.h"
#include "mla/config.h"

namespace pykernels::mla {

/// The tensors of a plan; see Plan.
struct PlanTensors {
  TensorView items;         // [num_items, 4], int32
  TensorView part_offsets;  // [num_parts + 1], int32
  TensorView requests;      // [max_batch, 4], int32
  TensorView partial_out;   // [num_slots, seqlen_q, num_heads, 512], FP32, contiguous
  TensorView partial_lse;   // [num_slots, seqlen_q, num_heads], FP32, contiguous
};

struct MlaDecodeArguments {
  TensorView q_nope;         // [batch, seqlen_q, num_heads, 512], BF16, any strides of 16 bytes
  TensorView q_rope;         // [batch, seqlen_q, num_heads, 64], BF16, any strides of 16 bytes
  TensorView kv_cache;       // [num_pages, page_size, 1, 576], BF16; [..., 656], bytes, for FP8
  TensorView block_table;    // [batch, max_pages], int32, last dimension contiguous
  TensorView cache_seqlens;  // [batch], int32, contiguous
  PlanTensors plan;
  TensorView out;  // [batch, seqlen_q, num_heads, 512], BF16, any strides of 16 bytes
  TensorView lse;  // [batch, num_heads, seqlen_q], FP32, any strides
  double softmax_scale = 0.0;
  bool causal = true;
};

/// Rows (seqlen_q * num_heads) of a request that one CTA takes, and how many CTAs share the blocks.
/// A device of one SM has no clusters.
MlaDecodeConfig choose_config(int64_t num_rows, bool fp8, int num_sms);

/// The kernel compiled for this configuration, for example mla_decode_bf16_m64c2.
std::string kernel_name(const MlaDecodeConfig& config);

/// CTAs along the grid's x dimension: tiles of rows of a request.
int64_t num_row_tiles(int64_t num_rows, const MlaDecodeConfig& config);

/// How many parts a plan for so many rows has: all that the device holds together, or those of
/// `num_sms` SMs, one CTA for each tile of rows and part; 1 at least.
int64_t num_parts(Device& device, int64_t num_rows, std::optional<int64_t> num_sms);

/// Where the plan's tensors lie.
Plan plan_pointers(const PlanTensors& plan);

/// The arguments are checked (pykernels/mla_decode_checks.py) and batch is not 0.
Launch make_mla_decode_launch(Device& device, const MlaDecodeArguments& arguments);

}  // namespace pykernels::mla
