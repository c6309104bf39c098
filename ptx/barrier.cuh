// Barriers of a CTA (named) and of a cluster.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// bar.sync a, b;      PTX 2.0, sm_20 (barrier ids from registers)
///
/// Waits until `num_threads` threads of the CTA have arrived at barrier `id` (0 to 15) and orders
/// their earlier accesses, generic proxy only, before the later ones of all of them.
/// Whole warps, converged. `num_threads`: a multiple of 32.
__device__ __forceinline__ void bar_sync(uint32_t id, uint32_t num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

/// bar.arrive a, b;      PTX 2.0, sm_20
///
/// Arrives at named barrier `id`, which `num_threads` threads pass or arrive at, without waiting.
/// Orders this thread's earlier accesses before those of the threads that wait (bar_sync). A
/// converged warp; `num_threads`: a multiple of 32, of both kinds together.
__device__ __forceinline__ void bar_arrive(uint32_t id, uint32_t num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

/// barrier.cluster.arrive.relaxed.aligned;      PTX 8.0, sm_90
///
/// Marks the arrival of the thread at the cluster's barrier without waiting, and orders nothing by
/// itself: what is to be visible behind the barrier needs a fence of its own before it, such as
/// fence_mbarrier_init_release_cluster. Every thread of the cluster, warps converged.
__device__ __forceinline__ void barrier_cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

/// barrier.cluster.wait.acquire.aligned;      PTX 8.0, sm_90
///
/// Waits until every thread of the cluster that has not exited has arrived; acquires at cluster
/// scope what they released. Every thread that arrived, warps converged.
__device__ __forceinline__ void barrier_cluster_wait_acquire() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace pykernels::ptx
