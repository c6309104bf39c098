// From the consumers' registers to global memory: BF16 rows of the result by way of shared memory,
// in whole lines; FP32 rows of a split request's partial result directly, in whole sectors.
#pragma once

#include "core/tile.cuh"
#include "mla/softmax.cuh"
#include "mla/storage.cuh"
#include "mla/work.cuh"
#include "ptx/address.cuh"
#include "ptx/convert.cuh"
#include "ptx/matrix.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"

namespace pykernels::mla {

/// How a row ends.
struct RowResult {
  float factor;  // of its output
  float lse;
};

/// Where an item's rows go.
class RowTarget {
 public:
  __device__ __forceinline__ RowTarget(const MlaDecodeParams& params, const WorkItem& item)
      : params_(params), item_(item) {}

  /// `row`: of the request.
  __device__ __forceinline__ bool exists(uint32_t row) const {
    return row < params_.num_rows && static_cast<uint32_t>(item_.request) < params_.batch;
  }
  __device__ __forceinline__ bool is_partial() const { return item_.slot != kWholeRequest; }

  __device__ __forceinline__ float* partial_out(uint32_t row) const {
    return params_.plan.partial_out + partial_row(row) * kHeadDimV;
  }

  __device__ __forceinline__ uint8_t* out(uint32_t row) const {
    return params_.out + Row(params_, row).offset(params_.out_strides, item_.request);
  }

  __device__ __forceinline__ void store_lse(uint32_t row, float lse) const {
    if (is_partial()) {
      params_.plan.partial_lse[partial_row(row)] = lse;
    } else {
      const uint64_t offset = Row(params_, row).offset(params_.lse_strides, item_.request);
      *reinterpret_cast<float*>(params_.lse + offset) = lse;
    }
  }

 private:
  __device__ __forceinline__ uint64_t partial_row(uint32_t row) const {
    return static_cast<uint64_t>(item_.slot) * params_.num_rows + row;
  }

  const MlaDecodeParams& params_;
  const WorkItem& item_;
};

// ---- 64 rows ----

/// A warp's 16 rows of 256 staged columns: 512 bytes each, 16-byte units swizzled by the row.
class WideStaging {
 public:
  static constexpr uint32_t kRowBytes = kHeadDimV / 2 * 2;

  /// `tile`: shared memory of all warps, in order.
  __device__ __forceinline__ explicit WideStaging(uint32_t tile)
      : base_(tile + threadIdx.x / 32 * (16 * kRowBytes)) {}

  __device__ __forceinline__ uint32_t address(uint32_t row, uint32_t unit) const {
    return base_ + row * kRowBytes + (unit ^ row % 8) * 16;
  }

 private:
  uint32_t base_;
};

/// The warpgroup's 256 columns of a tile of 64 rows. `output`: see WideOutput; `results`: of the
/// thread's two rows. q is free: results are staged there.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ void store_wide(const MlaDecodeParams& params,
                                           DecodeStorage<kConfig>& smem, const WorkItem& item,
                                           const float (&output)[kHeadDimV / 4],
                                           const RowResult (&results)[2]) {
  static_assert(8 * 16 * WideStaging::kRowBytes <= sizeof(smem.q));
  const RowTarget target(params, item);
  const uint32_t warpgroup = threadIdx.x / 128;
  const uint32_t warp_row = first_row<kConfig>() + threadIdx.x % 128 / 32 * 16;
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (uint32_t h = 0; h < 2; ++h) {
    const uint32_t row = warp_row + lane / 4 + 8 * h;
    if (!target.exists(row)) continue;
    if (warpgroup == 0 && lane % 4 == 0) target.store_lse(row, results[h].lse);
    if (!target.is_partial()) continue;
    float* columns = target.partial_out(row) + warpgroup * (kHeadDimV / 2) + lane % 4 * 2;
#pragma unroll
    for (uint32_t j = 0; j < kHeadDimV / 16; ++j) {
      const float* element = &output[4 * j + 2 * h];
      *reinterpret_cast<float2*>(columns + 8 * j) = make_float2(
          __fmul_rn(element[0], results[h].factor), __fmul_rn(element[1], results[h].factor));
    }
  }
  if (target.is_partial()) return;

  uint32_t tile = ptx::cvta_to_shared(smem.q);
  hold_value(tile);  // addresses are not kept from item to item: there are no registers for them
  const WideStaging staging(tile);
#pragma unroll
  for (uint32_t j = 0; j < kHeadDimV / 16; j += 2) {
    uint32_t words[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const float* element = &output[4 * j + 2 * i];
      const float factor = results[i % 2].factor;
      words[i] =
          ptx::cvt_rn_bf16x2_f32(__fmul_rn(element[1], factor), __fmul_rn(element[0], factor));
    }
    ptx::stmatrix_m8n8_x4_b16(staging.address(lane % 16, j + lane / 16), words[0], words[1],
                              words[2], words[3]);
  }
  ptx::bar_warp_sync();  // a warp stores what it has staged itself
#pragma unroll 4
  for (uint32_t i = 0; i < 16; ++i) {
    uint32_t words[4];
    ptx::ld_shared_v4_b32(staging.address(i, lane), words);
    if (!target.exists(warp_row + i)) continue;
    uint8_t* columns = target.out(warp_row + i) + warpgroup * WideStaging::kRowBytes;
    ptx::st_global_v4_b32(columns + lane * 16, words);
  }
}

// ---- Requests that no part has ----

/// Rows of a request that the plan does not have, never updated or for a smaller batch: NaN. All
/// producer threads, which have registers for it.
template <MlaDecodeConfig kConfig>
__device__ __forceinline__ void store_unplanned(const MlaDecodeParams& params) {
  constexpr uint32_t kNan = 0x7fff7fff;  // two BF16
  constexpr uint32_t kUnits = kHeadDimV * 2 / 16;
  for (uint32_t request = blockIdx.y; request < params.batch; request += gridDim.y) {
    if (params.plan.requests[request].num_splits != 0) continue;
    const WorkItem item{static_cast<int32_t>(request), 0, 0, kWholeRequest};
    const RowTarget target(params, item);
    const uint32_t thread = threadIdx.x - kConfig.num_consumer_threads();
    if (thread == 0) {
      write_error(params.errors, {DeviceErrorKind::kStalePlan, request,
                                  params.cache_seqlens[request], kNeverPlanned});
    }
    for (uint32_t i = thread; i < kConfig.block_rows * kUnits;
         i += kConfig.num_producer_threads()) {
      const uint32_t row = first_row<kConfig>() + i / kUnits;
      if (!target.exists(row)) break;
      ptx::st_global_v4_b32(target.out(row) + i % kUnits * 16, {kNan, kNan, kNan, kNan});
      if (i % kUnits == 0) target.store_lse(row, not_a_number());
    }
  }
}

}  // namespace pykernels::mla
