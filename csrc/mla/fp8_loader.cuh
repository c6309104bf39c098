// The producer warps' way in for blocks of an FP8 cache: every token is converted to BF16 once, for
// all CTAs of the cluster.
#pragma once

#include "core/tile.cuh"
#include "mla/dequantise.cuh"
#include "mla/loader.cuh"
#include "mla/pages.cuh"
#include "mla/ring.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/fence.cuh"
#include "ptx/memory.cuh"

namespace pykernels::mla {

/// Thread t takes columns t % 4 * 16 up to 15 further of each group, of tokens t / 4 and t / 4 +
/// 32, or of the former alone in a cluster of two, where each CTA converts half of the tokens.
///
/// What it will convert next is on its way in registers, in as many slots as there are registers
/// for: when a group has been converted, its slot takes the group that many further on, of the same
/// block or of the next one. So memory is read at all times, also while a stage is waited for.
template <MlaDecodeConfig kConfig>
class Fp8BlockLoader {
 public:
  __device__ __forceinline__ explicit Fp8BlockLoader(DecodeStorage<kConfig>& smem)
      : smem_(smem), ring_(smem.barriers) {}

  /// Turns to an item and its first block.
  __device__ __forceinline__ void start(const MlaDecodeParams&, const PageTable& pages,
                                        int32_t block) {
    next_ = Tokens(pages, block);
#pragma unroll
    for (uint32_t group = 0; group < kNumSlots; ++group) fetch(next_, group);
  }

  /// Fills a stage with the block that has been started, and starts the one after, if there is one.
  __device__ __forceinline__ void load(const MlaDecodeParams&, const PageTable& pages,
                                       const Request&, int32_t block, uint32_t stage,
                                       bool has_next) {
    const Tokens tokens = next_;
    next_ = has_next ? Tokens(pages, block + 1) : Tokens();
    ring_.wait_empty(stage, Half::kLeft);
#pragma unroll
    for (uint32_t group = 0; group < kNumValueGroups; ++group) {
      if (group == kLeftGroups) {
        ring_.wait_empty(stage, Half::kRight);
        start_rope(tokens, tile(stage, kNumValueGroups));
      }
      convert(group, tile(stage, group));
      const uint32_t ahead = group + kNumSlots;
      if (ahead < kNumValueGroups) {
        fetch(tokens, ahead);
      } else {
        fetch(next_, ahead - kNumValueGroups);
      }
      publish(stage, group);
    }
    ptx::cp_async_wait_all();  // the rope part
    const bool any = __any_sync(kAllLanes, tokens.has_bad_page);
    if (threadIdx.x % 32 == 0) smem_.has_bad_page[stage][producer_idx<kConfig>() / 32] = any;
    publish(stage, kNumValueGroups);
    ring_.advance(stage);
  }

  __device__ __forceinline__ void drain() const { ring_.drain(); }

 private:
  static constexpr uint32_t kTokenStep = 32;
  static constexpr uint32_t kNumTokens = kBlockTokens / kConfig.cluster / kTokenStep;  // a thread
  static constexpr uint32_t kChunk = 16;                                               // columns
  static constexpr uint32_t kScaleGroups = 2;  // groups of columns that share a scale
  // A divisor of the groups, all where the consumers leave the registers for them.
  static constexpr uint32_t kNumSlots = kConfig.block_rows == 64 && kNumTokens > 1 ? 4 : 8;

  __device__ __forceinline__ static uint32_t chunk() { return threadIdx.x % 4; }

  /// The thread's row i in the stage's tiles.
  __device__ __forceinline__ static uint32_t row(uint32_t i) {
    const uint32_t first = producer_idx<kConfig>() / 4 + i * kTokenStep;
    if constexpr (kConfig.cluster == 1) return first;
    return first + ptx::cluster_ctarank() * (kBlockTokens / kConfig.cluster);
  }

  /// The thread's tokens of a block: where they are cached; null for zeros.
  struct Tokens {
    const uint8_t* addresses[kNumTokens] = {};
    bool has_bad_page = false;

    Tokens() = default;
    __device__ __forceinline__ Tokens(const PageTable& pages, int32_t block) {
      BadPage bad_page;
#pragma unroll
      for (uint32_t i = 0; i < kNumTokens; ++i) {
        addresses[i] = pages.address(
            block * static_cast<int32_t>(kBlockTokens) + static_cast<int32_t>(row(i)), bad_page);
        if constexpr (kConfig.cluster > 1) {  // a bad page spoils the rows of every CTA
          constexpr uint32_t kOtherHalf = kBlockTokens / kConfig.cluster;
          pages.address(block * static_cast<int32_t>(kBlockTokens) +
                            static_cast<int32_t>(row(i) ^ kOtherHalf),
                        bad_page);
        }
      }
      pages.record(bad_page);
      has_bad_page = bad_page.exists;
    }
  };

