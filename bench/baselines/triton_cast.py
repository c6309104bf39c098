"""SwiGLU with the 1x128 cast in Triton; Triton reads its source, so it stands in its own file."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu_mul_quantize(
    x_ptr, q_ptr, scales_ptr, begins_ptr, ends_ptr, room, columns, k_blocks,
    x_stride, q_stride, scales_stride, block_m: tl.constexpr,
):  # fmt: skip
    """A few rows of 128 columns a program, of the room for all groups' rows.

    ``room``: of each group, a multiple of ``block_m`` or that of a single group. Programs whose
    rows are none of the group's end at once.
    """
    tile = tl.program_id(0) // k_blocks
    block = tl.program_id(0) % k_blocks
    group = tile * block_m // room
    begin = tl.load(begins_ptr + group)
    end = tl.load(ends_ptr + group)
    first = tile * block_m
    if first < end and first + block_m > begin:
        rows = first + tl.arange(0, block_m)
        own = (rows >= begin) & (rows < end)
        column = block * 128 + tl.arange(0, 128)
        mask = own[:, None] & (column < columns)[None, :]
        gates = x_ptr + rows.to(tl.int64)[:, None] * x_stride + column[None, :]
        gate = tl.load(gates, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(gates + columns, mask=mask, other=0.0).to(tl.float32)
        y = gate / (1.0 + tl.exp(-gate)) * up
        scale = tl.max(tl.abs(y), axis=1) / 448.0
        scale = tl.where(scale == 0.0, 1.0, scale)
        q = (y / scale[:, None]).to(tl.float8e4nv)
        tl.store(q_ptr + rows.to(tl.int64)[:, None] * q_stride + column[None, :], q, mask=mask)
        tl.store(scales_ptr + rows.to(tl.int64) * scales_stride + block, scale, mask=own)
