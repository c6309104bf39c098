// Combine: what the experts computed, back to the tokens' ranks, over peer memory.    sm_90a
//
// On the experts' rank a warp takes a token that came, adds up its rows, weighted, and sends the
// sum into a slot at the token's home; there a warp takes a token and adds up its slots. Both
// orders are fixed: experts ascending within a rank, ranks ascending.
#pragma once

#include "core/bfloat16.cuh"
#include "core/warp.cuh"
#include "moe/combine_config.h"
#include "moe/signal.cuh"
#include "moe/staging.cuh"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"

namespace pykernels::moe {

enum class CombineBarrier : uint32_t { kAll = 0 };

/// Eight BF16 columns of a lane, in FP32.
struct Sums {
  float values[8] = {};

  /// Adds weight * y, each product and sum as one operation.
  __device__ __forceinline__ void add_weighted(float weight, const uint32_t (&y)[4]) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      values[i] = fmaf(weight, bfloat16_value(y[i / 2], i % 2), values[i]);
    }
  }

  __device__ __forceinline__ void add(const uint32_t (&y)[4]) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      values[i] = __fadd_rn(values[i], bfloat16_value(y[i / 2], i % 2));
    }
  }

  /// Rounded to BF16.
  __device__ __forceinline__ void pack(uint32_t (&words)[4]) const {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      words[i] = ptx::cvt_rn_bf16x2_f32(values[2 * i + 1], values[2 * i]);
    }
  }
};

__device__ __forceinline__ uint64_t combine_signature(const CombineParams& params) {
  return params.signature | uint64_t{static_cast<uint32_t>(params.number[0])} << 32;
}

/// A warp. Lane j has row j of a token.
template <CombineConfig kConfig>
class CombineSender {
 public:
  __device__ __forceinline__ CombineSender(const CombineParams& params, const Signals& signals,
                                           Staging staging)
      : params_(params), signals_(signals), staging_(staging), lane_(threadIdx.x % 32) {}

  /// The tokens from `first` on, every `step`-th, the sources in turns.
  __device__ __forceinline__ void run(uint32_t first, uint32_t step) {
    const BufferParams& buffer = params_.buffer;
    bool ready = true;
    uint32_t count = 0;  // tokens that came from the rank of the lane's number
    if (lane_ < buffer.num_ranks && !signals_.is_masked(lane_)) {
      count = static_cast<uint32_t>(params_.recv_counts[lane_]);
      ready = signals_.wait_consumed(lane_, Phase::kCombineSend);
    }
    if (!__all_sync(kAllLanes, ready)) return;
    ptx::bar_warp_sync();             // what one lane has acquired, all know
    ptx::fence_proxy_async_global();  // what the peers have read, before this lane's bulk stores
    if (first == 0 && lane_ < buffer.num_ranks && !signals_.is_masked(lane_)) send_mail(count);
    const uint32_t end = max_over_lanes<32>(count) * buffer.num_ranks;
#pragma unroll 1
    for (uint32_t i = first; i < end; i += step) {
      const uint32_t index = params_.rank_divisor.divide(i);
      uint32_t home = i - index * buffer.num_ranks + buffer.rank;
      if (home >= buffer.num_ranks) home -= buffer.num_ranks;
      if (index < __shfl_sync(kAllLanes, count, home) && !send(home, index)) return;
    }
    if (lane_ != 0) return;
    staging_.wait_written();
    release_pending();
  }

 private:
  __device__ __forceinline__ void send_mail(uint32_t count) const {
    Mail* mail = signals_.mail(lane_, params_.buffer.rank);
    mail->num_tokens = count;
    mail->signature = combine_signature(params_);
    signals_.release_mail(lane_);
  }

  /// One token. False if its rows do not come.
  __device__ __forceinline__ bool send(uint32_t home, uint32_t index) {
    const BufferParams& buffer = params_.buffer;
    int32_t row = -1;
    float weight = 1.0f;
    if (lane_ < buffer.num_topk) {
      const uint64_t at =
          (uint64_t{home} * buffer.layout.max_tokens + index) * buffer.num_topk + lane_;
      row = params_.rows[at];
      if (params_.row_weights != nullptr) weight = params_.row_weights[at];
    }
    const Place place = place_of(row);
    if (params_.done.counters != nullptr) {
      if (!__all_sync(kAllLanes, row < 0 || wait_done(place))) return false;
      ptx::bar_warp_sync();  // what one lane has acquired, all know
    }
    // Rows that recv_x had no room for are -1 wherever they stand.
    const uint32_t lanes = __ballot_sync(kAllLanes, row >= 0);
    uint8_t* payload = signals_.slot(home, buffer.rank, index) + buffer.layout.payload_offset;
#pragma unroll 1
    for (uint32_t first = 0; first < params_.payload_bytes; first += kChunkBytes) {
      const uint32_t bytes = min(kChunkBytes, params_.payload_bytes - first);
      staging_.wait_free();
      add_rows(lanes, place, weight, first, bytes);
      staging_.publish();
      if (lane_ == 0) ptx::cp_async_bulk_store(payload + first, staging_.values(), bytes);
      staging_.advance(false);
      if (first == 0 && lane_ == 0) {
        staging_.wait_written_before();
        release_pending();
      }
    }
    pending_home_ = home;
    pending_index_ = index;
    return true;
  }

