// 64 rows: the two consumer warpgroups share one output tile, 256 of the 512 columns each, and take
// every second block's softmax each, under the other's matrix products.
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

/// A consumer thread's registers for its two rows, lane / 4 and 8 below in the warp's 16: element
/// 4j + 2h + i is column 8j + lane % 4 * 2 + i of row h.
using Scores = float[kBlockTokens / 2];
using WideOutput = float[kHeadDimV / 4];  // of the warpgroup's 256 columns

/// One of the two warpgroups of a CTA, the even one (0) or the odd one (1).
///
/// Block 2i is the even one's and in stage 0, block 2i + 1 the odd one's and in stage 1. Both
/// multiply both blocks' probabilities with their own half of the value columns; each hands the
/// other its probabilities, and the maximum that these refer to, through one buffer in shared
/// memory. Even probabilities are read by the odd warpgroup, which then overwrites them with its
/// own, and so on in turns: who writes has itself been the last to read.
template <MlaDecodeConfig kConfig, uint32_t kWarpgroup>
class WideConsumer {
 public:
  __device__ __forceinline__ WideConsumer(const MlaDecodeParams& params,
                                          DecodeStorage<kConfig>& smem)
      : params_(params),
        smem_(smem),
        ring_(smem.barriers, kWarpgroup),
        q_(ptx::cvta_to_shared(smem.q)),
        kv_(ptx::cvta_to_shared(smem.kv)),
        p_(ptx::cvta_to_shared(smem.exchange.p)) {}

  __device__ __forceinline__ void run() {
    for (WorkWalk walk(params_); walk.has_item(); walk.advance()) {
      const WorkItem item = walk.item();
      const Request request(params_, item);
      if (kWarpgroup == 0 && threadIdx.x == 0 && blockIdx.x == 0) request.record(params_, item);
      start(item, request);
      if constexpr (kWarpgroup == 0) {
        attend_even(request);
      } else {
        attend_odd(request);
      }
      finish(walk.item());
    }
  }

