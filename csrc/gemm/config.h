// The FP8 GEMM's compile-time configuration and its one kernel parameter; shared by host and
// device.
#pragma once

#include <cstdint>

#include "core/device_error.h"
#include "core/group_source.h"
#include "core/host_device.h"
#include "core/math.h"
#include "core/tensor_map.h"

namespace pykernels::gemm {

inline constexpr uint32_t kBlockK = 128;            // columns of one scale block; a k tile
inline constexpr uint32_t kGroup = 4;               // k tiles whose scale factors a quad exchanges
inline constexpr uint32_t kScaleRows = 128;         // rows of B that share a scale factor
inline constexpr uint32_t kWarpgroupRows = 64;      // rows of a consumer warpgroup, WGMMA's m
inline constexpr uint32_t kMaxWarpgroups = 2;       // of consumers
inline constexpr int kMaxCluster = 8;               // CTAs: what every GPU of sm_90 can run
inline constexpr uint32_t kUnitBytes = 16 * 8 * 4;  // FP32 totals of a unit
inline constexpr uint32_t kSwapStagingBytes =
    2048;  // a warp's, at most: 8 units of BF16, 3 of FP32
inline constexpr uint32_t kSharedBytesPerBlock =
    232448;                                // sm_90: 227 KB with opt-in (CUDA C++ Programming Guide)
inline constexpr uint32_t kTileSlots = 4;  // tiles that a grouped kernel's scheduler is ahead
inline constexpr uint32_t kCounterRows = 128;   // rows that share a ready and a done counter
inline constexpr uint32_t kCounterColumns = 8;  // columns of a row that a done counter counts as 1

/// One kernel of the family: an output tile of block_m x block_n a CTA.
///
/// WGMMA multiplies `rows` of one operand, 64 a consumer warpgroup, with `columns` of the other:
/// A's rows and B's, or with `swap_ab` B's rows and A's, which wastes less where A has few.
struct GemmConfig {
  uint32_t block_m = 0;
  uint32_t block_n = 0;
  uint32_t cluster = 1;  // CTAs of a cluster; with swap_ab the launch decides
  bool swap_ab = false;
  bool grouped = false;  // rows of A belong to groups, each with a B of its own

  PK_HOST_DEVICE constexpr uint32_t rows() const { return swap_ab ? block_n : block_m; }
  PK_HOST_DEVICE constexpr uint32_t columns() const { return swap_ab ? block_m : block_n; }
  PK_HOST_DEVICE constexpr uint32_t num_consumer_warpgroups() const {
    return rows() / kWarpgroupRows;
  }
  PK_HOST_DEVICE constexpr uint32_t num_consumer_warps() const {
    return num_consumer_warpgroups() * 4;
  }
  PK_HOST_DEVICE constexpr uint32_t num_consumer_threads() const {
    return num_consumer_warpgroups() * 128;
  }
  PK_HOST_DEVICE constexpr uint32_t num_threads() const { return num_consumer_threads() + 128; }

  /// Threads and warps of a grouped kernel that take tiles from its scheduler: the TMA thread, the
  /// consumer warps, with swap_ab the scale warp.
  PK_HOST_DEVICE constexpr uint32_t num_tile_readers() const {
    return 1 + num_consumer_warps() + (swap_ab ? 1 : 0);
  }

  /// Whether a launch can wait for rows that another kernel is writing: not in clusters, where a
  /// CTA would wait for its peer's rows, too.
  PK_HOST_DEVICE constexpr bool waits_for_rows() const { return grouped && cluster == 1; }

  /// The largest power of two, up to 128, that divides block_n: every tile starts at a multiple of
  /// it and so of its place in a block of B's scale factors.
  PK_HOST_DEVICE constexpr uint32_t column_unit() const {
    const uint32_t power = block_n & (0 - block_n);
    return power < kScaleRows ? power : kScaleRows;
  }
  /// Blocks of B's scale factors that a tile's columns can touch.
  PK_HOST_DEVICE constexpr uint32_t num_scale_blocks() const {
    return column_unit() == block_n ? 1 : 2;
  }
  /// Whether the main loop stands twice, once for each place at which a tile's second block may
  /// start: the widest tiles have two such places and no issue slots to spare for a choice in the
  /// loop.
  PK_HOST_DEVICE constexpr bool has_two_loops() const {
    return block_n > 128 && column_unit() == 64;
  }
  /// Whether a warpgroup has registers for two accumulators beside the totals.
  PK_HOST_DEVICE constexpr bool has_two_accumulators() const { return columns() <= 128; }

