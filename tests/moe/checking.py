"""What the MoE tests share: buffers of a routing, experts' results, comparison of bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels import moe
from tests.moe.routings import Routing

HIDDEN = 144  # two blocks of scale factors, the second one of 16 columns


def same_bits(x: Tensor, y: Tensor) -> bool:
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def buffer_of(
    routing: Routing, hidden: int = HIDDEN, group: Any = "local", **options: Any
) -> moe.Buffer:
    return moe.Buffer(
        moe.LocalGroup(routing.num_ranks) if group == "local" else group,
        hidden=hidden,
        num_experts=routing.num_experts,
        num_topk=routing.num_topk,
        num_max_tokens_per_rank=routing.num_max_tokens_per_rank,
        **options,
    )


def capacity_of(routing: Routing) -> int:
    """Enough for experts that are named twice, too."""
    return routing.num_ranks * routing.num_max_tokens_per_rank * routing.num_topk


def results_of_experts(rows: Tensor, used: Sequence[slice], seed: int) -> Tensor:
    """Random results; NaN in rows that no token has."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.full(rows.shape, torch.nan, dtype=torch.bfloat16)
    flat = y.view(-1, rows.size(-1))
    for part in used:
        size = flat[part].shape
        flat[part] = torch.randn(size, generator=generator).bfloat16()
    return y
