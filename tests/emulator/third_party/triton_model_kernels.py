"""Triton kernels of model parts, in a file of their own because Triton reads it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def quantize_groups(x_ptr, y_ptr, scale_ptr, block: tl.constexpr):
    """One scale for each group of `block` values: the largest magnitude over 448."""
    places = tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(x_ptr + places)
    scale = tl.max(tl.abs(x)) / 448.0
    tl.store(y_ptr + places, (x / scale).to(y_ptr.dtype.element_ty))
    tl.store(scale_ptr + tl.program_id(0), scale)


@triton.jit
def fp8_matmul(
    a_ptr, b_ptr, c_ptr, a_scale_ptr, b_scale_ptr, m, n, k,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """c = a @ b.T of E4M3: a has a scale for each row and 128 of k, b one for each 128 x 128."""
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    columns = tl.program_id(1) * block_n + tl.arange(0, block_n)
    depth = tl.arange(0, block_k)
    groups = tl.cdiv(k, block_k)
    a_ptrs = a_ptr + (rows % m)[:, None] * k + depth[None, :]
    b_ptrs = b_ptr + (columns % n)[None, :] * k + depth[:, None]
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for group in range(groups):
        inside = depth < k - group * block_k
        a = tl.load(a_ptrs, mask=inside[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=inside[:, None], other=0.0)
        a_scale = tl.load(a_scale_ptr + (rows % m) * groups + group)
        b_scale = tl.load(b_scale_ptr + (columns % n) // 128 * groups + group)
        total += tl.dot(a, b) * a_scale[:, None] * b_scale[None, :]
        a_ptrs += block_k
        b_ptrs += block_k
    c_ptrs = c_ptr + rows[:, None] * n + columns[None, :]
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c_ptrs, total.to(c_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax(x_ptr, y_ptr, columns, block: tl.constexpr):
    offsets = tl.arange(0, block)
    mask = offsets < columns
    start = tl.program_id(0) * columns
    x = tl.load(x_ptr + start + offsets, mask=mask, other=-float("inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(y_ptr + start + offsets, e / tl.sum(e, axis=0), mask=mask)


@triton.jit
def attention(
    q_ptr, k_ptr, v_ptr, out_ptr, length, scale,
    block_m: tl.constexpr, block_n: tl.constexpr, dim: tl.constexpr, causal: tl.constexpr,
):  # fmt: skip
    """Forward attention of one head a program in the second grid dimension, online softmax."""
    head = tl.program_id(1) * length * dim
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    places = tl.arange(0, block_n)
    lanes = tl.arange(0, dim)
    q = tl.load(q_ptr + head + rows[:, None] * dim + lanes[None, :], mask=rows[:, None] < length)
    largest = tl.full((block_m,), -float("inf"), tl.float32)
    weight = tl.zeros((block_m,), tl.float32)
    total = tl.zeros((block_m, dim), tl.float32)
    end = length
    if causal:
        end = tl.minimum(length, (tl.program_id(0) + 1) * block_m)
    for start in range(0, end, block_n):
        columns = start + places
        inside = columns < length
        k = tl.load(k_ptr + head + columns[None, :] * dim + lanes[:, None], mask=inside[None, :])
        v = tl.load(v_ptr + head + columns[:, None] * dim + lanes[None, :], mask=inside[:, None],
                    other=0.0)  # fmt: skip
        seen = inside[None, :]
        if causal:
            seen = seen & (columns[None, :] <= rows[:, None])
        scores = tl.where(seen, tl.dot(q, k) * scale, -float("inf"))
        new = tl.maximum(largest, tl.max(scores, axis=1))
        p = tl.exp(scores - new[:, None])
        shrink = tl.exp(largest - new)
        weight = weight * shrink + tl.sum(p, axis=1)
        total = total * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        largest = new
    out_ptrs = out_ptr + head + rows[:, None] * dim + lanes[None, :]
    result = (total / weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptrs, result, mask=rows[:, None] < length)


@triton.jit
def reductions(x_ptr, sum_ptr, places_ptr, largest_ptr, columns, block: tl.constexpr):
    """Of one row a program: its sum, added to all; the place of its largest; the largest of all."""
    offsets = tl.arange(0, block)
    mask = offsets < columns
    start = tl.program_id(0) * columns
    x = tl.load(x_ptr + start + offsets, mask=mask, other=0.0)
    tl.atomic_add(sum_ptr, tl.sum(x, axis=0))
    shown = tl.where(mask, x, -float("inf"))
    tl.store(places_ptr + tl.program_id(0), tl.argmax(shown, axis=0))
    tl.atomic_max(largest_ptr, tl.max(shown, axis=0))


@triton.jit
def last_block_sums(x_ptr, parts_ptr, counter_ptr, out_ptr, block: tl.constexpr):
    """Each program leaves a part; the one that counts last adds them: a grid-wide hand-over."""
    program = tl.program_id(0)
    x = tl.load(x_ptr + program * block + tl.arange(0, block))
    tl.store(parts_ptr + program, tl.sum(x, axis=0))
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        total = 0.0
        for i in range(tl.num_programs(0)):
            total += tl.load(parts_ptr + i, volatile=True)
        tl.store(out_ptr, total)
