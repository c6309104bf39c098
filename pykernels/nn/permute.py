"""Rows by expert and back where all experts are on one rank, in torch ops that compile.

Nothing here waits for the host. A buffer of one rank would give the same rows, but its calls move
them through its window, and those of a ``LocalGroup`` end a graph of ``torch.compile``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.nn.moe_checkpoint import Pair


def permute(rows: Pair, topk_idx: Tensor, num_experts: int) -> tuple[Pair, Tensor, Tensor]:
    """Each token's row once for each of its experts, by expert, then token.

    Args:
        rows: ``[num_tokens, hidden]``, ``float8_e4m3fn``, and ``[num_tokens, ceil(hidden / 128)]``.
        topk_idx: ``[num_tokens, num_topk]``, ``int64``, all of them experts.
        num_experts: E.

    Returns:
        The pair with ``num_tokens * num_topk`` rows; group_offsets ``[E + 1]``, ``int32``; and
        where each token's rows are, ``[num_tokens, num_topk]``, ``int64``.
    """
    expert, entry = topk_idx.flatten().sort(stable=True)
    token = entry // topk_idx.size(1)
    bounds = torch.arange(num_experts + 1, device=expert.device)
    group_offsets = torch.searchsorted(expert, bounds, out_int32=True)
    place = torch.empty_like(entry)
    place = place.scatter(0, entry, torch.arange(entry.size(0), device=entry.device))
    q, scales = rows
    gathered = q.view(torch.uint8)[token].view(q.dtype), scales[token]
    return gathered, group_offsets, place.view_as(topk_idx)


def unpermute(y: Tensor, place: Tensor, topk_weights: Tensor) -> Tensor:
    """``[num_tokens, hidden]``, ``bfloat16``: the weighted sums in FP32, in the order of k.

    Args:
        y: ``[num_tokens * num_topk, hidden]``, ``bfloat16``.
        place: as :func:`permute` returns it.
        topk_weights: ``[num_tokens, num_topk]``, ``float32``.
    """
    total = torch.zeros(place.size(0), y.size(1), dtype=torch.float32, device=y.device)
    for k in range(place.size(1)):
        total = torch.addcmul(total, topk_weights[:, k, None], y[place[:, k]].float())
    return total.bfloat16()
