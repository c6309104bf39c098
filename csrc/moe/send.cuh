// The sending half of dispatch: a warp takes a token and writes it into a slot of every rank that
// has one of its experts, so that it crosses each link once.
#pragma once

#include "core/bfloat16.cuh"
#include "core/scale.cuh"
#include "core/warp.cuh"
#include "moe/routing.cuh"
#include "moe/signal.cuh"
#include "moe/staging.cuh"
#include "ptx/memory.cuh"

namespace pykernels::moe {

/// A warp. Lane r serves rank r, lane k the token's k-th choice.
template <DispatchConfig kConfig>
class Sender {
 public:
  __device__ __forceinline__ Sender(const DispatchParams& params, const Signals& signals,
                                    Staging staging)
      : params_(params), signals_(signals), staging_(staging), lane_(threadIdx.x % 32) {}

  /// The tokens from `first` on, every `step`-th; the warp with the first ones sends the mails.
  __device__ __forceinline__ void run(uint32_t first, uint32_t step) {
    bool ready = true;
    if (lane_ < params_.buffer.num_ranks && !signals_.is_masked(lane_)) {
      ready = signals_.wait_consumed(lane_, Phase::kDispatchSend);
    }
    if (!__all_sync(kAllLanes, ready)) return;
    ptx::bar_warp_sync();             // what one lane has acquired, all know
    ptx::fence_proxy_async_global();  // what the peers have read, before this lane's bulk stores
    if (first == 0) send_mails();
#pragma unroll 1
    for (uint32_t token = first; token < params_.send.routing.num_tokens; token += step) {
      send_token(token);
    }
    staging_.wait_written();
    release_pending();
  }

 private:
  static constexpr uint32_t kNone = 0xffffffff;

  /// Where a token's slots are, and which entry of its own the lane has.
  struct Destination {
    uint32_t index;    // of the slot at the lane's rank; kNone if the token does not go there
    int32_t position;  // of the lane's choice among the rows for its expert; -1 if it is dropped
    uint32_t expert;
  };

  /// Tells every rank how many tokens and rows it gets.
  __device__ __forceinline__ void send_mails() const {
    const BufferParams& buffer = params_.buffer;
    const Placement& placement = params_.send.placement;
    const uint32_t num_experts = buffer.num_ranks * buffer.num_local_experts;
#pragma unroll 1
    for (uint32_t e = lane_; e < num_experts; e += 32) {
      const uint32_t rank = params_.expert_divisor.divide(e);
      if (signals_.is_masked(rank)) continue;
      uint32_t* counts = signals_.counts(signals_.mail(rank, buffer.rank));
      counts[e - rank * buffer.num_local_experts] =
          static_cast<uint32_t>(placement.expert_counts[e]);
    }
    const bool serves = lane_ < buffer.num_ranks && !signals_.is_masked(lane_);
    if (serves) {
      Mail* mail = signals_.mail(lane_, buffer.rank);
      mail->num_tokens = static_cast<uint32_t>(placement.rank_counts[lane_]);
      mail->signature = params_.signature;
    }
    ptx::bar_warp_sync();  // all counts are written
    if (serves) signals_.release_mail(lane_);
  }

  /// The first chunk is on its way while the lanes find out where it goes.
  __device__ __forceinline__ void send_token(uint32_t token) {
    const uint8_t* x = params_.send.x + token * params_.send.x_row_bytes;
    ChunkRange chunk(0, params_.payload_bytes, params_.num_scales);
    staging_.wait_free();
    start_load(x, chunk);
    const Destination to = destination_of(token);
    const bool serves = to.index != kNone;
    write_entries(token, to);
    uint8_t* payload = nullptr;
    if (serves) {
      payload = signals_.slot(lane_, params_.buffer.rank, to.index) +
                params_.buffer.layout.payload_offset;
    }
#pragma unroll 1
    while (true) {
      fill_stage(token, x, chunk);
      if (serves) store_stage(payload, chunk);
      staging_.advance(!kConfig.quantise);
      if (chunk.first == 0) {
        staging_.wait_written_before();
        release_pending();
      }
      const uint32_t next = chunk.first + kChunkBytes;
      if (next >= params_.payload_bytes) break;
      chunk = ChunkRange(next, params_.payload_bytes, params_.num_scales);
      staging_.wait_free();
      start_load(x, chunk);
    }
    pending_ = to.index;
  }

  /// The lane's slot of the token before is written: tells its rank. A release waits for the bulk
  /// stores' way over the link, so it comes when the next token is under way.
  __device__ __forceinline__ void release_pending() {
    // The warp barriers since have made this lane know of the other lanes' entries.
    if (pending_ != kNone) signals_.release_slot(lane_, pending_);
    pending_ = kNone;
  }

  __device__ __forceinline__ Destination destination_of(uint32_t token) const {
    const BufferParams& buffer = params_.buffer;
    const Placement& placement = params_.send.placement;
    Destination to{kNone, -1, 0};
    int32_t index = -1;
    int64_t chosen = -1;
    if (lane_ < buffer.num_ranks) {
      index = placement.position_in_rank[token * buffer.num_ranks + lane_];
    }
    if (lane_ < buffer.num_topk) {
      to.position = placement.position_in_expert[token * buffer.num_topk + lane_];
      chosen = choice(params_.send.routing, token, lane_);
    }
    if (index >= 0 && !signals_.is_masked(lane_)) to.index = static_cast<uint32_t>(index);
    if (to.position >= 0) to.expert = static_cast<uint32_t>(chosen);
    return to;
  }

