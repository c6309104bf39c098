"""Reference of SwiGLU fused with the 1x128 cast to FP8, row by row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pykernels.reference.quantize import quantize_1x128


def silu_mul(x: Tensor) -> Tensor:
    """``gate / (1 + exp(-gate)) * up`` of the halves of x's last dimension, in float64.

    A magnitude that rounds to infinity in float32 is infinite, as y is a float32 value.
    """
    rows = x.reshape(-1, x.size(-1)).double().tolist()
    i = x.size(-1) // 2
    y = torch.zeros(len(rows), i, dtype=torch.float64)
    for r, row in enumerate(rows):
        for c in range(i):
            y[r, c] = _silu(row[c]) * row[i + c]
    overflows = y.float().isinf()
    return torch.where(overflows, y.float().double(), y).view(*x.shape[:-1], i)


def _silu(gate: float) -> float:
    if gate == -math.inf:
        return math.nan  # -infinity / infinity
    if gate < -700:  # exp(-gate) has no float64
        return gate * math.exp(gate)
    return gate / (1 + math.exp(-gate))


def silu_mul_quantize_1x128(
    x: Tensor,
    *,
    group_offsets: Tensor | None = None,
    m_indices: Tensor | None = None,
    masked_m: Tensor | None = None,
    scale_fmt: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pykernels.silu_mul_quantize_1x128`; rows that it leaves are zero."""
    *leading, columns = x.shape
    i = columns // 2
    q = torch.zeros(*leading, i, dtype=torch.uint8)
    scales = torch.zeros(*leading, math.ceil(i / 128))
    for place in _rows(leading, group_offsets, m_indices, masked_m):
        row_q, row_scales = quantize_1x128(silu_mul(x[place])[None], scale_fmt=scale_fmt)
        q[place] = row_q[0].view(torch.uint8)
        scales[place] = row_scales[0]
    return q.view(torch.float8_e4m3fn), scales


def _rows(
    leading: list[int],
    group_offsets: Tensor | None,
    m_indices: Tensor | None,
    masked_m: Tensor | None,
) -> list[tuple[int, ...]]:
    """The places of the rows that are computed."""
    if group_offsets is not None:
        return [(row,) for row in range(int(group_offsets[0]), int(group_offsets[-1]))]
    if m_indices is not None:
        return [(row,) for row in range(leading[0]) if int(m_indices[row]) >= 0]
    if masked_m is not None:
        return [(g, row) for g in range(leading[0]) for row in range(int(masked_m[g]))]
    return [(row,) for row in range(leading[0])]