  /// Where a row of y stands.
  struct Place {
    uint32_t expert;  // 0 but in the masked layout
    uint32_t row;     // of the expert's
  };

  __device__ __forceinline__ Place place_of(int32_t row) const {
    const uint32_t row_idx = row < 0 ? 0 : static_cast<uint32_t>(row);
    const uint32_t expert = params_.y_expert_rows.divide(row_idx);
    return {expert, row_idx - expert * params_.y_expert_rows.divisor};
  }

  /// Waits until all rows that share the row's counter are stored.
  __device__ __forceinline__ bool wait_done(const Place& place) const {
    const uint32_t begin = place.row / kCounterRows * kCounterRows;
    const uint32_t end = static_cast<uint32_t>(params_.group_rows[place.expert]);
    const uint32_t parts = params_.payload_bytes / (2 * kCounterColumns);
    const uint32_t counter = params_.done.index(place.expert, place.row);
    return signals_.wait_counter(params_.done.counters + counter,
                                 min(end - begin, kCounterRows) * parts, Phase::kCombineInput,
                                 counter);
  }

  /// Lane 0: the token before is at its home; tells it. Comes when the next one is under way, as in
  /// dispatch.
  __device__ __forceinline__ void release_pending() {
    if (pending_home_ != kNone) signals_.release_slot(pending_home_, pending_index_);
    pending_home_ = kNone;
  }

  /// The weighted sum of the rows of all `lanes`, `bytes` of it from `first` on, into the stage.
  __device__ __forceinline__ void add_rows(uint32_t lanes, const Place& place, float weight,
                                           uint32_t first, uint32_t bytes) {
    // Lane j knows where row j begins.
    const uint64_t begin =
        place.expert * params_.y_expert_bytes + place.row * params_.y_row_bytes + first;
#pragma unroll 1
    for (uint32_t base = 0; base < bytes; base += kVectors * 32 * kVectorBytes) {
      Sums sums[kVectors];
#pragma unroll 1
      for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        const uint32_t j = __ffs(rest) - 1;
        const uint8_t* y = params_.y + __shfl_sync(kAllLanes, begin, j);
        const float row_weight = __shfl_sync(kAllLanes, weight, j);
        uint32_t words[kVectors][4] = {};
#pragma unroll
        for (uint32_t v = 0; v < kVectors; ++v) {
          const uint32_t at = base + (v * 32 + lane_) * kVectorBytes;
          if (at < bytes) {
            ptx::ld_global_v4_b32(y + at, words[v]);  // the kernel that stores y may still run
          }
        }
#pragma unroll
        for (uint32_t v = 0; v < kVectors; ++v) sums[v].add_weighted(row_weight, words[v]);
      }
#pragma unroll
      for (uint32_t v = 0; v < kVectors; ++v) {
        const uint32_t at = base + (v * 32 + lane_) * kVectorBytes;
        uint32_t words[4];
        sums[v].pack(words);
        if (at < bytes) ptx::st_shared_v4_b32(staging_.values() + at, words);
      }
    }
  }

  static constexpr uint32_t kNone = 0xffffffff;

  const CombineParams& params_;
  const Signals& signals_;
  Staging staging_;
  uint32_t lane_;
  uint32_t pending_home_ = kNone;  // of the slot that is still to be released
  uint32_t pending_index_ = 0;
};

/// A warp. Lane r waits for rank r.
template <CombineConfig kConfig>
class CombineReceiver {
 public:
  __device__ __forceinline__ CombineReceiver(const CombineParams& params, const Signals& signals)
      : params_(params), signals_(signals), lane_(threadIdx.x % 32) {}

