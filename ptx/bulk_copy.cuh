// Asynchronous bulk copies: TMA tensor loads into shared memory and tensor stores from it.
// `map`: generic address of a 64-byte aligned tensor map, a __grid_constant__ parameter here.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {

/// cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
///     [dst], [map, {x, y}], [mbar];      PTX 8.0, sm_90
///
/// Copies the map's box at element (x, y), x along the contiguous dimension, to `dst` of this CTA
/// and takes its bytes off `mbar`'s pending count. Out-of-bounds elements read as the map's fill
/// and count as bytes. Asynchronous, async proxy; ordered only by a wait on `mbar`.
/// One thread. `dst`, `mbar`: shared window; `dst` aligned to 128 bytes (1024 with 128B swizzle).
__device__ __forceinline__ void cp_async_bulk_tensor_2d_load(uint32_t dst, const void* map,
                                                             int32_t x, int32_t y, uint32_t mbar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(dst),
      "l"(map), "r"(x), "r"(y), "r"(mbar)
      : "memory");
}

/// cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
///     [dst], [map, {x, y}], [mbar], cta_mask;      PTX 8.0, sm_90
///
/// As cp_async_bulk_tensor_2d_load, into every CTA whose rank is set in `cta_mask`: the data at the
/// same CTA-relative offset as `dst`, the bytes off the barrier at the same offset as `mbar`.
/// One thread; the destination must be free in all of these CTAs.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_load_multicast(uint32_t dst,
                                                                       const void* map, int32_t x,
                                                                       int32_t y, uint32_t mbar,
                                                                       uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
      "l"(map), "r"(x), "r"(y), "r"(mbar), "h"(cta_mask)
      : "memory");
}

/// cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [map, {x, y}], [src];      PTX 8.0, sm_90
///
/// Copies the box at `src` to element (x, y) of the map's tensor; elements out of bounds are not
/// written. Asynchronous, async proxy: generic writes to `src` need fence_proxy_async_shared_cta
/// before. Joins the thread's next bulk group. One thread. `src`: shared window.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_store(const void* map, int32_t x, int32_t y,
                                                              uint32_t src) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(x), "r"(y), "r"(src)
      : "memory");
}

/// cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes
///     [dst], [map, {x, y, z}], [mbar];      PTX 8.0, sm_90
///
/// As cp_async_bulk_tensor_2d_load, of a map of three dimensions.
__device__ __forceinline__ void cp_async_bulk_tensor_3d_load(uint32_t dst, const void* map,
                                                             int32_t x, int32_t y, int32_t z,
                                                             uint32_t mbar) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(dst),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(mbar)
      : "memory");
}

/// cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
///     [dst], [map, {x, y, z}], [mbar], cta_mask;      PTX 8.0, sm_90
///
/// As cp_async_bulk_tensor_2d_load_multicast, of a map of three dimensions.
__device__ __forceinline__ void cp_async_bulk_tensor_3d_load_multicast(uint32_t dst,
                                                                       const void* map, int32_t x,
                                                                       int32_t y, int32_t z,
                                                                       uint32_t mbar,
                                                                       uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(dst),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(mbar), "h"(cta_mask)
      : "memory");
}

/// cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint
///     [dst], [map, {x, y, z}], [mbar], policy;      PTX 8.0, sm_90
///
/// As cp_async_bulk_tensor_3d_load, with a cache policy for L2.
__device__ __forceinline__ void cp_async_bulk_tensor_3d_load_hint(uint32_t dst, const void* map,
                                                                  int32_t x, int32_t y, int32_t z,
                                                                  uint32_t mbar, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(dst),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(mbar), "l"(policy)
      : "memory");
}

/// cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes
/// .multicast::cluster.L2::cache_hint [dst], [map, {x, y, z}], [mbar], cta_mask, policy;
///                                                                          PTX 8.0, sm_90
///
/// As cp_async_bulk_tensor_3d_load_multicast, with a cache policy for L2.
__device__ __forceinline__ void cp_async_bulk_tensor_3d_load_multicast_hint(
    uint32_t dst, const void* map, int32_t x, int32_t y, int32_t z, uint32_t mbar,
    uint16_t cta_mask, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6, %7;" ::"r"(dst),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(mbar), "h"(cta_mask), "l"(policy)
      : "memory");
}

/// cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes
///     [dst], [src], num_bytes, [mbar];      PTX 8.0, sm_90
///
/// Copies bytes from global memory to `dst` of this CTA and takes them off `mbar`'s pending count.
/// Asynchronous, async proxy: generic writes of `src` that this thread has acquired need
/// fence_proxy_async_global before. One thread. `dst`, `mbar`: shared window; `dst`, `src` and
/// `num_bytes`: multiples of 16.
__device__ __forceinline__ void cp_async_bulk_load(uint32_t dst, const void* src,
                                                   uint32_t num_bytes, uint32_t mbar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(dst),
      "l"(src), "r"(num_bytes), "r"(mbar)
      : "memory");
}

/// cp.async.bulk.global.shared::cta.bulk_group [dst], [src], num_bytes;      PTX 8.0, sm_90
///
/// Copies bytes from this CTA's shared memory to global memory, a peer's too. Asynchronous, async
/// proxy: generic writes to `src` need fence_proxy_async_shared_cta before. Joins the thread's next
/// bulk group. One thread. `src`: shared window; all multiples of 16.
__device__ __forceinline__ void cp_async_bulk_store(void* dst, uint32_t src, uint32_t num_bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src),
               "r"(num_bytes)
               : "memory");
}

/// cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes
///     [dst], [src], num_bytes, [mbar];      PTX 8.0, sm_90
///
/// Copies bytes of this CTA's shared memory to a CTA of the cluster and takes them off the pending
/// count of `mbar` there. Asynchronous, async proxy: generic writes to `src` need
/// fence_proxy_async_shared_cta before. One thread. `dst`, `mbar`: shared::cluster addresses of
/// one CTA; `src`: shared window; all but `mbar` and `num_bytes` multiples of 16.
__device__ __forceinline__ void cp_async_bulk_shared_cluster(uint32_t dst, uint32_t src,
                                                             uint32_t num_bytes, uint32_t mbar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(dst),
      "r"(src), "r"(num_bytes), "r"(mbar)
      : "memory");
}

/// cp.async.bulk.tensor.3d.global.shared::cta.bulk_group
///     [map, {x, y, z}], [src];      PTX 8.0, sm_90
///
/// As cp_async_bulk_tensor_2d_store, of a map of three dimensions.
__device__ __forceinline__ void cp_async_bulk_tensor_3d_store(const void* map, int32_t x, int32_t y,
                                                              int32_t z, uint32_t src) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
      "r"(x), "r"(y), "r"(z), "r"(src)
      : "memory");
}

/// prefetch.tensormap [map];      PTX 8.0, sm_90
///
/// Brings a tensor map into the cache that TMA reads it from. One thread, before its first copy;
/// orders nothing.
__device__ __forceinline__ void prefetch_tensormap(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// cp.async.bulk.commit_group;      PTX 8.0, sm_90
///
/// Closes the bulk group of the copies that this thread has issued since the last commit.
__device__ __forceinline__ void cp_async_bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// cp.async.bulk.wait_group N;      PTX 8.0, sm_90
///
/// Waits until at most `kPending` of this thread's latest bulk groups are incomplete; the others'
/// writes are visible to this thread.
template <uint32_t kPending>
__device__ __forceinline__ void cp_async_bulk_wait_group() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

/// cp.async.bulk.wait_group.read N;      PTX 8.0, sm_90
///
/// Waits until at most `kPending` of this thread's latest bulk groups still read their source,
/// which may then be overwritten by this thread.
template <uint32_t kPending>
__device__ __forceinline__ void cp_async_bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace pykernels::ptx
