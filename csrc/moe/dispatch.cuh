// Dispatch: tokens to the ranks of their experts, over peer memory.                   sm_90a
//
// A few CTAs, all resident: they wait for peers. Some warps send this rank's batch, the others
// receive what the peers send, at the same time; a launch may also do one half alone.
#pragma once

#include "moe/receive.cuh"
#include "moe/send.cuh"

namespace pykernels::moe {

template <DispatchConfig kConfig>
struct DispatchStorage {
  WarpStages stages[kConfig.num_warps()];
  ReceivePlan plan;
  uint64_t full[kConfig.num_warps()][kNumStages];
  uint32_t forbidden;
};

template <DispatchConfig kConfig>
constexpr uint32_t dispatch_body_shared_bytes() {
  return sizeof(DispatchStorage<kConfig>);
}

/// All threads of a CTA, where rows will not come any more: who waits for them goes on, over
/// whatever is there.
__device__ __forceinline__ void give_up_rows(const RowCounters& ready) {
  constexpr uint32_t kMoreThanAll = 1u << 20;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < ready.num_counters; i += blockDim.x) {
    ptx::red_release_gpu_add_u32(ready.counters + i, kMoreThanAll);
  }
}

/// All threads of a CTA, in a call that is not made: what follows it finds no rows.
__device__ __forceinline__ void receive_nothing(const DispatchParams& params) {
  const ReceiveParams& receive = params.receive;
  const uint32_t num_groups =
      params.buffer.num_local_experts + (receive.rows_per_expert > 0 ? 0 : 1);
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < num_groups; i += blockDim.x) receive.groups[i] = 0;
  if (threadIdx.x < params.buffer.num_ranks) receive.recv_counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) receive.number[0] = 0;
}

template <DispatchConfig kConfig>
__device__ __forceinline__ void dispatch_body(const DispatchParams& params) {
  extern __shared__ __align__(128) uint8_t smem_bytes[];
  auto& smem = *reinterpret_cast<DispatchStorage<kConfig>*>(smem_bytes);
  constexpr uint32_t kAll = static_cast<uint32_t>(DispatchBarrier::kAll);
  const uint32_t warp = threadIdx.x / 32;
  if (threadIdx.x < kConfig.num_warps()) Staging::initialise(smem.full[threadIdx.x]);
  ptx::fence_mbarrier_init_release_cluster();
  ptx::griddepcontrol_wait();  // all threads, before any access to global memory
  const Signals signals(params.buffer);
  const Staging staging(smem.stages[warp], smem.full[warp]);
  const bool sends = includes(params.phases, Phases::kSend);
  const bool counts = includes(params.phases, Phases::kCounts);
  const bool receives = includes(params.phases, Phases::kReceive);
  // A launch that does one half does it with all warps.
  const uint32_t num_senders = !sends               ? 0
                               : receives || counts ? kConfig.senders
                                                    : kConfig.num_warps();
  if (!signals.may_run(smem.forbidden, kAll)) {  // behind its barrier all see the full barriers
    if (counts && blockIdx.x == 0) receive_nothing(params);
  } else if (warp < num_senders) {
    Sender<kConfig>(params, signals, staging)
        .run(warp * gridDim.x + blockIdx.x, num_senders * gridDim.x);
  } else {
    Receiver<kConfig>(params, signals, staging, smem.plan, warp - num_senders,
                      kConfig.num_warps() - num_senders)
        .run();
  }
  if (receives) signals.finish(kAll);
  if (receives && params.receive.ready.counters != nullptr && signals.is_forbidden()) {
    give_up_rows(params.receive.ready);
  }
}

}  // namespace pykernels::moe
