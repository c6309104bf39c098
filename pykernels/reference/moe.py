"""Reference of the MoE all-to-all: all ranks in one process, row by row and in plain loops.

Lists have one element per rank. Expert e lives on rank ``e // (num_experts / num_ranks)``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

Rows: TypeAlias = "Tensor | tuple[Tensor, Tensor]"  # BF16, or e4m3 and its scale factors

_BF16_NAN = 0x7FFF  # what cvt.rn.bf16.f32 makes of every NaN
_BEYOND_FLOAT32 = 2.0**128  # in place of infinity: one step above the greatest float32


class Entry(NamedTuple):
    """One row that an expert receives: entry k of a token of a source rank."""

    source: int
    token: int
    k: int


def moe_expert_rows(
    topk_idx: Sequence[Tensor], *, num_experts: int, masked_ranks: Collection[int] = ()
) -> list[list[Entry]]:
    """The rows of each expert in their order: by source rank, then token, then k.

    Entries of -1 are dropped, and nothing goes to a masked rank or comes from one.
    """
    num_ranks = len(topk_idx)
    num_local_experts = num_experts // num_ranks
    experts: list[list[Entry]] = [[] for _ in range(num_experts)]
    for source in range(num_ranks):
        if source in masked_ranks:
            continue
        for token, choices in enumerate(topk_idx[source].tolist()):
            for k, expert in enumerate(choices):
                if expert >= 0 and expert // num_local_experts not in masked_ranks:
                    experts[expert].append(Entry(source, token, k))
    return experts


def moe_dispatch(
    x: Sequence[Rows],
    topk_idx: Sequence[Tensor],
    *,
    num_experts: int,
    masked_ranks: Collection[int] = (),
) -> list[tuple[Rows, Tensor]]:
    """Specification of ``Buffer.dispatch``: of each rank ``(recv_x, group_offsets)``.

    ``recv_x`` has exactly the rows that arrive, those of the first local expert first.
    """
    experts = moe_expert_rows(topk_idx, num_experts=num_experts, masked_ranks=masked_ranks)
    num_local_experts = num_experts // len(x)
    results = []
    for rank in range(len(x)):
        local = experts[rank * num_local_experts : (rank + 1) * num_local_experts]
        offsets = [0]
        for entries in local:
            offsets.append(offsets[-1] + len(entries))
        recv_x = _gather(x, [entry for entries in local for entry in entries])
        results.append((recv_x, torch.tensor(offsets, dtype=torch.int32)))
    return results


def moe_low_latency_dispatch(
    x: Sequence[Rows],
    topk_idx: Sequence[Tensor],
    *,
    num_experts: int,
    masked_ranks: Collection[int] = (),
) -> list[tuple[list[Rows], Tensor]]:
    """Specification of ``Buffer.low_latency_dispatch``: of each rank ``(rows, masked_m)``.

    ``rows[e]`` are exactly the rows of local expert e. The cast to FP8 is not part of it: pass the
    pair that :func:`pykernels.reference.quantize_1x128` returns.
    """
    experts = moe_expert_rows(topk_idx, num_experts=num_experts, masked_ranks=masked_ranks)
    num_local_experts = num_experts // len(x)
    results = []
    for rank in range(len(x)):
        local = experts[rank * num_local_experts : (rank + 1) * num_local_experts]
        counts = torch.tensor([len(entries) for entries in local], dtype=torch.int32)
        results.append(([_gather(x, entries) for entries in local], counts))
    return results


def moe_combine(
    y: Sequence[Tensor],
    topk_idx: Sequence[Tensor],
    topk_weights: Sequence[Tensor],
    *,
    num_experts: int,
    masked_ranks: Collection[int] = (),
) -> list[Tensor]:
    """Specification of ``Buffer.combine`` and ``Buffer.low_latency_combine``, bit for bit.

    On the experts' rank ``acc = fmaf(weight, y[row], acc)`` in FP32 from +0, over the token's rows
    in ascending expert order, those of one expert by k, rounded to BF16. At home the FP32 sum of
    those from +0, over the ranks in ascending order, rounded to BF16.

    Args:
        y: of each rank the rows in the order of :func:`moe_dispatch`, ``[rows, hidden]``, or of
            :func:`moe_low_latency_dispatch`, ``[num_local_experts, rows, hidden]``; ``bfloat16``.
            There may be more rows than arrived; those are not read.
        topk_idx: as given to the dispatch.
        topk_weights: ``[num_tokens, num_topk]``, ``float32``.
        num_experts: of all ranks together.
        masked_ranks: as given to the dispatch.
    """
    num_ranks = len(y)
    num_local_experts = num_experts // num_ranks
    experts = moe_expert_rows(topk_idx, num_experts=num_experts, masked_ranks=masked_ranks)
    # contributions[source][token][rank]: (weight, values) in ascending order of (expert, k)
    contributions: list[list[list[list[tuple[np.float32, np.ndarray]]]]] = [
        [[[] for _ in range(num_ranks)] for _ in range(len(topk_idx[source]))]
        for source in range(num_ranks)
    ]
    for rank in range(num_ranks):
        row = 0
        for local_expert in range(num_local_experts):
            entries = experts[rank * num_local_experts + local_expert]
            for position, (source, token, k) in enumerate(entries):
                values = y[rank][local_expert, position] if y[rank].dim() == 3 else y[rank][row]
                weight = topk_weights[source].detach().numpy()[token, k]
                found = weight, values.detach().float().numpy()
                contributions[source][token][rank].append(found)
                row += 1
    hidden = y[0].size(-1)
    outs = []
    for source in range(num_ranks):
        out = torch.zeros(len(topk_idx[source]), hidden, dtype=torch.bfloat16)
        for token, ranks in enumerate(contributions[source]):
            out[token] = _sum_at_home([_sum_at_experts(rank, hidden) for rank in ranks if rank])
        outs.append(out)
    return outs


def _gather(x: Sequence[Rows], entries: Sequence[Entry]) -> Rows:
    """Copies of the entries' tokens."""
    first = x[0]
    if isinstance(first, Tensor):
        return _stack(first, [_bytes(x[e.source])[e.token] for e in entries])
    q = [_bytes(_part(x[e.source], 0))[e.token] for e in entries]
    scales = [_part(x[e.source], 1)[e.token] for e in entries]
    return _stack(first[0], q), _stack(first[1], scales)


