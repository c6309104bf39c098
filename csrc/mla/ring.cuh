// The two stages between the producer warps and the consumer warpgroups. An item's block i is in
// stage i % 2, so a consumer warpgroup has its own blocks' stage.
#pragma once

#include "core/tile.cuh"
#include "mla/storage.cuh"
#include "ptx/address.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"

namespace pykernels::mla {

/// Arrivals that complete a phase of a full barrier. BF16: of each producer thread, be it by its
/// copies; at the last group of each producer warp too, once the warp has seen the stage empty. So
/// no warp falls behind by a phase, and what it has found of the block is visible. FP8: of each
/// producer thread, which arrives on its own.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ constexpr uint32_t full_arrivals(uint32_t group) {
  const bool has_warps = !kConfig.fp8 && group + 1 == kNumGroups;
  return kNumProducerWarps * 32 + (has_warps ? kNumProducerWarps : 0);
}

/// Sets up the barriers. One thread.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ void initialise(DecodeBarriers& barriers) {
  constexpr uint32_t kWarps = 4;  // of a warpgroup
  constexpr uint32_t kUsedHalves = kConfig.is_transposed() ? 1 : kNumHalves;
  for (uint32_t stage = 0; stage < kNumStages; ++stage) {
    for (uint32_t group = 0; group < kNumGroups; ++group) {
      ptx::mbarrier_init(ptx::cvta_to_shared(&barriers.full[stage][group]),
                         full_arrivals<kConfig>(group));
    }
    for (uint32_t half = 0; half < kUsedHalves; ++half) {
      ptx::mbarrier_init(ptx::cvta_to_shared(&barriers.empty[stage][half]),
                         kWarps * kConfig.cluster);
    }
  }
  ptx::mbarrier_init(ptx::cvta_to_shared(&barriers.q_full), kNumProducerWarps * 32);
  // Transposed, the first warpgroup alone stages results.
  ptx::mbarrier_init(ptx::cvta_to_shared(&barriers.q_empty),
                     kConfig.is_transposed() ? kWarps : 2 * kWarps);
}

__device__ __forceinline__ void wait(uint32_t mbar, uint32_t parity) {
  while (!ptx::mbarrier_try_wait_parity(mbar, parity)) {
  }
}

/// One arrival of a warp, behind what all its lanes have read and written.
__device__ __forceinline__ void arrive_from_warp(uint32_t mbar) {
  ptx::bar_warp_sync();
  if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(mbar);
}

/// As `wait`, for signals from all CTAs of a cluster: what they have done there is seen, too.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ void wait_cluster(uint32_t mbar, uint32_t parity) {
  if constexpr (kConfig.cluster == 1) {
    wait(mbar, parity);
  } else {
    while (!ptx::mbarrier_try_wait_parity_acquire_cluster(mbar, parity)) {
    }
  }
}

inline constexpr uint32_t kDescriptorUnit = 16;  // bytes, of a descriptor's address

/// An address that the compiler may not keep descriptors of from block to block: there are more
/// than registers.
__device__ __forceinline__ uint32_t here(uint32_t address) {
  hold_value(address);
  return uniform(address);
}

/// Whether a producer warp has found a page of a stage's block that does not exist.
__device__ __forceinline__ bool has_bad_page(const uint32_t (&seen)[kNumProducerWarps]) {
  uint32_t flags[kNumProducerWarps];
  ptx::ld_shared_v4_b32(ptx::cvta_to_shared(seen), flags);
  return (flags[0] | flags[1] | flags[2] | flags[3]) != 0;
}

/// A producer warp's walk around the stages.
template <MlaDecodeConfig kConfig>
class ProducerRing {
 public:
  __device__ __forceinline__ explicit ProducerRing(DecodeBarriers& barriers)
      : full_(ptx::cvta_to_shared(barriers.full)), empty_(ptx::cvta_to_shared(barriers.empty)) {}

  __device__ __forceinline__ uint32_t full(uint32_t stage, uint32_t group) const {
    return full_ + (stage * kNumGroups + group) * 8;
  }

  /// Waits until the half of the stage may be overwritten, at once in the first round.
  __device__ __forceinline__ void wait_empty(uint32_t stage, Half half) const {
    if (kConfig.is_transposed() && half == Half::kRight) return;
    const uint32_t mbar = empty_ + (stage * kNumHalves + static_cast<uint32_t>(half)) * 8;
    wait_cluster<kConfig>(mbar, (phases_ >> stage & 1) ^ 1);
  }

  /// The stage is being filled; the next wait is for the round after.
  __device__ __forceinline__ void advance(uint32_t stage) { phases_ ^= 1 << stage; }

  /// At the end: no CTA of the cluster may still signal this one's barriers, or copy from it.
  __device__ __forceinline__ void drain() const {
    for (uint32_t stage = 0; stage < kNumStages; ++stage) {
      wait_empty(stage, Half::kLeft);
      wait_empty(stage, Half::kRight);
    }
  }

 private:
  uint32_t full_;  // shared-window addresses of the first barriers
  uint32_t empty_;
  uint32_t phases_ = 0;  // a bit a stage
};

/// A consumer warp's view: it waits for one stage and hands back its half of both.
template <MlaDecodeConfig kConfig>
class ConsumerRing {
 public:
  __device__ __forceinline__ ConsumerRing(DecodeBarriers& barriers, uint32_t stage)
      : full_(ptx::cvta_to_shared(barriers.full[stage])),
        empty_(ptx::cvta_to_shared(barriers.empty)) {
    if constexpr (kConfig.cluster > 1) {
      empty_ = ptx::mapa_shared_cluster(empty_, threadIdx.x % 32 % kConfig.cluster);
    }
  }

  __device__ __forceinline__ void wait_full(uint32_t group) const {
    wait(full_ + group * 8, phase_);
  }

  /// All groups of the stage's block have been waited for.
  __device__ __forceinline__ void advance() { phase_ ^= 1; }

  /// A converged warp, once its reads are complete: to all CTAs that may fill the stage.
  /// `is_gathered`: threads of this CTA wrote what another's TMA may overwrite next, which takes
  /// the cluster's scope, and that a GPU-wide fence. WGMMA's reads alone are over when they are
  /// waited for.
  __device__ __forceinline__ void release(uint32_t stage, Half half,
                                          bool is_gathered = true) const {
    const uint32_t mbar = empty_ + (stage * kNumHalves + static_cast<uint32_t>(half)) * 8;
    if constexpr (kConfig.cluster > 1) {
      if (threadIdx.x % 32 < kConfig.cluster) {
        if (is_gathered) {
          ptx::mbarrier_arrive_release_cluster(mbar);
        } else {
          ptx::mbarrier_arrive_cluster(mbar);
        }
      }
    } else {
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(mbar);
    }
  }

 private:
  uint32_t full_;   // of the stage that this warpgroup waits for
  uint32_t empty_;  // of the CTA that this lane signals
  uint32_t phase_ = 0;
};

}  // namespace pykernels::mla
