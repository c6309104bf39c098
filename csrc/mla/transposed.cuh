// Fewer than 64 rows: tokens, then value columns, are on M and the rows on N, so that few heads
// cost no more than they are. Each consumer warpgroup attends to every second block on its own, all
// value columns of it; at the end of an item the first takes the other's results in.
#pragma once

#include "core/tile.cuh"
#include "mla/output.cuh"
#include "mla/ring.cuh"
#include "mla/softmax.cuh"
#include "mla/storage.cuh"
#include "mla/work.cuh"
#include "ptx/barrier.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/matrix.cuh"
#include "ptx/memory.cuh"
#include "ptx/wgmma.cuh"
#include "ptx/wgmma_bf16.cuh"

namespace pykernels::mla {

/// A consumer thread's registers for a tile of 64 tokens or value columns on M and the rows on N:
/// element 4j + 2h + i is M's warp * 16 + lane / 4 + 8h and row 8j + lane % 4 * 2 + i. So a thread
/// has the same rows everywhere: rows in all, of which it keeps what belongs to each.
template <MlaDecodeConfig kConfig>
using TransposedTile = float[kConfig.block_rows / 2];
template <MlaDecodeConfig kConfig>
using ThreadRows = float[kConfig.block_rows / 4];

/// The thread's row of an element, and its first row with 8 columns of N more.
__device__ __forceinline__ constexpr uint32_t thread_row(uint32_t element) {
  return element / 4 * 2 + element % 2;
}

template <MlaDecodeConfig kConfig, uint32_t kWarpgroup>
class TransposedConsumer {
 public:
  __device__ __forceinline__ TransposedConsumer(const MlaDecodeParams& params,
                                                DecodeStorage<kConfig>& smem)
      : params_(params),
        smem_(smem),
        ring_(smem.barriers, kWarpgroup),
        q_(ptx::cvta_to_shared(smem.q)),
        kv_(ptx::cvta_to_shared(smem.kv[kWarpgroup])),
        p_(ptx::cvta_to_shared(smem.exchange.p[kWarpgroup])) {}

  __device__ __forceinline__ void run() {
    for (WorkWalk walk(params_); walk.has_item(); walk.advance()) {
      const WorkItem item = walk.item();
      const Request request(params_, item);
      if (kWarpgroup == 0 && threadIdx.x == 0) request.record(params_, item);
      start(request);
      const int32_t end = item.begin_block + request.num_blocks;
#pragma unroll 1
      for (int32_t block = item.begin_block + kWarpgroup; block < end; block += 2) {
        attend(block, request);
        // The other warpgroup's last stage carries its results over, and is released behind that.
        if (kWarpgroup == 0 || block + 2 < end) release();
      }
      finish(walk.item(), request);
    }
  }

 private:
  static constexpr uint32_t kRows = kConfig.block_rows;
  static constexpr uint32_t kNumThreadRows = kRows / 4;
  static constexpr uint32_t kNumTiles = kNumValueGroups;  // of 64 value columns

  __device__ __forceinline__ static uint32_t warp() { return threadIdx.x % 128 / 32; }
  __device__ __forceinline__ static uint32_t lane() { return threadIdx.x % 32; }

  /// In the tile, the row of the thread's i.
  __device__ __forceinline__ static uint32_t row(uint32_t i) {
    return i / 2 * 8 + lane() % 4 * 2 + i % 2;
  }

