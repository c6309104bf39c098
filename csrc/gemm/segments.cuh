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

/// Writes the launch's first error, for which `found` is true in some lanes, those of CTA 0: every
/// CTA reads all segments.
class ErrorReporter {
 public:
  __device__ __forceinline__ explicit ErrorReporter(DeviceError* errors) : errors_(errors) {}

  /// A converged warp; the lowest lane's error counts.
  __device__ __forceinline__ void report(bool found, const DeviceError& error) {
    const uint32_t lanes = __ballot_sync(kWholeWarp, found);
    if (lanes == 0 || has_reported_ || blockIdx.x != 0) return;
    has_reported_ = true;
    if (threadIdx.x % 32 == __ffs(lanes) - 1) write(error);
  }

  /// One thread, of any CTA.
  __device__ __forceinline__ void write(const DeviceError& error) const {
    const uint64_t index = error.index;
    const uint64_t limit = static_cast<uint32_t>(error.limit);
    ptx::st_relaxed_sys_b128(errors_, static_cast<uint64_t>(error.kind) | index << 32,
                             static_cast<uint32_t>(error.value) | limit << 32);
  }

 private:
  DeviceError* errors_;
  bool has_reported_ = false;
};

/// Groups by their offsets: group g has the rows from offsets[g] to offsets[g + 1] - 1.
class OffsetWindows {
 public:
  __device__ __forceinline__ explicit OffsetWindows(const GroupedGemmParams& params)
      : params_(params), errors_(params.errors) {
    load();
  }

  /// Turns to the next window; false behind the last one. A converged warp.
  __device__ __forceinline__ bool next(Segment& segment) {
    if (first_ >= params_.num_groups) return false;
    const uint32_t group = first_ + threadIdx.x % 32;
    const int32_t begin = begin_;
    const int32_t end = end_;
    first_ += 32;
    load();  // the window after this one, on its way meanwhile
    const int32_t num_rows = static_cast<int32_t>(params_.m);
    DeviceError error{DeviceErrorKind::kGroupOffset, group, end, begin};
    if (begin < 0) {
      error.value = begin;
      error.limit = 0;
    } else if (end > num_rows) {
      error.limit = num_rows;
    }
    const bool is_wrong = begin < 0 || end < begin || end > num_rows;
    errors_.report(is_wrong, error);
    segment = {static_cast<uint32_t>(begin), is_wrong ? 0 : static_cast<uint32_t>(end - begin),
               group};
    return true;
  }

 private:
  /// Lanes behind the last group take its end twice: no rows.
  __device__ __forceinline__ void load() {
    const uint32_t group = first_ + threadIdx.x % 32;
    begin_ = ptx::ld_global_s32(params_.groups + min(group, params_.num_groups));
    end_ = ptx::ld_global_s32(params_.groups + min(group + 1, params_.num_groups));
    if (group >= params_.num_groups) begin_ = end_ = 0;
  }

  const GroupedGemmParams& params_;
  ErrorReporter errors_;
  uint32_t first_ = 0;  // group of lane 0
  int32_t begin_;
  int32_t end_;
};

/// Groups of max_rows rows each, of which a number is the group's own.
class MaskedWindows {
 public:
  __device__ __forceinline__ explicit MaskedWindows(const GroupedGemmParams& params)
      : params_(params), errors_(params.errors) {
    load();
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if (first_ >= params_.num_groups) return false;
    const uint32_t group = first_ + threadIdx.x % 32;
    const int32_t num_rows = num_rows_;
    first_ += 32;
    load();
    const int32_t max_rows = static_cast<int32_t>(params_.max_rows);
    const bool is_wrong = num_rows < 0 || num_rows > max_rows;
    errors_.report(is_wrong, {DeviceErrorKind::kMaskedM, group, num_rows, max_rows});
    segment = {group * params_.a_group_rows, is_wrong ? 0 : static_cast<uint32_t>(num_rows), group};
    return true;
  }

 private:
  __device__ __forceinline__ void load() {
    const uint32_t group = first_ + threadIdx.x % 32;
    num_rows_ = group < params_.num_groups ? ptx::ld_global_s32(params_.groups + group) : 0;
  }

  const GroupedGemmParams& params_;
  ErrorReporter errors_;
  uint32_t first_ = 0;
  int32_t num_rows_;
};

/// Groups by the index that each row has, -1 for none. A segment belongs to the window in which the
/// row behind its last one stands.
class IndexWindows {
 public:
  __device__ __forceinline__ explicit IndexWindows(const GroupedGemmParams& params)
      : params_(params), errors_(params.errors) {
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) ahead_[i] = load(i * 32);
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if (first_row_ > params_.m) return false;
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t row = first_row_ + lane_idx;
    const int32_t num_groups = static_cast<int32_t>(params_.num_groups);
    int32_t group = ahead_[0];
    const bool is_wrong = group < -1 || group >= num_groups;
    errors_.report(is_wrong, {DeviceErrorKind::kGroupIndex, row, group, num_groups});
    if (is_wrong) group = -1;
    int32_t last = __shfl_up_sync(kWholeWarp, group, 1);
    if (lane_idx == 0) last = last_group_;
    const uint32_t starts = __ballot_sync(kWholeWarp, group >= 0 && group != last);
    const uint32_t starts_before = starts & ((1u << lane_idx) - 1);
    const uint32_t start =
        starts_before != 0 ? first_row_ + 31 - __clz(starts_before) : open_start_;
    const bool is_end = last >= 0 && group != last;
    segment = {start, is_end ? row - start : 0, static_cast<uint32_t>(last)};
    last_group_ = __shfl_sync(kWholeWarp, group, 31);
    if (starts != 0) open_start_ = first_row_ + 31 - __clz(starts);
    advance();
    return true;
  }

 private:
  static constexpr uint32_t kAhead = 4;  // windows on their way: 128 rows a latency

  /// The group of the lane's row, `ahead` rows on; none behind the last row.
  __device__ __forceinline__ int32_t load(uint32_t ahead) const {
    const uint32_t row = first_row_ + ahead + threadIdx.x % 32;
    return row < params_.m ? ptx::ld_global_s32(params_.groups + row) : -1;
  }

  __device__ __forceinline__ void advance() {
#pragma unroll
    for (uint32_t i = 0; i + 1 < kAhead; ++i) ahead_[i] = ahead_[i + 1];
    ahead_[kAhead - 1] = load(kAhead * 32);
    first_row_ += 32;
  }

  const GroupedGemmParams& params_;
  ErrorReporter errors_;
  uint32_t first_row_ = 0;   // of lane 0
  int32_t last_group_ = -1;  // of the row ahead of the window
  uint32_t open_start_ = 0;  // of the segment that row belongs to
  int32_t ahead_[kAhead];
};

}  // namespace pykernels::gemm
