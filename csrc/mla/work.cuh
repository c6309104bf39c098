// What a CTA works on: the items of its part, the lengths of their requests, its tile of rows.
#pragma once

#include "core/device_error.cuh"
#include "mla/config.h"
#include "ptx/memory.cuh"

namespace pykernels::mla {

/// Walks the items of the CTA's part; every role holds one.
class WorkWalk {
 public:
  __device__ __forceinline__ explicit WorkWalk(const MlaDecodeParams& params)
      : params_(params),
        next_(params.plan.part_offsets[blockIdx.y]),
        end_(params.plan.part_offsets[blockIdx.y + 1]) {}

  __device__ __forceinline__ bool has_item() const { return next_ < end_; }
  __device__ __forceinline__ bool is_last() const { return next_ + 1 == end_; }

  /// Reads it anew: consumers have no registers for it while they multiply.
  __device__ __forceinline__ WorkItem item() const {
    uint32_t words[4];
    ptx::ld_global_v4_b32(&params_.plan.items[next_], words);
    return {static_cast<int32_t>(words[0]), static_cast<int32_t>(words[1]),
            static_cast<int32_t>(words[2]), static_cast<int32_t>(words[3])};
  }

  __device__ __forceinline__ void advance() { ++next_; }

 private:
  const MlaDecodeParams& params_;
  int32_t next_;
  int32_t end_;
};

/// An item's request as this call has it.
struct Request {
  int32_t length = 0;      // tokens in the cache, 0 if that is wrong
  int32_t num_blocks = 0;  // of the item, 0 if the length is wrong
  bool is_wrong = false;   // the rows are NaN

  __device__ __forceinline__ Request(const MlaDecodeParams& params, const WorkItem& item) {
    // A plan for more requests than the call has; the rows of these do not exist.
    if (static_cast<uint32_t>(item.request) >= params.batch) return;
    const int32_t given = params.cache_seqlens[item.request];
    is_wrong = given != params.plan.requests[item.request].length || given < 0 ||
               static_cast<uint32_t>(given) > params.max_length;
    if (is_wrong) return;
    length = given;
    num_blocks = item.end_block - item.begin_block;
  }

  /// Leaves the error, if there is one. One thread.
  __device__ __forceinline__ void record(const MlaDecodeParams& params,
                                         const WorkItem& item) const {
    if (!is_wrong) return;
    const auto index = static_cast<uint32_t>(item.request);
    const int32_t given = params.cache_seqlens[item.request];
    const int32_t planned = params.plan.requests[item.request].length;
    if (given == planned) {
      const auto most = static_cast<int32_t>(params.max_length);
      write_error(params.errors, {DeviceErrorKind::kCacheSeqlen, index, given, most});
    } else {
      write_error(params.errors, {DeviceErrorKind::kStalePlan, index, given, planned});
    }
  }
};

/// A row of a request: which query token and head it is.
struct Row {
  uint32_t token;
  uint32_t head;

  __device__ __forceinline__ Row(const MlaDecodeParams& params, uint32_t row)
      : token(params.num_heads.divide(row)), head(row - token * params.num_heads.divisor) {}

  /// How many cached tokens the row sees; none if that is not positive.
  __device__ __forceinline__ int32_t limit(const MlaDecodeParams& params, int32_t length) const {
    return params.causal ? length - static_cast<int32_t>(params.seqlen_q - 1 - token) : length;
  }

  __device__ __forceinline__ uint64_t offset(const RowStrides& strides, int32_t request) const {
    return static_cast<uint32_t>(request) * strides.batch + token * strides.token +
           head * strides.head;
  }
};

/// The first row of the CTA's tile.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ uint32_t first_row() {
  return blockIdx.x * kConfig.block_rows;
}

/// Whether an item's block has tokens that some rows do not see. The last row sees all.
__device__ __forceinline__ bool is_masked(const MlaDecodeParams& params, int32_t block,
                                          int32_t length) {
  const int32_t hidden = params.causal ? static_cast<int32_t>(params.seqlen_q) - 1 : 0;
  return (block + 1) * static_cast<int32_t>(kBlockTokens) > length - hidden;
}

/// Whether a block is loaded thread by thread: its pages are smaller than a box of TMA, or it ends
/// with tokens that are not in the cache, in whose place there must be zeros.
__device__ __forceinline__ bool is_gathered(const MlaDecodeParams& params, int32_t block,
                                            int32_t length) {
  return !params.has_map || (block + 1) * static_cast<int32_t>(kBlockTokens) > length;
}

}  // namespace pykernels::mla
