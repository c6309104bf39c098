// The receiving half of dispatch: rows for the experts, from slots in this rank's window.
//
// First the peers' counts give every row its place, in the order source rank, token, choice; then a
// warp takes a slot as soon as it is there and stores its token once for each entry.
#pragma once

#include "core/warp.cuh"
#include "moe/signal.cuh"
#include "moe/staging.cuh"
#include "ptx/barrier.cuh"
#include "ptx/memory.cuh"

namespace pykernels::moe {

/// Where rows begin; shared by the receiving warps of a CTA.
struct ReceivePlan {
  uint32_t first_rows[kMaxExperts];  // [num_ranks, num_local_experts], of a source's rows in recv_x
  uint32_t expert_rows[kMaxExperts];  // of all sources; then the expert's first row
  uint32_t num_tokens[kMaxRanks];     // from each source
};

enum class DispatchBarrier : uint32_t { kAll = 0, kReceivers = 1 };

/// Expert of an error that concerns all of them together.
inline constexpr uint32_t kAllExperts = 0xffffffff;

/// A warp. Lane j serves entry j of a slot.
template <DispatchConfig kConfig>
class Receiver {
 public:
  /// `warp` of `num_warps` of the CTA that receive.
  __device__ __forceinline__ Receiver(const DispatchParams& params, const Signals& signals,
                                      Staging staging, ReceivePlan& plan, uint32_t warp,
                                      uint32_t num_warps)
      : params_(params),
        signals_(signals),
        staging_(staging),
        plan_(plan),
        warp_(warp),
        num_warps_(num_warps),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    const bool receives = includes(params_.phases, Phases::kReceive);
    if (!receives && blockIdx.x != 0) return;  // one CTA tells the counts
    make_plan();
    if (!receives) {
      clear_counters();
      return;
    }
    uint32_t most = 0;  // tokens from one source
    if (lane_ < params_.buffer.num_ranks) most = plan_.num_tokens[lane_];
    most = max_over_lanes<32>(most);
    const uint32_t step = gridDim.x * num_warps_;
    const uint32_t num_ranks = params_.buffer.num_ranks;
    const uint32_t end = most * num_ranks;
    // Sources in turns, beginning with another one on each rank.
#pragma unroll 1
    for (uint32_t i = warp_ * gridDim.x + blockIdx.x; i < end; i += step) {
      const uint32_t index = params_.rank_divisor.divide(i);
      uint32_t source = i - index * num_ranks + params_.buffer.rank;
      if (source >= num_ranks) source -= num_ranks;
      if (index < plan_.num_tokens[source] && !receive(source, index)) break;
    }
    staging_.wait_written();
    release_row();
  }

 private:
  static constexpr uint32_t kNone = 0xffffffff;

  /// Those of rows, and as many behind them for the caller. Nobody looks at them before this launch
  /// has ended.
  __device__ __forceinline__ void clear_counters() const {
    const RowCounters& ready = params_.receive.ready;
#pragma unroll 1
    for (uint32_t i = warp_ * 32 + lane_; i < 2 * ready.num_counters; i += num_warps_ * 32) {
      ready.counters[i] = 0;
    }
  }

  /// Whether this CTA tells the caller of the counts.
  __device__ __forceinline__ bool tells() const {
    return blockIdx.x == 0 && includes(params_.phases, Phases::kCounts);
  }

  __device__ __forceinline__ void sync() const {
    ptx::bar_sync(static_cast<uint32_t>(DispatchBarrier::kReceivers), num_warps_ * 32);
  }

  __device__ __forceinline__ void make_plan() {
    const uint32_t num_experts = params_.buffer.num_local_experts;
#pragma unroll 1
    for (uint32_t s = warp_; s < params_.buffer.num_ranks; s += num_warps_) read_mail(s);
    sync();  // all counts are in shared memory
#pragma unroll 1
    for (uint32_t e = warp_ * 32 + lane_; e < num_experts; e += num_warps_ * 32) {
      uint32_t rows = 0;
#pragma unroll 1
      for (uint32_t s = 0; s < params_.buffer.num_ranks; ++s) {
        const uint32_t count = plan_.first_rows[s * num_experts + e];
        plan_.first_rows[s * num_experts + e] = rows;
        rows += count;
      }
      plan_.expert_rows[e] = rows;
    }
    sync();  // all experts' rows are counted
    if (warp_ == 0) place_experts();
    sync();  // all experts have their first rows
  }

