"""Experts' GEMMs beside the dispatch and the combine: the bits of one call after the other.

Threads play the processes of a node and a recording driver their GPUs, whose streams run in the
emulator as streams do: what they do not order happens in any order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import moe, reference
from pykernels.emulator import EmulationError
from pykernels.group_checks import COUNTER_ROWS
from pykernels.grouped_gemm import _COUNTER_COLUMNS
from pykernels.native import native, strided_view
from tests.grouped_kernels import ALL, UNTOUCHED
from tests.moe.checking import buffer_of, same_bits
from tests.moe.played_gpu import Played
from tests.moe.played_processes import Processes
from tests.moe.routings import Batch, Routing
from tests.moe_launch import FOREVER_NS, NUM_SMS, MoeLaunch

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
    generator = torch.Generator().manual_seed(rank)
    shapes = ((2, 2 * INNER, HIDDEN), (2, HIDDEN, INNER))
    made = []
    for shape in shapes:
        weight = torch.randn(shape, generator=generator) / shape[2] ** 0.5
        parts = [reference.quantize_128x128(each.bfloat16()) for each in weight]
        made.append((torch.stack([q for q, _ in parts]), torch.stack([s for _, s in parts])))
    return made


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


def test_tiles_are_multiplied_before_the_last_token_has_come() -> None:
    """A token never comes: tiles of blocks without it are there all the same."""
    launch = MoeLaunch.make(
        "moe_dispatch", [(90, 90)], HIDDEN, kind="fp8", num_local_experts=2, absent=1
    )
    world, sent = launch.world, launch.batches[0]
    memory = [tensor for each in sent for tensor in each.all_tensors()]
    for each in sent:
        each.poison()
    phases = [world.layout(sent), world.dispatch(sent, "send and counts", beside=True)]
    world.run(phases, memory).raise_if_findings()
    mine = sent[0].tensors
    last = int(mine["recv_counts"][1]) - 1
    world.take_back(0, 1, last)

    num_rows = int(mine["groups"][-1])
    weights = weights_of(0)[0]
    out = torch.full((mine["recv_x"].size(0), 2 * INNER), UNTOUCHED).bfloat16()
    device = native().EmulatedDevice(num_sms=NUM_GEMM_SMS)
    scheduled = next(each for each in ALL if each.kernel.endswith("m64n128c1"))
    multiply = native().make_grouped_fp8_gemm_nt_launch(
        device,
        *map(strided_view, (mine["recv_x"], sent[0].scale_columns(), *weights, out)),
        strided_view(mine["groups"]),
        "group_offsets",
        NUM_GEMM_SMS,
        None,
        strided_view(mine["counters"][0]),
        strided_view(mine["counters"][1]),
        False,
        FOREVER_NS,
        scheduled.kernel,
        scheduled.schedule,
    )
    rows = world.dispatch(sent, "rows", beside=True)[0]
    record = (ctypes.c_uint32 * 4).from_address(device.error_record())
    used = [*memory, *weights, out, torch.frombuffer(record, dtype=torch.int32)]
    with pytest.raises(EmulationError):
        world.run([[rows, multiply]], used, max_warp_instructions=3_000_000)
    ready = mine["counters"][0][: -(-num_rows // COUNTER_ROWS)].tolist()
    whole = [COUNTER_ROWS] * (num_rows // COUNTER_ROWS) + [num_rows % COUNTER_ROWS]
    missing = {i for i, each in enumerate(whole) if ready[i] < each}
    assert 1 <= len(missing) < len(whole)
    expected = pykernels.grouped_fp8_gemm_nt(
        (mine["recv_x"][:num_rows], sent[0].scale_columns()[:num_rows]), weights, mine["groups"]
    )
    computed = 0
    for i in set(range(len(whole))) - missing:
        for column in range(0, 2 * INNER, 128):
            rows_of_block = slice(i * COUNTER_ROWS, min((i + 1) * COUNTER_ROWS, num_rows))
            tile = out[rows_of_block, column : column + 128]
            if (tile != UNTOUCHED).all():
                computed += 1
                assert same_bits(tile, expected[rows_of_block, column : column + 128])
    assert computed >= 2
    for i in missing:
        assert (out[i * COUNTER_ROWS : (i + 1) * COUNTER_ROWS] == UNTOUCHED).any()
