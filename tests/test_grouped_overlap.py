"""Grouped GEMMs beside the kernels that fill their rows and take their results."""

from __future__ import annotations

import random

import pytest
import torch

from pykernels.emulator import EmulationError
from tests.cases import assert_same_bits
from tests.grouped_kernels import ALL, UNTOUCHED, Problem, Scheduled
from tests.overlapped import Overlapped

ALONE = [scheduled for scheduled in ALL if scheduled.cluster == 1]
SOME = [scheduled for scheduled in ALONE if scheduled.kernel.endswith(("m64n128c1", "m16n64"))]
PROBLEM = Problem((70, 0, 9, 130, 1, 60), 72, 272)


def orders(problem: Problem) -> dict[str, list[int]]:
    """In which rows may come: the last ones first, one of each block last of all, and so on."""
    rows = list(range(problem.m))
    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    late = set(range(0, problem.m, 128))
    return {
        "in order": rows,
        "backwards": rows[::-1],
        "shuffled": shuffled,
        "a block's first row last": [row for row in rows if row not in late] + sorted(late),
    }


def check(pair: Overlapped, **options: object) -> None:
    pair.run(**options).raise_if_findings()
    assert_same_bits(pair.tensors["out"], pair.expected())
    assert_same_bits(pair.tensors["taken"], pair.expected())
    assert torch.equal(pair.tensors["done"], pair.tensors["expected"])


@pytest.mark.parametrize("mode", ["early", "late", "random"])
@pytest.mark.parametrize("scheduled", ALONE, ids=str)
def test_kernels(scheduled: Scheduled, mode: str) -> None:
    """Each kernel, in ragged groups and in masked ones, BF16 and FP32."""
    order = orders(PROBLEM)["shuffled"]
    for seed, dtype in ((1, torch.bfloat16), (2, torch.float32)):
        pair = Overlapped(scheduled, PROBLEM, order, dtype=dtype)
        check(pair, seed=seed, async_completion=mode)
        pair = Overlapped(scheduled, PROBLEM, order, max_m=133, dtype=dtype, num_sms=24)
        check(pair, seed=seed, async_completion=mode)


@pytest.mark.parametrize("scope", ["gpu", "system"])
@pytest.mark.parametrize("order", orders(PROBLEM))
@pytest.mark.parametrize("scheduled", SOME, ids=str)
def test_orders(scheduled: Scheduled, order: str, scope: str) -> None:
    rows = orders(PROBLEM)[order]
    for seed, schedule in ((3, "random"), (4, "priority"), (5, "priority")):
        pair = Overlapped(scheduled, PROBLEM, rows, scope=scope)
        check(pair, seed=seed, schedule=schedule, async_completion="random")


def test_the_gemm_starts_before_the_last_row_has_come() -> None:
    """Else it would not overlap: with a row that never comes, all other blocks are multiplied."""
    order = [row for row in range(PROBLEM.m) if row != 260]
    pair = Overlapped(SOME[0], PROBLEM, order, timeout_ns=2_000_000)
    fill, multiply, _ = pair.launches()
    pair.emulator().launch_concurrent([fill, multiply])
    out, expected = pair.tensors["out"], pair.expected()
    assert_same_bits(out[:209], expected[:209])
    assert bool((out[260:] == UNTOUCHED).all())


@pytest.mark.parametrize("scheduled", SOME, ids=str)
def test_one_after_the_other(scheduled: Scheduled) -> None:
    """Filled first: right. Multiplied first: the wait ends, says for what, and nothing is written;
    what never came can be multiplied afterwards."""
    pair = Overlapped(scheduled, PROBLEM, orders(PROBLEM)["shuffled"], timeout_ns=1_000_000)
    fill, multiply, take = pair.launches()
    for launch in (fill, multiply, take):
        pair.emulator().launch_concurrent([launch]).raise_if_findings()
    assert_same_bits(pair.tensors["taken"], pair.expected())

    pair = Overlapped(scheduled, PROBLEM, orders(PROBLEM)["shuffled"], timeout_ns=1_000_000)
    fill, multiply, take = pair.launches()
    pair.emulator().launch_concurrent([multiply]).raise_if_findings()
    assert bool((pair.tensors["out"] == UNTOUCHED).all())
    assert not bool(pair.tensors["done"].any())
    message = pair.device.take_error()
    assert message is not None
    assert "rows of ready counter" in message
    assert " 0 of " in message
    for launch in (fill, multiply, take):
        pair.emulator().launch_concurrent([launch]).raise_if_findings()
    assert_same_bits(pair.tensors["taken"], pair.expected())
    assert pair.device.take_error() is None


def test_wrong_offsets_are_told_before_a_time_out() -> None:
    """They take no rows from the groups that are right, whose tiles wait for their own rows."""
    problem = Problem((300,), 40, 144)
    pair = Overlapped(SOME[0], problem, list(range(300)), timeout_ns=1_000_000)
    b, sfb = problem.weights()
    pair.tensors["b"] = b.expand(3, -1, -1)
    pair.tensors["sfb"] = sfb.expand(3, -1, -1)
    pair.tensors["groups"] = torch.tensor([0, 300, 200, 100], dtype=torch.int32)
    fill, multiply, _ = pair.launches()
    pair.emulator().launch_concurrent([fill, multiply]).raise_if_findings()
    assert_same_bits(pair.tensors["out"], pair.expected())
    message = pair.device.take_error()
    assert message is not None
    assert message.startswith("group_offsets of group 1 end at 200, must be at least 300")


def test_without_the_filler_the_emulator_says_who_waits() -> None:
    """With a time-out beyond all patience the launch is a hung one."""
    pair = Overlapped(SOME[0], PROBLEM, [], timeout_ns=2**62)
    _, multiply, _ = pair.launches()
    with pytest.raises(EmulationError):
        pair.emulator(max_warp_instructions=3_000_000).launch_concurrent([multiply])


def test_ready_counters_need_a_kernel_without_clusters() -> None:
    clustered = next(scheduled for scheduled in ALL if scheduled.cluster > 1)
    with pytest.raises(ValueError, match="ready counters need a schedule without clusters"):
        Overlapped(clustered, PROBLEM, []).launches()
