// The groups of a grouped GEMM as segments: runs of rows that belong to one group. A warp reads
// them from the array on the device, a window of 32 at a time, and checks what it reads.
#pragma once

#include "core/device_error.h"
#include "gemm/config.h"
#include "ptx/memory.cuh"

namespace pykernels::gemm {

/// Of one lane; without rows where the lane has none.
struct Segment {
  uint32_t first_row = 0;  // of A's map
  uint32_t num_rows = 0;
  uint32_t group = 0;
};

inline constexpr uint32_t kWholeWarp = 0xffffffff;

/// Writes the device's record. One thread.
__device__ __forceinline__ void write_error(DeviceError* errors, const DeviceError& error) {
  const uint64_t index = error.index;
  const uint64_t limit = static_cast<uint32_t>(error.limit);
  ptx::st_relaxed_sys_b128(errors, static_cast<uint64_t>(error.kind) | index << 32,
                           static_cast<uint32_t>(error.value) | limit << 32);
}

/// The segments, 32 a window, one a lane. The values of the windows to come are on their way while
/// one is used.
///
/// By offsets and by counts a window is 32 groups. By indices it is 32 rows, and a segment belongs
/// to the window in which the row behind its last one stands.
class SegmentWindows {
 public:
  __device__ __forceinline__ explicit SegmentWindows(const GroupedGemmParams& params)
      : params_(params) {
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) ahead_[i] = load(first_ + i * 32 + threadIdx.x % 32);
  }

  /// Turns to the next window; false behind the last one. A converged warp.
  __device__ __forceinline__ bool next(Segment& segment) {
    const bool by_rows = params_.source == GroupSource::kIndices;
    if (by_rows ? first_ > params_.m : first_ >= params_.num_groups) return false;
    const uint32_t place = first_ + threadIdx.x % 32;
    DeviceError error{DeviceErrorKind::kNone, place, ahead_[0], 0};
    if (by_rows) {
      segment = segment_by_indices(error);
    } else if (params_.source == GroupSource::kOffsets) {
      segment = segment_by_offsets(error);
    } else {
      segment = segment_by_counts(error);
    }
    report(error);
    first_ += 32;
#pragma unroll
    for (uint32_t i = 0; i + 1 < kAhead; ++i) ahead_[i] = ahead_[i + 1];
    ahead_[kAhead - 1] = load(place + kAhead * 32);
    return true;
  }

 private:
  static constexpr uint32_t kAhead = 2;  // windows

  /// The lane's value of a window to come; one that means no rows where there is none.
  __device__ __forceinline__ int32_t load(uint32_t place) const {
    if (params_.source == GroupSource::kIndices) {
      return place < params_.m ? ptx::ld_global_s32(params_.groups + place) : -1;
    }
    const uint32_t is_end = params_.source == GroupSource::kOffsets ? 1 : 0;
    return place < params_.num_groups ? ptx::ld_global_s32(params_.groups + place + is_end) : 0;
  }

  /// Group g has the rows from offsets[g] to offsets[g + 1] - 1. The lane holds its group's end,
  /// the lane below the begin.
  __device__ __forceinline__ Segment segment_by_offsets(DeviceError& error) {
    const uint32_t group = error.index;
    const int32_t end = ahead_[0];
    int32_t begin = __shfl_up_sync(kWholeWarp, end, 1);
    if (threadIdx.x % 32 == 0) {
      begin = first_ == 0 ? ptx::ld_global_s32(params_.groups) : last_;
    }
    last_ = __shfl_sync(kWholeWarp, end, 31);
    if (group >= params_.num_groups) return {};
    const int32_t num_rows = static_cast<int32_t>(params_.m);
    if (begin >= 0 && begin <= end && end <= num_rows) {
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
    const int32_t num_rows = ahead_[0];
    const int32_t max_rows = static_cast<int32_t>(params_.max_rows);
    if (num_rows >= 0 && num_rows <= max_rows) {
      return {group * params_.a_group_rows, static_cast<uint32_t>(num_rows), group};
    }
    error.kind = DeviceErrorKind::kMaskedM;
    error.limit = max_rows;
    return {};
  }

  /// Each row has its group's index, -1 for none.
  __device__ __forceinline__ Segment segment_by_indices(DeviceError& error) {
    const uint32_t lane_idx = threadIdx.x % 32;
    const int32_t num_groups = static_cast<int32_t>(params_.num_groups);
    int32_t group = ahead_[0];
    if (group < -1 || group >= num_groups) {
      error.kind = DeviceErrorKind::kGroupIndex;
      error.limit = num_groups;
      group = -1;
    }
    int32_t above = __shfl_up_sync(kWholeWarp, group, 1);
    if (lane_idx == 0) above = last_;
    last_ = __shfl_sync(kWholeWarp, group, 31);
    const uint32_t starts = __ballot_sync(kWholeWarp, group >= 0 && group != above);
    const uint32_t starts_above = starts & ((1u << lane_idx) - 1);
    const uint32_t start = starts_above != 0 ? first_ + 31 - __clz(starts_above) : open_start_;
    if (starts != 0) open_start_ = first_ + 31 - __clz(starts);
    if (above < 0 || group == above) return {};
    return {start, error.index - start, static_cast<uint32_t>(above)};
  }

  /// Of the launch's errors the first one is written, by CTA 0: every CTA reads all segments.
  __device__ __forceinline__ void report(const DeviceError& error) {
    const uint32_t lanes = __ballot_sync(kWholeWarp, error.kind != DeviceErrorKind::kNone);
    if (lanes == 0 || has_reported_ || blockIdx.x != 0) return;
    has_reported_ = true;
    if (threadIdx.x % 32 == __ffs(lanes) - 1) write_error(params_.errors, error);
  }

  const GroupedGemmParams& params_;
  uint32_t first_ = 0;       // group or row of lane 0
  int32_t last_ = -1;        // value of the lane above lane 0
  uint32_t open_start_ = 0;  // by indices: of the segment that the row above belongs to
  int32_t ahead_[kAhead];
  bool has_reported_ = false;
};

}  // namespace pykernels::gemm
