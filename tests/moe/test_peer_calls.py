"""Calls that overlap between ranks, ranks that do not come, and calls that do not match."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import moe, reference
from pykernels.emulator import Module
from pykernels.moe.peer import PeerTransport
from pykernels.native import native
from tests.kernel_launch import kernel_ptx
from tests.moe.checking import HIDDEN, buffer_of, check_grouped, same_bits
from tests.moe.routings import Routing
from tests.moe_launch import NUM_SMS, MoeLaunch

TIMEOUT_NS = 1_000_000
ROUTING = Routing("uniform", (5, 4, 6), 6, 3, 6)


def there_and_back(**options: Any) -> MoeLaunch:
    return MoeLaunch.make("moe_dispatch", [(9, 3, 5), (2, 9, 0), (4, 4, 4)], 24, **options)


def check_results(launch: MoeLaunch) -> None:
    """Of all calls, against the reference."""
    assert launch.world.errors() == [None] * len(launch.world.buffers)
    num_experts = launch.world.sizes.num_experts
    for y, call in zip(launch.y, launch.batches, strict=True):
        idx = [sent.topk_idx for sent in call]
        expected = reference.moe_dispatch([sent.x for sent in call], idx, num_experts=num_experts)
        for sent, (rows, offsets) in zip(call, expected, strict=True):
            assert isinstance(rows, Tensor)
            assert torch.equal(sent.tensors["groups"], offsets)
            assert same_bits(sent.tensors["recv_x"][: rows.size(0)], rows)
        weights = [sent.topk_weights for sent in call]
        exact = reference.moe_combine(y, idx, weights, num_experts=num_experts)
        for sent, wanted in zip(call, exact, strict=True):
            assert same_bits(sent.tensors["out"], wanted)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_ranks_in_different_calls(seed: int, split: bool) -> None:
    """A rank that is ahead writes nothing that a slow one still reads."""
    launch = there_and_back(split=split)
    schedule = "priority" if seed % 3 == 2 else "random"
    mode = ("late", "early", "random")[seed % 3]
    module = Module.from_ptx(kernel_ptx("moe_dispatch"))
    report = launch.run(module, seed=seed, async_completion=mode, schedule=schedule)
    assert not report.findings
    check_results(launch)


@pytest.mark.parametrize("epoch", [2**32 - 2, 2**63 - 2, 2**64 - 3], ids=["32", "63", "64"])
def test_epochs_wrap_around(epoch: int) -> None:
    launch = there_and_back()
    module = Module.from_ptx(kernel_ptx("moe_dispatch"))
    launch.run(module, epoch=epoch).raise_if_findings()
    check_results(launch)
    ended = [int(state[:8].view(torch.int64)) % 2**64 for state in launch.world.states]
    assert ended == [(epoch + 6) % 2**64] * 3


class Absent:
    """Leaves the launches of one rank out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
        self._rank: int | None = rank
        launch = PeerTransport._launch

        def of_the_others(transport: PeerTransport, makers: Any) -> None:
            masked = transport._masked_ranks
            if self._rank is not None:
                transport._masked_ranks = masked | {self._rank}
            try:
                launch(transport, makers)
            finally:
                transport._masked_ranks = masked

        monkeypatch.setattr(PeerTransport, "_launch", of_the_others)

    def comes_back(self) -> None:
        self._rank = None


