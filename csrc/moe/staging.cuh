// A warp's stages in shared memory, through which it moves tokens: bulk loads by one lane, bulk
// stores by any.
#pragma once

#include "moe/dispatch_config.h"
#include "ptx/address.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/fence.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/warp.cuh"

namespace pykernels::moe {

struct alignas(128) Stage {
  uint8_t values[kChunkBytes];
  float scales[(kChunkScales + 31) / 32 * 32];  // the next stage is aligned to 128 bytes again
};

struct WarpStages {
  Stage stages[kNumStages];
};

/// Part of a token that fits a stage.
struct ChunkRange {
  uint32_t first;        // byte of the values
  uint32_t bytes;        // of them
  uint32_t first_scale;  // factor
  uint32_t num_scales;   // of BF16 none

  __device__ __forceinline__ ChunkRange(uint32_t first_byte, uint32_t payload_bytes,
                                        uint32_t token_scales)
      : first(first_byte), bytes(min(kChunkBytes, payload_bytes - first_byte)) {
    first_scale = min(first / kBlockK, token_scales);
    num_scales = min(kChunkScales, token_scales - first_scale);
  }

  /// Of the factors as they travel: a multiple of 16.
  __device__ __forceinline__ uint32_t scale_bytes() const {
    return (num_scales * 4 + 15) / 16 * 16;
  }
};

/// All lanes of a warp hold one. Every lane takes each step.
class Staging {
 public:
  /// `full`: barriers of this warp's stages.
  __device__ __forceinline__ Staging(WarpStages& stages, uint64_t (&full)[kNumStages])
      : stages_(stages), full_(ptx::cvta_to_shared(full)) {}

  /// Of a warp that loads nothing.
  __device__ __forceinline__ explicit Staging(WarpStages& stages) : stages_(stages), full_(0) {}

  /// One thread of the CTA, for all warps.
  __device__ __forceinline__ static void initialise(uint64_t (&full)[kNumStages]) {
#pragma unroll
    for (uint32_t i = 0; i < kNumStages; ++i) {
      ptx::mbarrier_init(ptx::cvta_to_shared(&full[i]), 1);
    }
  }

  __device__ __forceinline__ Stage& stage() { return stages_.stages[stage_]; }
  __device__ __forceinline__ uint32_t values() { return ptx::cvta_to_shared(stage().values); }
  __device__ __forceinline__ uint32_t scales() { return ptx::cvta_to_shared(stage().scales); }

  /// Waits until no lane's store reads the stage any more; it may be written.
  __device__ __forceinline__ void wait_free() const {
    ptx::cp_async_bulk_wait_group_read<kNumStages - 1>();
    ptx::bar_warp_sync();  // of every lane
  }

  /// One lane: loads into the stage, of which wait_full knows.
  __device__ __forceinline__ void load(const uint8_t* values, uint32_t value_bytes,
                                       const uint8_t* scales, uint32_t scale_bytes) {
    const uint32_t full = full_ + stage_ * 8;
    ptx::mbarrier_arrive_expect_tx(full, value_bytes + scale_bytes);
    ptx::cp_async_bulk_load(this->values(), values, value_bytes, full);
    if (scale_bytes > 0) ptx::cp_async_bulk_load(this->scales(), scales, scale_bytes, full);
  }

  /// Waits for what has been loaded; any lane may then store it.
  __device__ __forceinline__ void wait_full() {
    while (!ptx::mbarrier_try_wait_parity(full_ + stage_ * 8, phase_)) {
    }
  }

  /// After generic writes to the stage by all lanes: any lane may then store them.
  __device__ __forceinline__ void publish() const {
    ptx::fence_proxy_async_shared_cta();
    ptx::bar_warp_sync();
  }

  /// Closes the stage: what this lane has stored from it is a group of bulk copies. `loaded`:
  /// whether wait_full has been called for it.
  __device__ __forceinline__ void advance(bool loaded) {
    ptx::cp_async_bulk_commit_group();
    if (loaded) loads_ ^= 1u << stage_;
    stage_ = stage_ + 1 == kNumStages ? 0 : stage_ + 1;
    phase_ = loads_ >> stage_ & 1;
  }

  /// Waits until all that this lane has stored is written, and visible to it.
  __device__ __forceinline__ void wait_written() const { ptx::cp_async_bulk_wait_group<0>(); }
  /// The same but for what it has stored from the stage that was closed last.
  __device__ __forceinline__ void wait_written_before() const {
    ptx::cp_async_bulk_wait_group<1>();
  }

 private:
  WarpStages& stages_;
  uint32_t full_;
  uint32_t stage_ = 0;
  uint32_t loads_ = 0;  // bit s: parity of the loads into stage s
  uint32_t phase_ = 0;
};

}  // namespace pykernels::moe
