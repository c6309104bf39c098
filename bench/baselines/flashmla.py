"""FlashMLA, where the package is installed: dense over BF16, its sparse kernel over FP8."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import Baseline, MlaOperands, Prepared, Unavailable
from .returned import Returned

_PAGE_SIZE = 64
_HEAD_DIM_V = 512
_TOPK_MULTIPLE = 64  # of tokens that the sparse kernel takes at a time


def baselines() -> list[Baseline[MlaOperands]]:
    """With its plan outside of the timed part and inside, and the sparse kernel."""
    return [
        Baseline("FlashMLA", "as ours; its plan outside of the timed part", _prepare),
        Baseline(
            "FlashMLA, planned in each call",
            "its plan in the timed part",
            partial(_prepare, plans=True),
        ),
        Baseline(
            "FlashMLA sparse, all tokens",
            "FP8: it has no dense kernel; indices of all tokens stand ready",
            _prepare_sparse,
        ),
    ]


def _import(operands: MlaOperands) -> Any:
    try:
        import flash_mla
    except ImportError as error:
        raise Unavailable("not installed") from error
    page_size = operands.kv_cache.size(1)
    if page_size != _PAGE_SIZE:
        raise Unavailable(f"pages of {_PAGE_SIZE} tokens only, not of {page_size}")
    return flash_mla


def _prepare(operands: MlaOperands, *, plans: bool = False) -> Prepared:
    """Newer releases plan in the first call that takes the metadata, older ones in a call of it."""
    if operands.is_fp8:
        raise Unavailable("no dense kernel for FP8")
    flash_mla = _import(operands)
    q, cache, table, lengths, *_ = operands
    _, seqlen_q, num_heads, _ = q.shape

    def plan() -> Any:
        return flash_mla.get_mla_metadata(lengths, seqlen_q * num_heads, 1)

    planned = plan()

    def decode() -> tuple[Tensor, Tensor]:
        metadata = plan() if plans else planned
        out, lse = flash_mla.flash_mla_with_kvcache(
            *(q, cache, table, lengths, _HEAD_DIM_V, *metadata),
            softmax_scale=operands.softmax_scale,
            causal=True,
        )
        return out, lse

    return Returned(decode).prepared(operands)


def _prepare_sparse(operands: MlaOperands) -> Prepared:
    if not operands.is_fp8:
        raise Unavailable("FP8 only")
    flash_mla = _import(operands)
    q, cache, table, lengths, *_ = operands
    _, seqlen_q, num_heads, _ = q.shape
    indices = all_tokens(operands)
    topk = indices.size(2)
    metadata = flash_mla.get_mla_metadata(lengths, seqlen_q * num_heads, 1, num_heads, True, topk)
    codes = cache.view(torch.float8_e4m3fn)

    def decode() -> tuple[Tensor, Tensor]:
        out, lse = flash_mla.flash_mla_with_kvcache(
            *(q, codes, table, lengths, _HEAD_DIM_V, *metadata),
            softmax_scale=operands.softmax_scale,
            is_fp8_kvcache=True,
            indices=indices,
        )
        return out, lse

    return Returned(decode).prepared(operands)


def all_tokens(operands: MlaOperands) -> Tensor:
    """For each query token the places in the cache of all tokens that it sees, then -1."""
    batch, seqlen_q, *_ = operands.q.shape
    page_size = operands.kv_cache.size(1)
    topk = -(-max(operands.lengths) // _TOPK_MULTIPLE) * _TOPK_MULTIPLE
    token = torch.arange(topk, device=operands.q.device)
    page = (token // page_size).clamp(max=operands.block_table.size(1) - 1)
    places = operands.block_table[:, page] * page_size + (token % page_size).int()
    query = torch.arange(seqlen_q, device=operands.q.device)
    first_hidden = operands.cache_seqlens[:, None] - seqlen_q + 1 + query
    seen = token < first_hidden[:, :, None]
    return torch.where(seen, places[:, None], -1).int().expand(batch, seqlen_q, topk).contiguous()
