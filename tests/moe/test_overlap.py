"""Experts' GEMMs beside the dispatch and the combine: the bits of one call after the other.

Threads play the processes of a node and a recording driver their GPUs, whose streams run in the
emulator as streams do: what they do not order happens in any order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import moe
from pykernels.emulator import EmulationError
from pykernels.group_checks import COUNTER_ROWS
from pykernels.grouped_gemm import _COUNTER_COLUMNS
from pykernels.native import native
from tests.moe.checking import buffer_of, same_bits
from tests.moe.played_gpu import Played
from tests.moe.played_processes import Processes
from tests.moe.routings import Batch, Routing
from tests.moe_beside import NUM_SMS as NUM_ALL_SMS
from tests.moe_beside import Experts, expert_weights
from tests.moe_launch import FOREVER_NS, NUM_SMS, TIMEOUT_NS, MoeLaunch, World

HIDDEN, INNER = 256, 128
ROUTING = Routing("uniform", (40, 7, 25), 6, 3, 40)
CAPACITY = 250
NUM_GEMM_SMS = 4
SCHEDULES: list[dict[str, Any]] = [
    {"async_completion": "late"},
    {"async_completion": "early", "seed": 1},
    {"async_completion": "random", "seed": 2},
    {"async_completion": "random", "seed": 3, "schedule": "priority"},
    {"async_completion": "late", "seed": 4, "schedule": "priority"},
]


@pytest.fixture
def make_processes(
    make_played: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Processes]]:
    made: list[Processes] = []

    def make(**emulator: Any) -> Processes:
        played = make_played(num_devices=ROUTING.num_ranks, emulator=emulator)
        made.append(Processes(played, ROUTING.num_ranks, monkeypatch))
        return made[-1]

    yield make
    for processes in made:
        processes.close()


def weights_of(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Of a rank's two experts: gate and up, then down."""
    shapes = ((2 * INNER, HIDDEN), (HIDDEN, INNER))
    return [expert_weights(2, *shape, 2 * rank + i) for i, shape in enumerate(shapes)]


def layer(
    buffer: moe.Buffer, sent: tuple[Any, ...], weights: list[tuple[Tensor, Tensor]], beside: bool
) -> tuple[Tensor, Any]:
    """An expert-parallel MLP; with ``beside`` its ends overlap with the all-to-all.

    Also returns what must live until it has run.
    """
    options: dict[str, Any] = {"num_sms": NUM_GEMM_SMS}
    if not beside:
        rows, offsets, handle = buffer.dispatch(*sent, capacity=CAPACITY)
        inner = pykernels.grouped_fp8_gemm_nt(rows, weights[0], offsets, **options)
        act = pykernels.silu_mul_quantize_1x128(inner)
        y = pykernels.grouped_fp8_gemm_nt(act, weights[1], offsets, **options)
        return buffer.combine(y, handle), (inner, act, y)
    rows, offsets, handle, arrival = buffer.dispatch(*sent, capacity=CAPACITY, async_finish=True)
    ready, done = arrival.ready, arrival.done
    inner = pykernels.grouped_fp8_gemm_nt(rows, weights[0], offsets, ready=ready, **options)
    act = pykernels.silu_mul_quantize_1x128(inner)
    y = pykernels.grouped_fp8_gemm_nt(act, weights[1], offsets, done=done, **options)
    out, departure = buffer.combine(y, handle, done=done, async_finish=True)
    arrival.wait()
    departure.wait()
    return out, (inner, act, y)


def run_layers(processes: Processes, batch: Batch, calls: list[bool]) -> list[list[Tensor]]:
    """Of every rank, its results of these calls."""
    options = {"group": None, "num_sms": NUM_SMS, "timeout": 5.0}
    buffers = processes.each(lambda rank: buffer_of(ROUTING, HIDDEN, **options))
    x = batch.fp8()
    processes.played.run()  # the casts

    def run(rank: int) -> list[tuple[Tensor, Any]]:
        sent = x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
        return [layer(buffers[rank], sent, weights[rank], beside) for beside in calls]

    weights = [weights_of(rank) for rank in range(ROUTING.num_ranks)]
    found = processes.each(run)
    results = [[out for out, _ in of_rank] for of_rank in found]
    processes.each(lambda rank: buffers[rank].check())
    assert processes.played.findings == []
    processes.each(lambda rank: buffers[rank].close())
    return results


