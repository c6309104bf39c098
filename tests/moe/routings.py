"""Routings that the MoE tests share: who sends what to which experts."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

import pykernels

Rows: TypeAlias = "Tensor | tuple[Tensor, Tensor]"


class Batch(NamedTuple):
    """Of each rank."""

    x: list[Tensor]
    topk_idx: list[Tensor]
    topk_weights: list[Tensor]

    def fp8(self, scale_fmt: str = "fp32") -> list[tuple[Tensor, Tensor]]:
        return [pykernels.quantize_1x128(x, scale_fmt=scale_fmt) for x in self.x]


def uniform(generator: torch.Generator, num_tokens: int, routing: Routing) -> Tensor:
    """Distinct experts, all equally likely."""
    scores = torch.rand(num_tokens, routing.num_experts, generator=generator)
    return scores.topk(routing.num_topk, dim=1).indices


def skewed(generator: torch.Generator, num_tokens: int, routing: Routing) -> Tensor:
    """Distinct experts, the first ones far likelier."""
    scores = torch.rand(num_tokens, routing.num_experts, generator=generator)
    scores -= torch.linspace(0, 1.5, routing.num_experts)
    return scores.topk(routing.num_topk, dim=1).indices


def one_expert(generator: torch.Generator, num_tokens: int, routing: Routing) -> Tensor:
    """All tokens to the last expert; their other choices are dropped."""
    idx = torch.full((num_tokens, routing.num_topk), -1)
    idx[:, routing.num_topk // 2] = routing.num_experts - 1
    return idx


def one_rank(generator: torch.Generator, num_tokens: int, routing: Routing) -> Tensor:
    """Every choice of a token on the same rank."""
    per_rank = routing.num_experts // routing.num_ranks
    rank = torch.randint(routing.num_ranks, (num_tokens, 1), generator=generator)
    order = torch.rand(num_tokens, per_rank, generator=generator).argsort(dim=1)
    return rank * per_rank + order[:, torch.arange(routing.num_topk) % per_rank]


def repeated(generator: torch.Generator, num_tokens: int, routing: Routing) -> Tensor:
    """Any experts: a token may name one twice."""
    size = (num_tokens, routing.num_topk)
    return torch.randint(routing.num_experts, size, generator=generator)


def dropped(generator: torch.Generator, num_tokens: int, routing: Routing) -> Tensor:
    """Half of the choices dropped, and with them all of some tokens."""
    idx = uniform(generator, num_tokens, routing)
    idx[torch.rand(idx.shape, generator=generator) < 0.5] = -1
    idx[::3] = -1
    return idx


def nowhere(generator: torch.Generator, num_tokens: int, routing: Routing) -> Tensor:
    return torch.full((num_tokens, routing.num_topk), -1)


@dataclasses.dataclass(frozen=True)
class Routing:
    """Sizes, the tokens of each rank, and how they choose their experts."""

    what: str
    num_tokens: tuple[int, ...]
    num_experts: int
    num_topk: int
    num_max_tokens_per_rank: int
    choose: Callable[[torch.Generator, int, Routing], Tensor] = uniform
    idx_dtype: torch.dtype = torch.int64

    def __str__(self) -> str:
        return f"{self.num_ranks}-{self.what}"

    @property
    def num_ranks(self) -> int:
        return len(self.num_tokens)

    def batch(self, hidden: int, seed: int = 0) -> Batch:
        """Random rows and weights."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self}{seed}".encode()))
        batch = Batch([], [], [])
        for num_tokens in self.num_tokens:
            batch.x.append(torch.randn(num_tokens, hidden, generator=generator).bfloat16())
            idx = self.choose(generator, num_tokens, self)
            batch.topk_idx.append(idx.to(self.idx_dtype))
            batch.topk_weights.append(torch.rand(idx.shape, generator=generator))
        return batch


ROUTINGS = [
    Routing("alone", (5,), 4, 2, 5),
    Routing("alone_repeated", (7,), 2, 3, 8, repeated),
    Routing("no_tokens", (0, 0), 2, 1, 4),
    Routing("one_token", (1, 0), 4, 2, 4, uniform, torch.int32),
    Routing("uniform", (8, 8), 8, 3, 8),
    Routing("most_tokens", (6, 6), 4, 4, 6, uniform, torch.int32),
    Routing("skewed", (6, 4), 8, 3, 6, skewed),
    Routing("uniform", (9, 16, 1, 7), 16, 4, 16),
    Routing("skewed", (16, 16, 16, 16), 16, 4, 16, skewed),
    Routing("one_expert", (8, 3, 8, 8), 8, 2, 8, one_expert),
    Routing("silent_ranks", (0, 8, 0, 5), 8, 2, 8, uniform, torch.int32),
    Routing("dropped", (8, 8, 7, 8), 8, 3, 8, dropped),
    Routing("nowhere", (4, 4, 4, 4), 4, 2, 4, nowhere),
    Routing("one_rank", (8, 8, 8, 8), 16, 4, 8, one_rank),
    Routing("repeated_experts", (8, 4, 8, 8), 8, 4, 8, repeated),
    Routing("one_expert_a_rank", (4, 4, 4, 4), 4, 4, 4),
    Routing("uniform", (12, 12, 3, 12, 0, 12, 12, 12), 32, 8, 12),
    Routing("skewed", (8, 8, 8, 8, 8, 8, 8, 8), 16, 4, 8, skewed, torch.int32),
]
