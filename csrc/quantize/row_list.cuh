// Which rows a launch processes: found from the groups' metadata on the device, in chunks.
#pragma once

#include "core/device_error.cuh"
#include "core/warp.cuh"
#include "ptx/barrier.cuh"
#include "quantize/silu_mul_config.h"
#include "quantize/silu_mul_storage.cuh"

namespace pykernels::quantize {

/// A row of x, q and scales.
struct RowPosition {
  uint32_t group;
  uint32_t row;
};

/// The rows of one chunk after the other. Rows to leave alone are not listed, so they cost no more
/// than their part of the metadata, which each CTA of a chunk reads once.
///
/// All threads construct it and call `next` together; between, each may call `locate`.
template <SiluMulQuantizeConfig kConfig>
class RowList {
 public:
  __device__ __forceinline__ RowList(const SiluMulQuantizeParams& params,
                                     SiluMulStorage<kConfig>& smem)
      : params_(params), smem_(smem), chunk_(blockIdx.y) {
    if (threadIdx.x == 0) smem.has_recorded = 0;
  }

  /// Lists the rows of the next chunk; false behind the last one.
  __device__ __forceinline__ bool next() {
    if (chunk_ >= params_.num_chunks) return false;
    if (params_.source == GroupSource::kNone) {
      num_rows_ = params_.rows;
    } else if (params_.source == GroupSource::kOffsets) {
      read_offsets();
    } else {
      list_entries();
    }
    chunk_ += gridDim.y;
    return true;
  }

  /// Rows in this chunk.
  __device__ __forceinline__ uint32_t num_rows() const { return num_rows_; }

  /// The row that stands at `place`, below num_rows().
  __device__ __forceinline__ RowPosition locate(uint32_t place) const {
    if (params_.source == GroupSource::kMasked) return locate_in_group(place);
    if (params_.source == GroupSource::kIndices) return {0, smem_.list[place]};
    return {0, first_ + place};
  }

 private:
  enum class NamedBarrier : uint32_t { kList = 0 };

  __device__ __forceinline__ void sync() const {
    ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kList), kConfig.num_threads());
  }

  /// The only chunk: the rows from the first to the last offset; none where these are wrong.
  __device__ __forceinline__ void read_offsets() {
    if (threadIdx.x == 0) {
      const int32_t begin = params_.groups[0];
      const int32_t end = params_.groups[params_.num_entries - 1];
      const auto rows = static_cast<int32_t>(params_.rows);
      const bool is_right = 0 <= begin && begin <= end && end <= rows;
      smem_.first_row = static_cast<uint32_t>(begin);
      smem_.num_rows = is_right ? static_cast<uint32_t>(end - begin) : 0;
      if (!is_right && blockIdx.x == 0) record_offsets(begin, end);
    }
    sync();  // thread 0 has left the rows for all
    first_ = smem_.first_row;
    num_rows_ = smem_.num_rows;
  }

  __device__ __forceinline__ void record_offsets(int32_t begin, int32_t end) const {
    const bool is_begin = begin < 0;
    const int32_t limit = end < begin ? begin : static_cast<int32_t>(params_.rows);
    write_error(params_.errors,
                {DeviceErrorKind::kOffsetRange, is_begin ? 0 : params_.num_entries - 2,
                 is_begin ? begin : end, is_begin ? 0 : limit});
  }

  /// A thread takes an entry of m_indices or masked_m. The list holds, with kIndices, the rows
  /// whose index is not negative; with kMasked, for each group of the chunk the number of rows
  /// before it.
  __device__ __forceinline__ void list_entries() {
    const bool is_masked = params_.source == GroupSource::kMasked;
    first_ = chunk_ * params_.entries_per_chunk;
    const uint32_t entry = first_ + threadIdx.x;
    const bool exists = threadIdx.x < params_.entries_per_chunk && entry < params_.num_entries;
    const int32_t value = exists ? params_.groups[entry] : (is_masked ? 0 : -1);
    const bool is_wrong =
        is_masked ? value < 0 || value > static_cast<int32_t>(params_.rows) : value < -1;
    uint32_t num_rows = value >= 0 && !is_wrong ? 1 : 0;
    if (is_masked && num_rows > 0) num_rows = static_cast<uint32_t>(value);

    const uint32_t before = sum_before(num_rows, is_wrong);
    if (is_wrong) record_first(entry, value);
    if (is_masked && threadIdx.x < kConfig.list_entries()) smem_.list[threadIdx.x] = before;
    if (!is_masked && num_rows > 0) smem_.list[before] = entry;
    sync();  // the list is complete
  }

  /// The last group that begins at or before `place`: an empty one begins where the next one does,
  /// and behind the last one the list has the number of all rows.
  __device__ __forceinline__ RowPosition locate_in_group(uint32_t place) const {
    uint32_t group = 0;
#pragma unroll 1
    for (uint32_t step = params_.search_step; step > 0; step /= 2) {
      if (smem_.list[group + step] <= place) group += step;
    }
    return {first_ + group, place - smem_.list[group]};
  }

  /// The sum of `value` over the threads before this one; `num_rows_` becomes that over all.
  __device__ __forceinline__ uint32_t sum_before(uint32_t value, bool is_wrong) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t sum = inclusive_sum(value);
    const uint32_t errors = __ballot_sync(kAllLanes, is_wrong);
    if (lane == 31) {
      smem_.warp_sums[warp] = sum;
      smem_.warp_errors[warp] = errors;
    }
    sync();  // every warp's sum is there, and no warp reads the list of the chunk before any more
    uint32_t before = sum - value;
    num_rows_ = 0;
#pragma unroll
    for (uint32_t i = 0; i < kConfig.num_warps(); ++i) {
      const uint32_t warp_sum = smem_.warp_sums[i];
      if (i < warp) before += warp_sum;
      num_rows_ += warp_sum;
    }
    return before;
  }

  /// Records a wrong entry unless a thread before this one or a chunk before has found one, or
  /// another CTA of the chunk tells of it. After sum_before.
  __device__ __forceinline__ void record_first(uint32_t entry, int32_t value) const {
    if (blockIdx.x != 0) return;
    const uint32_t warp = threadIdx.x / 32;
    uint32_t earlier = smem_.warp_errors[warp] & ((1u << threadIdx.x % 32) - 1);
#pragma unroll 1
    for (uint32_t i = 0; i < warp; ++i) earlier |= smem_.warp_errors[i];
    if (earlier != 0 || smem_.has_recorded != 0) return;  // one thread reads and writes the flag
    constexpr int32_t kNoLimit = 0x7fffffff;              // of indices
    const bool is_masked = params_.source == GroupSource::kMasked;
    write_error(params_.errors,
                {is_masked ? DeviceErrorKind::kMaskedM : DeviceErrorKind::kGroupIndex, entry, value,
                 is_masked ? static_cast<int32_t>(params_.rows) : kNoLimit});
    smem_.has_recorded = 1;
  }

  const SiluMulQuantizeParams& params_;
  SiluMulStorage<kConfig>& smem_;
  uint32_t chunk_;
  uint32_t num_rows_ = 0;
  uint32_t first_ = 0;  // the first row; with kMasked, the chunk's first group
};

}  // namespace pykernels::quantize
