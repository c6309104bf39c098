// From registers to global memory with A and B swapped: a warp turns its rows of B into columns of
// D through its own staging and stores them in pieces of 16 bytes.
#pragma once

#include "gemm/config.h"
#include "gemm/counters.cuh"
#include "gemm/mainloop.cuh"
#include "gemm/places.cuh"
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
  __device__ __forceinline__ SwapEpilogue(const Params<kConfig>& params,
                                          SharedStorage<kConfig>& smem)
      : params_(params), staging_(ptx::cvta_to_shared(smem.staging[threadIdx.x / 32])) {}

  /// Stores those of the warp's units of which `owns(j)` is true.
  template <typename Tile, typename Owns>
  __device__ __forceinline__ void store_tile(const Tile& tile, const Accumulator<kConfig>& total,
                                             Owns&& owns) const {
    if (params_.d_is_fp32) {
      store_units<Fp32>(tile, total, owns);
    } else {
      store_units<Bf16>(tile, total, owns);
    }
    // The last warp barrier of store_units has brought all lanes' stores to this one.
    if (threadIdx.x % 32 == 0) {
      signal_done<kConfig>(params_, tile, tile.m_start, kConfig.block_m, first_column(tile),
                           kColumns);
    }
  }

 private:
  static constexpr uint32_t kUnits = kConfig.block_m / 8;
  static constexpr uint32_t kRows = 8;      // of D, a unit
  static constexpr uint32_t kColumns = 16;  // of D, a warp

  /// A staged unit of BF16: rows of 32 bytes, swizzled.
  struct Bf16 {
    static constexpr uint32_t kBytes = 2;
    static constexpr uint32_t kStagedBytes = kRows * 32;

    __device__ __forceinline__ static uint32_t address(uint32_t unit, uint32_t row, uint32_t part) {
      return unit + row * 32 + (part ^ row / 4) * 16;
    }
    __device__ __forceinline__ static void stage(uint32_t unit, const float* total) {
      const uint32_t lane_idx = threadIdx.x % 32;
      ptx::stmatrix_m8n8_x2_trans_b16(address(unit, lane_idx % 8, lane_idx / 8 % 2),
                                      ptx::cvt_rn_bf16x2_f32(total[1], total[0]),
                                      ptx::cvt_rn_bf16x2_f32(total[3], total[2]));
    }
  };

  /// A staged unit of FP32: rows of 64 bytes, padded to 80.
  struct Fp32 {
    static constexpr uint32_t kBytes = 4;
    static constexpr uint32_t kPitch = 80;
    static constexpr uint32_t kStagedBytes = kRows * kPitch;

    __device__ __forceinline__ static uint32_t address(uint32_t unit, uint32_t row, uint32_t part) {
      return unit + row * kPitch + part * 16;
    }
    __device__ __forceinline__ static void stage(uint32_t unit, const float* total) {
      const uint32_t lane_idx = threadIdx.x % 32;
      const uint32_t first = unit + lane_idx % 4 * 2 * kPitch + lane_idx / 4 * 4;
      ptx::st_shared_f32(first, total[0]);
      ptx::st_shared_f32(first + kPitch, total[1]);
      ptx::st_shared_f32(first + 32, total[2]);
      ptx::st_shared_f32(first + kPitch + 32, total[3]);
    }
  };

  /// The warp's first column of D.
  __device__ __forceinline__ static uint32_t first_column(const Tile& tile) {
    return tile.n_start + threadIdx.x / 32 * kColumns;
  }

  /// As many units at a time as the staging holds.
  template <typename Type, typename Tile, typename Owns>
  __device__ __forceinline__ void store_units(const Tile& tile, const Accumulator<kConfig>& total,
                                              Owns&& owns) const {
    constexpr uint32_t kFit = kConfig.swap_staging_bytes() / Type::kStagedBytes;
    constexpr uint32_t kParts = kColumns * Type::kBytes / 16;  // lanes to a row
    const uint32_t row = threadIdx.x % 32 / kParts;
    const uint32_t part = threadIdx.x % kParts;
    const uint32_t n = first_column(tile) + part * (16 / Type::kBytes);
#pragma unroll
    for (uint32_t first = 0; first < kUnits; first += kFit) {
#pragma unroll
      for (uint32_t j = first; j < min(first + kFit, kUnits); ++j) {
        if (owns(j)) Type::stage(staging_ + (j - first) * Type::kStagedBytes, &total[4 * j]);
      }
      ptx::bar_warp_sync();
#pragma unroll
      for (uint32_t j = first; j < min(first + kFit, kUnits); ++j) {
        const uint32_t unit = staging_ + (j - first) * Type::kStagedBytes;
        if (owns(j) && row < kRows) {
          store_part<Type::kBytes>(tile, Type::address(unit, row, part),
                                   tile.m_start + j * kRows + row, n);
        }
      }
      ptx::bar_warp_sync();  // all have read: the next units may be staged
    }
  }

  /// Stores 16 staged bytes, elements of `kBytes`, from column n of row m on; n is a multiple of
  /// the elements' number or of 8, so they are all inside or all outside.
  template <uint32_t kBytes, typename Tile>
  __device__ __forceinline__ void store_part(const Tile& tile, uint32_t address, uint32_t m,
                                             uint32_t n) const {
    uint32_t words[4];
    ptx::ld_shared_v4_b32(address, words);
    if (m < row_end(params_, tile) && n < params_.n) {
      uint8_t* d = static_cast<uint8_t*>(params_.d) + d_row(params_, tile, m) * params_.d_stride_m;
      ptx::st_global_v4_b32(d + static_cast<uint64_t>(n) * kBytes, words);
    }
  }

  const Params<kConfig>& params_;
  uint32_t staging_;  // shared-window address
};

}  // namespace pykernels::gemm