  // Shared memory, in bytes.

  /// The operands of a k tile: what TMA brings.
  PK_HOST_DEVICE constexpr uint32_t stage_bytes() const { return (block_m + block_n) * kBlockK; }
  /// Of a row of the boxes that are stored: as many columns of BF16 as divide both the tile and
  /// 128 bytes, the widest swizzle; half as many of FP32.
  PK_HOST_DEVICE constexpr uint32_t slab_row_bytes() const {
    return column_unit() < 64 ? column_unit() * 2 : 128;
  }
  /// A warpgroup's staging, 64 x block_n of BF16 or half as many columns of FP32.
  PK_HOST_DEVICE constexpr uint32_t chunk_bytes() const { return kWarpgroupRows * block_n * 2; }
  /// Chunks of a warpgroup that take turns, where that leaves the ring four stages.
  PK_HOST_DEVICE constexpr uint32_t num_chunks() const { return block_n <= 128 ? 2 : 1; }
  /// With swap_ab, a warp's: its units of BF16, 256 bytes each, or some of them in FP32, padded to
  /// 640.
  PK_HOST_DEVICE constexpr uint32_t swap_staging_bytes() const {
    const uint32_t bytes = block_m / 8 * 256;
    return bytes < 640 ? 640 : (bytes < kSwapStagingBytes ? bytes : kSwapStagingBytes);
  }
  PK_HOST_DEVICE constexpr uint32_t staging_bytes() const {
    return swap_ab ? num_consumer_warps() * swap_staging_bytes()
                   : num_consumer_warpgroups() * num_chunks() * chunk_bytes();
  }
  /// Whether k can be split over a cluster. Groups fill a GPU without, and so their bits depend on
  /// no config.
  PK_HOST_DEVICE constexpr bool has_split() const { return swap_ab && !grouped; }
  /// Parts of a tile that the CTAs of a split divide among them: 16 rows of B, a warp's, x 8 of A.
  PK_HOST_DEVICE constexpr uint32_t num_units() const { return num_consumer_warps() * block_m / 8; }
  /// Units that a CTA receives from the others of its split, at most.
  PK_HOST_DEVICE constexpr uint32_t num_received_units() const {
    uint32_t most = 0;
    if (!has_split()) return most;
    for (uint32_t split = 2; split <= kMaxCluster && split <= num_units(); ++split) {
      const uint32_t units = (split - 1) * ((num_units() + split - 1) / split);
      most = units > most ? units : most;
    }
    return most;
  }
  /// As many stages as fit beside the rest, with two barriers and, with swap_ab, the products of
  /// scale factors each; at most 8, with swap_ab 16: a CTA of few rows then has as many bytes in
  /// flight as latency times bandwidth of an SM's share need.
  PK_HOST_DEVICE constexpr uint32_t num_stages() const {
    const uint32_t received = swap_ab ? num_received_units() * kUnitBytes : 0;
    const uint32_t stage = stage_bytes() + 16 + (swap_ab ? block_m * 4 : 0);
    const uint32_t fit = (kSharedBytesPerBlock - staging_bytes() - received - 1024) / stage;
    const uint32_t most = swap_ab ? 16 : 8;
    return fit < most ? fit : most;
  }
  /// Whether an output tile's first k tile always finds a stage that is a multiple of a group: the
  /// stages of a group then are known offsets from its first one. The stages up to the next group
  /// are left out behind an output tile.
  PK_HOST_DEVICE constexpr bool has_ring_of_groups() const {
    return !swap_ab && num_stages() % kGroup == 0;
  }
};

/// How the CTAs of a cluster share work; chosen for each launch. The cluster is the product.
struct GemmSchedule {
  uint32_t cluster_m = 1;  // neighbours along m, which share the tile of B
  uint32_t cluster_n = 1;  // neighbours along n, which share the tile of A
  uint32_t split_k = 1;    // CTAs that share one output tile, each with its part of k