 private:
  /// Waits for q and clears what the item's blocks are added to.
  __device__ __forceinline__ void start(const WorkItem& item, const Request& request) {
#pragma unroll
    for (float& element : output_) element = 0.0f;
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      max_[h] = kNoMax;
      sum_[h] = request.is_wrong ? not_a_number() : 0.0f;
      const uint32_t row = min(first_row<kConfig>() + this->row(h), params_.num_rows - 1);
      limit_[h] = Row(params_, row).limit(params_, request.length);
    }
    first_block_ = item.begin_block;
    wait(ptx::cvta_to_shared(&smem_.barriers.q_full), item_parity_);
    ptx::fence_proxy_async_shared_cta();  // q came by cp.async, and WGMMA reads it
  }

  /// The thread's row h in the tile.
  __device__ __forceinline__ static uint32_t row(uint32_t h) {
    return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + 8 * h;
  }

  // ---- Products ----

  static constexpr uint64_t kValueStep = 16 * 128 / kDescriptorUnit;  // 16 tokens

  /// scores = q times the warpgroup's next block, groups of columns from `kBegin` to `kEnd`, each
  /// as soon as it is there; one committed group.
  template <uint32_t kBegin, uint32_t kEnd>
  __device__ __forceinline__ void issue_scores(bool is_gathered) {
    constexpr uint32_t kQGroup = sizeof(smem_.q[0]) / kDescriptorUnit;
    const uint64_t q = ptx::descriptor_k_major_128b(here(q_));
    const uint64_t kv = ptx::descriptor_k_major_128b(here(kv_) + kWarpgroup * sizeof(smem_.kv[0]));
#pragma unroll
    for (uint32_t group = kBegin; group < kEnd; ++group) {
      ring_.wait_full(group);
      if (is_gathered) ptx::fence_proxy_async_shared_cta();  // it came by cp.async
      ptx::wgmma_fence();
#pragma unroll
      for (uint32_t step = 0; step < kGroupColumns / 16; ++step) {
        const uint64_t a = q + group * kQGroup + step * 2;
        const uint64_t b = kv + group * (kGroupBytes / kDescriptorUnit) + step * 2;
        if (group == 0 && step == 0) {
          ptx::wgmma_m64k16_f32_bf16_bf16_scale_d_0(scores_, a, b);
        } else {
          ptx::wgmma_m64k16_f32_bf16_bf16_scale_d_1(scores_, a, b);
        }
      }
    }
    ptx::wgmma_commit_group();
    if constexpr (kEnd == kNumGroups) ring_.advance();
  }

  /// Descriptor of the first 16 tokens' values in a stage, the warpgroup's columns.
  __device__ __forceinline__ uint64_t values(uint32_t stage) const {
    return ptx::descriptor_mn_major_128b<kGroupBytes>(here(kv_) + stage * sizeof(smem_.kv[0]) +
                                                      kWarpgroup * kLeftGroups * kGroupBytes);
  }

  /// output += own probabilities, from registers, times the values of a stage.
  __device__ __forceinline__ void issue_own(uint32_t stage) {
    const uint64_t first = values(stage);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < kBlockTokens / 16; ++step) {
      ptx::wgmma_m64k16_f32_bf16_bf16_rs_trans_b(output_, probabilities_[step],
                                                 first + step * kValueStep);
    }
    ptx::wgmma_commit_group();
  }

  /// output += the other warpgroup's probabilities, from shared memory, times the values of a
  /// stage.
  __device__ __forceinline__ void issue_exchanged(uint32_t stage) {
    const uint64_t p = ptx::descriptor_k_major_128b(here(p_));
    const uint64_t first = values(stage);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < kBlockTokens / 16; ++step) {
      ptx::wgmma_m64k16_f32_bf16_bf16_trans_b(output_, p + step * 2, first + step * kValueStep);
    }
    ptx::wgmma_commit_group();
  }

  /// The warpgroup's half of a stage, which it has read. Behind a block that is not an item's last,
  /// which TMA has loaded if there is any; without TMA, what a CTA's threads have written they
  /// overwrite themselves, and the other CTA's copies their own.
  __device__ __forceinline__ void release(uint32_t stage) const {
    ring_.release(stage, kWarpgroup == 0 ? Half::kLeft : Half::kRight, false);
  }

  /// The same behind any block.
  __device__ __forceinline__ void release(uint32_t stage, int32_t block,
                                          const Request& request) const {
    ring_.release(stage, kWarpgroup == 0 ? Half::kLeft : Half::kRight,
                  params_.has_map && gathered(block, request));
  }

  // ---- Softmax ----

  /// Scores of tokens that a row does not see become -infinity.
  __device__ __forceinline__ void mask(int32_t block) {
    const int32_t token =
        block * static_cast<int32_t>(kBlockTokens) + static_cast<int32_t>(threadIdx.x % 4 * 2);
#pragma unroll
    for (uint32_t i = 0; i < kBlockTokens / 2; ++i) {
      const int32_t column = static_cast<int32_t>(i / 4 * 8 + i % 2);
      if (token + column >= limit_[i / 2 % 2]) scores_[i] = minus_infinity();
    }
  }

  /// From complete scores to probabilities in registers, and their part of the rows' sums.
  /// Returns the rescaling of what has been added up before.
  __device__ __forceinline__ void take_probabilities(int32_t block, const Request& request,
                                                     float (&rescale)[2]) {
#pragma unroll
    for (float& score : scores_) hold_uses(score);
    if (has_bad_page(smem_.has_bad_page[kWarpgroup])) sum_[0] = sum_[1] = not_a_number();
    if (is_masked(params_, block, request.length)) mask(block);
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      float greatest = scores_[2 * h];
#pragma unroll
      for (uint32_t i = 0; i < kBlockTokens / 2; ++i) {
        if (i / 2 % 2 == h) greatest = fmaxf(greatest, scores_[i]);
      }
      greatest = fmaxf(greatest, __shfl_xor_sync(kAllLanes, greatest, 1));
      greatest = fmaxf(greatest, __shfl_xor_sync(kAllLanes, greatest, 2));
      const float max = raised_max(max_[h], __fmul_rn(greatest, params_.scale_log2));
      rescale[h] = rescaling(max_[h], max);
      max_[h] = max;
      float sum = 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < kBlockTokens / 2; ++i) {
        if (i / 2 % 2 != h) continue;
        scores_[i] = probability(scores_[i], params_.scale_log2, max);
        sum = __fadd_rn(sum, scores_[i]);
      }
      sum_[h] = fmaf(sum_[h], rescale[h], sum);
    }
