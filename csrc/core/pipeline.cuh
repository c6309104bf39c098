// The ring of shared-memory stages between a TMA producer thread and the consumer warps: one full
// and one empty barrier a stage. All waiting of a kernel for its operands goes through here.
#pragma once

#include "ptx/address.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/warp.cuh"

namespace pykernels {

/// Barriers of a ring; lives in shared memory.
template <uint32_t kNumStages>
struct PipelineBarriers {
  uint64_t full[kNumStages];   // completes when the stage's bytes have landed
  uint64_t empty[kNumStages];  // completes when every consumer warp has done with the stage
};

/// CTAs of a cluster by their ranks.
struct PeerRange {
  uint32_t first;
  uint32_t count;
};

/// One role's walk around the ring. Producer and consumers each hold one and advance in step.
///
/// A stage may be filled by the multicast of a peer in the cluster. So a consumer warp releases the
/// stage to all peers, and a producer that has seen its empty barrier complete may write that stage
/// in all of them.
template <uint32_t kNumStages, uint32_t kMaxPeers>
class Pipeline {
 public:
  /// `peers`: the CTAs that fill each other's stages, this one among them.
  __device__ __forceinline__ explicit Pipeline(PipelineBarriers<kNumStages>& barriers,
                                               PeerRange peers = {0, kMaxPeers})
      : full_(ptx::cvta_to_shared(barriers.full)),
        empty_(ptx::cvta_to_shared(barriers.empty)),
        num_peers_(peers.count) {
    const uint32_t lane_idx = threadIdx.x % 32;
    if constexpr (kMaxPeers > 1) {
      peer_empty_ = ptx::mapa_shared_cluster(empty_, peers.first + lane_idx % peers.count);
    }
  }

  /// Sets up the barriers of a CTA with so many producing threads and consumer warps. One thread.
  __device__ __forceinline__ static void initialise(PipelineBarriers<kNumStages>& barriers,
                                                    uint32_t num_producers,
                                                    uint32_t num_consumer_warps,
                                                    PeerRange peers = {0, kMaxPeers}) {
    for (uint32_t stage = 0; stage < kNumStages; ++stage) {
      ptx::mbarrier_init(ptx::cvta_to_shared(&barriers.full[stage]), num_producers);
      ptx::mbarrier_init(ptx::cvta_to_shared(&barriers.empty[stage]),
                         num_consumer_warps * peers.count);
    }
  }

  __device__ __forceinline__ uint32_t stage() const { return stage_; }
  __device__ __forceinline__ uint32_t full_barrier() const { return full_ + stage_ * 8; }

  /// `kSteps` stages on; the ring has a multiple of them and the first step is one, too.
  template <uint32_t kSteps = 1>
  __device__ __forceinline__ void advance() {
    static_assert(kNumStages % kSteps == 0);
    stage_ += kSteps;
    if (stage_ == kNumStages) {
      stage_ = 0;
      phase_ ^= 1;
    }
  }

  /// Producer: waits until the consumers have released the stage; it may then be overwritten.
  /// Passes at once in the first round, since the phase before a barrier's first counts as
  /// complete.
  __device__ __forceinline__ void wait_empty() const {
    const uint32_t barrier = empty_ + stage_ * 8;
    while (!ptx::mbarrier_try_wait_parity(barrier, phase_ ^ 1)) {
    }
  }

  /// One of several producing threads: its part of the stage is there.
  __device__ __forceinline__ void arrive_full() const { ptx::mbarrier_arrive(full_barrier()); }

  /// Lone producer: leaves out a stage that it has waited for, as the consumers do. It arrives in
  /// their place, at its peer as well: a peer that sees the stage empty may at once announce bytes
  /// for its next round here, so this CTA's barrier must have left the round.
  __device__ __forceinline__ void skip(uint32_t num_consumer_warps) const {
    static_assert(kMaxPeers <= 2);
    const uint32_t barrier = empty_ + stage_ * 8;
    arrive_full();
    ptx::mbarrier_arrive_count(barrier, num_consumer_warps);
    if constexpr (kMaxPeers == 2) {
      const uint32_t peer = ptx::cluster_ctarank() ^ 1;
      ptx::mbarrier_arrive_count_release_cluster(ptx::mapa_shared_cluster(barrier, peer),
                                                 num_consumer_warps);
    }
  }

  /// Producer: announces the bytes that will land in this CTA's stage.
  __device__ __forceinline__ void expect_bytes(uint32_t num_bytes) const {
    ptx::mbarrier_arrive_expect_tx(full_barrier(), num_bytes);
  }

  /// Consumer: waits until the bytes of the stage, or of one `ahead` of it in this round, have
  /// landed; WGMMA may then read them.
  __device__ __forceinline__ void wait_full(uint32_t ahead = 0) const {
    while (!ptx::mbarrier_try_wait_parity(full_barrier() + ahead * 8, phase_)) {
    }
  }

  /// Consumer warp, converged, once its reads of `stage` are complete: hands the stage back to the
  /// producers of all peers, one lane to each.
  __device__ __forceinline__ void release(uint32_t stage) const {
    if constexpr (kMaxPeers > 1) {
      if (threadIdx.x % 32 < num_peers_) ptx::mbarrier_arrive_cluster(peer_empty_ + stage * 8);
    } else {
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(empty_ + stage * 8);
    }
  }

  /// Producer, after its last stage: waits until every stage has been released, so that no consumer
  /// of a peer can still arrive at this CTA's barriers when it exits.
  __device__ __forceinline__ void drain() {
#pragma unroll 1
    for (uint32_t i = 0; i < kNumStages; ++i) {
      wait_empty();
      advance();
    }
  }

 private:
  uint32_t full_;  // shared-window addresses of the first barriers
  uint32_t empty_;
  uint32_t num_peers_;
  uint32_t peer_empty_ = 0;  // the empty barriers of the CTA that this lane signals
  uint32_t stage_ = 0;
  uint32_t phase_ = 0;
};

}  // namespace pykernels
