// Shared memory of MLA decode: one struct, whose size is the launch's dynamic shared memory.
#pragma once

#include "mla/config.h"
#include "ptx/types.cuh"

namespace pykernels::mla {

/// Which columns of a stage a consumer warpgroup hands back: those that it multiplies as values.
/// Transposed these are all, and the left half stands for them.
enum class Half : uint32_t { kLeft = 0, kRight = 1 };

inline constexpr uint32_t kNumHalves = 2;
inline constexpr uint32_t kLeftGroups =
    kNumValueGroups / 2;  // the right half has the rope part too
inline constexpr uint32_t kNumProducerWarps = 4;

struct DecodeBarriers {
  uint64_t full[kNumStages][kNumGroups];   // a group's columns of the stage's block are there
  uint64_t empty[kNumStages][kNumHalves];  // the stage's half has been read, in all CTAs
  uint64_t q_full;
  uint64_t q_empty;  // neither q nor the results staged in its place are needed any more
};

/// Between the two consumer warpgroups, for 64 rows: each has half of the value columns and every
/// second block.
template <MlaDecodeConfig kConfig>
struct ExchangeStorage {
  uint8_t p[kConfig.block_rows * 128];   // probabilities of a block, BF16, 128B-swizzled rows
  float row_max[2][kConfig.block_rows];  // that they refer to, by warpgroup
  // Of a warpgroup's probabilities, at the end; items take turns, so that one warpgroup may be at
  // the next item's end while the other still reads.
  float row_sum[2][2][kConfig.block_rows];
};

/// Transposed: each warpgroup has all value columns of every second block.
template <MlaDecodeConfig kConfig>
  requires(kConfig.is_transposed())
struct ExchangeStorage<kConfig> {
  uint8_t p[2][kConfig.block_rows * 128];  // by warpgroup; a row of q has a row
  float warp_max[2][4][kConfig.block_rows];
  float warp_sum[2][4][kConfig.block_rows];
  float row_max[2][kConfig.block_rows];
};

/// Tiles are 128-byte rows with 128B swizzle, a group of 64 columns each: they start at multiples
/// of 1024.
template <MlaDecodeConfig kConfig>
struct alignas(1024) DecodeStorage {
  uint8_t q[kNumGroups][kConfig.block_rows * 128];
  uint8_t kv[kNumStages][kNumGroups][kGroupBytes];
  ExchangeStorage<kConfig> exchange;
  uint32_t has_bad_page[kNumStages][kNumProducerWarps];  // as seen by each producer warp
  DecodeBarriers barriers;
};

/// Named barriers; 0 is the whole CTA.
enum class NamedBarrier : uint32_t {
  kEvenReady = 1,  // probabilities of an even block are exchanged
  kOddReady = 2,   // of an odd one
  kConsumers = 3,  // both consumer warpgroups
  kWarpgroup = 4,  // of one of them, plus its index
  kProducers = 6,
  kEvenAhead = 7,  // an even block's scores are under way and have begun to complete
};

}  // namespace pykernels::mla
