// The grouped FP8 GEMM kernel: the roles of the dense one and a scheduler.
#pragma once

#include "gemm/config.h"
#include "gemm/grouped_scheduler.cuh"
#include "gemm/kernel.cuh"
#include "ptx/control.cuh"

namespace pykernels::gemm {

/// The warps of the producer warpgroup in a grouped kernel.
template <GemmConfig kConfig>
__device__ __forceinline__ void run_producers(const GroupedGemmParams& params,
                                              SharedStorage<kConfig>& smem,
                                              const ClusterPlace& place, uint32_t warp_idx) {
  const bool is_first_lane = threadIdx.x % 32 == 0;
  if (warp_idx == 0 && is_first_lane) {
    const TileReader<kConfig, Reader::kThread> tiles(smem);
    if constexpr (kConfig.swap_ab) {
      load_operands<kConfig>(params, smem, place, tiles);
    } else {
      produce<kConfig>(params, smem, tiles);
    }
  } else if (warp_idx == 1) {
    TileFinder<kConfig>(params, smem).run();
  } else if (warp_idx == 2) {
    if constexpr (kConfig.swap_ab) {
      ScaleWarp<kConfig>(params, smem, place).run(TileReader<kConfig, Reader::kWarp>(smem));
    }
  }
}

/// D = dequant(A) @ dequant(B of the row's group).T, as fp8_gemm_body.      sm_90a
///
/// One more warp finds the CTA's tiles in the groups, which only the device knows, and waits for
/// rows of A that another kernel is still writing.
template <GemmConfig kConfig>
__device__ __forceinline__ void grouped_fp8_gemm_body(const GroupedGemmParams& params) {
  extern __shared__ __align__(1024) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<kConfig>*>(smem_bytes);
  if (threadIdx.x == kConfig.num_consumer_threads()) prefetch_maps<kConfig>(params);
  set_up_barriers<kConfig>(params, smem);
  const ClusterPlace place(params);
  ptx::griddepcontrol_wait();
  const uint32_t warp_idx = uniform(threadIdx.x / 32);
  if (warp_idx >= kConfig.num_consumer_warps()) {
    if constexpr (!kConfig.swap_ab) ptx::setmaxnreg_dec<kProducerRegisters>();
    run_producers<kConfig>(params, smem, place, warp_idx - kConfig.num_consumer_warps());
  } else if constexpr (kConfig.swap_ab) {
    consume_swapped<kConfig>(params, smem, place, TileReader<kConfig, Reader::kWarp>(smem));
  } else {
    ptx::setmaxnreg_inc<kConsumerRegisters>();
    const TileReader<kConfig, Reader::kWarp> tiles(smem);
    if (tiles.has_tile()) consume<kConfig>(params, smem, tiles);
  }
}

template <GemmConfig kConfig>
constexpr uint32_t grouped_fp8_gemm_body_shared_bytes() {
  return fp8_gemm_body_shared_bytes<kConfig>();
}

}  // namespace pykernels::gemm
