// The plan of a step, from the lengths of its requests.                              sm_90a
//
// One CTA. A request costs its overhead and its blocks; all requests in a row are a line of cost,
// which the parts share evenly: part p takes what lies from p * payload on. A request is cut where
// its blocks pass from one part into the next, or, in a batch-invariant plan, where its own length
// says. Threads take requests, as many at a time as there are threads, then these requests' items.
#pragma once

#include "core/warp.cuh"
#include "mla/plan_storage.cuh"
#include "ptx/barrier.cuh"
#include "ptx/control.cuh"

namespace pykernels::mla {

/// What a request's length alone says.
struct RequestCost {
  uint32_t num_blocks;
  uint32_t num_chunks;  // items by its length; 1 where parts decide
  uint32_t chunk_blocks;

  __device__ __forceinline__ RequestCost(int32_t length, uint32_t max_chunks) {
    // The decode kernel reports a wrong length; it must find an item of the request to do so.
    const uint32_t tokens = static_cast<uint32_t>(max(length, 0));
    num_blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
    num_chunks = (num_blocks + kBlocksPerSplit - 1) / kBlocksPerSplit;
    num_chunks = min(max(num_chunks, 1u), max_chunks);
    chunk_blocks = max((num_blocks + num_chunks - 1) / num_chunks, 1u);
    num_chunks = max((num_blocks + chunk_blocks - 1) / chunk_blocks, 1u);
  }

  __device__ __forceinline__ uint64_t total() const {
    return uint64_t{num_chunks} * kItemOverhead + max(num_blocks, 1u);
  }
};

struct Sums {
  uint64_t before;  // over the threads before this one
  uint64_t all;
};

enum class PlanBarrier : uint32_t { kAll = 0 };

/// All threads.
template <PlanConfig kConfig>
class Planner {
 public:
  __device__ __forceinline__ Planner(const PlanParams& params, PlanStorage<kConfig>& smem)
      : params_(params), smem_(smem) {}

  /// The parts' share of the cost: first of all.
  __device__ __forceinline__ void measure() {
    uint64_t cost = 0;
#pragma unroll 1
    for (uint32_t b = threadIdx.x; b < params_.batch; b += kConfig.num_threads()) {
      cost += cost_of(params_.cache_seqlens[b]).total();
    }
    // The first chunk of requests uses these sums behind a barrier, when all threads have read.
    total_ = sum_over_threads(cost, smem_.count_sums).all;
    payload_ = total_ == 0 ? 1 : (total_ + params_.num_parts - 1) / params_.num_parts;
  }

  __device__ __forceinline__ void plan() {
#pragma unroll 1
    for (uint32_t first = 0; first < params_.batch; first += kConfig.num_threads()) {
      const uint32_t num_items = place_requests(first);
      sync();  // all cuts of these requests are in shared memory
#pragma unroll 1
      for (uint32_t i = threadIdx.x; i < num_items; i += kConfig.num_threads()) {
        write_item(first, i);
      }
      items_before_ += num_items;
    }
    // What no item has reached: behind the last item's part, and requests that do not exist.
    const uint32_t next_part = total_ == 0 ? 0 : part_of(total_ - 1) + 1;
#pragma unroll 1
    for (uint32_t p = next_part + threadIdx.x; p <= params_.num_parts; p += kConfig.num_threads()) {
      params_.part_offsets[p] = static_cast<int32_t>(items_before_);
    }
#pragma unroll 1
    for (uint32_t b = params_.batch + threadIdx.x; b < params_.max_batch;
         b += kConfig.num_threads()) {
      params_.requests[b] = PlannedRequest{};
    }
  }

 private:
  __device__ __forceinline__ void sync() const {
    ptx::bar_sync(static_cast<uint32_t>(PlanBarrier::kAll), kConfig.num_threads());
  }

  __device__ __forceinline__ bool is_batch_invariant() const { return params_.max_splits > 0; }

  __device__ __forceinline__ RequestCost cost_of(int32_t length) const {
    return RequestCost(length, is_batch_invariant() ? params_.max_splits : 1);
  }

  /// Of a cost unit. The bound matters only if lengths change under the kernel's hands.
  __device__ __forceinline__ uint32_t part_of(uint64_t position) const {
    const uint64_t part = position / payload_;
    return part < params_.num_parts ? static_cast<uint32_t>(part) : params_.num_parts - 1;
  }

  /// Passes a barrier; the next call may use the same array once another one has been passed.
  __device__ __forceinline__ Sums sum_over_threads(uint64_t value,
                                                   uint64_t (&warp_sums)[kConfig.num_warps()]) {
    const uint32_t warp = threadIdx.x / 32;
    const uint64_t sum = inclusive_scan(value, [](uint64_t a, uint64_t b) { return a + b; });
    if (threadIdx.x % 32 == 31) warp_sums[warp] = sum;
    sync();  // every warp's sum is there
    Sums sums{sum - value, 0};
#pragma unroll
    for (uint32_t i = 0; i < kConfig.num_warps(); ++i) {
      const uint64_t warp_sum = warp_sums[i];
      if (i < warp) sums.before += warp_sum;
      sums.all += warp_sum;
    }
    return sums;
  }

