"""Every kernel of the grouped FP8 GEMM with every schedule, bit by bit against the dense kernel."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pykernels.emulator import EmulationError, Module
from pykernels.native import native, strided_view
from tests.cases import assert_same_bits
from tests.grouped_kernels import (
    ALL,
    KERNELS,
    RICHEST,
    UNTOUCHED,
    Problem,
    Scheduled,
    launch,
    run,
    run_indices,
    run_masked,
    schedules,
)
from tests.kernel_launch import kernel_ptx, run_launch

DTYPES = [torch.bfloat16, torch.float32]
MODES = ("early", "late", "random")


def edges(scheduled: Scheduled) -> dict[str, Problem]:
    """Sizes around the tile; n in steps of 8, k in steps of 16, more k tiles than stages."""
    block, n = scheduled.block_m, scheduled.block_n
    return {
        "around a tile": Problem((0, block - 1, block, block + 1, 0, 1), n + 8, 144, 3, 5),
        "one group has all rows": Problem((0, 0, 3 * block + 5, 0), n - 8, 16, behind=block),
        "no group has rows": Problem((0, 0, 0), 8, 128, before=9),
        "one row, a long k": Problem((1,), 8, 17 * 128 + 16),
        "clusters not full": Problem((2 * block + 1, 1, block), 3 * n + 8, 272),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheduled", ALL, ids=str)
def test_edges(scheduled: Scheduled, dtype: torch.dtype) -> None:
    for problem in edges(scheduled).values():
        assert_same_bits(run(scheduled, problem, dtype), problem.expected(dtype))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheduled", ALL, ids=str)
def test_schedules(scheduled: Scheduled, mode: str) -> None:
    """Seeds, completion orders and few SMs, so that slots and stages are used again."""
    problem = Problem((70, 0, 9, 1, 130), 200, 656, 1, 2)
    expected = problem.expected(torch.float32)
    for seed, clusters in ((1, 1), (2, 3)):
        options = {"seed": seed, "async_completion": mode}
        result = run(scheduled, problem, torch.float32, clusters * scheduled.cluster, **options)
        assert_same_bits(result, expected)
    result = run(scheduled, problem, torch.bfloat16, async_completion=mode)
    assert_same_bits(result, expected.bfloat16())


@pytest.mark.parametrize("scheduled", ALL, ids=str)
def test_indices(scheduled: Scheduled) -> None:
    """Rows of no group anywhere: alone, in runs, at both ends of a window of 32 rows."""
    problem = Problem((70, 0, 33, 100), 136, 144, 2, 3)
    m = problem.m
    cases = {
        "none": [],
        "single ones": [2, 40, 71, 72, 120, 207 - 1],
        "runs": [*range(20, 52), *range(100, 130)],
        "window ends": [31, 32, 63, 95, 96, 127, 128],
        "every other row": list(range(0, m, 2)),
        "all": list(range(m)),
    }
    for holes in cases.values():
        run_indices(scheduled, problem, holes, torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 127, 129, 256])
def test_indices_around_windows(rows: int) -> None:
    """The last segment ends with the matrix, also where a window ends there."""
    scheduled = RICHEST[0]
    for problem in (Problem((rows,), 8, 16), Problem((rows - 1, 1), 8, 16)):
        run_indices(scheduled, problem, [], torch.float32)


def test_indices_need_not_be_sorted() -> None:
    problem = Problem((40, 3, 50), 136, 144)
    order = [2, 0, 1, 0, 2]
    lengths = {0: [25, 15], 1: [3], 2: [20, 30]}
    a, sfa = problem.rows()
    expected = problem.expected(torch.float32)
    taken = {group: problem.offsets[group] for group in lengths}
    rows: list[int] = []
    groups: list[int] = []
    for group in order:
        length = lengths[group].pop(0)
        rows += range(taken[group], taken[group] + length)
        groups += [group] * length
        taken[group] += length
    out = torch.full((93, 136), UNTOUCHED)
    indices = torch.tensor(groups, dtype=torch.int32)
    shuffled = [a.view(torch.uint8)[rows].view(a.dtype), sfa[rows]]
    launch(RICHEST[0], [*shuffled, *problem.weights(), out, indices], "m_indices")
    assert_same_bits(out, expected[rows])


@pytest.mark.parametrize("scheduled", ALL, ids=str)
def test_masked(scheduled: Scheduled) -> None:
    """Counts from none to all, tiles that end inside, rows and groups further apart than needed."""
    block = scheduled.block_m
    problem = Problem((block + 1, 0, 2 * block, 1, block - 1), 136, 144)
    run_masked(scheduled, problem, 2 * block, torch.bfloat16)
    run_masked(scheduled, problem, 2 * block + 9, torch.float32, pad=5)


def test_masked_with_one_row_or_one_group() -> None:
    for scheduled in (RICHEST[0], RICHEST[-1]):
        run_masked(scheduled, Problem((1, 0, 1), 8, 16), 1, torch.bfloat16)
        run_masked(scheduled, Problem((70,), 8, 16), 100, torch.bfloat16, pad=3)


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_a_group_does_not_influence_another(scheduled: Scheduled) -> None:
    """NaN in a group's rows, scale factors and weights reaches that group alone."""
    problem = Problem((5, 9, 70), 136, 144)
    clean = problem.expected(torch.float32)
    for poisoned in range(3):
        a, sfa = problem.rows()
        b, sfb = (tensor.clone() for tensor in problem.weights())
        rows = problem.segments[poisoned]
        a.view(torch.uint8)[rows, 3] = 0x7F
        sfa[rows] = torch.nan
        b.view(torch.uint8)[poisoned, :, 5] = 0xFF
        sfb[poisoned] = torch.inf
        out = torch.full((84, 136), UNTOUCHED)
        offsets = torch.tensor(problem.offsets, dtype=torch.int32)
        launch(scheduled, [a, sfa, b, sfb, out, offsets], "group_offsets")
        assert bool(out[rows].isnan().all())
        others = torch.ones(84, dtype=torch.bool)
        others[rows] = False
        assert_same_bits(out[others], clean[others])


