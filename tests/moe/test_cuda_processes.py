"""Ranks of one node, a process and a GPU each, without a GPU: windows, results, ends, failures.

Threads play the processes and a recording driver their GPUs; CPU tensors stand in for CUDA tensors.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pykernels import moe, reference
from pykernels.moe.ipc import Members
from pykernels.native import native
from tests.moe.checking import (
    HIDDEN,
    check_grouped,
    check_masked_layout,
)
from tests.moe.played_gpu import Played
from tests.moe.played_processes import AllRanks, Processes
from tests.moe.routings import Routing, skewed
from tests.moe_launch import NUM_SMS

ROUTING = Routing("uniform", (5, 4, 6), 6, 3, 6)
SKEWED = Routing("skewed", (8, 3, 8, 0), 8, 3, 8, skewed)
TIMEOUT = 5.0  # of a rank's wait in the emulator's time, and in the host's where ranks meet
OPTIONS: dict[str, Any] = {"num_sms": NUM_SMS, "timeout": TIMEOUT}


@pytest.fixture
def make_processes(
    make_played: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Processes]]:
    made: list[Processes] = []

    def make(num_ranks: int, **options: Any) -> Processes:
        played = make_played(num_devices=num_ranks, **options)
        made.append(Processes(played, num_ranks, monkeypatch))
        return made[-1]

    yield make
    for processes in made:
        processes.close()


@pytest.fixture
def processes(make_processes: Callable[..., Processes]) -> Processes:
    return make_processes(3)


def close(processes: Processes, buffers: list[moe.Buffer]) -> None:
    processes.each(lambda rank: buffers[rank].close())
    check_all_is_freed(processes)


def check_all_is_freed(processes: Processes) -> None:
    calls = processes.driver.calls
    assert processes.driver.violations == []
    assert calls.get("cuMemFree", 0) == calls.get("cuMemAlloc", 0)
    assert calls.get("cuIpcCloseMemHandle", 0) == calls.get("cuIpcOpenMemHandle", 0)


def members_of(buffer: moe.Buffer) -> Members:
    transport: Any = buffer._transport()
    members: Members = transport._members
    return members


# ---- results ----


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("routing", [ROUTING, SKEWED], ids=str)
def test_dispatch_and_combine(
    make_processes: Callable[..., Processes], routing: Routing, fp8: bool
) -> None:
    processes = make_processes(routing.num_ranks)
    buffers = processes.make_buffers(routing, HIDDEN, **OPTIONS)
    together: Any = AllRanks(processes, buffers)
    batch = routing.batch(HIDDEN)
    x: list[Any] = batch.fp8() if fp8 else batch.x
    processes.played.run()  # the casts
    processes.driver.clear_launches()
    for _ in range(2):
        check_grouped(routing, batch, together, x)
    launches = processes.driver.launches
    for rank in range(routing.num_ranks):
        own = [launch for launch in launches if launch.process == rank]
        kernels = [launch.launch.kernel for launch in own]
        assert kernels == ["moe_layout", "moe_dispatch", "moe_combine"] * 2
        assert {launch.device_index for launch in own} == {rank}
        assert len({launch.stream for launch in own}) == 1
    processes.each(lambda rank: buffers[rank].check())
    close(processes, buffers)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "hook"])
def test_low_latency(make_processes: Callable[..., Processes], split: bool) -> None:
    processes = make_processes(SKEWED.num_ranks)
    buffers = processes.make_buffers(SKEWED, HIDDEN, **OPTIONS)
    together: Any = AllRanks(processes, buffers)
    batch = SKEWED.batch(HIDDEN)
    sent: list[Any] = [reference.quantize_1x128(each) for each in batch.x]
    for _ in range(2):
        check_masked_layout(SKEWED, batch, together, batch.x, sent, return_recv_hook=split)
    close(processes, buffers)


def test_ops(processes: Processes) -> None:
    """They launch what the methods launch."""
    batch = ROUTING.batch(HIDDEN)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)

    def call(rank: int) -> Any:
        buffer = buffers[rank]
        routing = batch.topk_idx[rank], batch.topk_weights[rank]
        of_buffer = buffer.number, buffer.token
        x, _, _, *tables = torch.ops.pykernels.moe_dispatch(
            *of_buffer, batch.x[rank], None, *routing, 54
        )
        return x, torch.ops.pykernels.moe_combine(*of_buffer, x, *routing, *tables)

    results = processes.each(call)
    kernels = [each.launch.kernel for each in processes.driver.launches if each.process == 1]
    assert kernels == ["moe_layout", "moe_dispatch", "moe_combine"]
    exact = reference.moe_combine(
        [x for x, _ in results], batch.topk_idx, batch.topk_weights, num_experts=6
    )
    assert all(torch.equal(out, wanted) for (_, out), wanted in zip(results, exact, strict=True))
    close(processes, buffers)


def test_two_buffers(processes: Processes) -> None:
    batch = ROUTING.batch(HIDDEN)
    first = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    second = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    for buffers in (first, second, first):
        check_grouped(ROUTING, batch, AllRanks(processes, buffers), batch.x)  # type: ignore[arg-type]
    processes.each(lambda rank: second[rank].close())
    check_grouped(ROUTING, batch, AllRanks(processes, first), batch.x)  # type: ignore[arg-type]
    close(processes, first)


def test_the_host_does_not_wait(processes: Processes) -> None:
    batch = ROUTING.batch(HIDDEN)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    waited = processes.played.num_host_waits

    def call(rank: int) -> None:
        sent = batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
        recv_x, _, handle = buffers[rank].dispatch(*sent)
        buffers[rank].combine(recv_x, handle)
        *_, hook = buffers[rank].low_latency_dispatch(*sent, return_recv_hook=True)
        hook()

    processes.each(call)
    assert processes.played.num_host_waits == waited
    close(processes, buffers)


def test_sizes_of_windows(processes: Processes) -> None:
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    expected = moe.buffer_bytes(
        num_ranks=3, num_experts=6, num_topk=3, hidden=HIDDEN, num_max_tokens_per_rank=6
    )
    assert [buffer.bytes for buffer in buffers] == [expected] * 3
    for buffer in buffers:
        window = members_of(buffer)._window.bytes
        assert window + native().moe_memory()["state_bytes"] == expected
    close(processes, buffers)


# ---- errors, reset, masks ----


def test_a_process_that_does_not_come(processes: Processes) -> None:
    """Its peers time out; all reset, and zero their windows while nobody writes there."""
    batch = ROUTING.batch(HIDDEN)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    together: Any = AllRanks(processes, buffers)
    check_grouped(ROUTING, batch, together, batch.x)

    def call(rank: int) -> None:
        buffers[rank].dispatch(batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank])

    processes.each(call, ranks=[0, 1])
    errors = processes.outcomes(lambda rank: buffers[rank].check(), ranks=[0, 1])
    assert [(type(error), error.rank, error.peer) for error in errors] == [
        (moe.MoeTimeoutError, rank, 2) for rank in (0, 1)
    ]
    filled = processes.driver.calls["cuMemsetD8Async"]
    processes.each(lambda rank: buffers[rank].reset())
    assert processes.driver.calls["cuMemsetD8Async"] == filled + 3
    for _ in range(2):
        check_grouped(ROUTING, batch, together, batch.x)
    close(processes, buffers)


def test_a_process_that_stays_away_is_left_out(processes: Processes) -> None:
    batch = ROUTING.batch(HIDDEN)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)

    def leave_out(rank: int) -> None:
        buffers[rank].mask_ranks([2])
        buffers[rank].reset()

    processes.each(leave_out, ranks=[0, 1])

    def call(rank: int) -> Any:
        sent = batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
        recv_x, _, handle = buffers[rank].dispatch(*sent, capacity=54)
        return recv_x, buffers[rank].combine(recv_x, handle)

    results = processes.each(call, ranks=[0, 1])
    y = [recv_x for recv_x, _ in results] + [torch.zeros(54, HIDDEN).bfloat16()]
    exact = reference.moe_combine(
        y, batch.topk_idx, batch.topk_weights, num_experts=6, masked_ranks=[2]
    )
    for (_, out), wanted in zip(results, exact, strict=False):
        assert torch.equal(out, wanted)

    def take_in(rank: int) -> None:
        buffers[rank].mask_ranks([])
        buffers[rank].reset()

    processes.each(take_in)
    check_grouped(ROUTING, batch, AllRanks(processes, buffers), batch.x)  # type: ignore[arg-type]
    close(processes, buffers)


def test_windows_are_zeroed_while_nobody_writes_there(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have come before the first, and none goes on before the last."""
    order: list[str] = []
    meet, zero = Members.meet, Members._zero_window

    def recorded_meet(members: Members, ranks: Any, purpose: str) -> None:
        order.append("comes")
        meet(members, ranks, purpose)
        order.append("goes on")

    def recorded_zero(members: Members) -> None:
        time.sleep(0.1 * members.rank.index)
        zero(members)
        order.append("zeroed")

    monkeypatch.setattr(Members, "meet", recorded_meet)
    monkeypatch.setattr(Members, "_zero_window", recorded_zero)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    processes.each(lambda rank: buffers[rank].reset())
    came, zeroed, went_on = (
        [i for i, each in enumerate(order) if each == what]
        for what in ("comes", "zeroed", "goes on")
    )
    assert len(zeroed) == 3
    assert came[2] < zeroed[0]
    assert zeroed[2] < went_on[3]
    close(processes, buffers)