  /// The headers and entries of the token's slots.
  __device__ __forceinline__ void write_entries(uint32_t token, const Destination& to) const {
    const Routing& routing = params_.send.routing;
    const BufferParams& buffer = params_.buffer;
    const uint32_t rank = params_.expert_divisor.divide(to.expert);
    const bool goes = to.position >= 0 && !signals_.is_masked(rank);
    uint32_t before = 0;  // entries of the rank that come before this one
    uint32_t num_entries = 0;
#pragma unroll 1
    for (uint32_t k = 0; k < buffer.num_topk; ++k) {
      const uint32_t other = __shfl_sync(kAllLanes, to.expert, k);
      const bool other_goes = __shfl_sync(kAllLanes, static_cast<uint32_t>(goes), k) != 0;
      if (!other_goes || params_.expert_divisor.divide(other) != rank) continue;
      ++num_entries;
      if (other < to.expert || (other == to.expert && k < lane_)) ++before;
    }
    const uint32_t index = __shfl_sync(kAllLanes, to.index, rank);
    if (!goes) return;
    uint8_t* slot = signals_.slot(rank, buffer.rank, index);
    const float weight = routing.topk_weights[token * routing.weights_row_stride + lane_];
    ptx::st_global_v4_b32(slot + sizeof(SlotHeader) + before * sizeof(Entry),
                          {to.expert - rank * buffer.num_local_experts,
                           static_cast<uint32_t>(to.position), __float_as_uint(weight), lane_});
    if (before == 0) ptx::st_global_v4_b32(slot, {num_entries, token, 0, 0});
  }

  /// All lanes: values that travel as they are, on their way to the stage.
  __device__ __forceinline__ void start_load(const uint8_t* x, const ChunkRange& chunk) {
    if constexpr (!kConfig.quantise) {
      if (lane_ == 0) staging_.load(x + chunk.first, chunk.bytes, nullptr, 0);
    }
  }

  /// All lanes. The chunk of the token as it travels, in the stage, for any lane to store.
  __device__ __forceinline__ void fill_stage(uint32_t token, const uint8_t* x,
                                             const ChunkRange& chunk) {
    if constexpr (kConfig.quantise) {
      quantise_chunk(x, chunk);
      staging_.publish();
    } else {
      const float* scales = params_.send.scales + token * params_.send.scales_row_stride;
#pragma unroll 1
      for (uint32_t i = lane_; i < chunk.num_scales; i += 32) {
        const uint32_t column = chunk.first_scale + i;
        staging_.stage().scales[i] = scales[column * params_.send.scales_column_stride];
      }
      if (chunk.num_scales > 0) pad_scales(chunk);
      staging_.publish();  // the factors and, on the way to release_slot, the entries
      staging_.wait_full();
    }
  }

  /// Factors travel in multiples of 16 bytes; what is behind the last one is zero.
  __device__ __forceinline__ void pad_scales(const ChunkRange& chunk) {
    const uint32_t i = chunk.num_scales + lane_;
    if (i * 4 < chunk.scale_bytes()) staging_.stage().scales[i] = 0.0f;
  }

  /// One lane: the stage to a slot.
  __device__ __forceinline__ void store_stage(uint8_t* payload, const ChunkRange& chunk) {
    ptx::cp_async_bulk_store(payload + chunk.first, staging_.values(), chunk.bytes);
    if (chunk.num_scales == 0) return;
    uint8_t* scales = payload + params_.payload_bytes + chunk.first_scale * 4;
    ptx::cp_async_bulk_store(scales, staging_.scales(), chunk.scale_bytes());
  }

  /// Casts the chunk's columns of a BF16 row. A lane has 16 of them at a time, eight lanes a block
  /// of 128; as quantize_1x128 does.
  __device__ __forceinline__ void quantise_chunk(const uint8_t* x, const ChunkRange& chunk) {
    constexpr uint32_t kColumns = 16;
#pragma unroll 1
    for (uint32_t base = 0; base < chunk.bytes; base += 32 * kColumns) {
      const uint32_t column = base + lane_ * kColumns;
      const bool exists = column < chunk.bytes;  // hidden is a multiple of 16 values
      uint32_t words[kColumns / 2] = {};
      if (exists) {
        const uint8_t* source = x + (uint64_t{chunk.first} + column) * 2;
        ptx::ld_global_nc_v4_s32(source, reinterpret_cast<uint32_t (&)[4]>(words[0]));
        ptx::ld_global_nc_v4_s32(source + 16, reinterpret_cast<uint32_t (&)[4]>(words[4]));
      }
      uint32_t amax = 0;
#pragma unroll
      for (uint32_t i = 0; i < kColumns; ++i) {
        amax = max(amax, __float_as_uint(bfloat16_value(words[i / 2], i % 2)) & 0x7fffffffu);
      }
      const float scale = scale_of(max_over_lanes<8>(amax), params_.send.scale_format);
      if (!exists) continue;
      const Divider divider(scale);
      uint32_t bytes[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        float values[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) {
          values[j] = bfloat16_value(words[2 * i + j / 2], j % 2);
        }
        bytes[i] = divider.cast_to_e4m3x4(values);
      }
      ptx::st_shared_v4_b32(staging_.values() + column, bytes);
      if (lane_ % 8 == 0) staging_.stage().scales[column / kBlockK] = scale;
    }
    pad_scales(chunk);
  }

  const DispatchParams& params_;
  const Signals& signals_;
  Staging staging_;
  uint32_t lane_;
  uint32_t pending_ = kNone;  // slot at the lane's rank that is still to be released
};

}  // namespace pykernels::moe