def skewed(seed: int, num_groups: int, num_rows: int) -> tuple[int, ...]:
    """Rows that a router sends by a power law: a few groups have most, many have none."""
    generator = random.Random(seed)
    shares = [1 / (rank + 1) ** 1.5 for rank in range(num_groups)]
    generator.shuffle(shares)
    chosen = generator.choices(range(num_groups), shares, k=num_rows)
    return tuple(chosen.count(group) for group in range(num_groups))


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_router_skewed_sizes(scheduled: Scheduled) -> None:
    problem = Problem(skewed(len(scheduled.kernel), 96, 200), 72, 144)
    assert 0 in problem.sizes
    assert max(problem.sizes) > 20
    result = run(scheduled, problem, torch.bfloat16, 6 * scheduled.cluster)
    assert_same_bits(result, problem.expected(torch.bfloat16))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.integers(0, 40) | st.sampled_from([63, 64, 65, 128, 129]), max_size=70),
    before=st.integers(0, 3),
    behind=st.integers(0, 3),
    scheduled=st.sampled_from(ALL),
    clusters=st.integers(1, 5),
    seed=st.integers(0, 2**20),
)
def test_any_sizes(
    sizes: list[int], before: int, behind: int, scheduled: Scheduled, clusters: int, seed: int
) -> None:
    problem = Problem((*sizes, 1), 40, 48, before, behind)
    options = {"seed": seed, "async_completion": "random"}
    result = run(scheduled, problem, torch.bfloat16, clusters * scheduled.cluster, **options)
    assert_same_bits(result, problem.expected(torch.bfloat16))


def reachable(scheduled: Scheduled, tensors: list[Tensor], source: str, touched: list[int]) -> None:
    """Runs a launch that may touch of a, sfa and out these rows only: all else is no memory."""
    device = native().EmulatedDevice()
    views = [strided_view(tensor) for tensor in tensors]
    options = {"kernel": scheduled.kernel, "schedule": scheduled.schedule}
    made = native().make_grouped_fp8_gemm_nt_launch(device, *views, source, **options)
    a, sfa, b, sfb, out, groups = tensors
    pieces = [tensor[row] for tensor in (a, sfa, out) for row in touched]
    module = Module.from_ptx(kernel_ptx(scheduled.kernel))
    run_launch(module, made, [*pieces, b, sfb, groups], 132).raise_if_findings()


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_no_row_of_another_is_even_read(scheduled: Scheduled) -> None:
    """Rows of no group are neither loaded nor stored, not even as a part of a box."""
    problem = Problem((5, 0, 3), 40, 48, 2, 4)
    out = torch.full((problem.m, problem.n), UNTOUCHED)
    offsets = torch.tensor(problem.offsets, dtype=torch.int32)
    tensors = [*problem.rows(), *problem.weights(), out, offsets]
    touched = list(range(2, 10))
    reachable(scheduled, tensors, "group_offsets", touched)
    assert_same_bits(out, problem.expected(torch.float32))
    with pytest.raises(EmulationError):
        reachable(scheduled, tensors, "group_offsets", touched[:-1])

    indices = torch.tensor([-1, -1, 0, 0, -1, 0, -1, 2, 2, -1, -1, -1, -1, -1], dtype=torch.int32)
    tensors[-2:] = [torch.full_like(out, UNTOUCHED), indices]
    reachable(scheduled, tensors, "m_indices", [2, 3, 5, 7, 8])
    with pytest.raises(EmulationError):
        reachable(scheduled, tensors, "m_indices", [2, 3, 5, 7])


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_strides(scheduled: Scheduled) -> None:
    """Rows and groups further apart, scale factors of any strides."""
    problem = Problem((33, 0, 40), 72, 144)
    (a, sfa), (b, sfb) = problem.rows(), problem.weights()
    a_wide = torch.full((73, 320), 0x7F, dtype=torch.uint8)[:, 16:160]
    a_wide.copy_(a.view(torch.uint8))
    b_wide = torch.full((3, 80, 176), 0x7F, dtype=torch.uint8)[:, 4:76, 16:160]
    b_wide.copy_(b.view(torch.uint8))
    sfa_wide = torch.full((5, 73), torch.nan).T[:, 1:5:2].copy_(sfa)
    sfb_wide = torch.full((2, 1, 7), torch.nan).permute(2, 1, 0)[1:6:2].copy_(sfb)
    storage = torch.full((90, 160), UNTOUCHED)
    out = storage[8:81, 16:88]
    offsets = torch.tensor([0, *problem.offsets], dtype=torch.int32)[1:]
    values = [tensor.view(torch.float8_e4m3fn) for tensor in (a_wide, b_wide)]
    launch(scheduled, [values[0], sfa_wide, values[1], sfb_wide, out, offsets], "group_offsets")
    assert_same_bits(out, problem.expected(torch.float32))
    out.fill_(UNTOUCHED)
    assert bool((storage == UNTOUCHED).all())


