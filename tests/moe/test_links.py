"""Ranks that connect at different times, fail, and connect again: real processes over gloo."""

from __future__ import annotations

import pytest

from tests.moe import links_calls
from tests.moe.gloo import run_ranks


@pytest.mark.parametrize("delays", [(0, 1.3, 4.6), (4.6, 1.3, 0)])
def test_one_call_is_enough(delays: tuple[float, ...]) -> None:
    """Calls begin more than two timeouts apart, and overlap for less than one."""
    assert run_ranks(3, links_calls.staggered, delays, 2) == [(1, [0, 1, 2])] * 3


@pytest.mark.parametrize("delays", [(0, 3, 8), (8, 0, 3)])
def test_calls_that_fail_before(delays: tuple[float, ...]) -> None:
    """The first rank gives up and comes again before the last one comes for the first time."""
    answers = run_ranks(3, links_calls.staggered, delays, 1)
    assert answers == [(2 if delay == 0 else 1, [0, 1, 2]) for delay in delays]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_no_rank_believes_alone_that_it_is_connected(failing: int) -> None:
    """A round that one rank fails is none; the next follows within the same call."""
    assert run_ranks(3, links_calls.fails_to_construct, failing) == [(1, [0, 1, 2])] * 3


@pytest.mark.parametrize("left_out", [0, 2])
def test_other_members_and_all_again(left_out: int) -> None:
    for rank, (error, all_heard) in enumerate(run_ranks(3, links_calls.with_and_without, left_out)):
        assert all_heard == [0, 1, 2]
        if rank != left_out:
            others = f"rank {rank} could not connect to all of the ranks [0, 1, 2]: "
            assert error.startswith(f"RuntimeError: {others}rank {left_out} has not come ")
