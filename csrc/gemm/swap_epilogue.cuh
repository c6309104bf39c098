// From registers to global memory with A and B swapped: a warp turns its rows of B into columns of
// D through its own staging and stores them, eight rows of D at a time.
#pragma once

#include "gemm/config.h"
#include "gemm/mainloop.cuh"
#include "gemm/storage.cuh"
#include "ptx/convert.cuh"
#include "ptx/matrix.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"

namespace pykernels::gemm {

/// One consumer warp's way out. Its registers hold D transposed: 16 columns of D, 8 rows a unit.
template <GemmConfig kConfig>
class SwapEpilogue {
 public:
  __device__ __forceinline__ explicit SwapEpilogue(SharedStorage<kConfig>& smem)
      : staging_(ptx::cvta_to_shared(smem.staging[threadIdx.x / 32])) {}

  /// Stores the warp's unit `j` of the tile, `unit` its four totals of this thread.
  __device__ __forceinline__ void store_unit(const GemmParams& params, const Tile& tile, uint32_t j,
                                             const float* unit) const {
    const uint32_t first_m = tile.m_start + j * kRows;
    const uint32_t first_n = tile.n_start + threadIdx.x / 32 * kColumns;
    const uint32_t lane_idx = threadIdx.x % 32;
    if (params.d_is_fp32) {
      stage_fp32(unit);
      store_part<4>(params, fp32_address(lane_idx / 4, lane_idx % 4), first_m + lane_idx / 4,
                    first_n + lane_idx % 4 * 4);
    } else {
      stage_bf16(unit);
      if (lane_idx < 16) {
        store_part<2>(params, bf16_address(lane_idx / 2, lane_idx % 2), first_m + lane_idx / 2,
                      first_n + lane_idx % 2 * 8);
      }
    }
    ptx::bar_warp_sync();  // all have read: the next unit may be staged
  }

 private:
  static constexpr uint32_t kRows = 8;      // of D, a unit
  static constexpr uint32_t kColumns = 16;  // of D, a warp
  static constexpr uint32_t kFp32Pitch = kSwapStagingBytes / kRows;

  /// Part `part`, 16 bytes, of a staged row: of BF16 swizzled over rows of 32 bytes, of FP32 in
  /// padded rows.
  __device__ __forceinline__ uint32_t bf16_address(uint32_t row, uint32_t part) const {
    return staging_ + row * 32 + (part ^ row / 4) * 16;
  }
  __device__ __forceinline__ uint32_t fp32_address(uint32_t row, uint32_t part) const {
    return staging_ + row * kFp32Pitch + part * 16;
  }

  __device__ __forceinline__ void stage_bf16(const float* unit) const {
    const uint32_t lane_idx = threadIdx.x % 32;
    ptx::stmatrix_m8n8_x2_trans_b16(bf16_address(lane_idx % 8, lane_idx / 8 % 2),
                                    ptx::cvt_rn_bf16x2_f32(unit[1], unit[0]),
                                    ptx::cvt_rn_bf16x2_f32(unit[3], unit[2]));
    ptx::bar_warp_sync();
  }

  __device__ __forceinline__ void stage_fp32(const float* unit) const {
    const uint32_t lane_idx = threadIdx.x % 32;
    const uint32_t address = fp32_address(lane_idx % 4 * 2, 0) + lane_idx / 4 * 4;
    ptx::st_shared_f32(address, unit[0]);
    ptx::st_shared_f32(address + kFp32Pitch, unit[1]);
    ptx::st_shared_f32(address + 32, unit[2]);
    ptx::st_shared_f32(address + kFp32Pitch + 32, unit[3]);
    ptx::bar_warp_sync();
  }

  /// Stores 16 staged bytes, elements of `kBytes`, from column n of row m on; n is a multiple of
  /// the elements' number or of 8, so they are all inside or all outside.
  template <uint32_t kBytes>
  __device__ __forceinline__ void store_part(const GemmParams& params, uint32_t address, uint32_t m,
                                             uint32_t n) const {
    uint32_t words[4];
    ptx::ld_shared_v4_b32(address, words);
    if (m < params.m && n < params.n) {
      uint8_t* d = static_cast<uint8_t*>(params.d) + m * params.d_stride_m;
      ptx::st_global_v4_b32(d + static_cast<uint64_t>(n) * kBytes, words);
    }
  }

  uint32_t staging_;  // shared-window address
};

}  // namespace pykernels::gemm
