"""The kernels over peer memory in the emulator, against the reference: the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pykernels
from pykernels import moe, reference
from tests.moe.checking import (
    HIDDEN,
    KINDS,
    buffer_of,
    check_grouped,
    check_low_latency,
    check_masked_layout,
    same_bits,
)
from tests.moe.routings import ROUTINGS, Batch, Routing, skewed
from tests.moe_launch import NUM_SMS

SCHEDULES: tuple[dict[str, Any], ...] = (
    {"async_completion": "late"},
    {"async_completion": "early", "seed": 1},
    {"async_completion": "random", "seed": 2},
    {"async_completion": "random", "seed": 3, "schedule": "priority"},
)
MANY_SCHEDULES = 50
FITTING = [each for each in ROUTINGS if "repeated" not in each.what]
BUSY = Routing("uniform", (9, 16, 1, 7), 16, 4, 16)


def schedule_of(routing: Routing, index: int = 0) -> dict[str, Any]:
    """Another one for each case, the same in each run."""
    return SCHEDULES[(ROUTINGS.index(routing) + index) % len(SCHEDULES)]


def emulated(routing: Routing, **options: Any) -> moe.Buffer:
    return buffer_of(routing, num_sms=NUM_SMS, **options)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_dispatch_and_combine(routing: Routing, fp8: bool) -> None:
    batch = routing.batch(HIDDEN)
    with pykernels.emulate(**schedule_of(routing, fp8)) as report:
        buffer = emulated(routing)
        for _ in range(2):
            check_grouped(routing, batch, buffer, batch.fp8() if fp8 else batch.x)
    assert not report.findings
    assert {"moe_layout", "moe_dispatch", "moe_combine"} <= {name for name, _ in report.launches}


@pytest.mark.parametrize("split", [False, True], ids=["whole", "hook"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("routing", FITTING, ids=str)
def test_low_latency(routing: Routing, kind: str, split: bool) -> None:
    with pykernels.emulate(**schedule_of(routing, split)) as report:
        check_low_latency(routing, emulated(routing), kind, split)
    assert not report.findings


@pytest.mark.parametrize("hidden", [8, 16, 3584, 3592, 7168, 7184])
def test_rows_of_any_size(hidden: int) -> None:
    """One vector, a chunk of BF16 and of FP8, and a little more."""
    routing = Routing("uniform", (3, 2), 4, 2, 3)
    batch = routing.batch(hidden)
    with pykernels.emulate() as report:
        buffer = emulated(routing, hidden=hidden)
        check_grouped(routing, batch, buffer, batch.x)
        if hidden % 16 == 0:
            sent: list[Any] = [reference.quantize_1x128(each) for each in batch.x]
            check_masked_layout(routing, batch, buffer, batch.x, sent)
    assert not report.findings


@pytest.mark.parametrize("masked", [0, 2])
def test_masked_ranks(masked: int) -> None:
    batch = BUSY.batch(HIDDEN)
    with pykernels.emulate() as report:
        buffer = emulated(BUSY)
        check_grouped(BUSY, batch, buffer, batch.x)
        buffer.mask_ranks([masked])
        for _ in range(2):
            check_grouped(BUSY, batch, buffer, batch.x, [masked])
        buffer.mask_ranks([])
        buffer.reset()
        check_grouped(BUSY, batch, buffer, batch.x)
    assert not report.findings


def run_there_and_back(batch: Batch, buffer: moe.Buffer) -> list[torch.Tensor]:
    recv_x, _, handles = buffer.dispatch(*batch)
    outs: list[torch.Tensor] = buffer.combine(recv_x, handles)
    return outs


@pytest.mark.slow
@pytest.mark.parametrize("routing", [BUSY, Routing("skewed", (8,) * 8, 16, 4, 8, skewed)], ids=str)
def test_many_schedules_give_the_same_bits(routing: Routing) -> None:
    batch = routing.batch(HIDDEN)
    expected = run_there_and_back(batch, buffer_of(routing))
    for seed in range(MANY_SCHEDULES):
        options = SCHEDULES[seed % len(SCHEDULES)] | {"seed": seed}
        with pykernels.emulate(**options) as report:
            outs = run_there_and_back(batch, emulated(routing))
        assert not report.findings, options
        for out, wanted in zip(outs, expected, strict=True):
            assert same_bits(out, wanted), options


def test_two_buffers_in_flight() -> None:
    """Both send before either receives, and the senders' tensors change in between."""
    routing = Routing("uniform", (8, 6), 8, 3, 8)
    batches = [routing.batch(HIDDEN, seed) for seed in range(2)]
    with pykernels.emulate() as report:
        buffers = [emulated(routing) for _ in batches]
        started = []
        for buffer, batch in zip(buffers, batches, strict=True):
            x = [each.clone() for each in batch.x]
            sent = batch.topk_idx, batch.topk_weights
            started.append(buffer.low_latency_dispatch(x, *sent, fp8=False, return_recv_hook=True))
            for each in x:
                each.fill_(torch.nan)
        for batch, (recv_x, masked_m, _, hook) in reversed(
            list(zip(batches, started, strict=True))
        ):
            hook()
            hook()  # does nothing
            expected = reference.moe_low_latency_dispatch(batch.x, batch.topk_idx, num_experts=8)
            for rank, (experts, counts) in enumerate(expected):
                assert torch.equal(masked_m[rank], counts)
                for e, rows in enumerate(experts):
                    assert isinstance(rows, torch.Tensor)
                    assert same_bits(recv_x[rank][e, : rows.size(0)], rows)
    assert not report.findings


def test_a_call_ahead_of_the_hook_is_refused() -> None:
    routing = Routing("uniform", (2, 2), 4, 2, 2)
    batch = routing.batch(HIDDEN)
    with pykernels.emulate():
        buffer = emulated(routing)
        *_, hook = buffer.low_latency_dispatch(*batch, return_recv_hook=True)
        with pytest.raises(RuntimeError, match="after the hook of low_latency_dispatch"):
            buffer.dispatch(*batch)
        hook()
        check_grouped(routing, batch, buffer, batch.x)
        *_, hook = buffer.low_latency_dispatch(*batch, return_recv_hook=True)
        buffer.reset()
        check_grouped(routing, batch, buffer, batch.x)
        with pytest.raises(RuntimeError, match="forgotten"):
            hook()
        check_grouped(routing, batch, buffer, batch.x)


def test_strided_results_of_experts() -> None:
    """Room between rows and between experts."""
    routing = Routing("uniform", (4, 3), 4, 2, 4)
    batch = routing.batch(HIDDEN)
    with pykernels.emulate() as report:
        buffer = emulated(routing)
        recv_x, _, handles, _ = buffer.low_latency_dispatch(*batch, fp8=False)
        y = []
        for rows in recv_x:
            experts, room, hidden = rows.shape
            wide = torch.full((experts, room + 3, hidden + 8), torch.nan, dtype=torch.bfloat16)
            wide[:, :room, :hidden] = rows
            y.append(wide[:, :room, :hidden])
        outs, _ = buffer.low_latency_combine(y, handles)
    exact = reference.moe_combine(
        recv_x, batch.topk_idx, batch.topk_weights, num_experts=routing.num_experts
    )
    assert not report.findings
    assert all(map(same_bits, outs, exact))
