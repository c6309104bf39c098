// The launch: one CTA, whatever the batch.
#include "mla/plan_launch.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/math.h"
#include "core/registry.h"

namespace pykernels::mla {

PlanSizes plan_sizes(int64_t num_parts, int64_t max_batch, bool batch_invariant,
                     std::optional<int64_t> max_seqlen) {
  PlanSizes sizes{.num_items = 0, .num_parts = num_parts, .num_slots = 0};
  if (batch_invariant) {
    int64_t splits = kMaxInvariantSplits;
    if (max_seqlen.has_value()) {
      const int64_t tokens = int64_t{kBlocksPerSplit} * kBlockTokens;
      splits = std::clamp<int64_t>(ceil_div(*max_seqlen, tokens), 1, splits);
    }
    sizes.num_items = max_batch * splits;
    sizes.num_slots = splits > 1 ? sizes.num_items : 0;
  } else if (max_batch > 0) {
    // Each of the num_parts - 1 borders between parts cuts at most one request, into one item more
    // than before. A request that is cut needs a slot for each item: one for each of its borders
    // and one further, which at most every border, and every request, adds once.
    const int64_t borders = num_parts - 1;
    sizes.num_items = max_batch + borders;
    sizes.num_slots = borders + std::min(borders, max_batch);
  }
  constexpr int64_t kMaxItems = std::numeric_limits<int32_t>::max();
  PK_CHECK(sizes.num_items <= kMaxItems, "a plan must have at most ", kMaxItems, " items, got ",
           sizes.num_items, " for max_batch = ", max_batch, "; plan fewer requests at a time");
  return sizes;
}

Launch make_mla_update_plan_launch(Device& device, const PlanArguments& arguments) {
  const KernelInfo& kernel = Registry::instance().get("mla_update_plan");
  PK_CHECK(device.max_active_clusters(kernel, {1, 1, 1}) > 0, "the device cannot run kernel ",
           kernel.name);
  const int64_t batch = arguments.cache_seqlens.sizes[0];
  const int64_t max_batch = arguments.requests.sizes[0];
  const int64_t num_items = arguments.items.sizes[0];
  const int64_t num_parts = arguments.part_offsets.sizes[0] - 1;
  PK_CHECK(batch <= max_batch, "cache_seqlens must have at most max_batch = ", max_batch,
           " lengths, got ", batch);
  PK_CHECK(num_parts >= 1, "a plan must have a part, got ", num_parts);

  PlanParams params;
  params.cache_seqlens = reinterpret_cast<const int32_t*>(arguments.cache_seqlens.address);
  params.items = reinterpret_cast<WorkItem*>(arguments.items.address);
  params.part_offsets = reinterpret_cast<int32_t*>(arguments.part_offsets.address);
  params.requests = reinterpret_cast<PlannedRequest*>(arguments.requests.address);
  params.batch = static_cast<uint32_t>(batch);
  params.max_batch = static_cast<uint32_t>(max_batch);
  params.num_parts = static_cast<uint32_t>(num_parts);
  params.num_items = static_cast<uint32_t>(num_items);
  if (arguments.batch_invariant && max_batch > 0) {
    params.max_splits = static_cast<uint32_t>(std::max<int64_t>(num_items / max_batch, 1));
  }

  Launch launch;
  launch.kernel = kernel.name;
  launch.block.x = kernel.threads;
  launch.dynamic_shared_bytes = kernel.dynamic_shared_bytes;
  launch.programmatic_dependent = true;
  launch.arguments = argument_bytes(params);
  launch.memory = {arguments.cache_seqlens.memory_range("cache_seqlens"),
                   arguments.items.memory_range("plan.items"),
                   arguments.part_offsets.memory_range("plan.part_offsets"),
                   arguments.requests.memory_range("plan.requests")};
  return launch;
}

}  // namespace pykernels::mla