def test_counters_are_those_of_the_gemm() -> None:
    memory = native().moe_memory()
    assert memory["counter_rows"] == COUNTER_ROWS
    assert memory["counter_columns"] == _COUNTER_COLUMNS


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_overlapped_layers_have_the_bits_of_serial_ones(
    make_processes: Callable[..., Processes], schedule: dict[str, Any]
) -> None:
    """The second one finds the counters of the first."""
    processes = make_processes(**schedule)
    for results in run_layers(processes, ROUTING.batch(HIDDEN), [False, True, True]):
        serial, *overlapped = results
        assert serial.any()
        assert all(same_bits(each, serial) for each in overlapped)


class Withheld:
    """A rank's rows kernel and the GEMM beside it, where one token of the other rank is missing."""

    def __init__(self, timeout_ns: int) -> None:
        made = MoeLaunch.make("moe_dispatch", [(90, 90)], HIDDEN, kind="fp8", num_local_experts=2)
        self.world = World(made.world.sizes, timeout_ns)
        sent = made.batches[0]
        self.memory = [tensor for each in sent for tensor in each.all_tensors()]
        for each in sent:
            each.poison()
        world, mine = self.world, sent[0].tensors
        phases = [world.layout(sent), world.dispatch(sent, "send and counts", beside=True)]
        world.run(phases, self.memory).raise_if_findings()
        world.take_back(0, 1, int(mine["recv_counts"][1]) - 1)
        self.starts = [int(start) for start in mine["groups"]]
        self.groups = mine["groups"]
        self.experts = Experts(sent[0], expert_weights(2, 2 * INNER, HIDDEN, 0))
        self.experts.out.fill_(torch.nan)
        self.rows = world.dispatch(sent, "rows", beside=True)[0]

    def run(self, **options: Any) -> None:
        used = [*self.memory, *self.experts.memory()]
        launches = [[self.rows, self.experts.launch()]]
        self.world.run(launches, used, num_sms=NUM_ALL_SMS, **options).raise_if_findings()

    def num_tiles(self, without: set[int]) -> int:
        """How many are there whole; all are right, and have no rows of these counters' blocks."""
        num_rows, computed = self.starts[-1], 0
        rows = tuple(each[:num_rows] for each in self.experts.rows)
        with pykernels.emulate():
            expected = pykernels.grouped_fp8_gemm_nt(rows, self.experts.weights, self.groups)
        for start, end in itertools.pairwise(self.starts):
            for first, column in itertools.product(range(start, end, 64), (0, 128)):
                tile = slice(first, min(first + 64, end)), slice(column, column + 128)
                blocks = {tile[0].start // COUNTER_ROWS, (tile[0].stop - 1) // COUNTER_ROWS}
                if self.experts.out[tile].isnan().any() or blocks & without:
                    continue
                computed += 1
                assert same_bits(self.experts.out[tile], expected[tile])
        return computed

    def missing(self) -> set[int]:
        """Counters of blocks that lack a row."""
        wanted = range(0, self.starts[-1], COUNTER_ROWS)
        return {
            i
            for i, first in enumerate(wanted)
            if self.experts.ready[i] < min(COUNTER_ROWS, self.starts[-1] - first)
        }


def test_tiles_are_multiplied_before_the_last_token_has_come() -> None:
    """It never comes: tiles of blocks without it are there all the same, others are not."""
    withheld = Withheld(FOREVER_NS)
    with pytest.raises(EmulationError):
        withheld.run(max_warp_instructions=30_000_000)
    missing = withheld.missing()
    assert missing
    assert withheld.num_tiles(missing) > 0
    for i in missing:
        begin = i * COUNTER_ROWS
        end = min(begin + COUNTER_ROWS, withheld.starts[-1])
        assert withheld.experts.out[begin:end].isnan().any()


def test_nobody_waits_for_rows_that_are_given_up() -> None:
    """The rows kernel blames who has not come; the GEMM goes on over what there is."""
    withheld = Withheld(TIMEOUT_NS)
    withheld.run()
    error = withheld.world.errors()[0]
    assert error is not None
    assert (error["kind"], error["peer"], error["phase"]) == ("timeout", 1, "dispatch token")
    assert withheld.experts.device.take_error() is None
    assert not withheld.missing()
    rows, parts = withheld.starts[-1], 2 * INNER // _COUNTER_COLUMNS
    assert int(withheld.experts.done.sum()) == rows * parts
