// The FP8 GEMM's compile-time configuration and its one kernel parameter; shared by host and
// device.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/tensor_map.h"

namespace pykernels::gemm {

inline constexpr uint32_t kBlockK = 128;        // columns of one scale block; a k tile
inline constexpr uint32_t kWarpgroupRows = 64;  // rows of a consumer warpgroup, WGMMA's m
inline constexpr uint32_t kSharedBytesPerBlock =
    232448;  // sm_90: 227 KB with opt-in (CUDA C++ Programming Guide)

/// One kernel of the family: an output tile of block_m x block_n a CTA.
struct GemmConfig {
  uint32_t block_m = 0;
  uint32_t block_n = 0;
  uint32_t cluster = 1;  // CTAs of a cluster; with swap_ab the launch decides
  bool swap_ab = false;  // B's rows stand on WGMMA's m side: tiles of few rows of A

  PK_HOST_DEVICE constexpr uint32_t num_consumer_warpgroups() const {
    return block_m / kWarpgroupRows;
  }
  PK_HOST_DEVICE constexpr uint32_t num_consumer_threads() const {
    return num_consumer_warpgroups() * 128;
  }
  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return num_consumer_threads() + 128; }

  PK_HOST_DEVICE constexpr uint32_t stage_bytes() const { return (block_m + block_n) * kBlockK; }
  /// Two chunks a warpgroup, each 64 x block_n of BF16 or half as many columns of FP32.
  PK_HOST_DEVICE constexpr uint32_t chunk_bytes() const { return kWarpgroupRows * block_n * 2; }
  PK_HOST_DEVICE constexpr uint32_t staging_bytes() const {
    return num_consumer_warpgroups() * 2 * chunk_bytes();
  }
  /// As many stages as fit beside staging and barriers (16 bytes a stage, one alignment unit), at
  /// most 8: more bytes in flight than latency times bandwidth of an SM's share need.
  PK_HOST_DEVICE constexpr uint32_t num_stages() const {
    const uint32_t fit = (kSharedBytesPerBlock - staging_bytes() - 1024) / stage_bytes();
    return fit < 8 ? fit : 8;
  }
};

/// How the CTAs of a cluster share work; chosen for each launch. The cluster is the product.
struct GemmSchedule {
  uint32_t cluster_m = 1;  // neighbours along m, which share the tile of B
  uint32_t cluster_n = 1;  // neighbours along n, which share the tile of A
  uint32_t split_k = 1;    // CTAs that share one output tile, each with its part of k

  constexpr uint32_t cluster() const { return cluster_m * cluster_n * split_k; }
  friend bool operator==(const GemmSchedule&, const GemmSchedule&) = default;
};

/// Everything a launch passes to the kernel, by value.
struct alignas(64) GemmParams {
  TensorMap map_a;       // [m, k] e4m3, box block_m x 128, 128B swizzle
  TensorMap map_b;       // [n, k] e4m3, box block_n / cluster x 128, 128B swizzle
  TensorMap map_d;       // [m, n] BF16 or FP32, box 64 x 128 bytes, 128B swizzle
  const float* sfa;      // [m, ceil(k / 128)]
  const float* sfb;      // [ceil(n / 128), ceil(k / 128)]
  int64_t sfa_stride_m;  // strides in elements
  int64_t sfa_stride_k;
  int64_t sfb_stride_n;
  int64_t sfb_stride_k;
  uint32_t m;
  uint32_t num_k_tiles;   // ceil(k / 128); 0 leaves the maps of a and b unused
  uint32_t num_m;         // cluster tiles along m
  uint32_t num_tiles;     // cluster tiles
  uint32_t raster_group;  // cluster tiles along m that are walked before the next one along n
  uint32_t group_tiles;   // cluster tiles of such a group over all of n
  uint32_t d_is_fp32;     // else BF16
};

}  // namespace pykernels::gemm
