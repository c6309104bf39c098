"""Rows of the GPU's benches, their kernels run by the emulator and their clock replaced."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

import pykernels
from pykernels.bench import contest, harness
from pykernels.bench.baselines import (
    Baseline,
    Operands,
    Prepared,
    Unavailable,
    cublaslt,
    deepgemm,
    flat,
    triton_launch,
)
from pykernels.bench.baselines.per_group import per_group
from pykernels.bench.gemm_bench import Shape
from pykernels.bench.grouped_bench import SOURCES, GroupedShape, cases, routed_rows
from pykernels.bench.problem import Options, Problem
from pykernels.gemm import compute_in_torch
from pykernels.native import native

SHAPE = Shape(40, 136, 256)
GROUPS = (37, 0, 130, 1)
RAGGED, INDEXED, MASKED = (GroupedShape(GROUPS, 136, 256, source) for source in SOURCES)


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
        return {name: turns(2.0 if name == contest.OURS else 3.0) for name in contenders}

    def alone(calls: Sequence[harness.Call], **_: object) -> harness.Timing:
        for call in calls:
            call()
        return harness.Timing.of([5.0])

    for kind in (Shape, GroupedShape):
        monkeypatch.setattr(kind, "gpu_operands", kind.emulated_operands)
    monkeypatch.setattr(harness, "time_interleaved", interleaved)
    monkeypatch.setattr(harness, "rehearse", lambda call: None)
    monkeypatch.setattr(harness, "time_calls", alone)
    monkeypatch.setattr(harness, "num_rotated_sets", lambda num_bytes: 2)
    monkeypatch.setattr(
        contest, "current_device", lambda tensor: native().EmulatedDevice(checks=())
    )
    return seen


def in_torch(operands: Operands) -> Prepared:
    a, sfa, b, sfb, out = operands
    return Prepared(lambda: compute_in_torch(a, sfa, b, sfb, out), out, sfa, sfb)


def wrong(operands: Operands) -> Prepared:
    prepared = in_torch(operands)

    def call() -> None:
        prepared.call()
        prepared.out[3:4] = 0

    return Prepared(call, prepared.out, prepared.sfa, prepared.sfb)


def missing(operands: Operands) -> Prepared:
    raise Unavailable("not installed")


def broken(operands: Operands) -> Prepared:
    raise KeyError("their bug")


def measure(*prepares: Any, options: Options | None = None, **arguments: Any) -> dict[str, Any]:
    against = [Baseline(prepare.__name__, "a note", prepare) for prepare in prepares]
    return measure_problem(SHAPE, against, options=options, **arguments)


def measure_problem(problem: Problem[Any], against: list[Any], **arguments: Any) -> dict[str, Any]:
    with pykernels.emulate(checks=()):
        return contest.measure(problem, 4000.0, against=against, **arguments)


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
    monkeypatch.setattr(Shape, "prepare_op", lambda self, options, operands: wrong(operands))
    with pytest.raises(AssertionError, match="row 3"):
        measure()


@pytest.mark.parametrize("problem", [RAGGED, INDEXED, MASKED], ids=str)
def test_grouped_row(problem: GroupedShape, timed: list[dict[str, int]]) -> None:
    """A dense baseline for each group is right where it is right for one, and wrong likewise."""
    against = [per_group(Baseline(one.__name__, "a note", one)) for one in (in_torch, wrong)]
    row = measure_problem(problem, against, every_kernel=True)
    assert timed[0] == {"pykernels": 2, "in_torch, per group": 2}
    assert (row["num_groups"], row["m"], row["n"], row["k"]) == (4, 42, 136, 256)
    assert (row["op"], row["source"]) == (problem.op.__name__, problem.source)
    assert row["rows"] == list(GROUPS)
    assert row["tflops"] == pytest.approx(2 * 168 * 136 * 256 / 2.0 / 1e6)
    found = row["baselines"]
    assert found["in_torch, per group"]["ratio"] == 1.5
    assert found["wrong, per group"]["unavailable"].startswith("wrong result: group 0, row 3")
    assert all(candidate["kernel"].startswith("grouped") for candidate in row["candidates"])
    assert row["candidates"][0]["kernel"] == row["kernel"]


@pytest.mark.parametrize("problem", [RAGGED, INDEXED, MASKED], ids=str)
def test_a_wrong_group_is_found(problem: GroupedShape) -> None:
    """The last one has one row: its columns change places."""
    operands = problem.emulated_operands()
    whole = per_group(Baseline("in_torch", "", in_torch)).prepare(operands)
    problem.check(operands, whole)

    def call() -> None:
        whole.call()
        row = operands.segments[-1].begin
        flat(operands.out)[row] = flat(operands.out)[row].roll(1)

    with pytest.raises(AssertionError, match="group 3, row 0"):
        problem.check(operands, Prepared(call, operands.out, operands.sfa, operands.sfb))


def test_row_wise_scales_a_group(timed: list[dict[str, int]]) -> None:
    """torch has these on the CPU too: what is applied is what is checked."""
    row_wise = cublaslt.grouped_baselines()[1]
    operands = MASKED.emulated_operands()
    MASKED.check(operands, row_wise.prepare(operands))


class DeepGemm:
    """What our code calls of it, in torch; the padded layout's tiles of 128 have one group each."""

    @staticmethod
    def get_mn_major_tma_aligned_tensor(scales: torch.Tensor) -> torch.Tensor:
        return scales

    @staticmethod
    def m_grouped_fp8_gemm_nt_contiguous(a: Any, b: Any, d: Any, m_indices: torch.Tensor) -> None:
        assert m_indices.numel() % 128 == 0
        for first in range(0, m_indices.numel(), 128):
            rows = slice(first, first + 128)
            groups = set(m_indices[rows].tolist()) - {-1}
            (group,) = groups
            compute_in_torch(a[0][rows], a[1][rows], b[0][group], b[1][group], d[rows])

    @staticmethod
    def m_grouped_fp8_gemm_nt_masked(
        a: Any, b: Any, d: Any, masked_m: torch.Tensor, expected_m: int
    ) -> None:
        assert expected_m == 42
        for group, rows in enumerate(masked_m.tolist()):
            of_group = group, slice(rows)
            compute_in_torch(a[0][of_group], a[1][of_group], b[0][group], b[1][group], d[of_group])