  __device__ __forceinline__ static void sync_warpgroup() {
    ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kWarpgroup) + kWarpgroup, 128);
  }

  __device__ __forceinline__ void start(const Request& request) {
#pragma unroll
    for (auto& tile : output_) {
#pragma unroll
      for (float& element : tile) element = 0.0f;
    }
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) {
      max_[i] = kNoMax;
      sum_[i] = request.is_wrong ? not_a_number() : 0.0f;
    }
    wait(ptx::cvta_to_shared(&smem_.barriers.q_full), q_phase_);
    q_phase_ ^= 1;
    ptx::fence_proxy_async_shared_cta();  // q came by cp.async, and WGMMA reads it
  }

  __device__ __forceinline__ void release() const { ring_.release(kWarpgroup, Half::kLeft); }

  // ---- A block ----

  __device__ __forceinline__ void attend(int32_t block, const Request& request) {
    // Of an FP8 cache, the producers have made each group visible to WGMMA themselves.
    issue_scores(!kConfig.fp8 && is_gathered(params_, block, request.length));
    ptx::wgmma_wait_group<0>();
#pragma unroll
    for (float& score : scores_) hold_uses(score);
    if (has_bad_page(smem_.has_bad_page[kWarpgroup])) {
#pragma unroll
      for (float& sum : sum_) sum = not_a_number();
    }
    if (is_masked(params_, block, request.length)) mask(block, request);
    raise_max();
    take_probabilities();
    issue_output();
    ptx::wgmma_wait_group<0>();
  }

  /// scores = the block times q, groups of columns as soon as they are there.
  __device__ __forceinline__ void issue_scores(bool is_gathered) {
    const uint64_t kv = ptx::descriptor_k_major_128b(here(kv_));
    const uint64_t q = ptx::descriptor_k_major_128b(here(q_));
#pragma unroll
    for (uint32_t group = 0; group < kNumGroups; ++group) {
      ring_.wait_full(group);
      if (is_gathered) ptx::fence_proxy_async_shared_cta();  // it came by cp.async
      ptx::wgmma_fence();
#pragma unroll
      for (uint32_t step = 0; step < kGroupColumns / 16; ++step) {
        const uint64_t a = kv + group * (kGroupBytes / kDescriptorUnit) + step * 2;
        const uint64_t b = q + group * (sizeof(smem_.q[0]) / kDescriptorUnit) + step * 2;
        if (group == 0 && step == 0) {
          ptx::wgmma_m64k16_f32_bf16_bf16_scale_d_0(scores_, a, b);
        } else {
          ptx::wgmma_m64k16_f32_bf16_bf16_scale_d_1(scores_, a, b);
        }
      }
    }
    ptx::wgmma_commit_group();
    ring_.advance();
  }

  /// output += the block's values, columns on M, times its probabilities.
  __device__ __forceinline__ void issue_output() {
    // 64 columns are a row of the tile, so that columns have no second stride.
    const uint64_t values = ptx::descriptor_mn_major_128b<kGroupBytes>(here(kv_));
    const uint64_t p = ptx::descriptor_k_major_128b(here(p_));
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t tile = 0; tile < kNumTiles; ++tile) {
#pragma unroll
      for (uint32_t step = 0; step < kBlockTokens / 16; ++step) {
        ptx::wgmma_m64k16_f32_bf16_bf16_trans_a(
            output_[tile], values + (tile * kGroupBytes + step * 16 * 128) / kDescriptorUnit,
            p + step * 2);
      }
    }
    ptx::wgmma_commit_group();
  }

  /// Scores of tokens that a row does not see become -infinity.
  __device__ __forceinline__ void mask(int32_t block, const Request& request) {
    const auto token =
        block * static_cast<int32_t>(kBlockTokens) + static_cast<int32_t>(warp() * 16 + lane() / 4);
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) {
      const uint32_t request_row = min(first_row<kConfig>() + row(i), params_.num_rows - 1);
      const int32_t limit = Row(params_, request_row).limit(params_, request.length);
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        if (token + static_cast<int32_t>(8 * h) >= limit) {
          scores_[i / 2 * 4 + h * 2 + i % 2] = minus_infinity();
        }
      }
    }
  }

  /// The maxima over the block's tokens, which lie in all lanes and warps, raise the rows' where
  /// they must; what has been added up follows.
  __device__ __forceinline__ void raise_max() {
    float greatest[kNumThreadRows];
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) {
      const float* score = &scores_[i / 2 * 4 + i % 2];
      greatest[i] = fmaxf(score[0], score[2]);
#pragma unroll
      for (uint32_t distance = 4; distance < 32; distance *= 2) {
        greatest[i] = fmaxf(greatest[i], __shfl_xor_sync(kAllLanes, greatest[i], distance));
      }
    }
    store_of_warp(smem_.exchange.warp_max[kWarpgroup], greatest);
    sync_warpgroup();  // also: all warps' products with the last block's probabilities are complete
    bool is_raised = false;
    float rescale[kNumThreadRows];
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) {
      const auto& warp_max = smem_.exchange.warp_max[kWarpgroup];
      const float of_block = fmaxf(fmaxf(warp_max[0][row(i)], warp_max[1][row(i)]),
                                   fmaxf(warp_max[2][row(i)], warp_max[3][row(i)]));
      const float max = raised_max(max_[i], __fmul_rn(of_block, params_.scale_log2));
      is_raised = is_raised || max != max_[i];
      rescale[i] = rescaling(max_[i], max);
      max_[i] = max;
    }
    if (__any_sync(kAllLanes, is_raised)) multiply_all(rescale);
  }

  /// What has been added up so far, and its sums, by each row's factor.
  __device__ __forceinline__ void multiply_all(const float (&factor)[kNumThreadRows]) {
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) sum_[i] = __fmul_rn(sum_[i], factor[i]);
#pragma unroll
    for (auto& tile : output_) {
#pragma unroll
      for (uint32_t i = 0; i < kRows / 2; ++i) {
        hold_uses(tile[i]);
        tile[i] = __fmul_rn(tile[i], factor[thread_row(i)]);
      }
    }
  }

  /// Probabilities to shared memory, a row of tokens for each row of q.
  __device__ __forceinline__ void take_probabilities() {
#pragma unroll
    for (uint32_t i = 0; i < kRows / 2; ++i) {
      const uint32_t of_row = thread_row(i);
      scores_[i] = probability(scores_[i], params_.scale_log2, max_[of_row]);
      sum_[of_row] = __fadd_rn(sum_[of_row], scores_[i]);
    }
#pragma unroll
    for (uint32_t j = 0; j < kRows / 8; ++j) {
      const float* element = &scores_[4 * j];
      ptx::stmatrix_m8n8_x2_trans_b16(
          p_ + swizzled_128b(8 * j + lane() % 8, 2 * warp() + lane() / 8 % 2),
          ptx::cvt_rn_bf16x2_f32(element[1], element[0]),
          ptx::cvt_rn_bf16x2_f32(element[3], element[2]));
    }
    ptx::fence_proxy_async_shared_cta();  // for WGMMA, of all warps' probabilities
    sync_warpgroup();
  }

  /// Of values that all lanes / 4 of a warp share, one for each row.
  __device__ __forceinline__ static void store_of_warp(float (&to)[4][kRows],
                                                       const float (&values)[kNumThreadRows]) {
    if (lane() >= 4) return;
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) to[warp()][row(i)] = values[i];
  }

  // ---- The end of an item ----

  __device__ __forceinline__ static void sync_consumers() {
    ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kConsumers), kConfig.num_consumer_threads());
  }

  __device__ __forceinline__ void finish(const WorkItem& item, const Request& request) {
#pragma unroll
    for (auto& tile : output_) {
#pragma unroll
      for (float& element : tile) hold_uses(element);
    }
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) {
#pragma unroll
      for (uint32_t distance = 4; distance < 32; distance *= 2) {
        sum_[i] = __fadd_rn(sum_[i], __shfl_xor_sync(kAllLanes, sum_[i], distance));
      }
      if (warp() == 0 && lane() < 4) smem_.exchange.row_max[kWarpgroup][row(i)] = max_[i];
    }
    store_of_warp(smem_.exchange.warp_sum[kWarpgroup], sum_);
    sync_consumers();  // maxima and sums are there; neither reads q any more
    float factor[kNumThreadRows];
    RowResult results[kNumThreadRows];
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) results[i] = merge(i, factor[i]);
    multiply_all(factor);
    const bool has_both = request.num_blocks > 1;
    if constexpr (kWarpgroup == 1) {
      if (has_both) carry_over();
      sync_consumers();
    } else {
      sync_consumers();  // the other's results are there; its sums and maxima have been read
      if (has_both) take_over();
      store(item, results);
      arrive_from_warp(ptx::cvta_to_shared(&smem_.barriers.q_empty));
    }
  }

  /// From both warpgroups' sums to the row's end. `factor`: of this warpgroup's output.
  __device__ __forceinline__ RowResult merge(uint32_t i, float& factor) const {
    const auto& exchange = smem_.exchange;
    const float max = fmaxf(exchange.row_max[0][row(i)], exchange.row_max[1][row(i)]);
    float sum = 0.0f;
#pragma unroll
    for (uint32_t warpgroup = 0; warpgroup < 2; ++warpgroup) {
      const auto& warp_sum = exchange.warp_sum[warpgroup];
      const float of_warpgroup = __fadd_rn(__fadd_rn(warp_sum[0][row(i)], warp_sum[1][row(i)]),
                                           __fadd_rn(warp_sum[2][row(i)], warp_sum[3][row(i)]));
      sum = fmaf(of_warpgroup, rescaling(exchange.row_max[warpgroup][row(i)], max), sum);
    }
    sum = checked_sum(max, sum);
    factor = __fmul_rn(rescaling(max_[i], max), normalisation(sum));
    return {1.0f, log_sum_exp(max, sum)};
  }

  /// Where this thread's registers of a tile lie in the second warpgroup's stage, by element.
  __device__ __forceinline__ float* carried(uint32_t tile, uint32_t element) const {
    static_assert(sizeof(output_) * 128 <= sizeof(smem_.kv[1]));
    auto* floats = reinterpret_cast<float*>(smem_.kv[1]);
    return floats + (tile * (kRows / 2) + element) * 128 + threadIdx.x % 128;
  }

  __device__ __forceinline__ void carry_over() const {
#pragma unroll
    for (uint32_t tile = 0; tile < kNumTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < kRows / 2; ++i) *carried(tile, i) = output_[tile][i];
    }
  }

  /// Adds what the other warpgroup has carried over, and releases its stage in its place.
  __device__ __forceinline__ void take_over() {
#pragma unroll
    for (uint32_t tile = 0; tile < kNumTiles; ++tile) {
#pragma unroll
      for (uint32_t i = 0; i < kRows / 2; ++i) {
        output_[tile][i] = __fadd_rn(output_[tile][i], *carried(tile, i));
      }
    }
    if constexpr (!kConfig.fp8) ptx::fence_proxy_async_shared_cta();  // TMA overwrites it
    ptx::bar_warp_sync();
    ring_.release(1, Half::kLeft);
  }

  /// The first warpgroup: all rows.
  __device__ __forceinline__ void store(const WorkItem& item,
                                        const RowResult (&results)[kNumThreadRows]) {
    const RowTarget target(params_, item);
#pragma unroll
    for (uint32_t i = 0; i < kNumThreadRows; ++i) {
      const uint32_t request_row = first_row<kConfig>() + row(i);
      if (!target.exists(request_row)) continue;
      if (threadIdx.x < 4) target.store_lse(request_row, results[i].lse);
      if (target.is_partial()) store_partial(target.partial_out(request_row), i);
    }
    if (!target.is_partial()) {
      stage();
      sync_warpgroup();
      store_staged(target);
    }
  }

  /// Neighbouring values of a row are in neighbouring lanes / 4: eight fill a sector.
  __device__ __forceinline__ void store_partial(float* row_out, uint32_t i) const {
    float* first = row_out + warp() * 16 + lane() / 4;
#pragma unroll
    for (uint32_t tile = 0; tile < kNumTiles; ++tile) {
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) {
        first[tile * 64 + h * 8] = output_[tile][i / 2 * 4 + h * 2 + i % 2];
      }
    }
  }

  // A staged row: 512 BF16 columns, and 16 bytes so that the rows of a matrix lie in all banks.
  static constexpr uint32_t kStagedRowBytes = kHeadDimV * 2 + 16;

  __device__ __forceinline__ void stage() const {
    static_assert(kRows * kStagedRowBytes <= sizeof(smem_.q));
#pragma unroll
    for (uint32_t tile = 0; tile < kNumTiles; ++tile) {
#pragma unroll
      for (uint32_t j = 0; j < kRows / 8; ++j) {
        const float* element = &output_[tile][4 * j];
        const uint32_t column = tile * 64 + warp() * 16 + lane() / 8 % 2 * 8;
        ptx::stmatrix_m8n8_x2_trans_b16(q_ + (8 * j + lane() % 8) * kStagedRowBytes + column * 2,
                                        ptx::cvt_rn_bf16x2_f32(element[1], element[0]),
                                        ptx::cvt_rn_bf16x2_f32(element[3], element[2]));
      }
    }
  }

  __device__ __forceinline__ void store_staged(const RowTarget& target) const {
    constexpr uint32_t kUnits = kHeadDimV * 2 / 16;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < kRows * kUnits; i += 128) {
      uint32_t words[4];
      ptx::ld_shared_v4_b32(q_ + i / kUnits * kStagedRowBytes + i % kUnits * 16, words);
      const uint32_t request_row = first_row<kConfig>() + i / kUnits;
      if (!target.exists(request_row)) continue;
      ptx::st_global_v4_b32(target.out(request_row) + i % kUnits * 16, words);
    }
  }

  const MlaDecodeParams& params_;
  DecodeStorage<kConfig>& smem_;
  ConsumerRing<kConfig> ring_;
  uint32_t q_;   // shared-window addresses
  uint32_t kv_;  // of the warpgroup's stage
  uint32_t p_;
  uint32_t q_phase_ = 0;
  ThreadRows<kConfig> max_;  // that probabilities refer to, in powers of two
  ThreadRows<kConfig> sum_;  // of probabilities of this thread's tokens
  TransposedTile<kConfig> scores_;
  TransposedTile<kConfig> output_[kNumTiles];  // a tile for each 64 value columns
};

}  // namespace pykernels::mla