def test_errors_stay_with_their_rank(processes: Processes) -> None:
    batch = ROUTING.batch(HIDDEN)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    batch.topk_idx[1][0, 0] = 6

    def call(rank: int) -> None:
        buffers[rank].dispatch(batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank])

    processes.each(call)
    first, second, third = processes.outcomes(lambda rank: buffers[rank].check())
    assert (first, third) == (None, None)
    assert "topk_idx of rank 1 must be from -1 to 5, got 6" in str(second)
    close(processes, buffers)


def test_wrong_arguments_on_one_rank(processes: Processes) -> None:
    """Its peers learn of them in place of the call."""
    batch = ROUTING.batch(HIDDEN)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    batch.x[1] = batch.x[1].float()

    def call(rank: int) -> None:
        buffers[rank].dispatch(batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank])

    _, second, _ = processes.outcomes(call)
    assert isinstance(second, ValueError)
    first, again, third = processes.outcomes(lambda rank: buffers[rank].check())
    assert str(again).startswith("the buffer refuses work since an earlier call failed: x")
    for error in (first, third):
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("rank 1 has failed: the arguments of its call are wrong")
    assert processes.played.findings == []
    processes.each(lambda rank: buffers[rank].reset())
    batch = ROUTING.batch(HIDDEN)
    check_grouped(ROUTING, batch, AllRanks(processes, buffers), batch.x)  # type: ignore[arg-type]
    close(processes, buffers)