def _part(rows: Rows, index: int) -> Tensor:
    assert not isinstance(rows, Tensor)
    return rows[index]


def _bytes(rows: Rows) -> Tensor:
    """Torch moves no single e4m3 values on CPUs, but bytes."""
    assert isinstance(rows, Tensor)
    return rows.detach().view(torch.uint8) if rows.dtype == torch.float8_e4m3fn else rows.detach()


def _stack(like: Tensor, rows: list[Tensor]) -> Tensor:
    if not rows:
        return torch.empty((0, like.size(1)), dtype=like.dtype)
    return torch.stack(rows).view(like.dtype)


def _sum_at_experts(parts: list[tuple[np.float32, np.ndarray]], hidden: int) -> Tensor:
    total = np.zeros(hidden, dtype=np.float32)
    for weight, values in parts:
        total = moe_fmaf(weight, values, total)
    return moe_round_to_bf16(total)


def _sum_at_home(parts: list[Tensor]) -> Tensor | float:
    if not parts:
        return 0.0
    total = np.zeros(parts[0].size(0), dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for part in parts:
            total = total + part.float().numpy()
    return moe_round_to_bf16(total)


def moe_fmaf(weight: np.float32, values: np.ndarray, addends: np.ndarray) -> np.ndarray:
    """``weight * values + addends``, rounded once to float32, for values that BF16 can hold.

    The product of 24 and 8 significant bits is exact in float64. Its sum with the addend, rounded
    to float64 and then to float32, is right unless the float64 sum lies half-way between two
    float32 values: then the exact sum decides.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        products = np.float64(weight) * values.astype(np.float64)
        sums = products + addends.astype(np.float64)
        rounded: np.ndarray = sums.astype(np.float32)
        others = _other_side(rounded, sums)
        is_between = np.abs(sums - rounded) == np.abs(others - sums)
    overflows = np.isinf(rounded) & np.isfinite(sums)
    for i in np.nonzero(is_between & (rounded != sums) | overflows)[0]:
        exact = Fraction(float(products[i])) + Fraction(float(addends[i]))
        if abs(exact - _fraction(others[i])) < abs(exact - _fraction(rounded[i])):
            rounded[i] = others[i]  # equally near: as it is, rounded to even
    return rounded


def _other_side(rounded: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The float32 neighbours of rounded values, on the side where the float64 sums lie."""
    towards = np.where(sums > rounded, np.float32(np.inf), np.float32(-np.inf))
    neighbours: np.ndarray = np.nextafter(rounded, towards.astype(np.float32))
    return neighbours


def _fraction(value: np.float32) -> Fraction:
    if np.isinf(value):
        return Fraction(math.copysign(_BEYOND_FLOAT32, value))
    return Fraction(float(value))


def moe_round_to_bf16(values: np.ndarray) -> Tensor:
    """To nearest even; every NaN becomes 0x7FFF, as the hardware's conversion has it."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded[np.isnan(values)] = _BF16_NAN
    return torch.from_numpy(rounded.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
