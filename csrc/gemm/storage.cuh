// Shared memory of the FP8 GEMM: one struct, whose size is the launch's dynamic shared memory.
#pragma once

#include "core/pipeline.cuh"
#include "gemm/config.h"

namespace pykernels::gemm {

using TilePipeline = Pipeline<kTileSlots, 1>;

/// Tiles that the scheduler warp of a grouped kernel has found, on their way to the other roles.
template <GemmConfig kConfig>
struct TileStorage {};
template <GemmConfig kConfig>
  requires(kConfig.grouped)
struct alignas(16) TileStorage<kConfig> {
  uint32_t tiles[kTileSlots][4];
  uint32_t stored[kMaxWarpgroups][4];  // of a consumer warpgroup, the tile that TMA is storing
  PipelineBarriers<kTileSlots> barriers;
};

/// Partial totals of the other CTAs of a split: the units that this CTA completes, by source.
template <GemmConfig kConfig>
struct SplitStorage {};
template <GemmConfig kConfig>
  requires(kConfig.has_split())
struct alignas(16) SplitStorage<kConfig> {
  float received[kConfig.num_received_units()][kUnitBytes / 4];
  uint64_t received_full;   // completes when all units of a tile have arrived
  uint64_t received_empty;  // completes when the other CTAs have read what this one sent
};

/// Operand tiles are 128-byte rows with 128B swizzle, so every tile starts at a multiple of 1024.
template <GemmConfig kConfig>
struct alignas(1024) SharedStorage {
  uint8_t a[kConfig.num_stages()][kConfig.block_m * kBlockK];
  uint8_t b[kConfig.num_stages()][kConfig.block_n * kBlockK];
  uint8_t staging[kConfig.num_consumer_warpgroups()][kConfig.num_chunks()][kConfig.chunk_bytes()];
  PipelineBarriers<kConfig.num_stages()> barriers;
  [[no_unique_address]] TileStorage<kConfig> tiles;
};

/// With A and B swapped: D leaves through the warps' own staging.
template <GemmConfig kConfig>
  requires(kConfig.swap_ab)
struct alignas(1024) SharedStorage<kConfig> {
  uint8_t a[kConfig.num_stages()][kConfig.block_m * kBlockK];
  uint8_t b[kConfig.num_stages()][kConfig.block_n * kBlockK];
  uint8_t staging[kConfig.num_consumer_warps()][kConfig.swap_staging_bytes()];
  float scales[kConfig.num_stages()][kConfig.block_m];  // sfa * sfb of a stage's k tile
  PipelineBarriers<kConfig.num_stages()> barriers;
  [[no_unique_address]] SplitStorage<kConfig> split;
  [[no_unique_address]] TileStorage<kConfig> tiles;
};

/// Named barriers of a kernel; 0 is the whole CTA.
enum class NamedBarrier : uint32_t {
  kStaging = 1,    // of a consumer warpgroup, plus its index
  kReduction = 3,  // of all consumers; kStaging is of two warpgroups at most
};

template <GemmConfig kConfig>
using GemmPipeline =
    Pipeline<kConfig.num_stages(), kConfig.swap_ab ? kMaxCluster : kConfig.cluster>;

}  // namespace pykernels::gemm