  /// Counts from one source; none of one that is left out or does not come.
  __device__ __forceinline__ void read_mail(uint32_t source) {
    const uint32_t num_experts = params_.buffer.num_local_experts;
    uint32_t there = 0;
    if (lane_ == 0 && !signals_.is_masked(source)) {
      there = signals_.wait_mail(source, Phase::kDispatchCounts);
    }
    there = ptx::shfl_sync_idx_b32(there, 0, 0x1f);
    ptx::bar_warp_sync();  // what lane 0 has acquired, all know
    Mail* mail = signals_.mail(params_.buffer.rank, source);
    const uint32_t* counts = signals_.counts(mail);
    uint32_t num_tokens = 0;
    if (there != 0) {
      num_tokens = mail->num_tokens;
      there = signals_.matches(source, Phase::kDispatchCounts, params_.signature);
    }
#pragma unroll 1
    for (uint32_t e = lane_; e < num_experts; e += 32) {
      plan_.first_rows[source * num_experts + e] = there != 0 ? counts[e] : 0;
    }
    if (lane_ != 0) return;
    if (there == 0) num_tokens = 0;
    plan_.num_tokens[source] = num_tokens;
    if (tells()) params_.receive.recv_counts[source] = static_cast<int32_t>(num_tokens);
  }

  /// The experts' first rows, and what the caller learns of them. One warp.
  __device__ __forceinline__ void place_experts() {
    const ReceiveParams& receive = params_.receive;
    const uint32_t num_experts = params_.buffer.num_local_experts;
    const bool masked = receive.rows_per_expert > 0;
    const bool writes = tells();
    if (writes && lane_ == 0) receive.number[0] = static_cast<int32_t>(signals_.epoch());
    uint32_t before = 0;
#pragma unroll 1
    for (uint32_t base = 0; base < num_experts; base += 32) {
      const uint32_t e = base + lane_;
      const uint32_t rows = e < num_experts ? plan_.expert_rows[e] : 0;
      const uint32_t sum = before + inclusive_sum(rows);
      if (e < num_experts) {
        plan_.expert_rows[e] = masked ? e * receive.rows_per_expert : sum - rows;
        const uint32_t room = masked ? receive.rows_per_expert : receive.capacity;
        const uint32_t used = min(masked ? rows : sum, room);  // what has been written, at any rate
        if (writes) receive.groups[masked ? e : e + 1] = static_cast<int32_t>(used);
        if (writes && masked && rows > room) report_capacity(room, rows, e);
      }
      before = __shfl_sync(kAllLanes, sum, 31);
    }
    if (!writes || masked || lane_ != 0) return;
    receive.groups[0] = 0;
    if (before > receive.capacity) report_capacity(receive.capacity, before, kAllExperts);
  }

  __device__ __forceinline__ void report_capacity(uint32_t room, uint32_t rows,
                                                  uint32_t expert) const {
    signals_.fail(ErrorKind::kCapacity, Phase::kDispatchCounts, params_.buffer.rank, room, rows,
                  expert);
  }

  /// One slot, when it is there. False if it does not come.
  __device__ __forceinline__ bool receive(uint32_t source, uint32_t index) {
    const uint8_t* slot = signals_.slot(params_.buffer.rank, source, index);
    const uint8_t* payload = slot + params_.buffer.layout.payload_offset;
    ChunkRange chunk(0, params_.payload_bytes, params_.num_scales);
    staging_.wait_free();
    uint32_t there = 0;
    if (lane_ == 0) {
      there = signals_.wait_slot(source, index, Phase::kDispatchReceive);
      if (there != 0) load(payload, chunk);
    }
    there = ptx::shfl_sync_idx_b32(there, 0, 0x1f);
    if (there == 0) return false;
    ptx::bar_warp_sync();  // what lane 0 has acquired, all know
    const int32_t row = take_entry(slot, source, index);
#pragma unroll 1
    while (true) {
      staging_.wait_full();
      if (row >= 0) store(static_cast<uint32_t>(row), chunk);
      staging_.advance(true);
      if (chunk.first == 0 && params_.receive.ready.counters != nullptr) {
        staging_.wait_written_before();
        release_row();
      }
      const uint32_t next = chunk.first + kChunkBytes;
      if (next >= params_.payload_bytes) break;
      chunk = ChunkRange(next, params_.payload_bytes, params_.num_scales);
      staging_.wait_free();
      if (lane_ == 0) load(payload, chunk);
    }
    if (row >= 0) pending_ = counter_;
    return true;
  }

