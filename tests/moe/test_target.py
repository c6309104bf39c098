"""Whole exchanges of several ranks in one process, in the emulator or on a GPU: the same bits.

A rank of the emulator has two SMs; one of a GPU has its share of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import reference
from tests import target
from tests.moe.checking import HIDDEN, buffer_of, capacity_of, results_of_experts, same_bits
from tests.moe.routings import ROUTINGS, Batch, Routing
from tests.moe_launch import NUM_SMS

WHICH = {"2-uniform", "4-skewed", "4-dropped", "4-one_expert", "4-silent_ranks", "8-uniform"}
CASES = [routing for routing in ROUTINGS if str(routing) in WHICH]
NUM_CALLS = 3  # in a row, the last of which is looked at


def exchange(
    x: list[Any],
    batch: Batch,
    y: list[Tensor],
    routing: Routing,
    low_latency: dict[str, Any] | None,
) -> tuple[Any, ...]:
    """Rows and counts that arrive, and what comes home of ``y``."""
    device = batch.topk_idx[0].device.type
    num_sms = NUM_SMS if device == "cpu" else None
    sent = x, batch.topk_idx, batch.topk_weights
    with buffer_of(routing, device=device, num_sms=num_sms) as buffer:
        for _ in range(NUM_CALLS):
            if low_latency is None:
                received, counts, handle = buffer.dispatch(*sent, capacity=capacity_of(routing))
                outs = buffer.combine(y, handle)
            else:
                received, counts, handle, hook = buffer.low_latency_dispatch(*sent, **low_latency)
                hook()
                split = low_latency["return_recv_hook"]
                outs, hook = buffer.low_latency_combine(y, handle, return_recv_hook=split)
                hook()
        buffer.check()
        return received, counts, outs


def run(
    routing: Routing, x: list[Any], batch: Batch, y: list[Tensor], low_latency: Any = None
) -> tuple[Any, ...]:
    """On the target, with results on the CPU."""
    results, _ = target.selected().call(exchange, x, batch, y, routing, low_latency)
    received, counts, outs = results
    exact = reference.moe_combine(
        y, batch.topk_idx, batch.topk_weights, num_experts=routing.num_experts
    )
    for out, wanted in zip(outs, exact, strict=True):
        assert same_bits(out, wanted)
    return received, counts


def parts(rows: Any) -> list[Tensor]:
    return [rows] if isinstance(rows, Tensor) else list(rows)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("routing", CASES, ids=str)
def test_dispatch_and_combine(routing: Routing, fp8: bool) -> None:
    batch = routing.batch(HIDDEN)
    x: list[Any] = batch.fp8() if fp8 else batch.x
    expected = reference.moe_dispatch(x, batch.topk_idx, num_experts=routing.num_experts)
    like = torch.empty(capacity_of(routing), HIDDEN)
    y = [
        results_of_experts(like, [slice(0, int(offsets[-1]))], rank)
        for rank, (_, offsets) in enumerate(expected)
    ]
    received, counts = run(routing, x, batch, y)
    for rank, (rows, offsets) in enumerate(expected):
        assert counts[rank].tolist() == offsets.tolist()
        for found, wanted in zip(parts(received[rank]), parts(rows), strict=True):
            assert same_bits(found[: int(offsets[-1])], wanted)


@pytest.mark.parametrize("hook", [False, True], ids=["whole", "hook"])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("routing", CASES, ids=str)
def test_low_latency(routing: Routing, fp8: bool, hook: bool) -> None:
    batch = routing.batch(HIDDEN)
    sent: list[Any] = [pykernels.quantize_1x128(x) for x in batch.x] if fp8 else batch.x
    expected = reference.moe_low_latency_dispatch(
        sent, batch.topk_idx, num_experts=routing.num_experts
    )
    room = routing.num_ranks * routing.num_max_tokens_per_rank
    like = torch.empty(routing.num_experts // routing.num_ranks, room, HIDDEN)
    y = [
        results_of_experts(
            like, [slice(e * room, e * room + int(n)) for e, n in enumerate(counts)], rank
        )
        for rank, (_, counts) in enumerate(expected)
    ]
    options = {"fp8": fp8, "return_recv_hook": hook}
    received, counts = run(routing, batch.x, batch, y, options)
    for rank, (experts, wanted_counts) in enumerate(expected):
        assert counts[rank].tolist() == wanted_counts.tolist()
        for e, rows in enumerate(experts):
            count = int(wanted_counts[e])
            for found, wanted in zip(parts(received[rank]), parts(rows), strict=True):
                assert same_bits(found[e, :count], wanted)
