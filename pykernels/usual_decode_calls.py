"""The usual calls of mla_decode, accepted in a few attribute reads, for the host path's sake.

:mod:`pykernels.mla_decode_checks` states and explains the requirements, one at a time. What is
accepted here those checks accept too, which a property test holds this file to; what is not
accepted may still be right and is theirs to judge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.checks import ALIGNMENT, MAX_SIZE
from pykernels.mla_cache_checks import (
    BF16_TOKEN_COLUMNS,
    FP8_TOKEN_BYTES,
    LATENT_DIM,
    PAGE_SIZES,
    ROPE_DIM,
)
from pykernels.mla_checks import MAX_HEADS, MlaPlan
from pykernels.mla_decode_checks import MAX_COUNT
from pykernels.native import DTYPE_NAMES, Parts

_BF16, _FP32, _INT32 = torch.bfloat16, torch.float32, torch.int32
_FP8, _BYTES = torch.float8_e4m3fn, torch.uint8
_BF16_NAME, _FP32_NAME, _INT32_NAME = DTYPE_NAMES[_BF16], DTYPE_NAMES[_FP32], DTYPE_NAMES[_INT32]
_FP8_NAME = DTYPE_NAMES[_FP8]  # of bytes too: one name for FP8 tokens
_STRIDED = torch.strided
_LEAST_SCALE, _GREATEST_SCALE = torch.finfo(_FP32).tiny, torch.finfo(_FP32).max / 2
_PAGE_SIZES = frozenset(PAGE_SIZES)
_ITEM_BYTES = {_BF16_NAME: 2, _FP32_NAME: 4, _INT32_NAME: 4, _FP8_NAME: 1}


def is_usual_decode_call(
    inputs: tuple[object, ...],
    softmax_scale: object,
    causal: object,
    plan: object,
    batch_invariant: object,
    out: object,
) -> bool:
    """Whether this passes the checks of the public function, of what the op does not see."""
    if not (
        isinstance(plan, MlaPlan)
        and type(softmax_scale) is float
        and _LEAST_SCALE <= softmax_scale <= _GREATEST_SCALE
        and (causal is True or causal is False)
        and (batch_invariant is False or (batch_invariant is True and plan.batch_invariant))
    ):
        return False
    if out is not None:
        if type(out) is not tuple or len(out) != 2:
            return False
        inputs += out
    with_gradients = torch.is_grad_enabled()
    for tensor in inputs:
        if not (
            isinstance(tensor, Tensor)
            and tensor.layout is _STRIDED
            and not tensor.is_nested
            and not (with_gradients and tensor.requires_grad)
        ):
            return False
    for tensor in plan[:-1]:
        if not (isinstance(tensor, Tensor) and tensor.layout is _STRIDED and not tensor.is_nested):
            return False
    return True


def usual_decode_parts(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    items: Tensor,
    part_offsets: Tensor,
    requests: Tensor,
    partial_out: Tensor,
    partial_lse: Tensor,
    softmax_scale: float,
) -> tuple[Parts, ...] | None:
    """The tensors as the extension takes them, if they pass the op's checks; none is empty."""
    device = q_nope.device
    dtype = kv_cache.dtype
    if not (
        q_nope.dtype is _BF16
        and q_rope.dtype is _BF16
        and (dtype is _BF16 or dtype is _FP8 or dtype is _BYTES)
        and block_table.dtype is _INT32
        and cache_seqlens.dtype is _INT32
        and (q_nope.is_cuda or q_nope.is_cpu)
        and q_rope.device == device
        and kv_cache.device == device
        and block_table.device == device
        and cache_seqlens.device == device
        and _LEAST_SCALE <= softmax_scale <= _GREATEST_SCALE
    ):
        return None
    sizes, cache_sizes, table_sizes = q_nope.shape, kv_cache.shape, block_table.shape
    try:
        batch, seqlen_q, num_heads, latent_columns = sizes
        num_pages, page_size, kv_heads, token_columns = cache_sizes
        table_rows, max_pages = table_sizes
        (num_lengths,) = cache_seqlens.shape
    except ValueError:  # other ranks
        return None
    rope_sizes = q_rope.shape
    if not (
        0 < batch <= MAX_COUNT
        and 0 < num_heads <= MAX_HEADS
        and 0 < seqlen_q * num_heads <= MAX_COUNT
        and latent_columns == LATENT_DIM
        and rope_sizes == (batch, seqlen_q, num_heads, ROPE_DIM)
        and 0 < num_pages * page_size <= MAX_SIZE
        and page_size in _PAGE_SIZES
        and kv_heads == 1
        and token_columns == (BF16_TOKEN_COLUMNS if dtype is _BF16 else FP8_TOKEN_BYTES)
        and table_rows == num_lengths == batch
        and 0 < max_pages * page_size <= MAX_COUNT
    ):
        return None
    strides, rope_strides = q_nope.stride(), q_rope.stride()
    cache_strides, table_strides = kv_cache.stride(), block_table.stride()
    page_stride, token_stride, _, column_stride = cache_strides
    token_alignment = ALIGNMENT // 2 if dtype is _BF16 else ALIGNMENT  # in elements
    row_alignment = ALIGNMENT // 2
    addresses = q_nope.data_ptr(), q_rope.data_ptr(), kv_cache.data_ptr()
    if not (
        strides[3] == rope_strides[3] == column_stride == table_strides[1] == 1
        and (strides[0] | strides[1] | strides[2]) % row_alignment == 0
        and (rope_strides[0] | rope_strides[1] | rope_strides[2]) % row_alignment == 0
        and (page_stride | token_stride) % token_alignment == 0
        and token_stride >= token_columns
        and page_stride >= (page_size - 1) * token_stride + token_columns
        and cache_seqlens.is_contiguous()
        and (addresses[0] | addresses[1] | addresses[2]) % ALIGNMENT == 0
    ):
        return None
    plan = _usual_plan_parts(
        (items, part_offsets, requests, partial_out, partial_lse), device, sizes
    )
    if plan is None:
        return None
    return (
        (addresses[0], sizes, strides, _BF16_NAME),
        (addresses[1], rope_sizes, rope_strides, _BF16_NAME),
        (addresses[2], cache_sizes, cache_strides, _BF16_NAME if dtype is _BF16 else _FP8_NAME),
        (block_table.data_ptr(), table_sizes, table_strides, _INT32_NAME),
        (cache_seqlens.data_ptr(), (batch,), (1,), _INT32_NAME),
        *plan,
    )


