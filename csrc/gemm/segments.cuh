// The groups of a grouped GEMM as segments: runs of rows that belong to one group. A warp reads
// them from the array on the device, a window of 32 at a time, and checks what it reads.
#pragma once

#include "core/device_error.cuh"
#include "core/warp.cuh"
#include "gemm/config.h"
#include "ptx/memory.cuh"

namespace pykernels::gemm {

/// Of one lane; without rows where the lane has none.
struct Segment {
  uint32_t first_row = 0;  // of A's map
  uint32_t num_rows = 0;
  uint32_t group = 0;
};

/// The segments, 32 a window, one a lane.
///
/// By offsets and by counts a window is 32 groups. By indices it is 32 rows; a segment belongs to
/// the window in which the row behind its last one stands, and ends after `most_rows` at the
/// latest, so that the first tiles of a long one are known soon.
class SegmentWindows {
 public:
  __device__ __forceinline__ SegmentWindows(const GroupedGemmParams& params, uint32_t most_rows)
      : params_(params), most_rows_(most_rows) {}

  /// Turns to the next window; false behind the last one. A converged warp.
  __device__ __forceinline__ bool next(Segment& segment) {
    const bool by_rows = params_.source == GroupSource::kIndices;
    if (by_rows) skip_inside();
    if (by_rows ? first_ > params_.m : first_ >= params_.num_groups) return false;
    DeviceError error{DeviceErrorKind::kNone, first_ + threadIdx.x % 32, 0, 0};
    if (by_rows) {
      segment = segment_by_indices(error);
    } else if (params_.source == GroupSource::kOffsets) {
      segment = segment_by_offsets(error);
    } else {
      segment = segment_by_counts(error);
    }
    report(error);
    first_ += 32;
    return true;
  }

  /// Whether a value was wrong, in the windows up to this one.
  __device__ __forceinline__ bool has_error() const { return has_error_; }

 private:
  /// Group g has the rows from offsets[g] to offsets[g + 1] - 1, unless they decrease, pass the end
  /// or begin before an earlier group ends, whose rows they would write again.
  __device__ __forceinline__ Segment segment_by_offsets(DeviceError& error) {
    const uint32_t group = error.index;
    const bool exists = group < params_.num_groups;
    const int32_t num_rows = static_cast<int32_t>(params_.m);
    const int32_t begin = exists ? ptx::ld_global_s32(params_.groups + group) : 0;
    const int32_t end = exists ? ptx::ld_global_s32(params_.groups + group + 1) : 0;
    const int32_t most = inclusive_scan(  // of the offsets up to this one
        max(last_, begin <= num_rows ? begin : 0), [](int32_t a, int32_t b) { return max(a, b); });
    last_ = __shfl_sync(kAllLanes, most, 31);
    if (!exists) return {};
    if (begin >= 0 && begin == most && begin <= end && end <= num_rows) {
      return {static_cast<uint32_t>(begin), static_cast<uint32_t>(end - begin), group};
    }
    error.kind = DeviceErrorKind::kGroupOffset;
    error.value = begin < 0 ? begin : end;
    error.limit = begin < 0 ? 0 : (end > num_rows ? num_rows : begin);
    return {};
  }

  /// Groups of max_rows rows each, of which a number is the group's own.
  __device__ __forceinline__ Segment segment_by_counts(DeviceError& error) const {
    const uint32_t group = error.index;
    if (group >= params_.num_groups) return {};
    const int32_t num_rows = ptx::ld_global_s32(params_.groups + group);
    const int32_t max_rows = static_cast<int32_t>(params_.max_rows);
    if (num_rows >= 0 && num_rows <= max_rows) {
      return {group * params_.a_group_rows, static_cast<uint32_t>(num_rows), group};
    }
    error = {DeviceErrorKind::kMaskedM, group, num_rows, max_rows};
    return {};
  }

  /// The index of a row's group; -1 behind the last row.
  __device__ __forceinline__ int32_t load_index(uint32_t row) const {
    return row < params_.m ? ptx::ld_global_s32(params_.groups + row) : -1;
  }

  /// Leaves out windows in which no segment starts or ends, four at a time: rows of one group, or
  /// of none.
  __device__ __forceinline__ void skip_inside() {
    constexpr uint32_t kWindows = 4;
    const bool in_segment = last_ >= 0;
    while (first_ + kWindows * 32 <= params_.m) {
      bool is_same = true;
#pragma unroll
      for (uint32_t i = 0; i < kWindows; ++i) {
        is_same = is_same && load_index(first_ + i * 32 + threadIdx.x % 32) == last_;
      }
      if (!__all_sync(kAllLanes, is_same)) return;
      if (in_segment && first_ + kWindows * 32 > open_start_ + most_rows_) return;
      first_ += kWindows * 32;
    }
  }

  /// Each row has its group's index, -1 for none.
  __device__ __forceinline__ Segment segment_by_indices(DeviceError& error) {
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t row = error.index;
    const int32_t num_groups = static_cast<int32_t>(params_.num_groups);
    int32_t group = load_index(row);
    if (group < -1 || group >= num_groups) {
      error = {DeviceErrorKind::kGroupIndex, row, group, num_groups};
      group = -1;
    }
    int32_t above = __shfl_up_sync(kAllLanes, group, 1);
    if (lane_idx == 0) above = last_;
    last_ = __shfl_sync(kAllLanes, group, 31);
    // A group's first row of the window, or that of the segment that is open above it.
    const uint32_t changes = __ballot_sync(kAllLanes, group >= 0 && group != above);
    const uint32_t changes_above = changes & ((1u << lane_idx) - 1);
    uint32_t start = changes_above != 0 ? first_ + 31 - __clz(changes_above) : open_start_;
    const bool is_cut = group >= 0 && group == above && (row - start) % most_rows_ == 0;
    const uint32_t cuts = __ballot_sync(kAllLanes, is_cut);
    const uint32_t starts = changes | cuts;
    const uint32_t starts_above = starts & ((1u << lane_idx) - 1);
    if (starts_above != 0) start = first_ + 31 - __clz(starts_above);
    if (starts != 0) open_start_ = first_ + 31 - __clz(starts);
    if (above < 0 || (group == above && !is_cut)) return {};
    return {start, row - start, static_cast<uint32_t>(above)};
  }

  /// Of the launch's errors the first one is written, by CTA 0: every CTA reads all segments.
  __device__ __forceinline__ void report(const DeviceError& error) {
    const uint32_t lanes = __ballot_sync(kAllLanes, error.kind != DeviceErrorKind::kNone);
    if (lanes == 0 || has_error_) return;
    has_error_ = true;
    if (blockIdx.x == 0 && threadIdx.x % 32 == __ffs(lanes) - 1) write_error(params_.errors, error);
  }

  const GroupedGemmParams& params_;
  uint32_t most_rows_;
  uint32_t first_ = 0;       // group or row of lane 0
  int32_t last_ = -1;        // by indices: that above lane 0; by offsets: the greatest up to there
  uint32_t open_start_ = 0;  // by indices: where the segment of the row above lane 0 began
  bool has_error_ = false;
};

}  // namespace pykernels::gemm
