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

template <GemmConfig kConfig>
using GemmPipeline = Pipeline<kConfig.num_stages(), kConfig.cluster>;

}  // namespace pykernels::gemm
