// From tensors to the launch that plans a step, and what a plan occupies.
#pragma once

#include <cstdint>
#include <optional>

#include "core/device.h"
#include "core/launch.h"
#include "core/tensor_view.h"
#include "mla/plan_config.h"

namespace pykernels::mla {

/// Of the plan's tensors.
struct PlanSizes {
  int64_t num_items = 0;
  int64_t num_parts = 1;
  int64_t num_slots = 0;
};

/// What any lengths need at most. `max_seqlen`, with batch_invariant only: the length from which on
/// a request gets no further splits; without one 16 splits.
///
/// Throws ArgumentError for more items than the kernels count.
PlanSizes plan_sizes(int64_t num_parts, int64_t max_batch, bool batch_invariant,
                     std::optional<int64_t> max_seqlen);

struct PlanArguments {
  TensorView cache_seqlens;  // [batch], int32, contiguous
  TensorView items;          // as in PlanTensors
  TensorView part_offsets;
  TensorView requests;
  bool batch_invariant = false;
};

/// The arguments are checked (pykernels/mla_checks.py).
Launch make_mla_update_plan_launch(Device& device, const PlanArguments& arguments);

}  // namespace pykernels::mla
