"""Triton kernels that read through pointers, in a file of their own because Triton reads it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul_pointers(
    a_ptr, b_ptr, c_ptr, m, n, k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    columns = tl.program_id(1) * block_n + tl.arange(0, block_n)
    depth = tl.arange(0, block_k)
    a_ptrs = a_ptr + rows[:, None] * k + depth[None, :]
    b_ptrs = b_ptr + depth[:, None] * n + columns[None, :]
    accumulator = tl.zeros((block_m, block_n), dtype=c_ptr.dtype.element_ty)
    for start in range(0, k, block_k):
        inside = depth < k - start
        a = tl.load(a_ptrs, mask=(rows[:, None] < m) & inside[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=inside[:, None] & (columns[None, :] < n), other=0.0)
        accumulator = tl.dot(a, b, accumulator, out_dtype=c_ptr.dtype.element_ty)
        a_ptrs += block_k
        b_ptrs += block_k * n
    c_ptrs = c_ptr + rows[:, None] * n + columns[None, :]
    tl.store(c_ptrs, accumulator, mask=(rows[:, None] < m) & (columns[None, :] < n))


@triton.jit
def histogram_and_sum(x_ptr, counts_ptr, total_ptr, n, block: tl.constexpr):
    places = tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(x_ptr + places, mask=places < n, other=0)
    tl.atomic_add(counts_ptr + x, 1, mask=places < n)
    tl.atomic_max(total_ptr, tl.sum(x, axis=0))