WRONG_OFFSETS = {
    # Group 2 has rows that group 0 has.
    "decrease": ([0, 5, 3, 9, 12], {0, 3}, "group_offsets of group 1 end at 3"),
    "decrease far": ([0, 5, 2, 3, 12], {0}, "group_offsets of group 1 end at 2"),
    "pass the end": ([0, 5, 8, 9, 15], {0, 1, 2}, "group_offsets of group 3 end at 15"),
    "pass the end for once": ([0, 5, 99, 8, 12], {0, 3}, "group_offsets of group 1 end at 99"),
    "start below 0": ([-2, 5, 8, 9, 12], {1, 2, 3}, "group_offsets of group 0 must be at least 0"),
}


@pytest.mark.parametrize("what", WRONG_OFFSETS)
@pytest.mark.parametrize("scheduled", [RICHEST[0], RICHEST[3], RICHEST[-1]], ids=str)
def test_wrong_offsets(scheduled: Scheduled, what: str) -> None:
    """The group's rows stay untouched, all others are right, the error names the group."""
    values, right, message = WRONG_OFFSETS[what]
    problem = Problem((12,), 40, 48)
    a, sfa = problem.rows()
    b, sfb = (tensor.expand(4, -1, -1) for tensor in problem.weights())
    out = torch.full((12, 40), UNTOUCHED)
    offsets = torch.tensor(values, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        launch(scheduled, [a, sfa, b, sfb, out, offsets], "group_offsets")
    expected = torch.full((12, 40), UNTOUCHED)
    for group in right:
        rows = slice(values[group], values[group + 1])
        expected[rows] = problem.expected(torch.float32)[rows]
    assert_same_bits(out, expected)


def test_wrong_counts_and_indices() -> None:
    problem = Problem((6, 6), 40, 48)
    rows = [tensor.view(2, 6, -1) for tensor in problem.rows()]
    for count in (-1, 7, 2**31 - 1):
        out = torch.full((2, 6, 40), UNTOUCHED)
        counts = torch.tensor([count, 6], dtype=torch.int32)
        with pytest.raises(
            ValueError, match=f"masked_m of group 0 must be from 0 to 6, got {count}"
        ):
            launch(RICHEST[0], [*rows, *problem.weights(), out, counts], "masked_m")
        assert bool((out[0] == UNTOUCHED).all())
        assert_same_bits(out[1], problem.expected(torch.float32)[6:])
    for index in (-2, 2, -(2**31)):
        out = torch.full((12, 40), UNTOUCHED)
        indices = torch.tensor([0] * 6 + [index] + [1] * 5, dtype=torch.int32)
        with pytest.raises(
            ValueError, match=f"m_indices of row 6 must be from -1 to 1, got {index}"
        ):
            launch(RICHEST[0], [*problem.rows(), *problem.weights(), out, indices], "m_indices")
        expected = problem.expected(torch.float32)
        expected[6] = UNTOUCHED
        assert_same_bits(out, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_foreign_schedules_are_refused(kernel: str) -> None:
    """A cluster shape that the kernel was not made for, before anything is launched."""
    problem = Problem((8,), 8, 16)
    out = torch.full((8, 8), UNTOUCHED)
    tensors = [*problem.rows(), *problem.weights(), out, torch.tensor([0, 8], dtype=torch.int32)]
    for schedule in ((2, 2, 1), (1, 1, 2), (2, 1, 2), (0, 1, 1), (1, 8, 1)):
        assert schedule not in schedules(KERNELS[kernel])
        with pytest.raises(ValueError, match=f"kernel {kernel} cannot run clusters of"):
            launch(Scheduled(kernel, schedule), tensors, "group_offsets")
    with pytest.raises(ValueError, match="fp8_gemm_nt_m64n64c1 is none of family grouped"):
        launch(Scheduled("fp8_gemm_nt_m64n64c1", (1, 1, 1)), tensors, "group_offsets")
    assert bool((out == UNTOUCHED).all())