@pytest.mark.parametrize("op", ["dispatch", "combine", "low_latency_dispatch"])
def test_a_rank_that_does_not_come(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ROUTING.batch(HIDDEN)
    missing = 2
    with pykernels.emulate() as report:
        buffer = buffer_of(ROUTING, num_sms=NUM_SMS, timeout=TIMEOUT_NS / 1e9)
        recv_x, _, handles = buffer.dispatch(*batch)
        absent = Absent(monkeypatch, missing)
        arguments = (recv_x, handles) if op == "combine" else batch
        with pytest.raises(moe.MoeTimeoutError, match="waited for rank 2") as caught:
            getattr(buffer, op)(*arguments)
        error = caught.value
        assert (error.rank, error.peer) == (0, missing)
        assert (error.expected, error.seen) == (2, 1)
        assert error.phase == ("combine start" if op == "combine" else "dispatch counts")
        recorded = [rank.record() for rank in buffer._transport()._locals]
        assert [each and (each["kind"], each["peer"]) for each in recorded] == [
            ("timeout", missing),
            ("timeout", missing),
            None,
        ]
        with pytest.raises(RuntimeError, match="refuses work"):
            buffer.dispatch(*batch)
        waits = buffer.wait_stats()
        assert waits[0][missing].seconds >= TIMEOUT_NS / 1e9
        assert waits[0][missing].seconds > waits[0][1].seconds
        absent.comes_back()
        buffer.reset()
        for _ in range(2):
            check_grouped(ROUTING, batch, buffer, batch.x)
    assert not report.findings


def test_a_rank_that_stays_away_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ROUTING.batch(HIDDEN)
    with pykernels.emulate() as report:
        buffer = buffer_of(ROUTING, num_sms=NUM_SMS, timeout=TIMEOUT_NS / 1e9)
        Absent(monkeypatch, 1)
        with pytest.raises(moe.MoeTimeoutError):
            buffer.dispatch(*batch)
        buffer.mask_ranks([1])
        buffer.reset()
        for _ in range(2):
            check_grouped(ROUTING, batch, buffer, batch.x, [1])
    assert not report.findings


@pytest.mark.parametrize("value", [6, 2**31, 2**40, -2, -(2**63)])
def test_an_expert_that_does_not_exist(value: int) -> None:
    """The peers get what they wait for; the entry counts as dropped."""
    batch = ROUTING.batch(HIDDEN)
    wrong = [idx.clone() for idx in batch.topk_idx]
    wrong[1][3, 2] = value
    with pykernels.emulate() as report:
        buffer = buffer_of(ROUTING, num_sms=NUM_SMS, timeout=TIMEOUT_NS / 1e9)
        with pytest.raises(ValueError, match=rf"rank 1 .* -1 to 5, got {value} at token 3, k = 2"):
            buffer.dispatch(batch.x, wrong, batch.topk_weights)
        with pytest.raises(RuntimeError, match="refuses work"):
            buffer.dispatch(*batch)
        buffer.reset()
        check_grouped(ROUTING, batch, buffer, batch.x)
    assert not report.findings


def test_too_small_a_capacity() -> None:
    """Nothing is written behind the last row."""
    batch = ROUTING.batch(HIDDEN)
    expected = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=6)
    needed = max(int(offsets[-1]) for _, offsets in expected)
    with pykernels.emulate() as report:
        buffer = buffer_of(ROUTING, num_sms=NUM_SMS, timeout=TIMEOUT_NS / 1e9)
        with pytest.raises(ValueError, match=rf"at least {needed}, .* receives, got {needed - 1}"):
            buffer.dispatch(*batch, capacity=needed - 1)
        buffer.reset()
        recv_x, offsets, _ = buffer.dispatch(*batch, capacity=needed)
    for rows, ends, (wanted, wanted_ends) in zip(recv_x, offsets, expected, strict=True):
        assert isinstance(wanted, Tensor)
        assert torch.equal(ends, wanted_ends)
        assert same_bits(rows[: wanted.size(0)], wanted)
    assert not report.findings


def test_an_expert_without_room() -> None:
    """Tokens that name it twice bring more rows than its room; none goes to the next expert's."""
    routing = Routing("twice", (2, 2), 4, 2, 2)
    batch = routing.batch(HIDDEN)
    twice = [torch.full_like(idx, 1) for idx in batch.topk_idx]
    with pykernels.emulate() as report:
        buffer = buffer_of(routing, num_sms=NUM_SMS)
        with pytest.raises(ValueError, match=r"expert 1 must receive at most .* = 4 rows, got 8"):
            buffer.low_latency_dispatch(batch.x, twice, batch.topk_weights)
        buffer.reset()
        check_grouped(routing, batch, buffer, batch.x)
    assert not report.findings


@pytest.mark.parametrize("masked", [False, True])
def test_a_call_that_is_not_made_has_no_rows(masked: bool) -> None:
    """Kernels behind it find nothing to do, whatever memory held before."""
    launch = MoeLaunch.make("moe_dispatch", [(5, 4)], 16, masked=masked)
    world, sent = launch.world, launch.batches[0]
    for each in sent:
        each.poison()
    for state in world.states:
        state.view(torch.int32)[2] = -(2**31)  # out of step
    memory = [tensor for each in sent for tensor in each.all_tensors()]
    world.run([world.layout(sent), world.dispatch(sent)], memory).raise_if_findings()
    for each in sent:
        assert not each.tensors["groups"].any()
        assert not each.tensors["recv_counts"].any()
        assert (each.tensors["recv_x"].view(torch.uint8) == 0x7F).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_rank_to_blame_is_known_to_all(seed: int) -> None:
    """Rank 0 has waited in vain for rank 2 in a call that rank 1 has completed.

    In the next one, rank 1 learns of it from rank 0 at once, and blames rank 2.
    """
    launch = MoeLaunch.make("moe_dispatch", [(5, 4, 3)], 16, absent=2)
    world, sent = launch.world, launch.batches[0]
    memory = [tensor for each in sent for tensor in each.all_tensors()]
    for each in sent:
        each.poison()
    world.run([world.layout(sent)], memory).raise_if_findings()
    everyone = world.dispatch(sent)
    world.run([everyone[:1]], memory, seed=seed)  # alone: a timeout on one of the others
    first = world.errors()[0]
    assert first is not None
    assert first["kind"] == "timeout"
    world.run([everyone[1:2]], memory, seed=seed)
    error = world.errors()[1]
    assert error is not None
    if error["kind"] == "peer":
        assert (error["peer"], error["told_by"], error["told"]) == (first["peer"], 0, "timeout")
    else:
        assert (error["kind"], error["peer"]) == ("timeout", 2)


