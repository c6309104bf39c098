// Where the tokens of a batch go: rows for every expert and tokens for every rank, and each token's
// place among them, in the order of the batch.                                        sm_90a
//
// One CTA. Each warp counts a run of tokens, the sums over the warps are the warps' first places,
// and each warp goes over its tokens again and gives them out. Choices are taken in the order of
// memory, 32 at a time; lanes with the same expert find each other by match.any.
#pragma once

#include "core/warp.cuh"
#include "moe/errors.cuh"
#include "moe/layout_config.h"
#include "moe/routing.cuh"
#include "ptx/barrier.cuh"
#include "ptx/control.cuh"
#include "ptx/warp.cuh"

namespace pykernels::moe {

template <LayoutConfig kConfig>
struct LayoutStorage {
  uint32_t experts[kConfig.num_warps()][kMaxExperts];  // rows counted, then given out, by each warp
  uint32_t ranks[kConfig.num_warps()][kMaxRanks];      // the same of tokens
};

template <LayoutConfig kConfig>
constexpr uint32_t layout_body_shared_bytes() {
  return sizeof(LayoutStorage<kConfig>);
}

enum class LayoutBarrier : uint32_t { kAll = 0 };

/// All threads.
template <LayoutConfig kConfig>
class Layout {
 public:
  __device__ __forceinline__ Layout(const LayoutParams& params, LayoutStorage<kConfig>& smem)
      : params_(params), smem_(smem), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
    const uint32_t tokens = params.routing.num_tokens;
    const uint32_t share = (tokens + kConfig.num_warps() - 1) / kConfig.num_warps();
    first_token_ = min(warp_ * share, tokens);
    end_token_ = min(first_token_ + share, tokens);
  }

