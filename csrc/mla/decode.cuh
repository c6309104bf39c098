// The MLA decode kernel: its roles.
#pragma once

#include <type_traits>

#include "mla/fp8_loader.cuh"
#include "mla/loader.cuh"
#include "mla/ring.cuh"
#include "mla/storage.cuh"
#include "mla/transposed.cuh"
#include "mla/wide.cuh"
#include "mla/work.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/control.cuh"
#include "ptx/fence.cuh"

namespace pykernels::mla {

template <MlaDecodeConfig kConfig>
constexpr uint32_t mla_decode_body_shared_bytes() {
  static_assert(sizeof(DecodeStorage<kConfig>) <= kSharedBytesPerBlock);
  return sizeof(DecodeStorage<kConfig>);
}

/// Initialises the barriers and makes them visible to the CTA, to the cluster and to TMA.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ void set_up_barriers(DecodeStorage<kConfig>& smem) {
  if (threadIdx.x == 0) {
    initialise<kConfig>(smem.barriers);
    ptx::fence_mbarrier_init_release_cluster();
  }
  if constexpr (kConfig.cluster > 1) {
    ptx::barrier_cluster_arrive_relaxed();
    ptx::barrier_cluster_wait_acquire();
  } else {
    ptx::bar_sync(0, kConfig.num_threads());
  }
}

/// A warpgroup's registers a thread from now on.
template <uint32_t kRegisters>
__device__ __forceinline__ void set_registers() {
  if constexpr (kRegisters > kLaunchRegisters) {
    ptx::setmaxnreg_inc<kRegisters>();
  } else {
    ptx::setmaxnreg_dec<kRegisters>();
  }
}

template <MlaDecodeConfig kConfig>
using Blocks = std::conditional_t<kConfig.fp8, Fp8BlockLoader<kConfig>, BlockLoader<kConfig>>;

/// The producer warps: q and all blocks of all items of the CTA's part, in order. The first blocks
/// of an item are on their way while the one before is stored, and q while they are; the first
/// item's q is needed at once.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ void produce(const MlaDecodeParams& params,
                                        DecodeStorage<kConfig>& smem) {
  QueryLoader<kConfig> queries(smem);
  Blocks<kConfig> blocks(smem);
  for (WorkWalk walk(params); walk.has_item(); walk.advance()) {
    if (walk.is_last() && producer_idx<kConfig>() == 0) ptx::griddepcontrol_launch_dependents();
    const WorkItem item = walk.item();
    const Request request(params, item);
    const PageTable pages(params, item, request);
    if (request.num_blocks > 0) blocks.start(params, pages, item.begin_block);
    const int32_t num_first =
        queries.is_first() ? 0 : min(request.num_blocks, static_cast<int32_t>(kNumStages));
#pragma unroll 1
    for (int32_t i = 0; i < request.num_blocks; ++i) {
      if (i == num_first) queries.load(params, item);
      blocks.load(params, pages, request, item.begin_block + i, i % kNumStages,
                  i + 1 < request.num_blocks);
    }
    if (request.num_blocks == num_first) queries.load(params, item);
  }
  if constexpr (kConfig.cluster > 1) blocks.drain();
}

template <MlaDecodeConfig kConfig, uint32_t kWarpgroup>
using Consumer =
    std::conditional_t<kConfig.is_transposed(), TransposedConsumer<kConfig, kWarpgroup>,
                       WideConsumer<kConfig, kWarpgroup>>;

/// out, lse = softmax(q @ cache.T * scale) @ cache[:, :512] for the items of the CTA's part and its
/// tile of rows.                                                                     sm_90a
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ void mla_decode_body(const MlaDecodeParams& params) {
  extern __shared__ __align__(1024) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<DecodeStorage<kConfig>*>(smem_bytes);
  if (threadIdx.x == kConfig.num_consumer_threads() && params.has_map) {
    ptx::prefetch_tensormap(&params.map_kv);
  }
  set_up_barriers<kConfig>(smem);
  ptx::griddepcontrol_wait();  // all threads, before any role touches global memory
  if (threadIdx.x >= kConfig.num_consumer_threads()) {
    set_registers<kConfig.producer_registers()>();
    produce<kConfig>(params, smem);
    store_unplanned<kConfig>(params);
  } else {
    set_registers<kConfig.consumer_registers()>();
    if (threadIdx.x < 128) {
      Consumer<kConfig, 0>(params, smem).run();
    } else {
      Consumer<kConfig, 1>(params, smem).run();
    }
  }
}

}  // namespace pykernels::mla
