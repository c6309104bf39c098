"""The reference of merging against attention over all keys at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pykernels import reference


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q ``[batch, seqlen_q, num_heads, head_dim]``, keys and values ``[keys, ...]``."""
    scores = torch.einsum("bshd,kd->bshk", q, k)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.softmax(scores, dim=-1) @ v, lse.transpose(1, 2)


def test_parts_of_the_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 4, 16, generator=generator, dtype=torch.float64)
    k = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    v = torch.randn(40, 24, generator=generator, dtype=torch.float64)
    out, lse = attention(q, k, v)
    parts = [attention(q, k[a:b], v[a:b]) for a, b in ((0, 1), (1, 30), (30, 40))]
    states = torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
    merged = reference.merge_states(*states)
    torch.testing.assert_close(merged[0], out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged[1], lse, rtol=1e-12, atol=1e-12)


def test_states_without_keys() -> None:
    outs = torch.tensor([math.nan, 3.0]).view(2, 1, 1, 1, 1).expand(2, 1, 1, 1, 8)
    for lses, value, total in (
        ((-math.inf, 2.0), 3.0, 2.0),
        ((-math.inf, -math.inf), 0.0, -math.inf),
    ):
        out, lse = reference.merge_states(outs, torch.tensor(lses).view(2, 1, 1, 1))
        assert out.tolist() == [[[[value] * 8]]]
        assert lse.tolist() == [[[total]]]