@pytest.mark.parametrize("seed", range(6))
def test_no_call_is_made_behind_a_wrong_one(seed: int) -> None:
    """As in replays of a graph, where no host looks: on all ranks, however they come."""
    launch = MoeLaunch.make("moe_dispatch", [(5, 4, 3)] * 3, 16)
    world = launch.world
    for call in launch.batches[:2]:
        call[1].topk_idx[0, 0] = 99  # the second time nobody takes part any more
    for call in launch.batches:
        for each in call:
            each.poison()
    memory = [t for call in launch.batches for each in call for t in each.all_tensors()]
    launches = [step for call in launch.batches for step in (world.layout(call),)]
    calls = [world.dispatch(call) for call in launch.batches]
    steps = [step for pair in zip(launches, calls, strict=True) for step in pair]
    schedule = "priority" if seed % 3 == 2 else "random"
    world.run(steps, memory, seed=seed, schedule=schedule).raise_if_findings()
    found = [
        error and (error["kind"], error["peer"], error.get("told")) for error in world.errors()
    ]
    assert found == [("peer", 1, "expert"), ("expert", 1, None), ("peer", 1, "expert")]
    assert [int(state[:8].view(torch.int64)) for state in world.states] == [1, 1, 1]
    for each in launch.batches[0]:
        assert each.tensors["recv_counts"].any()
    for call in launch.batches[1:]:
        assert not call[1].tensors["groups"].any()


@pytest.mark.parametrize("seed", range(4))
def test_peers_of_a_refused_call_do_not_wait_long(seed: int) -> None:
    """The host has found wrong arguments on rank 1; a call before it is whole on all ranks."""
    launch = MoeLaunch.make("moe_dispatch", [(5, 4, 3), (5, 4, 3)], 16)
    world = launch.world
    memory = [t for call in launch.batches for each in call for t in each.all_tensors()]
    for call in launch.batches:
        for each in call:
            each.poison()
    first, second = launch.batches
    refusal = native().make_moe_refusal_launch(world.buffers[1])
    behind = world.dispatch(second)
    behind[1] = refusal
    steps = [world.layout(first), world.dispatch(first), world.layout(second), behind]
    steps.append([refusal])  # a second one changes nothing
    del steps[2][1]
    world.run(steps, memory, seed=seed).raise_if_findings()
    found = [
        error and (error["kind"], error["peer"], error.get("told")) for error in world.errors()
    ]
    assert found == [("peer", 1, "argument"), ("argument", 1, None), ("peer", 1, "argument")]
    assert [int(state[:8].view(torch.int64)) for state in world.states] == [1, 1, 1]
    expected = reference.moe_dispatch(
        [sent.x for sent in first], [sent.topk_idx for sent in first], num_experts=9
    )
    for sent, (rows, offsets) in zip(first, expected, strict=True):
        assert torch.equal(sent.tensors["groups"], offsets)
        assert same_bits(sent.tensors["recv_x"][: len(rows)], rows)


@pytest.mark.parametrize("mixed", ["another", "the same again", "swapped"])
def test_handles_that_do_not_belong_together(mixed: str) -> None:
    """The same again: of another dispatch, in which every rank has sent as many tokens."""
    batch, other = ROUTING.batch(HIDDEN), ROUTING.batch(HIDDEN, seed=mixed == "another")
    with pykernels.emulate() as report:
        buffer = buffer_of(ROUTING, num_sms=NUM_SMS, timeout=TIMEOUT_NS / 1e9)
        recv_x, _, handles = buffer.dispatch(*batch)
        _, _, others = buffer.dispatch(*other)
        chosen = [handles[0], others[1], handles[2]]
        message = "calls of ranks .* do not match: .* of dispatch 1, .* of dispatch 2"
        if mixed == "swapped":
            chosen = [handles[0], handles[2], handles[1]]
            message = "all ranks must pass handles of the same dispatch: rank "
        with pytest.raises((RuntimeError, ValueError), match=message):
            buffer.combine(recv_x, chosen)
        buffer.reset()
        check_grouped(ROUTING, batch, buffer, batch.x)
    assert not report.findings


