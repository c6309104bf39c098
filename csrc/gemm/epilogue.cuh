// From registers to global memory: totals are staged in swizzled shared memory and stored by TMA,
// which clips at m and n. Stores drain while the next tile is loaded and multiplied.
#pragma once

#include "gemm/config.h"
#include "gemm/counters.cuh"
#include "gemm/mainloop.cuh"
#include "gemm/places.cuh"
#include "gemm/storage.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/matrix.cuh"

namespace pykernels::gemm {

/// Swizzles of shared memory rows of 32, 64 or 128 bytes (PTX ISA, "swizzling modes"): 16-byte unit
/// u of row r stands at u ^ swizzle_of_row(r). With the row and the lowest unit bits in an address,
/// further units are an exclusive or away.
template <uint32_t kRowBytes>
__device__ __forceinline__ uint32_t swizzle_of_row(uint32_t row) {
  static_assert(kRowBytes == 32 || kRowBytes == 64 || kRowBytes == 128);
  return row / (128 / kRowBytes) % (kRowBytes / 16);
}

/// One consumer warpgroup's way out. A chunk is 64 x block_n of BF16 or 64 x block_n / 2 of FP32,
/// in slabs of slab_row_bytes wide rows; where there are two, they take turns.
template <GemmConfig kConfig>
class Epilogue {
 public:
  __device__ __forceinline__ Epilogue(const Params<kConfig>& params, SharedStorage<kConfig>& smem)
      : params_(params), smem_(smem), done_(params, smem) {}

  template <typename Tile>
  __device__ __forceinline__ void store_tile(const Tile& tile, const Accumulator<kConfig>& total) {
    if (is_storer()) done_.wait_and_signal();
    if (params_.d_is_fp32) {
      begin_chunk();
      stage_fp32<0>(total);
      store_chunk(tile, tile.n_start, kRowBytes / 4);
      begin_chunk();
      stage_fp32<1>(total);
      store_chunk(tile, tile.n_start + kConfig.block_n / 2, kRowBytes / 4);
    } else {
      begin_chunk();
      stage_bf16(total);
      store_chunk(tile, tile.n_start, kRowBytes / 2);
    }
    if (is_storer()) done_.note(tile, first_row(tile));
  }

  /// Before exit: the stores have read the shared memory and written the output.
  __device__ __forceinline__ void drain() {
    if (!is_storer()) return;
    ptx::cp_async_bulk_wait_group<0>();
    done_.signal();
  }

 private:
  static constexpr uint32_t kRowBytes = kConfig.slab_row_bytes();
  static constexpr uint32_t kSlabBytes = kWarpgroupRows * kRowBytes;  // one TMA box
  static constexpr uint32_t kNumSlabs = kConfig.chunk_bytes() / kSlabBytes;

  /// The one thread that owns the warpgroup's bulk groups.
  __device__ __forceinline__ static bool is_storer() { return threadIdx.x % 128 == 0; }
  __device__ __forceinline__ static uint32_t warpgroup_idx() { return threadIdx.x / 128; }
  __device__ __forceinline__ static void sync_warpgroup() {
    ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kStaging) + warpgroup_idx(), 128);
  }

  /// Shared-window address of the chunk to be filled next.
  __device__ __forceinline__ uint32_t chunk() const {
    return ptx::cvta_to_shared(smem_.staging[warpgroup_idx()][chunk_idx_]);
  }

  /// Before a lone chunk is filled: its last store has read it. Of two, store_chunk has seen to it.
  __device__ __forceinline__ void begin_chunk() const {
    if constexpr (kConfig.num_chunks() == 1) {
      if (is_storer()) ptx::cp_async_bulk_wait_group_read<0>();
      sync_warpgroup();
    }
  }

  __device__ __forceinline__ void stage_bf16(const Accumulator<kConfig>& total) const {
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t row = threadIdx.x % 128 / 32 * 16 + lane_idx % 16;
    const uint32_t unit = lane_idx / 16 ^ swizzle_of_row<kRowBytes>(row);
    const uint32_t lane_address = chunk() + row * kRowBytes + unit * 16;
#pragma unroll
    for (uint32_t j = 0; j < kConfig.block_n / 8; j += 2) {  // 16 columns, two units
      const float* element = &total[4 * j];
      constexpr uint32_t kUnits = kRowBytes / 16;
      ptx::stmatrix_m8n8_x4_b16((lane_address ^ j % kUnits * 16) + j / kUnits * kSlabBytes,
                                ptx::cvt_rn_bf16x2_f32(element[1], element[0]),
                                ptx::cvt_rn_bf16x2_f32(element[3], element[2]),
                                ptx::cvt_rn_bf16x2_f32(element[5], element[4]),
                                ptx::cvt_rn_bf16x2_f32(element[7], element[6]));
    }
  }

  template <uint32_t kHalf>
  __device__ __forceinline__ void stage_fp32(const Accumulator<kConfig>& total) const {
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t row = threadIdx.x % 128 / 32 * 16 + lane_idx / 4;
    const uint32_t unit = lane_idx % 4 / 2 ^ swizzle_of_row<kRowBytes>(row);
    const uint32_t lane_address = chunk() + row * kRowBytes + unit * 16 + lane_idx % 2 * 8;
#pragma unroll
    for (uint32_t j = 0; j < kConfig.block_n / 16; ++j) {  // 8 columns, two units
      const float* element = &total[4 * (j + kHalf * kConfig.block_n / 16)];
      constexpr uint32_t kSteps = kRowBytes / 32;
      const uint32_t address = (lane_address ^ j % kSteps * 32) + j / kSteps * kSlabBytes;
      ptx::st_shared_v2_f32(address, element[0], element[1]);
      ptx::st_shared_v2_f32(address + 8 * kRowBytes, element[2], element[3]);
    }
  }

  /// The warpgroup's first row of the tile.
  __device__ __forceinline__ static uint32_t first_row(const Tile& tile) {
    return tile.m_start + warpgroup_idx() * kWarpgroupRows;
  }

  /// Hands the staged chunk to TMA and turns to the other one, if there is one.
  template <typename Tile>
  __device__ __forceinline__ void store_chunk(const Tile& tile, uint32_t n_start,
                                              uint32_t slab_columns) {
    ptx::fence_proxy_async_shared_cta();  // this thread's part of the chunk, for TMA to read
    // The other chunk's store has read it: after the barrier all threads may overwrite it.
    if (kConfig.num_chunks() > 1 && is_storer()) ptx::cp_async_bulk_wait_group_read<0>();
    sync_warpgroup();
    if (is_storer()) {
#pragma unroll
      for (uint32_t slab = 0; slab < kNumSlabs; ++slab) {
        store_d(params_, tile, first_row(tile), n_start + slab * slab_columns,
                chunk() + slab * kSlabBytes);
      }
      ptx::cp_async_bulk_commit_group();
    }
    if constexpr (kConfig.num_chunks() > 1) chunk_idx_ ^= 1;
  }

  const Params<kConfig>& params_;
  SharedStorage<kConfig>& smem_;
  DoneSignal<kConfig> done_;
  uint32_t chunk_idx_ = 0;  // of the two, the one to be filled next
};

}  // namespace pykernels::gemm
