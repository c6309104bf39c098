"""Triton kernels of the tests; Triton reads their source, so they stand in a file of their own."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul_descriptors_from_host(
    a, b, c, k, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr
):
    row = tl.program_id(0) * block_m
    column = tl.program_id(1) * block_n
    accumulator = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, k, block_k):
        accumulator = tl.dot(a.load([row, start]), b.load([start, column]), accumulator)
    c.store([row, column], accumulator.to(tl.bfloat16))


@triton.jit
def matmul_descriptors_on_device(
    a_ptr, b_ptr, c_ptr, m, n, k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    a = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [block_m, block_k])
    b = tl.make_tensor_descriptor(b_ptr, [k, n], [n, 1], [block_k, block_n])
    c = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [block_m, block_n])
    row = tl.program_id(0) * block_m
    column = tl.program_id(1) * block_n
    accumulator = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, k, block_k):
        accumulator = tl.dot(a.load([row, start]), b.load([start, column]), accumulator)
    c.store([row, column], accumulator.to(tl.bfloat16))