# ---- making and closing ----


def test_windows_are_unmapped_before_they_are_freed(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the driver's calls, and that this test would see another one."""
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    processes.each(lambda rank: buffers[rank].close())
    check_all_is_freed(processes)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    monkeypatch.setattr(Members, "_unmap", lambda members: None)
    processes.each(lambda rank: buffers[rank].close())
    assert len(processes.driver.violations) == 6
    assert "cuMemFree of memory of process" in processes.driver.violations[0]


FULL = "the driver is out of memory"
HINT = "; with ranks_per_node=1 rows move by torch.distributed instead"


def test_a_buffer_that_is_dropped_keeps_its_window(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers may be in a call that writes there."""
    kept: list[object] = []
    said: list[str] = []
    monkeypatch.setattr("pykernels.moe.ipc._abandoned", kept)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    dropped = buffers.pop()
    monkeypatch.setattr("warnings.warn", lambda text, *_, **__: said.append(text))
    del dropped
    gc.collect()
    assert len(said) == 1
    assert said[0].startswith("a MoE buffer was dropped without close()")
    assert "cuMemFree" not in processes.driver.calls
    assert "cuIpcCloseMemHandle" not in processes.driver.calls
    assert len(kept) == 1


class Fails:
    """A constructor of the extension that fails in one process at the given turn."""

    def __init__(self, name: str, rank: int, turn: int, patch: pytest.MonkeyPatch) -> None:
        self._make = getattr(native(), name)
        self._rank = rank
        self._turn = turn
        self._calls = 0
        patch.setattr(native(), name, self)

    def __call__(self, *arguments: Any) -> Any:
        import torch.distributed as dist

        if dist.get_rank() == self._rank:
            self._calls += 1
            if self._calls == self._turn:
                raise RuntimeError(FULL)
        return self._make(*arguments)


@pytest.mark.parametrize(
    ("name", "turn", "message"),
    [
        ("PeerMemory", 1, FULL),
        ("MappedPeer", 1, f"the window of rank 0 cannot be mapped: {FULL}{HINT}"),
        ("MappedPeer", 2, f"the window of rank 2 cannot be mapped: {FULL}{HINT}"),
    ],
)
def test_a_rank_that_fails(
    processes: Processes, name: str, turn: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All raise, nothing stays behind, and the next attempt goes well."""
    with monkeypatch.context() as patch:
        Fails(name, 1, turn, patch)
        errors = processes.outcomes(
            lambda rank: moe.Buffer(
                hidden=HIDDEN, num_experts=6, num_topk=3, num_max_tokens_per_rank=6, **OPTIONS
            )
        )
    assert all(isinstance(error, RuntimeError) for error in errors)
    others = f"rank 1 cannot make the buffer: {message}"
    assert [str(error) for error in errors] == [others, message, others]
    check_all_is_freed(processes)
    batch = ROUTING.batch(HIDDEN)
    buffers = processes.make_buffers(ROUTING, HIDDEN, **OPTIONS)
    check_grouped(ROUTING, batch, AllRanks(processes, buffers), batch.x)  # type: ignore[arg-type]
    close(processes, buffers)


def test_an_argument_that_is_wrong_on_one_gpu(processes: Processes) -> None:
    """A number of SMs need not be the same on all ranks, so no rank knows of another's."""
    most = 132

    def make(rank: int) -> moe.Buffer:
        return moe.Buffer(
            hidden=HIDDEN,
            num_experts=6,
            num_topk=3,
            num_max_tokens_per_rank=6,
            num_sms=most + (rank == 1),
        )

    first, second, third = processes.outcomes(make)
    message = f"num_sms must be at most {most}, got 133"
    assert isinstance(second, ValueError)
    assert str(second) == message
    assert [str(each) for each in (first, third)] == [
        f"rank 1 cannot make the buffer: {message}"
    ] * 2
    check_all_is_freed(processes)


def test_gpus_that_do_not_reach_each_other(make_processes: Callable[..., Processes]) -> None:
    processes = make_processes(2, peer_access=False)
    errors = processes.outcomes(
        lambda rank: moe.Buffer(
            hidden=HIDDEN, num_experts=4, num_topk=2, num_max_tokens_per_rank=4, **OPTIONS
        )
    )
    for rank, error in enumerate(errors):
        message = rf"window of rank {1 - rank} cannot be mapped: .*PEER_ACCESS_UNSUPPORTED.*NVLink"
        with pytest.raises(RuntimeError, match=message):
            raise error
    calls = processes.driver.calls
    assert processes.driver.violations == []
    assert calls["cuMemFree"] == calls["cuMemAlloc"] == 2