def _usual_plan_parts(
    plan: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], device: torch.device, sizes: torch.Size
) -> tuple[Parts, ...] | None:
    """Those of a plan for such a query."""
    items, part_offsets, requests, partial_out, partial_lse = plan
    for tensor in plan:
        if not (tensor.device == device and tensor.is_contiguous()):
            return None
    if not (
        items.dtype is _INT32
        and part_offsets.dtype is _INT32
        and requests.dtype is _INT32
        and partial_out.dtype is _FP32
        and partial_lse.dtype is _FP32
    ):
        return None
    items_sizes, requests_sizes, out_sizes = items.shape, requests.shape, partial_out.shape
    try:
        num_items, item_fields = items_sizes
        (num_offsets,) = part_offsets.shape
        max_batch, request_fields = requests_sizes
        num_slots, seqlen_q, num_heads, columns = out_sizes
    except ValueError:
        return None
    more = num_items - max_batch  # than an item for each request
    if more == num_offsets - 2:
        expected_slots = more + min(more, max_batch)
    elif max_batch > 0 and num_items % max_batch == 0:  # batch-invariant
        expected_slots = num_items if more > 0 else 0
    else:
        return None
    lse_sizes = partial_lse.shape
    if not (
        item_fields == request_fields == 4
        and num_offsets >= 2
        and more >= 0
        and sizes[0] <= max_batch
        and seqlen_q == sizes[1]
        and num_heads == sizes[2]
        and columns == LATENT_DIM
        and num_slots == expected_slots
        and lse_sizes == (num_slots, seqlen_q, num_heads)
    ):
        return None
    return (
        (items.data_ptr(), items_sizes, (4, 1), _INT32_NAME),
        (part_offsets.data_ptr(), (num_offsets,), (1,), _INT32_NAME),
        (requests.data_ptr(), requests_sizes, (4, 1), _INT32_NAME),
        (partial_out.data_ptr(), out_sizes, partial_out.stride(), _FP32_NAME),
        (partial_lse.data_ptr(), lse_sizes, partial_lse.stride(), _FP32_NAME),
    )


def usual_decode_outputs(
    out: Tensor, lse: Tensor, q_nope: Tensor, inputs: tuple[Parts, ...]
) -> tuple[Parts, Parts] | None:
    """The same of the results, which are written."""
    device = q_nope.device
    batch, seqlen_q, num_heads, _ = q_nope.shape
    out_sizes, lse_sizes = out.shape, lse.shape
    out_address, lse_address = out.data_ptr(), lse.data_ptr()
    if not (
        out.dtype is _BF16
        and lse.dtype is _FP32
        and out.device == device
        and lse.device == device
        and out_sizes == (batch, seqlen_q, num_heads, LATENT_DIM)
        and lse_sizes == (batch, num_heads, seqlen_q)
        and out.is_contiguous()
        and lse.is_contiguous()
        and out_address % ALIGNMENT == 0
    ):
        return None
    out_end = out_address + 2 * LATENT_DIM * batch * seqlen_q * num_heads
    lse_end = lse_address + 4 * batch * seqlen_q * num_heads
    if out_address < lse_end and lse_address < out_end:
        return None
    for start, sizes, strides, name in inputs:
        last = 0
        for size, stride in zip(sizes, strides, strict=True):
            last += (size - 1) * stride
        end = start + (last + 1) * _ITEM_BYTES[name]
        if (start < out_end and out_address < end) or (start < lse_end and lse_address < end):
            return None  # their extents meet; their rows need not
    return (
        (out_address, out_sizes, out.stride(), _BF16_NAME),
        (lse_address, lse_sizes, lse.stride(), _FP32_NAME),
    )
