// Split k: the CTAs that share an output tile add their partial totals through distributed shared
// memory, always in the order of their ranks, so that the bits do not depend on who is first.
#pragma once

#include "gemm/config.h"
#include "gemm/mainloop.cuh"
#include "gemm/storage.cuh"
#include "ptx/address.cuh"
#include "ptx/atomic.cuh"
#include "ptx/barrier.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"

namespace pykernels::gemm {

/// A CTA's place in its cluster: the CTAs that share a tile of A stand side by side, those of a
/// split one such group apart.
struct ClusterPlace {
  uint32_t num_sharing;   // CTAs along n
  uint32_t sharing_rank;  // among them
  uint32_t split;         // CTAs that share an output tile
  uint32_t split_rank;    // among them: which part of k

  __device__ __forceinline__ explicit ClusterPlace(const GemmSchedule& schedule)
      : num_sharing(schedule.cluster_n), split(schedule.split_k) {
    const uint32_t rank = ptx::cluster_ctarank();
    split_rank = rank / num_sharing;
    sharing_rank = rank - split_rank * num_sharing;
  }

  /// Those that share this CTA's tile of A.
  __device__ __forceinline__ PeerRange peers() const {
    return {split_rank * num_sharing, num_sharing};
  }
  /// The cluster rank of the CTA with this part of k of the same output tile.
  __device__ __forceinline__ uint32_t cluster_rank(uint32_t of_split_rank) const {
    return of_split_rank * num_sharing + sharing_rank;
  }
  __device__ __forceinline__ uint32_t first_k_tile(uint32_t num_k_tiles) const {
    return num_k_tiles * split_rank / split;
  }
  __device__ __forceinline__ uint32_t end_k_tile(uint32_t num_k_tiles) const {
    return num_k_tiles * (split_rank + 1) / split;
  }
};

/// The consumer warps' part in adding up the partial totals of the split.
///
/// A tile's units, 16 rows of B x 8 rows of A in one warp's registers, are dealt to the CTAs of the
/// split round robin; there are enough for each to own one. A warp stores each unit of another CTA
/// there (st.async, which signals that CTA's barrier) and adds to each of its own what the same
/// warp of the other CTAs has sent.
///
/// A CTA completes a tile only after all others of the split have sent it their parts, which they
/// do only after it has told them that it has read the last tile's. So no CTA is ever ahead of
/// another by more than one phase of either barrier. Within a CTA a named barrier keeps the warps
/// together.
template <GemmConfig kConfig>
class SplitReduction {
 public:
  __device__ __forceinline__ SplitReduction(SharedStorage<kConfig>& smem, const ClusterPlace& place)
      : place_(place),
        full_(ptx::cvta_to_shared(&smem.received_full)),
        empty_(ptx::cvta_to_shared(&smem.received_empty)),
        received_(ptx::cvta_to_shared(smem.received)),
        units_per_rank_((kConfig.num_units() + place.split - 1) / place.split) {}

  /// Sets up the barriers of a CTA. One thread.
  __device__ __forceinline__ static void initialise(SharedStorage<kConfig>& smem, uint32_t split) {
    ptx::mbarrier_init(ptx::cvta_to_shared(&smem.received_full), 1);
    ptx::mbarrier_init(ptx::cvta_to_shared(&smem.received_empty), max(split - 1, 1));
  }

  /// Whether this CTA completes and stores the warp's unit `j`.
  __device__ __forceinline__ bool owns(uint32_t j) const { return owner(j) == place_.split_rank; }

  /// Completes the units that this CTA owns; the others' totals are without meaning afterwards.
  /// `is_last`: no CTA of the cluster has another tile.
  __device__ __forceinline__ void reduce(Accumulator<kConfig>& total, bool is_last) {
    if (place_.split == 1) return;
    if (is_first_warp()) wait(empty_, phase_ ^ 1);  // the others have read the last tile's units
    sync_consumers();                               // before anyone sends this tile's
    send(total);
    wait(full_, phase_);  // the others' parts have arrived
#pragma unroll
    for (uint32_t j = 0; j < kUnits; ++j) {
      if (owns(j)) add_received(j, &total[4 * j]);
    }
    if (!is_last) release();
    phase_ ^= 1;
  }

 private:
  static constexpr uint32_t kUnits = kConfig.block_m / 8;  // of a warp

  __device__ __forceinline__ static uint32_t unit(uint32_t j) {
    return threadIdx.x / 32 * kUnits + j;
  }
  __device__ __forceinline__ uint32_t owner(uint32_t j) const { return unit(j) % place_.split; }

  /// This lane's place for a unit from `source` in the owner's shared memory.
  __device__ __forceinline__ uint32_t slot(uint32_t j, uint32_t source) const {
    const uint32_t source_idx = source - (source > owner(j));  // the owner sends nothing to itself
    const uint32_t slot_idx = source_idx * units_per_rank_ + unit(j) / place_.split;
    return received_ + slot_idx * kUnitBytes + threadIdx.x % 32 * 16;
  }

  __device__ __forceinline__ static bool is_first_warp() { return threadIdx.x < 32; }

  __device__ __forceinline__ static void wait(uint32_t barrier, uint32_t parity) {
    while (!ptx::mbarrier_try_wait_parity_acquire_cluster(barrier, parity)) {
    }
  }

  __device__ __forceinline__ static void sync_consumers() {
    ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kReduction), kConfig.num_consumer_threads());
  }

  __device__ __forceinline__ void send(const Accumulator<kConfig>& total) const {
    if (threadIdx.x == 0) {
      const uint32_t num_owned =
          (kConfig.num_units() + place_.split - 1 - place_.split_rank) / place_.split;
      ptx::mbarrier_arrive_expect_tx(full_, (place_.split - 1) * num_owned * kUnitBytes);
    }
#pragma unroll
    for (uint32_t j = 0; j < kUnits; ++j) {
      if (owns(j)) continue;
      const uint32_t target = place_.cluster_rank(owner(j));
      ptx::st_async_v4_f32(ptx::mapa_shared_cluster(slot(j, place_.split_rank), target),
                           &total[4 * j], ptx::mapa_shared_cluster(full_, target));
    }
  }

  /// unit = the parts of ranks 0, 1, 2, ... added in this order.
  __device__ __forceinline__ void add_received(uint32_t j, float* unit) const {
    float sum[4];
    for (uint32_t rank = 0; rank < place_.split; ++rank) {
      float part[4] = {unit[0], unit[1], unit[2], unit[3]};
      if (rank != place_.split_rank) ptx::ld_shared_v4_f32(slot(j, rank), part);
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) sum[i] = rank == 0 ? part[i] : __fadd_rn(sum[i], part[i]);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) unit[i] = sum[i];
  }

  /// Tells the other CTAs, one lane to each, that all warps have read what they sent.
  __device__ __forceinline__ void release() const {
    sync_consumers();
    const uint32_t rank = threadIdx.x;
    if (rank < place_.split && rank != place_.split_rank) {
      ptx::mbarrier_arrive_release_cluster(
          ptx::mapa_shared_cluster(empty_, place_.cluster_rank(rank)));
    }
  }

  ClusterPlace place_;
  uint32_t full_;  // shared-window addresses
  uint32_t empty_;
  uint32_t received_;
  uint32_t units_per_rank_;
  uint32_t phase_ = 0;
};

}  // namespace pykernels::gemm
