"""Block-scaled FP8 matmuls in Triton; Triton reads its source, so it stands in its own file."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_of(tile, num_m, num_n, group_m: tl.constexpr):  # fmt: skip
    """Tiles are walked in groups along m, so that those in flight share operands in L2."""
    group = tile // (group_m * num_n)
    rows_of_group = min(num_m - group * group_m, group_m)
    tile_m = group * group_m + tile % (group_m * num_n) % rows_of_group
    tile_n = tile % (group_m * num_n) // rows_of_group
    return tile_m, tile_n


@triton.jit
def multiply(
    a, b, sfa_ptrs, sfb_ptrs, row, b_row, rows_left, k, sfa_stride_k, sfb_stride_k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One tile's sum over k; ``rows_left`` of its rows are there, from row ``row`` of a."""
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for k_tile in range(tl.cdiv(k, block_k)):
        a_tile = a.load([row, k_tile * block_k])
        b_tile = b.load([b_row, k_tile * block_k])
        mask = tl.arange(0, block_m) < rows_left
        sfa = tl.load(sfa_ptrs + k_tile * sfa_stride_k, mask=mask, other=0.0)
        sfb = tl.load(sfb_ptrs + k_tile * sfb_stride_k)
        total += tl.dot(a_tile, b_tile.T) * (sfa * sfb)[:, None]
    return total


@triton.jit
def fp8_gemm_nt(
    a, b, d, sfa_ptr, sfb_ptr, m, n, k, sfa_stride_m, sfa_stride_k, sfb_stride_n, sfb_stride_k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr,
):  # fmt: skip
    """One tile a program; a, b, d are TMA descriptors."""
    tile_m, tile_n = place_of(tl.program_id(0), tl.cdiv(m, block_m), tl.cdiv(n, block_n), group_m)
    row = tile_m * block_m
    column = tile_n * block_n
    sfa_ptrs = sfa_ptr + (row + tl.arange(0, block_m)) * sfa_stride_m
    sfb_ptrs = sfb_ptr + (column // 128) * sfb_stride_n
    total = multiply(
        a, b, sfa_ptrs, sfb_ptrs, row, column, m - row, k, sfa_stride_k, sfb_stride_k,
        block_m, block_n, block_k,
    )  # fmt: skip
    d.store([row, column], total.to(tl.bfloat16))


@triton.jit
def grouped_fp8_gemm_nt(
    a, b, d_ptr, sfa_ptr, sfb_ptr, begins_ptr, ends_ptr, num_groups, n, k,
    d_stride_m, sfa_stride_m, sfa_stride_k, sfb_stride_g, sfb_stride_n, sfb_stride_k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    group_m: tl.constexpr,
):  # fmt: skip
    """Persistent: every program walks the groups and takes its share of all tiles.

    a and b are TMA descriptors of all groups' rows. A tile that passes its group's end reads rows
    of the next one and does not store them.
    """
    num_n = tl.cdiv(n, block_n)
    tile = tl.program_id(0)
    first = 0  # of this group's tiles among all
    for group in range(num_groups):
        begin = tl.load(begins_ptr + group)
        end = tl.load(ends_ptr + group)
        num_m = tl.cdiv(end - begin, block_m)
        behind = first + num_m * num_n
        while tile < behind:
            tile_m, tile_n = place_of(tile - first, num_m, num_n, group_m)
            row = begin + tile_m * block_m
            column = tile_n * block_n
            rows = tl.arange(0, block_m)
            columns = tl.arange(0, block_n)
            sfa_ptrs = sfa_ptr + row.to(tl.int64) * sfa_stride_m + rows * sfa_stride_m
            sfb_ptrs = sfb_ptr + group * sfb_stride_g + (column // 128) * sfb_stride_n
            total = multiply(
                a, b, sfa_ptrs, sfb_ptrs, row, group * n + column, end - row,
                k, sfa_stride_k, sfb_stride_k, block_m, block_n, block_k,
            )  # fmt: skip
            d_tile = d_ptr + row.to(tl.int64) * d_stride_m + column
            mask = (rows < end - row)[:, None] & (columns < n - column)[None, :]
            offsets = rows[:, None] * d_stride_m + columns[None, :]
            tl.store(d_tile + offsets, total.to(tl.bfloat16), mask=mask)
            tile += tl.num_programs(0)
        first = behind
