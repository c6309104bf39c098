// Fences between proxies and for barrier initialisation.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// fence.mbarrier_init.release.cluster;      PTX 8.0, sm_90
///
/// Orders this thread's earlier mbarrier.init before later operations of the cluster's CTAs and of
/// asynchronous copies on these barriers, once a CTA or cluster barrier has followed.
/// The thread that initialised.
__device__ __forceinline__ void fence_mbarrier_init_release_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// fence.proxy.async.shared::cta;      PTX 8.0, sm_90
///
/// Orders this thread's generic accesses to the CTA's shared memory with accesses to it by the
/// async proxy (TMA, WGMMA), in both directions. Every thread that wrote, before the barrier after
/// which another thread starts the copy.
__device__ __forceinline__ void fence_proxy_async_shared_cta() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// fence.proxy.async.global;      PTX 8.0, sm_90
///
/// Orders generic accesses to global memory that this thread has done or acquired with accesses to
/// it by the async proxy (TMA), in both directions. The thread that starts the copy, behind the
/// acquire.
__device__ __forceinline__ void fence_proxy_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace pykernels::ptx