  /// The tokens from `first` on, every `step`-th.
  __device__ __forceinline__ void run(uint32_t first, uint32_t step) {
    bool match = true;
    if (lane_ < params_.buffer.num_ranks && !signals_.is_masked(lane_)) {
      match = signals_.wait_mail(lane_, Phase::kCombineCounts) &&
              signals_.matches(lane_, Phase::kCombineCounts, combine_signature(params_)) &&
              signals_.returns(lane_, Phase::kCombineCounts,
                               static_cast<uint32_t>(params_.send_counts[lane_]));
    }
    if (!__all_sync(kAllLanes, match)) return;
#pragma unroll 1
    for (uint32_t token = first; token < params_.num_tokens; token += step) {
      if (!receive(token)) return;
    }
  }

 private:
  /// One token. False if a part of it does not come.
  __device__ __forceinline__ bool receive(uint32_t token) const {
    const BufferParams& buffer = params_.buffer;
    int32_t index = -1;
    bool there = true;
    if (lane_ < buffer.num_ranks && !signals_.is_masked(lane_)) {
      index = params_.position_in_rank[token * buffer.num_ranks + lane_];
      if (index >= 0) {
        there = signals_.wait_slot(lane_, static_cast<uint32_t>(index), Phase::kCombineReceive);
      }
    }
    if (!__all_sync(kAllLanes, there)) return false;
    ptx::bar_warp_sync();  // what one lane has acquired, all know
    const uint32_t ranks = __ballot_sync(kAllLanes, index >= 0);
    uint8_t* out = params_.out + token * params_.out_row_bytes;
#pragma unroll 1
    for (uint32_t base = 0; base < params_.payload_bytes; base += kVectors * 32 * kVectorBytes) {
      add_slots(ranks, index, base, out);
    }
    return true;
  }

  __device__ __forceinline__ void add_slots(uint32_t ranks, int32_t index, uint32_t base,
                                            uint8_t* out) const {
    const BufferParams& buffer = params_.buffer;
    Sums sums[kVectors];
#pragma unroll 1
    for (uint32_t rest = ranks; rest != 0; rest &= rest - 1) {
      const uint32_t r = __ffs(rest) - 1;
      const auto slot_index = static_cast<uint32_t>(__shfl_sync(kAllLanes, index, r));
      const uint8_t* payload =
          signals_.slot(buffer.rank, r, slot_index) + buffer.layout.payload_offset;
      uint32_t words[kVectors][4] = {};
#pragma unroll
      for (uint32_t v = 0; v < kVectors; ++v) {
        const uint32_t at = base + (v * 32 + lane_) * kVectorBytes;
        if (at < params_.payload_bytes) ptx::ld_global_v4_b32(payload + at, words[v]);
      }
#pragma unroll
      for (uint32_t v = 0; v < kVectors; ++v) sums[v].add(words[v]);
    }
#pragma unroll
    for (uint32_t v = 0; v < kVectors; ++v) {
      const uint32_t at = base + (v * 32 + lane_) * kVectorBytes;
      uint32_t words[4];
      sums[v].pack(words);
      if (at < params_.payload_bytes) ptx::st_global_v4_b32(out + at, words);
    }
  }

  const CombineParams& params_;
  const Signals& signals_;
  uint32_t lane_;
};

template <CombineConfig kConfig>
struct CombineStorage {
  WarpStages stages[kConfig.senders];
  uint32_t forbidden;
};

template <CombineConfig kConfig>
constexpr uint32_t combine_body_shared_bytes() {
  return sizeof(CombineStorage<kConfig>);
}

template <CombineConfig kConfig>
__device__ __forceinline__ void combine_body(const CombineParams& params) {
  extern __shared__ __align__(128) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<CombineStorage<kConfig>*>(smem_bytes);
  constexpr uint32_t kAll = static_cast<uint32_t>(CombineBarrier::kAll);
  const uint32_t warp = threadIdx.x / 32;
  ptx::griddepcontrol_wait();  // all threads, before any access to global memory
  const Signals signals(params.buffer);
  const bool sends = includes(params.phases, Phases::kSend);
  const bool receives = includes(params.phases, Phases::kReceive);
  // Warps with stages send; a launch that only receives does so with all.
  const uint32_t num_senders = sends ? kConfig.senders : 0;
  if (signals.may_run(smem.forbidden, kAll)) {
    if (warp < num_senders) {
      CombineSender<kConfig>(params, signals, Staging(smem.stages[warp]))
          .run(warp * gridDim.x + blockIdx.x, num_senders * gridDim.x);
    } else if (receives) {
      CombineReceiver<kConfig>(params, signals)
          .run((warp - num_senders) * gridDim.x + blockIdx.x,
               (kConfig.num_warps() - num_senders) * gridDim.x);
    }
  }
  if (receives) signals.finish(kAll);
}

}  // namespace pykernels::moe
