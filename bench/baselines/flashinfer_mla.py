"""FlashInfer's paged MLA, where the package is installed."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from . import Baseline, MlaOperands, Prepared, Unavailable
from .returned import Returned

_HEAD_DIM_V, _ROPE_DIM = 512, 64
_WORKSPACE_BYTES = 128 * 2**20  # as its documentation has it


def baseline() -> Baseline[MlaOperands]:
    """Its plan is made on the host, so it is never in the timed part."""
    return Baseline("FlashInfer", "as ours; its plan, made on the host, not timed", _prepare)


def _prepare(operands: MlaOperands) -> Prepared:
    if operands.is_fp8:
        raise Unavailable("BF16 only: its FP8 cache has other scales")
    try:
        from flashinfer.mla import BatchMLAPagedAttentionWrapper
    except ImportError as error:
        raise Unavailable("not installed") from error
    q, cache, _, lengths, out, lse, _, softmax_scale = operands
    batch, seqlen_q, num_heads, _ = q.shape
    rows = q.view(batch * seqlen_q, num_heads, q.size(-1))
    pages = cache.squeeze(2)
    first_page, page_indices = page_lists(operands)
    first_row = torch.arange(0, (batch + 1) * seqlen_q, seqlen_q, dtype=torch.int32)
    wrapper = BatchMLAPagedAttentionWrapper(_workspace(q.device))
    wrapper.plan(
        *(first_row.to(q.device), first_page, page_indices, lengths),
        *(num_heads, _HEAD_DIM_V, _ROPE_DIM, cache.size(1)),
        *(True, softmax_scale, q.dtype, cache.dtype),
    )
    out_rows = out.view(batch * seqlen_q, num_heads, _HEAD_DIM_V)
    log2_rows = torch.empty(batch * seqlen_q, num_heads, device=q.device)

    def decode() -> tuple[Tensor, Tensor]:
        wrapper.run(
            rows[..., :_HEAD_DIM_V],
            rows[..., _HEAD_DIM_V:],
            pages[..., :_HEAD_DIM_V],
            pages[..., _HEAD_DIM_V:],
            out=out_rows,
            lse=log2_rows,
            return_lse=True,
        )
        return out, lse

    def results() -> tuple[Tensor, Tensor]:
        lse.copy_(log2_rows.view(batch, seqlen_q, num_heads).transpose(1, 2) * math.log(2))
        return out, lse

    called = Returned(decode).prepared(operands)
    return Prepared(called.call, out, results=results)


@functools.cache
def _workspace(device: torch.device) -> Tensor:
    """For all of them: they run one after the other."""
    return torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def page_lists(operands: MlaOperands) -> tuple[Tensor, Tensor]:
    """Where each request's pages begin in a list of all, and that list."""
    page_size = operands.kv_cache.size(1)
    counts = [-(-length // page_size) for length in operands.lengths]
    rows = zip(operands.block_table, counts, strict=True)
    begins = torch.tensor([0, *counts]).cumsum(0).int()
    return begins.to(operands.q.device), torch.cat([row[:count] for row, count in rows])
