"""Where tokens go and where their rows lie, in torch: the same on every device, deterministic."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pykernels.moe.group import BufferSizes


class Routing(NamedTuple):
    """What the sender knows.

    Attributes:
        topk_idx: ``[T, num_topk]``, ``int64``; -1 for entries that go nowhere, those of masked
            ranks among them.
        position_in_rank: ``[T, num_ranks]``, ``int32``; see ``DispatchHandle``.
        rank_counts: ``[num_ranks]``, ``int64``: tokens for each rank.
        expert_counts: ``[num_experts]``, ``int64``: rows for each expert.
    """

    topk_idx: Tensor
    position_in_rank: Tensor
    rank_counts: Tensor
    expert_counts: Tensor


class Arrangement(NamedTuple):
    """What the receiver knows of its N tokens, ordered by source rank, then token.

    Attributes:
        rows: ``[N, num_topk]``, ``int64``: rows of each token, ascending by expert, then k; -1
            behind the last.
        weights: ``[N, num_topk]``, ``float32``: of those rows, 0 behind the last.
        topk: ``[N, num_topk]``, ``int64``: which k they are, -1 behind the last.
        counts: ``[num_local_experts]``, ``int64``: rows of each expert.
    """

    rows: Tensor
    weights: Tensor
    topk: Tensor
    counts: Tensor


def route(topk_idx: Tensor, sizes: BufferSizes, masked_ranks: frozenset[int]) -> Routing:
    """Tokens per rank and per expert, and the order of tokens within each rank."""
    idx = topk_idx.long()
    goes = (idx >= 0) & (idx < sizes.num_experts)
    rank = torch.where(goes, idx // sizes.num_local_experts, sizes.num_ranks)
    if masked_ranks:
        left_out = torch.tensor(sorted(masked_ranks), device=idx.device)
        goes &= ~torch.isin(rank, left_out)
        rank = torch.where(goes, rank, sizes.num_ranks)
    named = torch.zeros(
        (idx.size(0), sizes.num_ranks + 1), dtype=torch.bool, device=idx.device
    ).scatter_(1, rank, True)[:, : sizes.num_ranks]
    position = torch.where(named, named.cumsum(0) - 1, -1)
    return Routing(
        torch.where(goes, idx, -1),
        position.int(),
        named.sum(0),
        torch.bincount(idx[goes], minlength=sizes.num_experts),
    )


def arrange(
    topk_idx: Tensor, topk_weights: Tensor, rank: int, sizes: BufferSizes, *, masked: bool
) -> Arrangement:
    """The rows of received tokens: by expert, and of one expert by (source rank, token, k).

    Args:
        topk_idx: ``[N, num_topk]``, ``int64``, of the tokens in the order of (source rank, token);
            entries of other ranks' experts are passed over.
        topk_weights: ``[N, num_topk]``, ``float32``.
        rank: whose experts count.
        sizes: of the buffer.
        masked: whether each expert has its own room, or all rows follow one another.
    """
    num_local_experts = sizes.num_local_experts
    expert = topk_idx - rank * num_local_experts
    is_local = (topk_idx >= 0) & (expert >= 0) & (expert < num_local_experts)
    expert = torch.where(is_local, expert, num_local_experts)
    flat = expert.flatten()
    order = torch.argsort(flat, stable=True)
    row = torch.empty_like(order)
    row[order] = torch.arange(order.numel(), device=order.device)
    counts = torch.bincount(flat, minlength=num_local_experts + 1)
    if masked:
        starts = counts.cumsum(0) - counts
        row += flat * sizes.expert_rows - starts[flat]
    row = torch.where(is_local, row.view_as(expert), -1)
    # Within a token by (expert, k): no two keys are equal.
    num_topk = topk_idx.size(1)
    k = torch.arange(num_topk, device=topk_idx.device)
    by_expert = torch.argsort(expert * num_topk + k, dim=1)
    is_local = is_local.gather(1, by_expert)
    return Arrangement(
        row.gather(1, by_expert),
        torch.where(is_local, topk_weights.gather(1, by_expert), 0),
        torch.where(is_local, by_expert, -1),
        counts[:num_local_experts],
    )