#pragma unroll
    for (uint32_t i = 0; i < kBlockTokens / 4; ++i) {
      probabilities_[i / 4][i % 4] = ptx::cvt_rn_bf16x2_f32(scores_[2 * i + 1], scores_[2 * i]);
    }
  }

  /// The output follows a raised maximum. It is complete: no product is under way.
  __device__ __forceinline__ void rescale_output(const float (&rescale)[2]) {
    if (!__any_sync(kAllLanes, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
    for (uint32_t i = 0; i < kHeadDimV / 4; ++i) {
      hold_uses(output_[i]);
      output_[i] = __fmul_rn(output_[i], rescale[i / 2 % 2]);
    }
  }

  // ---- Exchange ----

  /// Hands the probabilities and their maxima to the other warpgroup.
  __device__ __forceinline__ void publish() {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t row = threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
    for (uint32_t step = 0; step < kBlockTokens / 16; ++step) {
      const uint32_t (&p)[4] = probabilities_[step];
      ptx::stmatrix_m8n8_x4_b16(p_ + swizzled_128b(row, 2 * step + lane / 16), p[0], p[1], p[2],
                                p[3]);
    }
    if (lane % 4 == 0) {
#pragma unroll
      for (uint32_t h = 0; h < 2; ++h) smem_.exchange.row_max[kWarpgroup][this->row(h)] = max_[h];
    }
    ptx::fence_proxy_async_shared_cta();  // for the other warpgroup's WGMMA
    constexpr auto kReady = kWarpgroup == 0 ? NamedBarrier::kEvenReady : NamedBarrier::kOddReady;
    ptx::bar_arrive(static_cast<uint32_t>(kReady), kConfig.num_consumer_threads());
  }

  /// Waits for the other warpgroup's probabilities and turns to their maxima. Returns the rescaling
  /// of what has been added up before.
  __device__ __forceinline__ void receive(float (&rescale)[2]) {
    constexpr auto kReady = kWarpgroup == 0 ? NamedBarrier::kOddReady : NamedBarrier::kEvenReady;
    ptx::bar_sync(static_cast<uint32_t>(kReady), kConfig.num_consumer_threads());
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      const float max = smem_.exchange.row_max[1 - kWarpgroup][this->row(h)];
      rescale[h] = rescaling(max_[h], max);
      sum_[h] = __fmul_rn(sum_[h], rescale[h]);
      max_[h] = max;
    }
  }

  // ---- Schedules ----

  /// Of an FP8 cache, the producers have made each group visible to WGMMA themselves.
  __device__ __forceinline__ bool gathered(int32_t block, const Request& request) const {
    return !kConfig.fp8 && is_gathered(params_, block, request.length);
  }

  __device__ __forceinline__ void attend_even(const Request& request) {
    const int32_t end = first_block_ + request.num_blocks;
    int32_t block = first_block_;
    if (block >= end) return;
    issue_scores<0, kLeftGroups>(gathered(block, request));
    issue_scores<kLeftGroups, kNumGroups>(gathered(block, request));
#pragma unroll 1
    for (;; block += 2) {
      float rescale[2];
      if (block + 1 < end) {
        ptx::wgmma_wait_group<1>();  // the first groups' part: the odd scores may follow
        ptx::bar_arrive(static_cast<uint32_t>(NamedBarrier::kEvenAhead),
                        kConfig.num_consumer_threads());
      }
      ptx::wgmma_wait_group<0>();  // the scores, and the odd block's product before them
      take_probabilities(block, request, rescale);
      rescale_output(rescale);
      publish();
      issue_own(0);
      if (block + 1 == end) {
        ptx::wgmma_wait_group<0>();
        release(0, block, request);
        return;
      }
      receive(rescale);
      ptx::wgmma_wait_group<0>();  // the output, to be rescaled, and the stage
      release(0);
      rescale_output(rescale);
      issue_exchanged(1);
      if (block + 2 == end) {
        ptx::wgmma_wait_group<0>();
        release(1, block + 1, request);
        return;
      }
      const bool is_gathered = gathered(block + 2, request);
      issue_scores<0, kLeftGroups>(is_gathered);
      ptx::wgmma_wait_group<1>();  // all but these scores: the odd stage has been read
      release(1);
      issue_scores<kLeftGroups, kNumGroups>(is_gathered);
    }
  }

  __device__ __forceinline__ void attend_odd(const Request& request) {
    const int32_t end = first_block_ + request.num_blocks;
#pragma unroll 1
    for (int32_t block = first_block_ + 1; block < end; block += 2) {
      float rescale[2];
      // Even scores come first, so that their softmax runs under these products: were they to share
      // the tensor cores from the start, both would end at one time and nothing would be left.
      ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kEvenAhead),
                    kConfig.num_consumer_threads());
      issue_scores<0, kNumGroups>(gathered(block, request));
      receive(rescale);
      ptx::wgmma_wait_group<0>();  // the scores: no output is touched while products are under way
      rescale_output(rescale);
      issue_exchanged(0);
      take_probabilities(block, request, rescale);
      ptx::wgmma_wait_group<0>();  // the even block's product: its stage and probabilities are read
      release(0);
      publish();
      rescale_output(rescale);
      issue_own(1);
      ptx::wgmma_wait_group<0>();
      release(1, block, request);
    }
    if (request.num_blocks % 2 != 0) {  // an even block is left
      float rescale[2];
      receive(rescale);
      rescale_output(rescale);
      issue_exchanged(0);
      ptx::wgmma_wait_group<0>();
      release(0, first_block_ + request.num_blocks - 1, request);
    }
  }

  /// Both warpgroups' sums make the rows', both refer to the same maxima; the output leaves.
  __device__ __forceinline__ void finish(const WorkItem& item) {
#pragma unroll
    for (float& element : output_) hold_uses(element);
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      sum_[h] = __fadd_rn(sum_[h], __shfl_xor_sync(kAllLanes, sum_[h], 1));
      sum_[h] = __fadd_rn(sum_[h], __shfl_xor_sync(kAllLanes, sum_[h], 2));
      if (threadIdx.x % 4 == 0) {
        smem_.exchange.row_sum[item_parity_][kWarpgroup][row(h)] = sum_[h];
      }
    }
    // Behind it neither reads q any more, either.
    ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kConsumers), kConfig.num_consumer_threads());
    RowResult results[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; ++h) {
      // In the order of the warpgroups, so that both get the same bits.
      const auto& sums = smem_.exchange.row_sum[item_parity_];
      const float sum = checked_sum(max_[h], __fadd_rn(sums[0][row(h)], sums[1][row(h)]));
      results[h] = {normalisation(sum), log_sum_exp(max_[h], sum)};
    }
    item_parity_ ^= 1;
    store_wide<kConfig>(params_, smem_, item, output_, results);
    arrive_from_warp(ptx::cvta_to_shared(&smem_.barriers.q_empty));
  }

  const MlaDecodeParams& params_;
  DecodeStorage<kConfig>& smem_;
  ConsumerRing<kConfig> ring_;
  uint32_t q_;  // shared-window addresses
  uint32_t kv_;
  uint32_t p_;
  uint32_t item_parity_ = 0;
  int32_t first_block_ = 0;
  int32_t limit_[2];  // tokens that the thread's rows see
  float max_[2];      // that probabilities refer to, in powers of two
  float sum_[2];      // of the warpgroup's own probabilities, this thread's columns
  Scores scores_;
  uint32_t probabilities_[kBlockTokens / 16][4];  // WGMMA's A fragments, 16 tokens each
  WideOutput output_;
};

}  // namespace pykernels::mla
