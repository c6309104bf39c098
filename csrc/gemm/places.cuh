// Where the operands and the output of a tile lie: in matrices, or in the matrices of a group.
#pragma once

#include "gemm/config.h"
#include "ptx/bulk_copy.cuh"

namespace pykernels::gemm {

/// Top left corner of a CTA's output tile. In a cluster it may lie beyond m or n: such a CTA still
/// takes part in the multicast, and TMA clips what it stores.
struct Tile {
  uint32_t m_start;
  uint32_t n_start;
};

/// The same with the group that its rows belong to. Rows are those of A's map.
struct GroupedTile : Tile {
  uint32_t m_end;  // behind the group's last row
  uint32_t group;
};

/// Behind the last row, as the tile counts them, that it may write.
__device__ __forceinline__ uint32_t row_end(const GemmParams& params, const Tile&) {
  return params.m;
}
__device__ __forceinline__ uint32_t row_end(const GroupedGemmParams&, const GroupedTile& tile) {
  return tile.m_end;
}

/// Scale factors of A's row 0, as the rows of the tile count.
__device__ __forceinline__ const float* sfa_of(const GemmParams& params, const Tile&) {
  return params.sfa;
}
__device__ __forceinline__ const float* sfa_of(const GroupedGemmParams& params,
                                               const GroupedTile& tile) {
  return params.sfa + tile.group * params.sfa_group_stride;
}

/// Scale factors of the first row of B.
__device__ __forceinline__ const float* sfb_of(const GemmParams& params, const Tile&) {
  return params.sfb;
}
__device__ __forceinline__ const float* sfb_of(const GroupedGemmParams& params,
                                               const GroupedTile& tile) {
  return params.sfb + tile.group * params.sfb_group_stride;
}

/// Row of D's map that belongs to a row of the tile.
__device__ __forceinline__ uint32_t d_row(const GemmParams&, const Tile&, uint32_t m) { return m; }
__device__ __forceinline__ uint32_t d_row(const GroupedGemmParams& params, const GroupedTile& tile,
                                          uint32_t m) {
  return m + tile.group * params.d_group_rows;
}

/// A copy into shared memory: this CTA's, or with `mask` that of several CTAs of the cluster.
struct Destination {
  uint32_t address;
  uint32_t full;  // barrier
  uint32_t mask;  // 0: this CTA alone
};

/// The box at element (x, y) of a matrix.
__device__ __forceinline__ void load_box(const TensorMap& map, uint32_t x, uint32_t y,
                                         const Destination& to) {
  if (to.mask != 0) {
    ptx::cp_async_bulk_tensor_2d_load_multicast(to.address, &map, x, y, to.full, to.mask);
  } else {
    ptx::cp_async_bulk_tensor_2d_load(to.address, &map, x, y, to.full);
  }
}

/// The box at element (x, y, z) of the matrices of groups.
__device__ __forceinline__ void load_box(const TensorMap& map, uint32_t x, uint32_t y, uint32_t z,
                                         const Destination& to) {
  if (to.mask != 0) {
    ptx::cp_async_bulk_tensor_3d_load_multicast(to.address, &map, x, y, z, to.full, to.mask);
  } else {
    ptx::cp_async_bulk_tensor_3d_load(to.address, &map, x, y, z, to.full);
  }
}

/// The box of A from column `k` and row `m` of the tile on. Rows behind a group's last one are out
/// of bounds: zeros that are not read.
__device__ __forceinline__ void load_a(const GemmParams& params, const Tile&, uint32_t k,
                                       uint32_t m, const Destination& to) {
  load_box(params.map_a, k, m, to);
}
__device__ __forceinline__ void load_a(const GroupedGemmParams& params, const GroupedTile& tile,
                                       uint32_t k, uint32_t m, const Destination& to) {
  load_box(params.map_a, k, params.m - tile.m_end + m, tile.m_end, to);
}

/// The box of B from column `k` and row `n` on.
__device__ __forceinline__ void load_b(const GemmParams& params, const Tile&, uint32_t k,
                                       uint32_t n, const Destination& to) {
  load_box(params.map_b, k, n, to);
}
__device__ __forceinline__ void load_b(const GroupedGemmParams& params, const GroupedTile& tile,
                                       uint32_t k, uint32_t n, const Destination& to) {
  load_box(params.map_b, k, n, tile.group, to);
}

/// Stores a box of D from row `m` of the tile and column `n` on; what lies behind row_end or n is
/// not written.
__device__ __forceinline__ void store_d(const GemmParams& params, const Tile&, uint32_t m,
                                        uint32_t n, uint32_t source) {
  ptx::cp_async_bulk_tensor_2d_store(&params.map_d, n, m, source);
}
__device__ __forceinline__ void store_d(const GroupedGemmParams& params, const GroupedTile& tile,
                                        uint32_t m, uint32_t n, uint32_t source) {
  ptx::cp_async_bulk_tensor_3d_store(&params.map_d, n, params.d_rows - tile.m_end + m,
                                     d_row(params, tile, tile.m_end), source);
}

}  // namespace pykernels::gemm