  /// Sends for 16 values of a group of each of the thread's tokens, as they are cached. The second
  /// group of a scale brings that for both, since the first one's last values may still need
  /// theirs.
  __device__ __forceinline__ void fetch(const Tokens& tokens, uint32_t group) {
    const uint32_t slot = group % kNumSlots;
#pragma unroll
    for (uint32_t i = 0; i < kNumTokens; ++i) {
      uint32_t (&codes)[4] = codes_[slot][i];
      float& scale = scales_[slot / kScaleGroups][i];
      const bool has_scale = group % kScaleGroups + 1 == kScaleGroups;
      if (const uint8_t* token = tokens.addresses[i]) {
        ptx::ld_global_nc_v4_s32(token + group * kGroupColumns + chunk() * kChunk, codes);
        const auto* scales = reinterpret_cast<const float*>(token + kFp8ScaleOffset);
        if (has_scale) scale = ptx::ld_global_f32(scales + group / kScaleGroups);
      } else {
        codes[0] = codes[1] = codes[2] = codes[3] = 0;
        if (has_scale) scale = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void convert(uint32_t group, uint32_t tile) const {
    const uint32_t slot = group % kNumSlots;
#pragma unroll
    for (uint32_t i = 0; i < kNumTokens; ++i) {
      const uint32_t (&codes)[4] = codes_[slot][i];
      const float scale = scales_[slot / kScaleGroups][i];
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t low = codes[2 * half];
        const uint32_t high = codes[2 * half + 1];
        const uint32_t words[4] = {dequantise(low, scale), dequantise(low >> 16, scale),
                                   dequantise(high, scale), dequantise(high >> 16, scale)};
        ptx::st_shared_v4_b32(tile + swizzled_128b(row(i), 2 * chunk() + half), words);
      }
    }
  }

  /// The rope part is BF16: 32 bytes of each token are copied as they are. At a time a token's
  /// threads take 64 bytes in a row, and neighbouring rows different halves, for all banks.
  __device__ __forceinline__ static void start_rope(const Tokens& tokens, uint32_t tile) {
    uint32_t thread = producer_idx<kConfig>();
    hold_value(thread);  // no registers for what follows from it, from block to block
#pragma unroll
    for (uint32_t i = 0; i < kNumTokens; ++i) {
      const uint8_t* token = tokens.addresses[i];
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t unit = (half ^ thread / 4 % 2) * 4 + thread % 4;
        ptx::cp_async_cg_16(tile + swizzled_128b(row(i), unit),
                            token + kFp8RopeOffset + unit * kUnitBytes,
                            token != nullptr ? kUnitBytes : 0);
      }
    }
  }

  /// A group's columns have been written: to the consumers, and to the other CTA of the cluster.
  __device__ __forceinline__ void publish(uint32_t stage, uint32_t group) {
    const uint32_t full = ring_.full(stage, group);
    ptx::fence_proxy_async_shared_cta();  // for WGMMA, and for the copy to the other CTA
    if constexpr (kConfig.cluster == 1) {
      ptx::mbarrier_arrive(full);
    } else {
      constexpr uint32_t kHalfBytes = kGroupBytes / 2;  // of the tokens that a CTA converts
      ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kProducers),
                    kConfig.num_producer_threads());
      if (producer_idx<kConfig>() > 0) {
        ptx::mbarrier_arrive(full);
        return;
      }
      ptx::mbarrier_arrive_expect_tx(full, kHalfBytes);  // of the other CTA's copy
      const uint32_t rank = ptx::cluster_ctarank();
      const uint32_t from = tile(stage, group) + rank * kHalfBytes;
      ptx::cp_async_bulk_shared_cluster(ptx::mapa_shared_cluster(from, rank ^ 1), from, kHalfBytes,
                                        ptx::mapa_shared_cluster(full, rank ^ 1));
    }
  }

  __device__ __forceinline__ uint32_t tile(uint32_t stage, uint32_t group) const {
    return ptx::cvta_to_shared(smem_.kv[stage][group]);
  }

  DecodeStorage<kConfig>& smem_;
  ProducerRing<kConfig> ring_;
  Tokens next_;
  uint32_t codes_[kNumSlots][kNumTokens][4];
  float scales_[kNumSlots / kScaleGroups][kNumTokens];
};

}  // namespace pykernels::mla