  /// Tells the peers of a call with wrong arguments. One thread.
  __device__ __forceinline__ void refuse() const {
    ErrorRecord error{};
    error.kind = static_cast<uint32_t>(ErrorKind::kArgument);
    error.rank = params_.buffer.rank;
    error.peer = params_.buffer.rank;
    record_error(params_.buffer, error);
  }

  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (uint32_t e = lane_; e < params_.num_experts; e += 32) smem_.experts[warp_][e] = 0;
    smem_.ranks[warp_][lane_] = 0;
    ptx::bar_warp_sync();  // the warp's own counters are zero
    go_over_choices<false>();
    go_over_tokens<false>();
    sync();  // every warp has counted
    sum_up(&smem_.experts[0][0], kMaxExperts, params_.num_experts, params_.placement.expert_counts);
    sum_up(&smem_.ranks[0][0], kMaxRanks, params_.buffer.num_ranks, params_.placement.rank_counts);
    sync();  // every warp's first places are there
    go_over_choices<true>();
    go_over_tokens<true>();
  }

 private:
  static constexpr uint32_t kNone = 0xffffffff;

  __device__ __forceinline__ void sync() const {
    ptx::bar_sync(static_cast<uint32_t>(LayoutBarrier::kAll), kConfig.num_threads());
  }

  /// A choice as it counts; kNone if it is no expert.
  __device__ __forceinline__ uint32_t expert_of(int64_t choice) const {
    return choice >= 0 && choice < params_.num_experts ? static_cast<uint32_t>(choice) : kNone;
  }

  /// -1 alone may stand for no expert.
  __device__ __forceinline__ void check(int64_t choice, uint32_t i) const {
    if (choice >= -1 && choice < params_.num_experts) return;
    const uint32_t token = params_.topk_divisor.divide(i);
    ErrorRecord error{};
    error.kind = static_cast<uint32_t>(ErrorKind::kExpert);
    error.rank = params_.buffer.rank;
    error.peer = params_.buffer.rank;
    error.expected = params_.num_experts;
    error.seen = static_cast<uint64_t>(choice);
    error.index = uint64_t{token} << 32 | (i - token * params_.buffer.num_topk);
    record_error(params_.buffer, error);
  }

  /// The i-th choice of the batch; -1 where there is none.
  __device__ __forceinline__ int64_t load_choice(uint32_t i, uint32_t end) const {
    if (i >= end) return -1;
    const uint32_t token = params_.topk_divisor.divide(i);
    return choice(params_.routing, token, i - token * params_.buffer.num_topk);
  }

  /// Rows for each expert: counts the warp's, or gives them their places.
  template <bool kPlace>
  __device__ __forceinline__ void go_over_choices() {
    const uint32_t begin = first_token_ * params_.buffer.num_topk;
    const uint32_t end = end_token_ * params_.buffer.num_topk;
    int64_t next = load_choice(begin + lane_, end);
#pragma unroll 1
    for (uint32_t base = begin; base < end; base += 32) {
      const uint32_t i = base + lane_;
      const int64_t chosen = next;
      next = load_choice(i + 32, end);  // on its way while the others are counted
      const uint32_t expert = expert_of(chosen);
      if (!kPlace) check(chosen, i);
      const uint32_t same = __match_any_sync(kAllLanes, expert);
      const uint32_t before = same & ((1u << lane_) - 1);
      uint32_t first = 0;
      if (expert != kNone) first = smem_.experts[warp_][expert];
      ptx::bar_warp_sync();  // all lanes have read
      if (expert != kNone && before == 0) smem_.experts[warp_][expert] = first + __popc(same);
      if (kPlace && i < end) {
        params_.placement.position_in_expert[i] =
            expert == kNone ? -1 : static_cast<int32_t>(first + __popc(before));
      }
      ptx::bar_warp_sync();  // the next choices find these counted
    }
  }

  /// Tokens for each rank, a token a lane.
  template <bool kPlace>
  __device__ __forceinline__ void go_over_tokens() {
    uint32_t count = kPlace ? smem_.ranks[warp_][lane_] : 0;  // of the rank of the lane's number
#pragma unroll 1
    for (uint32_t base = first_token_; base < end_token_; base += 32) {
      const uint32_t token = base + lane_;
      uint32_t ranks = 0;
      if (token < end_token_) {
#pragma unroll 4
        for (uint32_t k = 0; k < params_.buffer.num_topk; ++k) {
          const uint32_t expert = expert_of(choice(params_.routing, token, k));
          if (expert != kNone) ranks |= 1u << params_.expert_divisor.divide(expert);
        }
      }
#pragma unroll 1
      for (uint32_t r = 0; r < params_.buffer.num_ranks; ++r) {
        const bool goes = (ranks >> r & 1) != 0;
        const uint32_t going = __ballot_sync(kAllLanes, goes);
        const uint32_t first = __shfl_sync(kAllLanes, count, r);
        if (kPlace && token < end_token_) {
          const uint32_t place = first + __popc(going & ((1u << lane_) - 1));
          params_.placement.position_in_rank[token * params_.buffer.num_ranks + r] =
              goes ? static_cast<int32_t>(place) : -1;
        }
        if (lane_ == r) count += __popc(going);
      }
    }
    if (!kPlace) smem_.ranks[warp_][lane_] = count;
  }

  /// Turns the warps' counts of each column into sums over the warps before; writes the totals.
  __device__ __forceinline__ void sum_up(uint32_t* counts, uint32_t pitch, uint32_t columns,
                                         int32_t* totals) const {
#pragma unroll 1
    for (uint32_t column = threadIdx.x; column < columns; column += kConfig.num_threads()) {
      uint32_t sum = 0;
#pragma unroll 1
      for (uint32_t w = 0; w < kConfig.num_warps(); ++w) {
        const uint32_t count = counts[w * pitch + column];
        counts[w * pitch + column] = sum;
        sum += count;
      }
      totals[column] = static_cast<int32_t>(sum);
    }
  }

  const LayoutParams& params_;
  LayoutStorage<kConfig>& smem_;
  uint32_t warp_;
  uint32_t lane_;
  uint32_t first_token_;
  uint32_t end_token_;
};

template <LayoutConfig kConfig>
__device__ __forceinline__ void layout_body(const LayoutParams& params) {
  extern __shared__ __align__(16) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<LayoutStorage<kConfig>*>(smem_bytes);
  ptx::griddepcontrol_wait();  // all threads, before any access to global memory
  ptx::griddepcontrol_launch_dependents();
  Layout<kConfig> layout(params, smem);
  if (!params.refuses) {
    layout.run();
  } else if (threadIdx.x == 0) {
    layout.refuse();
  }
}

}  // namespace pykernels::moe
