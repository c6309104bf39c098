// The FP8 GEMM kernel: its roles.
#pragma once

#include "core/pipeline.cuh"
#include "gemm/config.h"
#include "gemm/epilogue.cuh"
#include "gemm/mainloop.cuh"
#include "gemm/scheduler.cuh"
#include "gemm/storage.cuh"
#include "gemm/swap.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/control.cuh"
#include "ptx/fence.cuh"

namespace pykernels::gemm {

inline constexpr uint32_t kProducerRegisters = 40;
inline constexpr uint32_t kConsumerRegisters = 232;  // 2 x 128 x 232 + 128 x 40 <= 65536

template <GemmConfig kConfig>
constexpr uint32_t fp8_gemm_body_shared_bytes() {
  static_assert(sizeof(SharedStorage<kConfig>) <= kSharedBytesPerBlock);
  return sizeof(SharedStorage<kConfig>);
}

/// Initialises the barriers and makes them visible to the CTA, to the cluster and to TMA. The fence
/// orders the initialisation, so the cluster's barrier may be a relaxed one.
template <GemmConfig kConfig>
__device__ __forceinline__ void set_up_barriers(const Params<kConfig>& params,
                                                SharedStorage<kConfig>& smem) {
  if (threadIdx.x == 0) {
    if constexpr (kConfig.swap_ab) {
      initialise_swapped<kConfig>(params, smem);
    } else {
      GemmPipeline<kConfig>::initialise(smem.barriers, 1, kConfig.num_consumer_warps());
    }
    if constexpr (kConfig.grouped) {
      TilePipeline::initialise(smem.tiles.barriers, 1, kConfig.num_tile_readers());
    }
    ptx::fence_mbarrier_init_release_cluster();
  }
  if constexpr (kConfig.cluster > 1 || kConfig.swap_ab) {
    ptx::barrier_cluster_arrive_relaxed();
    ptx::barrier_cluster_wait_acquire();
  } else {
    ptx::bar_sync(0, kConfig.num_threads());
  }
}

/// One thread: the tensor maps travel while the barriers are set up.
template <GemmConfig kConfig>
__device__ __forceinline__ void prefetch_maps(const GemmParams& params) {
  if (params.num_k_tiles > 0) {
    ptx::prefetch_tensormap(&params.map_a);
    ptx::prefetch_tensormap(&params.map_b);
  }
  if constexpr (!kConfig.swap_ab) ptx::prefetch_tensormap(&params.map_d);
}

/// Producer thread: fills the ring with the operands of all of the CTA's tiles.
template <GemmConfig kConfig, typename Scheduler>
__device__ __forceinline__ void produce(const Params<kConfig>& params, SharedStorage<kConfig>& smem,
                                        Scheduler scheduler) {
  GemmPipeline<kConfig> pipeline(smem.barriers);
  for (; scheduler.has_tile(); scheduler.advance()) {
    if constexpr (!kConfig.grouped) {
      if (scheduler.is_last()) ptx::griddepcontrol_launch_dependents();
    }
    take_ready_rows<kConfig>(params);
    load_tile<kConfig>(params, smem, pipeline, scheduler.tile());
  }
  if constexpr (kConfig.grouped) ptx::griddepcontrol_launch_dependents();  // the last is loading
  if constexpr (kConfig.cluster > 1) pipeline.drain();
}

/// Consumer warpgroup: multiplies, promotes and stores its 64 rows of all of the CTA's tiles, one
/// at least. The next tile's first scale factors travel while a tile is stored.
template <GemmConfig kConfig, typename Scheduler>
__device__ __forceinline__ void consume(const Params<kConfig>& params, SharedStorage<kConfig>& smem,
                                        Scheduler scheduler) {
  GemmPipeline<kConfig> pipeline(smem.barriers);
  Epilogue<kConfig> epilogue(params, smem);
  ScaleLoader<kConfig> scales(params);
  scales.start(params, scheduler.tile());
  while (scheduler.has_tile()) {
    Accumulator<kConfig> total;
    multiply_tile<kConfig>(params.num_k_tiles, smem, pipeline, scales, total);
    const auto finished = scheduler.tile();
    scheduler.advance();
    if (scheduler.has_tile()) scales.start(params, scheduler.tile());
    epilogue.store_tile(finished, total);
  }
  epilogue.drain();
}

/// D = dequant(A) @ dequant(B).T with 1x128 scales on A and 128x128 scales on B.      sm_90a
///
/// Persistent and warp-specialised: one producer thread fills a ring of stages by TMA, the consumer
/// warpgroups, 64 rows each, run WGMMA and promote every k tile into FP32 registers.
template <GemmConfig kConfig>
__device__ __forceinline__ void fp8_gemm_body(const GemmParams& params) {
  extern __shared__ __align__(1024) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<kConfig>*>(smem_bytes);
  if (threadIdx.x == kConfig.num_consumer_threads()) prefetch_maps<kConfig>(params);
  set_up_barriers<kConfig>(params, smem);
  // Ahead of the wait, with all that takes parameters only.
  const TileScheduler<kConfig> scheduler(params);
  [[maybe_unused]] const ClusterPlace place(params);
  ptx::griddepcontrol_wait();  // all threads, before any role touches global memory
  if constexpr (kConfig.swap_ab) {
    run_swapped<kConfig>(params, smem, place, scheduler);
  } else if (threadIdx.x >= kConfig.num_consumer_threads()) {
    ptx::setmaxnreg_dec<kProducerRegisters>();
    if (threadIdx.x == kConfig.num_consumer_threads()) produce<kConfig>(params, smem, scheduler);
  } else {
    ptx::setmaxnreg_inc<kConsumerRegisters>();
    consume<kConfig>(params, smem, scheduler);
  }
}

}  // namespace pykernels::gemm
