"""Reference of merging partial attention results, row by row."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pykernels.merge_states`, in float64.

    A state whose lse is -infinity does not count, whatever its output holds.
    """
    num_states, batch, seqlen_q, num_heads, head_dim_v = outs.shape
    out = torch.zeros(batch, seqlen_q, num_heads, head_dim_v, dtype=torch.float64)
    lse = torch.full((batch, num_heads, seqlen_q), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for head in range(num_heads):
            for token in range(seqlen_q):
                row = lses[:, b, head, token].tolist()
                states = [s for s in range(num_states) if row[s] != -math.inf]
                if not states:
                    continue
                total = _log_sum_exp([row[s] for s in states])
                lse[b, head, token] = total
                for s in states:
                    weight = _exp(row[s] - total)
                    out[b, token, head] += weight * outs[s, b, token, head].double()
    return out, lse


def _log_sum_exp(values: list[float]) -> float:
    if any(math.isnan(value) or value == math.inf for value in values):
        return math.nan
    greatest = max(values)
    return greatest + math.log(sum(math.exp(value - greatest) for value in values))


def _exp(value: float) -> float:
    return math.nan if math.isnan(value) else math.exp(value)