  /// The lane's row of the token before is written: counts it for who waits for rows. Comes when
  /// the next token is under way.
  __device__ __forceinline__ void release_row() {
    if (params_.receive.ready.counters != nullptr && pending_ != kNone) {
      ptx::red_release_gpu_add_u32(params_.receive.ready.counters + pending_, 1);
    }
    pending_ = kNone;
  }

  /// This lane's entry into the handle. Returns its row of recv_x; -1 if it has none.
  __device__ __forceinline__ int32_t take_entry(const uint8_t* slot, uint32_t source,
                                                uint32_t index) {
    const ReceiveParams& receive = params_.receive;
    const uint32_t num_topk = params_.buffer.num_topk;
    if (lane_ >= num_topk) return -1;
    uint32_t header[4];
    uint32_t entry[4];
    ptx::ld_global_v4_b32(slot, header);
    ptx::ld_global_v4_b32(slot + sizeof(SlotHeader) + lane_ * sizeof(Entry), entry);
    const bool exists = lane_ < header[0];
    const uint32_t expert = exists ? entry[0] : 0;
    const uint32_t in_expert =
        entry[1] + plan_.first_rows[source * params_.buffer.num_local_experts + expert];
    const uint32_t place = plan_.expert_rows[expert] + in_expert;
    const bool masked = receive.rows_per_expert > 0;
    const bool fits = masked ? in_expert < receive.rows_per_expert : place < receive.capacity;
    const int32_t row = exists && fits ? static_cast<int32_t>(place) : -1;
    counter_ = masked ? receive.ready.index(expert, in_expert) : receive.ready.index(0, place);
    const uint64_t at =
        (uint64_t{source} * params_.buffer.layout.max_tokens + index) * num_topk + lane_;
    receive.rows[at] = row;
    receive.row_weights[at] = exists ? __uint_as_float(entry[2]) : 0.0f;
    receive.row_topk[at] = exists ? static_cast<int32_t>(entry[3]) : 0;
    return row;
  }

  /// One lane, which has acquired the slot: a chunk of it to the stage.
  __device__ __forceinline__ void load(const uint8_t* payload, const ChunkRange& chunk) {
    ptx::fence_proxy_async_global();  // the acquired slot, to the bulk copy
    const uint8_t* scales = payload + params_.payload_bytes + chunk.first_scale * 4;
    staging_.load(payload + chunk.first, chunk.bytes, scales, chunk.scale_bytes());
  }

  /// The stage to a row.
  __device__ __forceinline__ void store(uint32_t row, const ChunkRange& chunk) {
    const ReceiveParams& receive = params_.receive;
    ptx::cp_async_bulk_store(receive.x + row * receive.x_row_bytes + chunk.first, staging_.values(),
                             chunk.bytes);
    if (chunk.num_scales == 0) return;
    uint8_t* scales = reinterpret_cast<uint8_t*>(receive.scales) + row * receive.scales_row_bytes;
    ptx::cp_async_bulk_store(scales + chunk.first_scale * 4, staging_.scales(),
                             chunk.scale_bytes());
  }

  const DispatchParams& params_;
  const Signals& signals_;
  Staging staging_;
  ReceivePlan& plan_;
  uint32_t warp_;
  uint32_t num_warps_;
  uint32_t lane_;
  uint32_t counter_ = 0;      // of the lane's row of this token
  uint32_t pending_ = kNone;  // of a row that is still to be counted
};

}  // namespace pykernels::moe
