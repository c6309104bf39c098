"""What a bench of the MoE all-to-all sends, and what must come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import pykernels
from pykernels.testing import assert_rows_close

from .baselines import MoeOperands

if TYPE_CHECKING:
    from .moe_bench import MoeShape

_FLOOR = 2.0**-8  # of combine: the sums on the experts' ranks are rounded to BF16 too
_FEW_VALUES = 2**22
_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_RANK_SEED, _RESULT_SEED = 7919, 104729


def tokens(shape: MoeShape, seed: int, rank: int, device: str) -> Any:
    """A rank's x; the same values for every process that asks."""
    x = _normal((shape.num_tokens, shape.hidden), seed + _RANK_SEED * rank, device)
    return pykernels.quantize_1x128(x) if shape.fp8 and not shape.is_low_latency else x


def results(shape: MoeShape, seed: int, rank: int, device: str, fill: float) -> Tensor:
    """A rank's y; ``fill`` in rows that no token has."""
    used = rows_of(shape, rank)
    values = _normal((len(used), shape.hidden), seed + _RESULT_SEED + _RANK_SEED * rank, device)
    if not shape.is_low_latency:
        y = torch.full(
            (shape.routing().capacity, shape.hidden), fill, dtype=torch.bfloat16, device=device
        )
        y[: len(used)] = values
        return y
    room = shape.num_ranks * shape.num_tokens
    experts = shape.num_experts // shape.num_ranks
    y = torch.full((experts, room, shape.hidden), fill, dtype=torch.bfloat16, device=device)
    y.view(-1, shape.hidden)[places_of(shape, rank).to(device)] = values
    return y


def _normal(size: tuple[int, int], seed: int, device: str) -> Tensor:
    """Few values are the same on every device."""
    made_on = "cpu" if size[0] * size[1] <= _FEW_VALUES else device
    generator = torch.Generator(made_on).manual_seed(seed)
    values = torch.empty(size, dtype=torch.bfloat16, device=made_on)
    return values.normal_(generator=generator).to(device)


def rows_of(shape: MoeShape, rank: int) -> Tensor:
    """``[n, 3]``: expert, token (of all ranks, one after the other) and k of a rank's rows."""
    experts = shape.num_experts // shape.num_ranks
    idx = shape.routing().topk_idx.flatten(0, 1)
    here = (idx // experts == rank).nonzero()  # by token, then k
    expert = idx[here[:, 0], here[:, 1]]
    rows = torch.cat([expert[:, None], here], dim=1)
    return rows[expert.argsort(stable=True)]


def expert_counts(shape: MoeShape, rank: int) -> Tensor:
    experts = shape.num_experts // shape.num_ranks
    return torch.bincount(rows_of(shape, rank)[:, 0] - rank * experts, minlength=experts)


def places_of(shape: MoeShape, rank: int) -> Tensor:
    """Where the rows stand where each expert has room of its own, as one matrix."""
    counts = expert_counts(shape, rank)
    first = counts.cumsum(0) - counts
    expert = rows_of(shape, rank)[:, 0] - rank * len(counts)
    position = torch.arange(len(expert)) - first[expert]
    return expert * shape.num_ranks * shape.num_tokens + position


def check_dispatch(shape: MoeShape, operands: MoeOperands, found: Any) -> None:
    """Every row that arrives, bit by bit, and the experts' counts."""
    device = operands.topk_idx[0].device.type
    sent = [tokens(shape, operands.seed, rank, device) for rank in range(shape.num_ranks)]
    if shape.fp8 and shape.is_low_latency:
        sent = [pykernels.quantize_1x128(x) for x in sent]
    columns = zip(*sent, strict=True) if shape.fp8 else [sent]
    parts = [torch.cat(column) for column in columns]
    for place, rank in enumerate(shape.local_ranks()):
        received, counts, _ = (each if shape.across else each[place] for each in found)
        wanted = expert_counts(shape, rank)
        if not shape.is_low_latency:
            wanted = torch.cat([wanted.new_zeros(1), wanted.cumsum(0)])
        if counts.tolist() != wanted.tolist():
            raise AssertionError(f"rank {rank}: rows of the experts are {counts.tolist()}")
        source = rows_of(shape, rank)[:, 1].to(device)
        stand = places_of(shape, rank).to(device)
        for rows, part in zip(received if shape.fp8 else [received], parts, strict=True):
            flat = rows.flatten(0, -2)
            arrived = flat[stand] if shape.is_low_latency else flat[: len(source)]
            _check_bits(arrived, part, source, rank)


def _check_bits(arrived: Tensor, sent: Tensor, source: Tensor, rank: int) -> None:
    width = _WIDTHS[sent.dtype.itemsize]
    different = (arrived.view(width) != sent.view(width)[source]).any(dim=1)
    if bool(different.any()):
        row = int(different.nonzero()[0])
        raise AssertionError(
            f"rank {rank}: row {row} of {len(source)} is not token {int(source[row])}"
        )


def check_combine(shape: MoeShape, operands: MoeOperands) -> None:
    """Each token's sum over the ranks, those of each rank rounded to BF16."""
    device = operands.out.device.type
    total = torch.zeros(
        shape.num_ranks * shape.num_tokens, shape.hidden, dtype=torch.float32, device=device
    )
    weights = shape.routing().topk_weights.flatten(0, 1).to(device)
    for rank in range(shape.num_ranks):
        rows = rows_of(shape, rank).to(device)
        y = results(shape, operands.seed, rank, device, 0.0).flatten(0, -2)
        y = y[places_of(shape, rank).to(device)] if shape.is_low_latency else y[: len(rows)]
        sums = torch.zeros_like(total)
        sums.index_add_(0, rows[:, 1], y.float() * weights[rows[:, 1], rows[:, 2], None])
        total += sums.bfloat16()
    for out, rank in zip(operands.out, shape.local_ranks(), strict=True):
        exact = total[rank * shape.num_tokens : (rank + 1) * shape.num_tokens]
        try:
            assert_rows_close(out, exact, floor=_FLOOR)
        except AssertionError as error:
            raise AssertionError(f"rank {rank}, {error}") from error
