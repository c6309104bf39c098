// Shared memory of the FP8 GEMM: one struct, whose size is the launch's dynamic shared memory.
#pragma once

#include "core/pipeline.cuh"
#include "gemm/config.h"

namespace pykernels::gemm {

/// Operand tiles are 128-byte rows with 128B swizzle, so every tile starts at a multiple of 1024.
template <GemmConfig kConfig>
struct alignas(1024) SharedStorage {
  uint8_t a[kConfig.num_stages()][kConfig.block_m * kBlockK];
  uint8_t b[kConfig.num_stages()][kConfig.block_n * kBlockK];
  uint8_t staging[kConfig.num_consumer_warpgroups()][kConfig.num_chunks()][kConfig.chunk_bytes()];
  PipelineBarriers<kConfig.num_stages()> barriers;
};

/// With A and B swapped: D leaves through the warps' own staging, and partial totals of the other
/// CTAs of a split arrive in `received`, the units that this CTA completes, by source.
template <GemmConfig kConfig>
  requires(kConfig.swap_ab)
struct alignas(1024) SharedStorage<kConfig> {
  uint8_t a[kConfig.num_stages()][kConfig.block_m * kBlockK];
  uint8_t b[kConfig.num_stages()][kConfig.block_n * kBlockK];
  float received[kConfig.num_received_units()][kUnitBytes / 4];
  uint8_t staging[kConfig.num_consumer_warps()][kConfig.swap_staging_bytes()];
  float scales[kConfig.num_stages()][kConfig.block_m];  // sfa * sfb of a stage's k tile
  PipelineBarriers<kConfig.num_stages()> barriers;
  uint64_t received_full;   // completes when all units of a tile have arrived
  uint64_t received_empty;  // completes when the other CTAs have read what this one sent
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
