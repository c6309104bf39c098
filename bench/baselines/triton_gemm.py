"""The block-scaled FP8 matmul in Triton; Triton reads its source, so it stands in its own file."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fp8_gemm_nt(
    a, b, d, sfa_ptr, sfb_ptr, m, n, k, sfa_stride_m, sfa_stride_k, sfb_stride_n, sfb_stride_k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr,
):  # fmt: skip
    """One tile a program; a, b, d are TMA descriptors, tiles are walked in groups along m."""
    num_m = tl.cdiv(m, block_m)
    num_n = tl.cdiv(n, block_n)
    tile = tl.program_id(0)
    group = tile // (group_m * num_n)
    rows_of_group = min(num_m - group * group_m, group_m)
    tile_m = group * group_m + tile % (group_m * num_n) % rows_of_group
    tile_n = tile % (group_m * num_n) // rows_of_group

    rows = tile_m * block_m + tl.arange(0, block_m)
    sfa_ptrs = sfa_ptr + rows * sfa_stride_m
    sfb_ptrs = sfb_ptr + (tile_n * block_n // 128) * sfb_stride_n
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for k_tile in range(tl.cdiv(k, block_k)):
        a_tile = a.load([tile_m * block_m, k_tile * block_k])
        b_tile = b.load([tile_n * block_n, k_tile * block_k])
        sfa = tl.load(sfa_ptrs + k_tile * sfa_stride_k, mask=rows < m, other=0.0)
        sfb = tl.load(sfb_ptrs + k_tile * sfb_stride_k)
        total += tl.dot(a_tile, b_tile.T) * (sfa * sfb)[:, None]
    d.store([tile_m * block_m, tile_n * block_n], total.to(tl.bfloat16))