def test_peers_of_a_wrong_call_do_not_wait_long() -> None:
    """They complete that call, and are told in the next one."""
    launch = MoeLaunch.make("moe_dispatch", [(5, 4, 3), (5, 4, 3)], 16)
    world = launch.world
    launch.batches[0][1].topk_idx[0, 0] = 99
    memory = [t for call in launch.batches for each in call for t in each.all_tensors()]
    for call in launch.batches:
        for each in call:
            each.poison()
    first, second = launch.batches
    world.run([world.layout(first), world.dispatch(first)], memory).raise_if_findings()
    kinds = [error and error["kind"] for error in world.errors()]
    assert kinds == [None, "expert", None]
    world.run([world.layout(second)], memory)
    without = [each for each in world.dispatch(second) if each.rank != 1]
    world.run([without], memory).raise_if_findings()
    for rank in (0, 2):
        error = world.errors()[rank]
        assert error is not None
        assert (error["kind"], error["peer"], error["told"]) == ("peer", 1, "expert")


@pytest.mark.parametrize("difference", ["type", "hidden", "call"])
def test_calls_that_do_not_match(difference: str) -> None:
    """Both ranks find out, and the next call finds the buffer broken."""
    kinds = {"type": "fp8"} if difference == "type" else {}
    hidden = 32 if difference == "hidden" else 48
    ours = MoeLaunch.make("moe_dispatch", [(4, 4)], 48)
    theirs = MoeLaunch.make("moe_dispatch", [(4, 4)], hidden, kind=kinds.get("type", "bf16"))
    world = ours.world
    theirs.world = world
    for launch in (ours, theirs):
        for sent in launch.batches[0]:
            sent.poison()
    memory = [
        tensor
        for launch in (ours, theirs)
        for tensor in (
            *(each for sent in launch.batches[0] for each in sent.all_tensors()),
            *launch.y[0],
        )
    ]
    layouts = [world.layout(ours.batches[0]), world.layout(theirs.batches[0])]
    world.run([layouts[0]], memory)
    world.run([layouts[1]], memory)
    mine = world.dispatch(ours.batches[0])[0]
    other = (
        world.combine(theirs.y[0], theirs.batches[0])[1]
        if difference == "call"
        else world.dispatch(theirs.batches[0])[1]
    )
    if difference == "call":
        for sent in theirs.batches[0]:
            for name in ("recv_counts", "rows", "position_in_rank", "rank_counts"):
                sent.tensors[name].fill_(0 if name.endswith("counts") else -1)
    report = world.run([[mine, other]], memory)
    assert not report.findings
    for rank, error in enumerate(world.errors()):
        assert error is not None
        assert (error["kind"], error["rank"], error["peer"]) == ("mismatch", rank, 1 - rank)
    assert [int(state[:8].view(torch.int64)) for state in world.states] == [0, 0]


@pytest.mark.slow
def test_a_thousand_calls() -> None:
    routing = Routing("uniform", (2, 3), 4, 2, 3)
    batch = routing.batch(16)
    expected = None
    with pykernels.emulate(checks=()) as report:
        buffer = buffer_of(routing, hidden=16, num_sms=1)
        for _ in range(500):
            recv_x, _, handles = buffer.dispatch(*batch)
            outs = buffer.combine(recv_x, handles)
            if expected is None:
                expected = reference.moe_combine(
                    recv_x, batch.topk_idx, batch.topk_weights, num_experts=4
                )
            assert all(map(same_bits, outs, expected))
    assert not report.findings


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("num_ranks", (33, 33, 1)), ("num_experts", (2, 1026, 1))],
    ids=["num_ranks", "num_experts"],
)
def test_more_than_the_kernels_take(name: str, sizes: tuple[int, int, int]) -> None:
    num_ranks, num_experts, num_topk = sizes
    named = {"hidden": 8, "num_max_tokens_per_rank": 1}
    with (
        pykernels.emulate(),
        pytest.raises(ValueError, match=f"{name} must be at most .* over peer memory, got"),
    ):
        moe.Buffer(moe.LocalGroup(num_ranks), num_experts=num_experts, num_topk=num_topk, **named)


def test_bytes_are_exact() -> None:
    routing = Routing("uniform", (3, 3), 4, 2, 3)
    with pykernels.emulate():
        buffer = buffer_of(routing, num_sms=1)
        mail, slot = 128, 128 + 384  # 32 + 4 * 2 bytes; header, two entries; 144 columns of BF16
        flags, state = 128, 24 + 2 * 8 * 32
        assert buffer.bytes == 2 * mail + flags + 6 * slot + state
    assert buffer.bytes == moe.buffer_bytes(
        num_ranks=2, num_experts=4, num_topk=2, hidden=HIDDEN, num_max_tokens_per_rank=3
    )
