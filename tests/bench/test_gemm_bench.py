"""A row of the GPU's bench, its kernels run by the emulator and its clock replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

import pykernels
from pykernels.bench import gemm_bench, harness
from pykernels.bench.baselines import Baseline, Operands, Prepared, Unavailable
from pykernels.bench.candidates import Options, Shape
from pykernels.gemm import compute_in_torch
from pykernels.native import native
from pykernels.testing import gemm_operands

SHAPE = Shape(40, 136, 256)


def cpu_operands(shape: Shape, seed: int) -> Operands:
    (a, sfa), (b, sfb) = gemm_operands(shape.m, shape.n, shape.k, seed)
    return a, sfa, b, sfb, torch.empty(shape.m, shape.n, dtype=torch.bfloat16)


def turns(us: float) -> harness.Turns:
    return harness.Turns(harness.Timing.of([us]), (us, us))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """The numbers of calls that were timed together; ours take 2 us, a baseline 3."""
    seen: list[dict[str, int]] = []

    def interleaved(contenders: Mapping[str, Sequence[harness.Call]]) -> dict[str, harness.Turns]:
        seen.append({name: len(calls) for name, calls in contenders.items()})
        for calls in contenders.values():
            for call in calls:
                call()
        return {name: turns(2.0 if name == gemm_bench.OURS else 3.0) for name in contenders}

    def alone(calls: Sequence[harness.Call], **_: object) -> harness.Timing:
        for call in calls:
            call()
        return harness.Timing.of([5.0])

    monkeypatch.setattr(gemm_bench, "make_operands", cpu_operands)
    monkeypatch.setattr(harness, "time_interleaved", interleaved)
    monkeypatch.setattr(harness, "time_calls", alone)
    monkeypatch.setattr(harness, "num_rotated_sets", lambda num_bytes: 2)
    monkeypatch.setattr(
        gemm_bench, "_current_device", lambda tensor: native().EmulatedDevice(checks=())
    )
    return seen


def in_torch(operands: Operands) -> Prepared:
    a, sfa, b, sfb, out = operands
    result = torch.empty_like(out)
    return Prepared(lambda: compute_in_torch(a, sfa, b, sfb, result), result, sfa, sfb)


def wrong(operands: Operands) -> Prepared:
    prepared = in_torch(operands)

    def call() -> None:
        prepared.call()
        prepared.out[3] = 0

    return Prepared(call, prepared.out, prepared.sfa, prepared.sfb)


def missing(operands: Operands) -> Prepared:
    raise Unavailable("not installed")


def broken(operands: Operands) -> Prepared:
    raise KeyError("their bug")


def measure(*prepares: Any, options: Options | None = None, **arguments: Any) -> dict[str, Any]:
    against = [Baseline(prepare.__name__, "a note", prepare) for prepare in prepares]
    with pykernels.emulate(checks=()):
        return gemm_bench.measure(SHAPE, 4000.0, against=against, options=options, **arguments)


def test_row(timed: list[dict[str, int]]) -> None:
    row = measure(in_torch, wrong, missing, broken)
    assert timed == [{"pykernels": 2, "in_torch": 2}, {"pykernels": 1, "in_torch": 1}]
    assert (row["m"], row["n"], row["k"]) == (40, 136, 256)
    assert (row["us"], row["warm_l2_us"]) == (2.0, 2.0)
    assert row["tflops"] == pytest.approx(SHAPE.flops / 2.0 / 1e6)
    found = row["baselines"]
    assert found["in_torch"]["ratio"] == 1.5
    assert found["in_torch"]["note"] == "a note"
    assert found["wrong"]["unavailable"].startswith("wrong result: row 3")
    assert found["missing"] == {"unavailable": "not installed"}
    assert found["broken"] == {"unavailable": "KeyError: 'their bug'"}


def test_kernels_by_name(timed: list[dict[str, int]]) -> None:
    row = measure(every_kernel=True, options=Options(num_sms=20))
    assert row["num_sms"] == 20
    candidates = row["candidates"]
    assert candidates[0]["kernel"] == row["kernel"]
    assert candidates[0]["schedule"] == row["schedule"]
    assert candidates[0]["us"] == 5.0
    assert candidates[0]["model"]["total_us"] > 0
    named = [(candidate["kernel"], *candidate["schedule"]) for candidate in candidates]
    assert len(set(named)) == len(named) <= 16
    assert len({kernel for kernel, *_ in named}) >= 10


def test_a_wrong_result_of_ours_ends_the_row(
    timed: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm_bench, "prepare_op", lambda options, operands: wrong(operands))
    with pytest.raises(AssertionError, match="row 3"):
        measure()


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that slows down by half hits both alike: the ratio stays."""
    order: list[str] = []
    slowness = [1.0]
    elapsed = [0.0]

    class Graph:
        def __init__(self, name: str, rounds: int) -> None:
            self.name = name
            self.us = {"a": 100.0, "b": 150.0}[name] * rounds

        def replay(self) -> None:
            order.append(self.name)
            slowness[0] += 0.01
            elapsed[0] += self.us * slowness[0]

    def event_us(call: harness.Call) -> float:
        before = elapsed[0]
        call()
        return elapsed[0] - before

    def contender(name: str) -> harness.Call:
        call: Any = lambda: None  # noqa: E731
        call.label = name
        return call

    def capture(calls: Sequence[Any], rounds: int) -> Graph:
        return Graph(calls[0].label, rounds)

    monkeypatch.setattr(harness, "_capture", capture)
    monkeypatch.setattr(harness, "_event_us", event_us)
    monkeypatch.setattr(harness, "_WARM_UP_S", 0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    contenders = {name: [contender(name)] for name in ("a", "b")}
    order.clear()
    found = harness.time_interleaved(contenders, num_rounds=10, samples=2)
    assert order[-12:] == ["a", "a", "a", "b", "b", "b"] * 2
    assert len(found["a"].medians_us) == 10
    assert found["a"].medians_us[-1] > 1.3 * found["a"].medians_us[0]
    assert found["b"].ratio_to(found["a"]) == pytest.approx(1.5, rel=0.03)