  /// Cuts the requests from `first` on, one a thread, and writes what the plan says of each.
  /// Returns how many items they have.
  __device__ __forceinline__ uint32_t place_requests(uint32_t first) {
    const uint32_t request = first + threadIdx.x;
    const bool exists = request < params_.batch;
    const int32_t length = exists ? params_.cache_seqlens[request] : 0;
    const RequestCost cost = cost_of(length);
    const Sums costs = sum_over_threads(exists ? cost.total() : 0, smem_.cost_sums);
    RequestCuts cuts = cut(cost, cost_before_ + costs.before);
    cost_before_ += costs.all;

    const uint32_t num_items = exists ? cuts.num_items : 0;
    const uint32_t num_slots = num_items > 1 ? num_items : 0;
    // Items in the lower half, slots in the upper: there are fewer than 2^31 of either.
    const Sums counts = sum_over_threads(num_items | uint64_t{num_slots} << 32, smem_.count_sums);
    const auto first_slot = static_cast<int32_t>(slots_before_ + (counts.before >> 32));
    slots_before_ += static_cast<uint32_t>(counts.all >> 32);
    cuts.first_slot = num_slots > 0 ? first_slot : 0;
    // The barriers above are behind the last reads of the requests before.
    smem_.cuts[threadIdx.x] = cuts;
    smem_.first_items[threadIdx.x] = static_cast<uint32_t>(counts.before);
    if (exists) {
      params_.requests[request] = {length, static_cast<int32_t>(num_items), cuts.first_slot, 0};
    }
    return static_cast<uint32_t>(counts.all);
  }

  /// All but the slot.
  __device__ __forceinline__ RequestCuts cut(const RequestCost& cost, uint64_t start) const {
    RequestCuts cuts{};
    cuts.start = start;
    cuts.num_blocks = cost.num_blocks;
    if (is_batch_invariant()) {
      cuts.num_items = cost.num_chunks;
      cuts.block_step = cost.chunk_blocks;
      return cuts;
    }
    const uint64_t first_block = start + kItemOverhead;
    const uint32_t first_part = part_of(first_block);
    cuts.num_items = part_of(start + cost.total() - 1) - first_part + 1;
    cuts.block_base = static_cast<uint32_t>(first_part * payload_ - first_block);
    cuts.block_step = static_cast<uint32_t>(payload_);
    return cuts;
  }

  __device__ __forceinline__ static uint32_t first_block(const RequestCuts& cuts, uint32_t j) {
    return j == 0 ? 0 : cuts.block_base + j * cuts.block_step;
  }

  /// Where item j's cost begins; behind the last item, where the request's ends.
  __device__ __forceinline__ uint64_t position(const RequestCuts& cuts, uint32_t j) const {
    const uint32_t overheads = is_batch_invariant() ? j : min(j, 1u);
    const uint32_t blocks = j < cuts.num_items ? first_block(cuts, j) : max(cuts.num_blocks, 1u);
    return cuts.start + uint64_t{overheads} * kItemOverhead + blocks;
  }

  /// Item i of the requests from `first` on, and the parts that begin with it.
  __device__ __forceinline__ void write_item(uint32_t first, uint32_t i) const {
    uint32_t place = 0;  // of the last request with no more than i items before it
#pragma unroll
    for (uint32_t step = kConfig.num_threads() / 2; step > 0; step /= 2) {
      if (smem_.first_items[place + step] <= i) place += step;
    }
    const RequestCuts cuts = smem_.cuts[place];
    const uint32_t j = i - smem_.first_items[place];
    const bool is_last = j + 1 == cuts.num_items;
    const uint32_t index = items_before_ + i;
    if (index >= params_.num_items) return;  // as in part_of
    WorkItem item;
    item.request = static_cast<int32_t>(first + place);
    item.begin_block = static_cast<int32_t>(first_block(cuts, j));
    item.end_block = static_cast<int32_t>(is_last ? cuts.num_blocks : first_block(cuts, j + 1));
    item.slot = cuts.num_items > 1 ? cuts.first_slot + static_cast<int32_t>(j) : kWholeRequest;
    params_.items[index] = item;

    // An item belongs to the part of its last cost unit; the one before it ends where it begins.
    const uint64_t start = position(cuts, j);
    const uint32_t part = part_of(position(cuts, j + 1) - 1);
#pragma unroll 1
    for (uint32_t p = start == 0 ? 0 : part_of(start - 1) + 1; p <= part; ++p) {
      params_.part_offsets[p] = static_cast<int32_t>(index);
    }
  }

  const PlanParams& params_;
  PlanStorage<kConfig>& smem_;
  uint64_t total_ = 0;
  uint64_t payload_ = 1;
  uint64_t cost_before_ = 0;  // of all requests before this chunk of them
  uint32_t items_before_ = 0;
  uint32_t slots_before_ = 0;
};

template <PlanConfig kConfig>
__device__ __forceinline__ void plan_body(const PlanParams& params) {
  extern __shared__ __align__(16) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<PlanStorage<kConfig>*>(smem_bytes);
  ptx::griddepcontrol_wait();  // all threads, before any access to global memory
  ptx::griddepcontrol_launch_dependents();
  Planner<kConfig> planner(params, smem);
  planner.measure();
  planner.plan();
}

}  // namespace pykernels::mla