@pytest.mark.parametrize("problem", [RAGGED, INDEXED, MASKED], ids=str)
def test_deepgemm_layouts(problem: GroupedShape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deep_gemm", DeepGemm)  # type: ignore[arg-type]
    operands = problem.emulated_operands()
    problem.check(operands, deepgemm.grouped_baseline().prepare(operands))


def test_rows_padded_for_deepgemm() -> None:
    rows, m_indices = deepgemm.padded_rows(RAGGED.emulated_operands())
    assert rows.tolist() == [*range(37), *range(128, 258), 384]
    assert m_indices[rows].tolist() == [0] * 37 + [2] * 130 + [3]
    assert (m_indices == -1).sum() == 512 - 168


def test_triton_is_told_each_groups_rows() -> None:
    call = triton_launch.grouped_call(MASKED.emulated_operands())
    assert call.tile == triton_launch.SMALL
    begins, ends = call.arguments[3:5]
    assert begins.tolist() == [0, 0, 512, 768]
    assert ends.tolist() == [37, 0, 642, 769]


def test_bytes_of_a_grouped_product() -> None:
    """Rows in groups, weights of groups that have rows, scales, and the groups' tensor."""
    values = 168 * 256 + 3 * 136 * 256
    scales = 4 * 2 * (168 + 3 * 2)
    assert RAGGED.bytes_read == values + scales + 4 * 5
    assert INDEXED.bytes_read == values + scales + 4 * 168
    assert MASKED.bytes_read == values + scales + 4 * 4
    assert {problem.bytes_written for problem in (RAGGED, INDEXED, MASKED)} == {2 * 168 * 136}


def test_a_router_with_favourites() -> None:
    rows = routed_rows(num_tokens=4096, num_topk=8, num_experts=256)
    assert rows == routed_rows(num_tokens=4096, num_topk=8, num_experts=256)
    assert rows != routed_rows(num_tokens=4096, num_topk=8, num_experts=256, seed=1)
    assert sum(rows) == 4096 * 8
    assert 6 * 128 < max(rows) < 10 * 128
    assert min(rows) < 128 / 2
    assert sum(routed_rows(num_tokens=100_000, num_topk=1, num_experts=3)) == 100_000
    assert routed_rows(num_tokens=7, num_topk=4, num_experts=4) == (7, 7, 7, 7)


def test_grouped_cases() -> None:
    found = list(cases())
    assert len({str(case) for case in found}) == len(found) == 26
    published = {str(case): case.row()["published"] for case in found if case.row()["published"]}
    assert len(published) == 8
    (figure,) = published["ragged 4x8192 rows, 4096x7168"]
    assert figure["us"] == pytest.approx(2 * 32768 * 4096 * 7168 / 1381e6)
    (figure,) = published["masked 16x96 rows, 4096x7168"]
    assert (figure["gpu"], figure["us"]) == ("H100", 176.0)


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
