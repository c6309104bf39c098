"""The reference of the MoE all-to-all against dense formulas, exact fractions and gloo."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pykernels import reference
from tests.moe.gloo import run_ranks
from tests.moe.routings import ROUTINGS, Routing

BF16 = torch.bfloat16


def nearest_float32(exact: Fraction) -> np.float32:
    """Bisection over the bit patterns of non-negative float32 values, infinity as 2^128."""
    sign, magnitude = (-1.0, -exact) if exact < 0 else (1.0, exact)

    def value(bits: int) -> Fraction:
        if bits == 0x7F800000:
            return Fraction(2) ** 128
        return Fraction(float(np.uint32(bits).view(np.float32)))

    low, high = 0, 0x7F800000  # value(low) <= magnitude, and high is above it or infinity
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle) <= magnitude else (low, middle)
    below, above = magnitude - value(low), value(high) - magnitude
    bits = low if below < above or (below == above and low % 2 == 0) else high
    return np.float32(sign) * np.uint32(bits).view(np.float32)


def bf16(value: float) -> float:
    return float(torch.tensor(value).to(BF16))


TIES = [
    # 1 + 2^-24 lies half-way between float32 values, and the addend is lost in float64.
    (1.0 + 2.0**-23, 1.0, 2.0**-24),
    (1.0, 2.0**-24, 1.0),
    (1.0 + 2.0**-23, 2.0**-24, 1.0),
    (1.0 - 2.0**-24, 2.0**-24, 1.0),
    (-(1.0 - 2.0**-24), 2.0**-24, 1.0 + 2.0**-23),
    (-(1.0 + 2.0**-23), 2.0**-24, 1.0 + 2.0**-23),
    # The greatest float32 and half a step: infinity, or just below it.
    (1.0, 2.0**103, float(np.finfo(np.float32).max)),
    (1.0 - 2.0**-24, 2.0**103, float(np.finfo(np.float32).max)),
    (-1.0, 2.0**103, -float(np.finfo(np.float32).max)),
    # Subnormal results.
    (2.0**-126, 2.0**-24, 0.0),
    (2.0**-126 * (1 + 2.0**-23), 2.0**-24, 0.0),
    (2.0**-126, 2.0**-24, 2.0**-149),
    (2.0**-100, 2.0**-100, 2.0**-149),
]


@pytest.mark.parametrize(("weight", "value", "addend"), TIES)
def test_fmaf_rounds_once(weight: float, value: float, addend: float) -> None:
    got = reference.moe_fmaf(
        np.float32(weight),
        np.array([value], dtype=np.float32),
        np.array([addend], dtype=np.float32),
    )
    exact = Fraction(weight) * Fraction(value) + Fraction(addend)
    assert got[0] == nearest_float32(exact)


def test_fmaf_on_random_values_near_ties() -> None:
    generator = np.random.default_rng(0)
    for _ in range(2000):
        weight = np.float32(generator.normal())
        value = np.float32(bf16(generator.normal() * 2.0 ** generator.integers(-30, 30)))
        addend = np.float32(generator.normal())
        got = reference.moe_fmaf(weight, np.array([value]), np.array([addend]))
        exact = Fraction(float(weight)) * Fraction(float(value)) + Fraction(float(addend))
        assert got[0] == nearest_float32(exact)


def test_fmaf_of_infinities_and_nan() -> None:
    values = np.array([math.inf, math.nan, 0.0, 1.0], dtype=np.float32)
    got = reference.moe_fmaf(np.float32(2), values, np.array([0, 0, -0.0, math.inf], np.float32))
    assert got[0] == math.inf
    assert math.isnan(got[1])
    assert got[2] == 0
    assert not np.signbit(got[2])
    assert got[3] == math.inf


def test_rounding_to_bf16_is_torchs() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = bits.view(np.float32)
    got = reference.moe_round_to_bf16(values)
    expected = torch.from_numpy(values).to(BF16)
    is_nan = torch.from_numpy(np.isnan(values))
    assert torch.equal(got[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))
    assert (got[is_nan].view(torch.int16) == 0x7FFF).all()


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_dispatch_and_combine_against_a_dense_formula(routing: Routing) -> None:
    """With experts that scale: out[t] = sum over k of w * factor[expert] * x[t]."""
    batch = routing.batch(hidden=16)
    factors = torch.linspace(0.5, 2, routing.num_experts).to(BF16)
    received = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=routing.num_experts)
    per_rank = routing.num_experts // routing.num_ranks
    y = []
    for rank, (recv_x, offsets) in enumerate(received):
        assert isinstance(recv_x, Tensor)
        counts = offsets.diff().tolist()
        factor = factors[rank * per_rank : (rank + 1) * per_rank].repeat_interleave(
            torch.tensor(counts)
        )
        y.append((recv_x * factor[:, None]).to(BF16))
    outs = reference.moe_combine(
        y, batch.topk_idx, batch.topk_weights, num_experts=routing.num_experts
    )
    for x, idx, weights, out in zip(batch.x, batch.topk_idx, batch.topk_weights, outs, strict=True):
        products = (x[:, None] * factors[idx.clamp(min=0).long()][..., None]).to(BF16).double()
        terms = torch.where((idx >= 0)[..., None], weights.double()[..., None] * products, 0)
        exact = terms.sum(dim=1)
        # Each rank's sum and the last one are rounded to BF16: 2^-9 relative to the terms.
        torch.testing.assert_close(
            out.double(),
            exact,
            rtol=0,
            atol=2.0**-7 * float(terms.abs().sum(1).max() + 1e-9) if exact.numel() else 0,
        )


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_low_latency_rows_are_those_of_dispatch(routing: Routing) -> None:
    batch = routing.batch(hidden=16)
    arguments: dict[str, Any] = {"num_experts": routing.num_experts}
    grouped = reference.moe_dispatch(batch.x, batch.topk_idx, **arguments)
    masked = reference.moe_low_latency_dispatch(batch.x, batch.topk_idx, **arguments)
    for (recv_x, offsets), (rows, masked_m) in zip(grouped, masked, strict=True):
        assert isinstance(recv_x, Tensor)
        assert torch.equal(offsets.diff(), masked_m)
        assert torch.equal(recv_x, torch.cat([each for each in rows if isinstance(each, Tensor)]))


def test_masked_ranks_are_left_out() -> None:
    x = [torch.full((1, 8), float(rank + 1)).to(BF16) for rank in range(3)]
    topk_idx = [torch.tensor([[0, 1, 2]])] * 3
    received = reference.moe_dispatch(x, topk_idx, num_experts=3, masked_ranks=[1])
    assert [offsets.tolist() for _, offsets in received] == [[0, 2], [0, 0], [0, 2]]
    y = [rows for rows, _ in received if isinstance(rows, Tensor)]
    outs = reference.moe_combine(
        y, topk_idx, [torch.ones(1, 3)] * 3, num_experts=3, masked_ranks=[1]
    )
    assert [float(out[0, 0]) for out in outs] == [2.0, 0.0, 6.0]


def gloo_dispatch(routing: Routing) -> list[Tensor]:
    """This rank's rows of dispatch by one all_to_all_single over gloo: a row per entry."""
    rank = torch.distributed.get_rank()
    batch = routing.batch(hidden=16)
    x, idx = batch.x[rank], batch.topk_idx[rank].long()
    per_rank = routing.num_experts // routing.num_ranks
    entries = [
        (int(idx[t, k]), t, k)
        for t, k in itertools.product(range(idx.size(0)), range(idx.size(1)))
        if idx[t, k] >= 0
    ]
    entries.sort()
    counts = torch.zeros(routing.num_experts, dtype=torch.int64)
    for expert, _, _ in entries:
        counts[expert] += 1
    received_counts = torch.empty_like(counts)  # [source, local expert]
    torch.distributed.all_to_all_single(received_counts, counts)
    received_counts = received_counts.view(routing.num_ranks, per_rank)
    sent = x[[t for _, t, _ in entries]] if entries else x[:0]
    received = torch.empty(int(received_counts.sum()), 16, dtype=BF16)
    torch.distributed.all_to_all_single(
        received,
        sent.contiguous(),
        received_counts.sum(1).tolist(),
        counts.view(routing.num_ranks, per_rank).sum(1).tolist(),
    )
    parts = received.split(received_counts.flatten().tolist())  # source by source
    ordered = [
        parts[source * per_rank + e] for e in range(per_rank) for source in range(routing.num_ranks)
    ]
    offsets = torch.zeros(per_rank + 1, dtype=torch.int64)
    offsets[1:] = received_counts.sum(0).cumsum(0)
    return [torch.cat(ordered), offsets.int()]


def gloo_dispatches() -> list[list[Tensor]]:
    num_ranks = torch.distributed.get_world_size()
    return [gloo_dispatch(routing) for routing in ROUTINGS if routing.num_ranks == num_ranks]


def test_dispatch_against_all_to_all_over_gloo() -> None:
    results = run_ranks(4, gloo_dispatches)
    routings = [routing for routing in ROUTINGS if routing.num_ranks == 4]
    assert len(routings) > 3
    for i, routing in enumerate(routings):
        batch = routing.batch(hidden=16)
        expected = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=routing.num_experts)
        for rank, (recv_x, offsets) in enumerate(expected):
            assert isinstance(recv_x, Tensor)
            assert torch.equal(results[rank][i][0], recv_x), (str(routing), rank)
            assert torch.equal(results[rank][i][1], offsets)
