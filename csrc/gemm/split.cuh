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
///
/// It is derived from the CTA's index by FastDivisor alone: ptxas then sees that what follows is
/// the same in all threads, and keeps ring stages and descriptors in uniform registers.
struct ClusterPlace {
  uint32_t num_sharing;   // CTAs along n
  uint32_t sharing_rank;  // among them
  uint32_t split;         // CTAs that share an output tile
  FastDivisor by_split;
  uint32_t split_rank;    // among them: which part of k
  uint32_t first_k_tile;  // of this part
  uint32_t end_k_tile;

  __device__ __forceinline__ explicit ClusterPlace(const GemmParams& params)
      : num_sharing(params.sharing.divisor), split(params.split.divisor), by_split(params.split) {
    const uint32_t rank = blockIdx.x - params.cluster.divide(blockIdx.x) * params.cluster.divisor;
    split_rank = params.sharing.divide(rank);
    sharing_rank = rank - split_rank * num_sharing;
    first_k_tile = params.split.divide(params.num_k_tiles * split_rank);
    end_k_tile = params.split.divide(params.num_k_tiles * (split_rank + 1));
  }

  /// Those that share this CTA's tile of A.
  __device__ __forceinline__ PeerRange peers() const {
    return {split_rank * num_sharing, num_sharing};
  }
  /// The cluster rank of the CTA with this part of k of the same output tile.
  __device__ __forceinline__ uint32_t cluster_rank(uint32_t of_split_rank) const {
    return of_split_rank * num_sharing + sharing_rank;
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
        full_(ptx::cvta_to_shared(&smem.split.received_full)),
        empty_(ptx::cvta_to_shared(&smem.split.received_empty)),
        received_(ptx::cvta_to_shared(smem.split.received)),
        slots_per_rank_(place.by_split.divide(kConfig.num_units() + place.split - 1)),
        num_owned_(place.by_split.divide(kConfig.num_units() + place.split - 1 - place.split_rank)),
        first_(place) {
    for_each_unit([&](uint32_t j, const Unit& unit) {
      owned_ |= (unit.owner == place_.split_rank ? 1u : 0u) << j;
    });
  }

  /// Sets up the barriers of a CTA. One thread.
  __device__ __forceinline__ static void initialise(SharedStorage<kConfig>& smem, uint32_t split) {
    ptx::mbarrier_init(ptx::cvta_to_shared(&smem.split.received_full), 1);
    ptx::mbarrier_init(ptx::cvta_to_shared(&smem.split.received_empty), max(split - 1, 1));
  }

  /// Whether this CTA completes and stores the warp's unit `j`.
  __device__ __forceinline__ bool owns(uint32_t j) const { return (owned_ >> j & 1) != 0; }

  /// Completes the units that this CTA owns; the others' totals are without meaning afterwards.
  /// `is_last`: no CTA of the cluster has another tile.
  __device__ __forceinline__ void reduce(Accumulator<kConfig>& total, bool is_last) {
    if (place_.split == 1) return;
    if (is_first_warp()) wait(empty_, phase_ ^ 1);  // the others have read the last tile's units
    sync_consumers();                               // before anyone sends this tile's
    send(total);
    wait(full_, phase_);  // the others' parts have arrived
    for_each_unit([&](uint32_t j, const Unit& unit) {
      if (owns(j)) add_received(unit.slot, &total[4 * j]);
    });
    if (!is_last) release();
    phase_ ^= 1;
  }

 private:
  static constexpr uint32_t kUnits = kConfig.block_m / 8;  // of a warp

  /// Who completes a unit, and the unit's place among those of its owner.
  struct Unit {
    uint32_t owner;
    uint32_t slot;

    /// The warp's first one.
    __device__ __forceinline__ explicit Unit(const ClusterPlace& place) {
      const uint32_t unit = threadIdx.x / 32 * kUnits;
      slot = place.by_split.divide(unit);
      owner = unit - slot * place.split;
    }
    __device__ __forceinline__ void advance(uint32_t split) {
      if (++owner == split) {
        owner = 0;
        ++slot;
      }
    }
  };

  /// Calls visit(j, unit) for the warp's units.
  template <typename Visitor>
  __device__ __forceinline__ void for_each_unit(Visitor&& visit) const {
    Unit unit = first_;
#pragma unroll
    for (uint32_t j = 0; j < kUnits; ++j, unit.advance(place_.split)) visit(j, unit);
  }

  /// This lane's place for a unit in its owner's shared memory, of the `source_idx`th CTA that
  /// sends to it.
  __device__ __forceinline__ uint32_t address(uint32_t slot, uint32_t source_idx) const {
    return received_ + (source_idx * slots_per_rank_ + slot) * kUnitBytes + threadIdx.x % 32 * 16;
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
      ptx::mbarrier_arrive_expect_tx(full_, (place_.split - 1) * num_owned_ * kUnitBytes);
    }
    for_each_unit([&](uint32_t j, const Unit& unit) {
      if (owns(j)) return;
      const uint32_t target = place_.cluster_rank(unit.owner);
      // The owner sends nothing to itself.
      const uint32_t source_idx = place_.split_rank - (place_.split_rank > unit.owner);
      ptx::st_async_v4_f32(ptx::mapa_shared_cluster(address(unit.slot, source_idx), target),
                           &total[4 * j], ptx::mapa_shared_cluster(full_, target));
    });
  }

  /// unit = the parts of ranks 0, 1, 2, ... added in this order.
  __device__ __forceinline__ void add_received(uint32_t slot, float* unit) const {
    uint32_t next = address(slot, 0);
    float sum[4];
#pragma unroll 1
    for (uint32_t rank = 0; rank < place_.split; ++rank) {
      float part[4] = {unit[0], unit[1], unit[2], unit[3]};
      if (rank != place_.split_rank) {
        ptx::ld_shared_v4_f32(next, part);
        next += slots_per_rank_ * kUnitBytes;
      }
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
  uint32_t slots_per_rank_;  // units that a CTA owns, at most
  uint32_t num_owned_;       // that this one owns
  Unit first_;
  uint32_t owned_ = 0;  // bit j: this CTA completes the warp's unit j
  uint32_t phase_ = 0;
};

/// Where k is never split a CTA completes all that it computes.
template <GemmConfig kConfig>
  requires(!kConfig.has_split())
class SplitReduction<kConfig> {
 public:
  __device__ __forceinline__ SplitReduction(SharedStorage<kConfig>&, const ClusterPlace&) {}
  __device__ __forceinline__ static void initialise(SharedStorage<kConfig>&, uint32_t) {}
  __device__ __forceinline__ bool owns(uint32_t) const { return true; }
};

}  // namespace pykernels::gemm
