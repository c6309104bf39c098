"""MLA decode in Triton, in two stages; Triton reads its source, so it stands in its own file."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_latent(token_ptrs, visible, fp8: tl.constexpr):
    """The latent part of tokens in BF16; of an FP8 cache each 128 columns times their scale."""
    columns = tl.arange(0, 512)[None, :]
    if not fp8:
        rows = token_ptrs.to(tl.pointer_type(tl.bfloat16))[:, None]
        return tl.load(rows + columns, mask=visible[:, None], other=0.0)
    codes_ptrs = token_ptrs.to(tl.pointer_type(tl.float8e4nv))[:, None] + columns
    codes = tl.load(codes_ptrs, mask=visible[:, None], other=0.0).to(tl.float32)
    scale_ptrs = (token_ptrs + 512).to(tl.pointer_type(tl.float32))[:, None]
    scales = tl.load(scale_ptrs + tl.arange(0, 4)[None, :], mask=visible[:, None], other=0.0)
    blocks = tl.reshape(codes, (codes.shape[0], 4, 128)) * scales[:, :, None]
    return tl.reshape(blocks, (codes.shape[0], 512)).to(tl.bfloat16)


@triton.jit
def attend(
    q_ptr, cache_ptr, table_ptr, lengths_ptr, partial_out_ptr, partial_lse_ptr,
    scale_log2, seqlen_q, num_heads, num_rows, page_size, num_splits,
    page_stride, token_stride, table_stride,
    block_rows: tl.constexpr, block_tokens: tl.constexpr, fp8: tl.constexpr,
):  # fmt: skip
    """One split of a request's tokens for some of its rows, which are query tokens times heads.

    Leaves the split's own softmax of its values, and the base-2 logarithm of its sum: -inf, and
    nothing else, where a row sees none of the split's tokens. Strides of the cache are in bytes.
    """
    request = tl.program_id(0)
    split = tl.program_id(2)
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    own_row = rows < num_rows
    length = tl.load(lengths_ptr + request)
    tokens_per_split = tl.cdiv(tl.cdiv(length, num_splits), block_tokens) * block_tokens
    begin = split * tokens_per_split
    end = tl.minimum(begin + tokens_per_split, length)
    first_hidden = length - seqlen_q + 1 + rows // num_heads

    q_rows = q_ptr + (request * num_rows + rows).to(tl.int64)[:, None] * 576
    latent_columns = tl.arange(0, 512)[None, :]
    rope_columns = tl.arange(0, 64)[None, :]
    q_latent = tl.load(q_rows + latent_columns, mask=own_row[:, None], other=0.0)
    q_rope = tl.load(q_rows + 512 + rope_columns, mask=own_row[:, None], other=0.0)
    maximum = tl.full((block_rows,), -float("inf"), dtype=tl.float32)
    total = tl.zeros((block_rows,), dtype=tl.float32)
    values = tl.zeros((block_rows, 512), dtype=tl.float32)
    rope_offset: tl.constexpr = 528 if fp8 else 1024
    for first in range(begin, end, block_tokens):
        tokens = first + tl.arange(0, block_tokens)
        visible = tokens < end
        table_ptrs = table_ptr + request.to(tl.int64) * table_stride + tokens // page_size
        page = tl.load(table_ptrs, mask=visible, other=0).to(tl.int64)
        token_ptrs = cache_ptr + page * page_stride + (tokens % page_size) * token_stride
        latent = load_latent(token_ptrs, visible, fp8)
        rope_ptrs = (token_ptrs + rope_offset).to(tl.pointer_type(tl.bfloat16))[:, None]
        rope = tl.load(rope_ptrs + rope_columns, mask=visible[:, None], other=0.0)
        scores = tl.dot(q_latent, tl.trans(latent))
        scores = tl.dot(q_rope, tl.trans(rope), scores) * scale_log2
        seen = visible[None, :] & (tokens[None, :] < first_hidden[:, None])
        scores = tl.where(seen, scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        shift = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        weights = tl.exp2(scores - shift[:, None])
        correction = tl.exp2(maximum - shift)
        total = total * correction + tl.sum(weights, axis=1)
        values = tl.dot(weights.to(tl.bfloat16), latent, values * correction[:, None])
        maximum = new_maximum

    place = (request * num_splits + split).to(tl.int64) * num_rows + rows
    tl.store(partial_lse_ptr + place, maximum + tl.log2(total), mask=own_row)
    values = values / tl.where(total > 0.0, total, 1.0)[:, None]
    has_tokens = own_row & (total > 0.0)
    partial = partial_out_ptr + place[:, None] * 512 + latent_columns
    tl.store(partial, values, mask=has_tokens[:, None])


@triton.jit
def combine(
    partial_out_ptr, partial_lse_ptr, out_ptr, lse_ptr, seqlen_q, num_heads, num_rows, num_splits,
):  # fmt: skip
    """One row's splits, weighted by their sums; a row that sees no token is zero."""
    request = tl.program_id(0)
    row = tl.program_id(1)
    columns = tl.arange(0, 512)
    first = (request * num_splits).to(tl.int64) * num_rows + row
    maximum = -float("inf")
    for split in range(num_splits):
        maximum = tl.maximum(maximum, tl.load(partial_lse_ptr + first + split * num_rows))
    shift = tl.where(maximum == -float("inf"), 0.0, maximum)
    total = 0.0
    values = tl.zeros((512,), dtype=tl.float32)
    for split in range(num_splits):
        place = first + split * num_rows
        weight = tl.exp2(tl.load(partial_lse_ptr + place) - shift)
        there = (weight > 0.0) & (columns < 512)
        partial = tl.load(partial_out_ptr + place * 512 + columns, mask=there, other=0.0)
        values += weight * partial
        total += weight
    values = values / tl.where(total > 0.0, total, 1.0)
    out_row = (request * num_rows + row).to(tl.int64)
    tl.store(out_ptr + out_row * 512 + columns, values.to(tl.bfloat16))
    lse_place = (request * num_heads + row % num_heads) * seqlen_q + row // num_heads
    tl.store(lse_ptr + lse_place, (maximum + tl.log2(total)) * 0.6931471805599453)
