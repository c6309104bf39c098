"""Two half-batches by turns: order, results, errors."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from torch import Tensor

import pykernels
from pykernels import moe
from tests.moe.checking import HIDDEN, buffer_of, same_bits
from tests.moe.routings import Batch, Routing
from tests.moe_launch import NUM_SMS

ROUTING = Routing("uniform", (5, 4, 6), 6, 3, 6)
NUM_LAYERS = 2


def steps(buffer: moe.Buffer, batch: Batch) -> Generator[None, None, list[Tensor]]:
    """Layers whose experts double their rows."""
    x = batch.x
    for _ in range(NUM_LAYERS):
        sent = batch.topk_idx, batch.topk_weights
        rows, _, handles, hook = buffer.low_latency_dispatch(
            x, *sent, fp8=False, return_recv_hook=True
        )
        yield
        hook()
        y = [2 * each.nan_to_num(0) for each in rows]
        out, hook = buffer.low_latency_combine(y, handles, return_recv_hook=True)
        yield
        hook()
        x = [a + b for a, b in zip(x, out, strict=True)]
    return x


def alone(buffer: moe.Buffer, batch: Batch) -> list[Tensor]:
    half = steps(buffer, batch)
    while True:
        try:
            next(half)
        except StopIteration as end:
            result: list[Tensor] = end.value
            return result


@pytest.mark.parametrize("emulated", [False, True], ids=["torch", "emulator"])
def test_both_halves_have_their_results(emulated: bool) -> None:
    halves = ROUTING.batch(HIDDEN), ROUTING.batch(HIDDEN, seed=1)

    def run() -> Any:
        buffers = [buffer_of(ROUTING, num_sms=NUM_SMS if emulated else None) for _ in range(2)]
        together = moe.TwoBatchOverlap(steps, buffers)(*halves)
        return together, [alone(buffers[0], half) for half in halves]

    if emulated:
        with pykernels.emulate() as report:
            together, serial = run()
        assert not report.findings
    else:
        together, serial = run()
    for found, wanted in zip(together, serial, strict=True):
        assert all(map(same_bits, found, wanted))


def test_halves_take_turns() -> None:
    """Also where one has more to do than the other, or nothing."""
    order: list[str] = []

    def count(buffer: Any, half: tuple[str, int]) -> Generator[None, None, str]:
        name, turns = half
        for turn in range(turns):
            order.append(f"{name}{turn}")
            yield
        order.append(f"{name} ends")
        return name

    buffers: list[Any] = [object(), object()]
    overlap: Any = moe.TwoBatchOverlap(count, buffers)
    assert overlap(("a", 2), ("b", 3)) == ("a", "b")
    assert order == ["a0", "b0", "a1", "b1", "a ends", "b2", "b ends"]
    assert overlap(("a", 0), ("b", 0)) == ("a", "b")


def test_an_error_of_one_half_ends_the_other() -> None:
    ended: list[str] = []

    def fail(buffer: Any, name: str) -> Generator[None, None, None]:
        try:
            yield
            if name == "b":
                raise ValueError("wrong")
            yield
        finally:
            ended.append(name)

    buffers: list[Any] = [object(), object()]
    with pytest.raises(ValueError, match="wrong"):
        moe.TwoBatchOverlap(fail, buffers)("a", "b")
    assert sorted(ended) == ["a", "b"]


def test_each_half_needs_a_buffer_of_its_own() -> None:
    buffer = buffer_of(ROUTING)
    for buffers in ([buffer], [buffer, buffer], [buffer, buffer_of(ROUTING), buffer_of(ROUTING)]):
        with pytest.raises(ValueError, match="buffers must be two different ones"):
            moe.TwoBatchOverlap(steps, buffers)
