// From registers to global memory: totals are staged in swizzled shared memory and stored by TMA,
// which clips at m and n. Stores drain while the next tile is loaded and multiplied.
#pragma once

#include "gemm/config.h"
#include "gemm/mainloop.cuh"
#include "gemm/storage.cuh"
#include "ptx/barrier.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/convert.cuh"
#include "ptx/fence.cuh"
#include "ptx/matrix.cuh"

namespace pykernels::gemm {

/// Named barriers of the kernel; 0 is the whole CTA.
enum class NamedBarrier : uint32_t { kStaging = 1 };  // plus the consumer warpgroup's index

inline constexpr uint32_t kSlabBytes = kWarpgroupRows * 128;  // 64 rows of 128 bytes, one TMA box

/// One consumer warpgroup's way out. A chunk is half of the staging space: 64 x block_n of BF16 or
/// 64 x block_n / 2 of FP32, in slabs of 128-byte rows; chunks alternate between the two halves.
template <GemmConfig kConfig>
class Epilogue {
 public:
  __device__ __forceinline__ explicit Epilogue(SharedStorage<kConfig>& smem) : smem_(smem) {}

  __device__ __forceinline__ void store_tile(const GemmParams& params, const Tile& tile,
                                             const Accumulator<kConfig>& total) {
    if (params.d_is_fp32) {
      stage_fp32<0>(total);
      store_chunk(params, tile, tile.n_start, 32);
      stage_fp32<1>(total);
      store_chunk(params, tile, tile.n_start + kConfig.block_n / 2, 32);
    } else {
      stage_bf16(total);
      store_chunk(params, tile, tile.n_start, 64);
    }
  }

  /// Before exit: the stores have read the shared memory and written the output.
  __device__ __forceinline__ void drain() const {
    if (is_storer()) ptx::cp_async_bulk_wait_group<0>();
  }

 private:
  static constexpr uint32_t kNumSlabs = kConfig.block_n / 64;

  /// The one thread that owns the warpgroup's bulk groups.
  __device__ __forceinline__ static bool is_storer() { return threadIdx.x % 128 == 0; }
  __device__ __forceinline__ static uint32_t warpgroup_idx() { return threadIdx.x / 128; }

  /// Shared-window address of the chunk to be filled next.
  __device__ __forceinline__ uint32_t chunk() const {
    return ptx::cvta_to_shared(smem_.staging[warpgroup_idx()][chunk_idx_]);
  }

  /// 128B swizzle: within each 128-byte row, 16-byte unit u of row r stands at u ^ (r % 8). With
  /// the lane's row and lowest unit bits in `lane_offset`, further units are an exclusive or away.
  __device__ __forceinline__ void stage_bf16(const Accumulator<kConfig>& total) const {
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t row = threadIdx.x % 128 / 32 * 16 + lane_idx % 16;
    const uint32_t lane_address = chunk() + row * 128 + (lane_idx / 16 ^ row % 8) * 16;
#pragma unroll
    for (uint32_t j = 0; j < kConfig.block_n / 8; j += 2) {  // 16 columns, two units
      const float* element = &total[4 * j];
      ptx::stmatrix_m8n8_x4_b16((lane_address ^ j % 8 * 16) + j / 8 * kSlabBytes,
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
    const uint32_t lane_address =
        chunk() + row * 128 + (lane_idx % 4 / 2 ^ row % 8) * 16 + lane_idx % 2 * 8;
#pragma unroll
    for (uint32_t j = 0; j < kConfig.block_n / 16; ++j) {  // 8 columns, two units
      const float* element = &total[4 * (j + kHalf * kConfig.block_n / 16)];
      const uint32_t address = (lane_address ^ j % 4 * 32) + j / 4 * kSlabBytes;
      ptx::st_shared_v2_f32(address, element[0], element[1]);
      ptx::st_shared_v2_f32(address + 8 * 128, element[2], element[3]);
    }
  }

  /// Hands the staged chunk to TMA and turns to the other one.
  __device__ __forceinline__ void store_chunk(const GemmParams& params, const Tile& tile,
                                              uint32_t n_start, uint32_t slab_columns) {
    ptx::fence_proxy_async_shared_cta();  // this thread's part of the chunk, for TMA to read
    // The other chunk's store has read it: after the barrier all threads may overwrite it.
    if (is_storer()) ptx::cp_async_bulk_wait_group_read<0>();
    ptx::bar_sync(static_cast<uint32_t>(NamedBarrier::kStaging) + warpgroup_idx(), 128);
    if (is_storer()) {
#pragma unroll
      for (uint32_t slab = 0; slab < kNumSlabs; ++slab) {
        ptx::cp_async_bulk_tensor_2d_store(&params.map_d, n_start + slab * slab_columns,
                                           tile.m_start + warpgroup_idx() * kWarpgroupRows,
                                           chunk() + slab * kSlabBytes);
      }
      ptx::cp_async_bulk_commit_group();
    }
    chunk_idx_ ^= 1;
  }

  SharedStorage<kConfig>& smem_;
  uint32_t chunk_idx_ = 0;  // of the two, the one to be filled next
};

}  // namespace pykernels::gemm