  PK_HOST_DEVICE constexpr uint32_t cluster() const { return cluster_m * cluster_n * split_k; }
  friend bool operator==(const GemmSchedule&, const GemmSchedule&) = default;
};

/// Everything a launch passes to the kernel, by value. Boxes are 128 bytes wide with 128B swizzle
/// unless said otherwise; an operand's box has the rows of a tile over the CTAs that share it.
struct alignas(64) GemmParams {
  TensorMap map_a;       // [m, k] e4m3
  TensorMap map_b;       // [n, k] e4m3
  TensorMap map_d;       // [m, n] BF16 or FP32, box 64 x slab_row_bytes, swizzled over those; not
                         // with swap_ab
  const float* sfa;      // [m, ceil(k / 128)]
  const float* sfb;      // [ceil(n / 128), ceil(k / 128)]
  int64_t sfa_stride_m;  // in elements
  int64_t sfb_stride_n;
  uint32_t sfa_stride_k_bytes;
  uint32_t sfb_stride_k_bytes;
  uint32_t m;
  uint32_t n;
  uint32_t num_k_tiles;   // ceil(k / 128); 0 leaves the maps of a and b unused
  uint32_t num_tiles;     // cluster tiles
  uint32_t num_clusters;  // that the grid has
  // Cluster tiles along m are walked in bands before the next one along n: a band's tiles over all
  // of n; its extent along m; that of the last band, which may be smaller.
  FastDivisor band_tiles;
  FastDivisor band_rows;
  FastDivisor last_band_rows;
  uint32_t d_is_fp32;  // else BF16
  void* d;             // with swap_ab
  int64_t d_stride_m;  // in bytes
  GemmSchedule schedule;
  FastDivisor cluster;  // CTAs of a cluster, those that share a tile of A, those of a split
  FastDivisor sharing;
  FastDivisor split;
};

/// What a grouped launch passes beside: `m` is the rows of all groups together, `num_tiles` is
/// unused, `last_band_rows` too, and a tile's rows end with those of its group.
///
/// The maps of A and D have three dimensions, k or n, and twice the rows: a tile's box starts at
/// row (bound - rows left in the group) of the second dimension and at the group's end in the
/// third, whose sum, less the bound that the base is moved back by, is the row. So TMA itself
/// neither reads nor writes beyond the group's last row: it is out of bounds.
struct alignas(64) GroupedGemmParams : GemmParams {
  const int32_t* groups;  // see GroupSource
  GroupSource source;     // not kNone
  uint32_t num_groups;
  uint32_t max_rows;            // kMasked: of a group
  uint32_t a_group_rows;        // kMasked: rows of A's map from a group to the next
  uint32_t d_group_rows;        // kMasked: rows of D's map, less those of A's, likewise
  uint32_t d_rows;              // bound of D's map; that of A's is m
  uint32_t num_tiles_n;         // cluster tiles along n
  int64_t sfa_group_stride;     // kMasked: elements, less those of a_group_rows rows
  int64_t sfb_group_stride;     // elements
  DeviceError* errors;          // for the first wrong value of groups
  const uint32_t* ready;        // null, or the rows that have arrived, kCounterRows a counter
  uint32_t* done;               // null, or the parts of rows that have been stored, likewise
  uint32_t counters_per_group;  // kMasked: else counters go through all rows
  uint32_t system_scope;        // whether the counters' other side is another GPU
  uint64_t ready_timeout_ns;
};

template <GemmConfig kConfig>
struct ParamsOf {
  using Type = GemmParams;
};
template <GemmConfig kConfig>
  requires(kConfig.grouped)
struct ParamsOf<kConfig> {
  using Type = GroupedGemmParams;
};
/// The one parameter of a kernel.
template <GemmConfig kConfig>
using Params = typename ParamsOf<kConfig>::Type;

}  // namespace pykernels::gemm
