"""Ranks of one process on one GPU, without a GPU: streams, launches, graphs, errors, results.

A recording driver runs what it gets in the emulator; CPU tensors stand in for CUDA tensors.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import _C, moe, reference
from pykernels.moe.ranks import Rank
from pykernels.native import native, strided_view
from tests.kernel_launch import kernel_info
from tests.moe.checking import (
    HIDDEN,
    buffer_of,
    capacity_of,
    check_grouped,
    check_masked_layout,
    same_bits,
)
from tests.moe.played_gpu import Played, RunAtOnce
from tests.moe.routings import Batch, Routing, skewed
from tests.moe.test_peer_calls import Absent
from tests.moe_launch import NUM_SMS

ROUTING = Routing("uniform", (5, 4, 6), 6, 3, 6)
SKEWED = Routing("skewed", (8, 3, 8, 0), 8, 3, 8, skewed)
ALONE = Routing("alone", (5,), 4, 2, 5)
TIMEOUT = 1e-3


@pytest.fixture
def played(make_played: Callable[..., Played], monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.delenv("PYKERNELS_DEBUG", raising=False)
    return make_played()


def make_buffer(routing: Routing = ROUTING, hidden: int = HIDDEN, **options: Any) -> moe.Buffer:
    return buffer_of(routing, hidden, **({"num_sms": NUM_SMS, "timeout": TIMEOUT} | options))


def ranks_of(buffer: moe.Buffer) -> list[Rank]:
    transport: Any = buffer._transport()
    ranks: list[Rank] = transport._locals
    return ranks


# ---- what the driver gets ----


def test_launches(played: Played) -> None:
    """A stream for each rank; of all ranks first the layouts, then the kernels that meet."""
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    recv_x, _, handles = buffer.dispatch(*batch)
    buffer.combine(recv_x, handles)
    launches = played.driver.launches
    kernels = [launch.launch.kernel for launch in launches]
    assert kernels == ["moe_layout"] * 3 + ["moe_dispatch"] * 3 + ["moe_combine"] * 3
    streams = [launch.stream for launch in launches]
    assert streams == streams[:3] * 3
    assert len(set(streams)) == 3
    assert 0 not in streams
    for recorded in launches:
        launch, info = recorded.launch, kernel_info(recorded.launch.kernel)
        assert launch.grid == (1 if launch.kernel == "moe_layout" else NUM_SMS, 1, 1)
        assert launch.block == (info.threads, 1, 1)
        assert launch.cluster == (1, 1, 1)
        assert launch.dynamic_shared_bytes == info.dynamic_shared_bytes
        assert launch.programmatic_dependent
        assert len(launch.arguments) == info.param_bytes
        allowed = played.driver.max_dynamic_shared_bytes(launch.kernel, 0)
        assert allowed == max(info.dynamic_shared_bytes, 48 * 1024)
    assert played.findings == []


def test_ranks_follow_and_precede_the_current_stream(played: Played) -> None:
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    current = played.driver.create_stream(0)
    with played.cuda.on(0, current):
        buffer.dispatch(*batch)
    own = [launch.stream for launch in played.driver.launches[:3]]
    assert current not in own
    forks = [(stream, current, 0) for stream in own]
    joins = [(current, stream, 6) for stream in own]
    assert played.gpu.waits == forks + joins


def test_a_single_rank_works_on_the_current_stream(played: Played) -> None:
    batch = ALONE.batch(HIDDEN)
    current = played.driver.create_stream(0)
    with played.cuda.on(0, current):
        check_grouped(ALONE, batch, RunAtOnce(make_buffer(ALONE), played), batch.x)  # type: ignore[arg-type]
    assert {launch.stream for launch in played.driver.launches} == {current}
    assert played.gpu.waits == []


def test_calls_on_another_stream_follow_the_last_one(played: Played) -> None:
    """Two calls of a buffer at once would be a race of its ranks' counters."""
    batch = ALONE.batch(HIDDEN)
    buffer: Any = RunAtOnce(make_buffer(ALONE), played)  # the driver knows no order of streams
    first, second = (played.driver.create_stream(0) for _ in range(2))
    with played.cuda.on(0, first):
        recv_x, _, handles = buffer.dispatch(*batch)
    with played.cuda.on(0, second):
        buffer.combine(recv_x, handles)
        buffer.dispatch(*batch)
    with played.cuda.on(0, first):
        buffer.dispatch(*batch)
    assert played.gpu.waits == [(second, first, 2), (first, second, 5)]


def test_a_hook_on_another_stream(played: Played) -> None:
    """It follows the send, not what the send's stream has got since, and keeps what it uses."""
    batch = ALONE.batch(HIDDEN)
    buffer = make_buffer(ALONE)
    first, second = (played.driver.create_stream(0) for _ in range(2))
    with played.cuda.on(0, first):
        found, masked_m, handles, hook = buffer.low_latency_dispatch(
            *batch, fp8=False, return_recv_hook=True
        )
        played.run()
        other = torch.ones(1, 128).bfloat16()
        cast = pykernels.quantize_1x128(other)
        played.run()
        assert cast[1].shape == (1, 1)
    with played.cuda.on(0, second):
        hook()
    played.run()
    assert played.driver.launches[-1].stream == second
    assert played.gpu.waits == [(second, first, 2)]
    used = {tensor.data_ptr() for tensor in played.gpu.kept}
    assert {each.data_ptr() for each in (*found, *masked_m, handles[0].rows)} <= used
    played.gpu.kept.clear()
    with played.cuda.on(0, second):
        *_, hook = buffer.low_latency_dispatch(*batch, return_recv_hook=True)
        played.run()
        hook()
    assert played.gpu.kept == []
    played.run()


def test_a_capture_is_apart_from_what_is_outside(played: Played) -> None:
    batch = ALONE.batch(HIDDEN)
    buffer = make_buffer(ALONE)
    first, second = (played.driver.create_stream(0) for _ in range(2))
    with played.cuda.on(0, first):
        buffer.dispatch(*batch)
    played.run()
    with played.cuda.on(0, second), played.gpu.capture():
        recv_x, _, handles = buffer.dispatch(*batch)
        buffer.combine(recv_x, handles)
    with played.cuda.on(0, first):
        buffer.dispatch(*batch)
    assert played.gpu.waits == []
    played.run()


def test_kernels_are_loaded_ahead_of_the_first_launch(played: Played) -> None:
    """Loading one may wait for the GPU, on which another one may wait for a rank to come."""
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    count = len(native().moe_kernel_names())
    names = ("cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction", "cuFuncSetAttribute")
    loaded = {name: played.driver.calls[name] for name in names}
    assert loaded == dict.fromkeys(names, count)
    assert "cuLaunchKernelEx" not in played.driver.calls
    recv_x, _, handles = buffer.dispatch(*batch)
    buffer.combine(recv_x, handles)
    buffer.low_latency_dispatch(*batch)
    assert {name: played.driver.calls[name] for name in names} == loaded
    assert {each.launch.kernel for each in played.driver.launches} == set(
        native().moe_kernel_names()
    )


def test_the_host_does_not_wait(played: Played) -> None:
    """In no call, hook or check of what has happened; where the buffer is made, reset, closed."""
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    waited = played.num_host_waits
    for _ in range(2):
        recv_x, _, handles = buffer.dispatch(*batch)
        buffer.combine(recv_x, handles)
        _, _, handles, hook = buffer.low_latency_dispatch(*batch, return_recv_hook=True)
        hook()
        y = [torch.zeros(2, 18, HIDDEN).bfloat16()] * 3
        _, hook = buffer.low_latency_combine(y, handles, return_recv_hook=True)
        hook()
    assert played.num_host_waits == waited
    assert played.cuda.emulator.reports == []
    buffer.check()
    assert played.num_host_waits == waited + 1
    assert len(played.cuda.emulator.reports) == 1
    assert played.findings == []


@pytest.mark.parametrize("num_ranks", [2, 4, 11])
def test_ranks_share_the_sms(make_played: Callable[..., Played], num_ranks: int) -> None:
    """All must be resident at once, since they wait for one another."""
    make_played(num_sms=32)
    routing = Routing("uniform", (2,) * num_ranks, num_ranks, 2, 2)
    most = 32 // num_ranks
    for wished, found in ((None, min(most, 24)), (1, 1), (most, most)):
        transport: Any = make_buffer(routing, num_sms=wished)._transport()
        assert transport._num_sms == found
    message = (
        f"num_sms must be at most {most}, the share of each of {num_ranks} ranks on this GPU, got"
    )
    with pytest.raises(ValueError, match=message):
        make_buffer(routing, num_sms=most + 1)


def test_more_ranks_than_sms(make_played: Callable[..., Played]) -> None:
    make_played(num_sms=3)
    with pytest.raises(RuntimeError, match="4 ranks need a GPU with as many SMs, got 3"):
        make_buffer(SKEWED, num_sms=None)


def test_with_debug_calls_are_not_waited_for(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0's kernel waits for that of rank 1, which is launched later; layouts are waited for."""
    batch = ROUTING.batch(HIDDEN)
    buffer = RunAtOnce(make_buffer(), played)
    monkeypatch.setenv("PYKERNELS_DEBUG", "1")
    check_grouped(ROUTING, batch, buffer, batch.x)  # type: ignore[arg-type]
    assert played.driver.calls["cuStreamSynchronize"] == 3
    buffer.check()


# ---- results ----


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("routing", [ROUTING, SKEWED], ids=str)
def test_dispatch_and_combine(played: Played, routing: Routing, fp8: bool) -> None:
    batch = routing.batch(HIDDEN)
    x: list[Any] = batch.fp8() if fp8 else batch.x
    played.run()  # the casts
    buffer: Any = RunAtOnce(make_buffer(routing), played)
    for _ in range(2):
        check_grouped(routing, batch, buffer, x)
    buffer.check()


@pytest.mark.parametrize("split", [False, True], ids=["whole", "hook"])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_low_latency(played: Played, fp8: bool, split: bool) -> None:
    batch = SKEWED.batch(HIDDEN)
    buffer: Any = RunAtOnce(make_buffer(SKEWED), played)
    sent: list[Any] = batch.x
    if fp8:
        sent = [reference.quantize_1x128(each) for each in batch.x]
    check_masked_layout(SKEWED, batch, buffer, batch.x, sent, fp8=fp8, return_recv_hook=split)
    buffer.check()


def test_other_work_between_send_and_receive(played: Played) -> None:
    """The senders' tensors may change there; the hook's launches bring the results."""
    batch = ROUTING.batch(HIDDEN)
    x = [each.clone() for each in batch.x]
    buffer = make_buffer()
    current = played.driver.create_stream(0)
    with played.cuda.on(0, current):
        recv_x, masked_m, _, hook = buffer.low_latency_dispatch(
            x, batch.topk_idx, batch.topk_weights, fp8=False, return_recv_hook=True
        )
        played.run()
        for each in x:
            each.fill_(torch.nan)
        other = torch.ones(1, 128).bfloat16()
        cast = pykernels.quantize_1x128(other)
        hook()
    kernels = [each.launch.kernel for each in played.driver.launches]
    sends, receives = ["moe_layout"] * 3 + ["moe_dispatch"] * 3, ["moe_dispatch"] * 3
    assert kernels == [*sends, "quantize_1x128", *receives]
    assert played.driver.launches[6].stream == current
    own = [launch.stream for launch in played.driver.launches[:3]]
    assert played.gpu.waits[-6:] == [
        *((stream, current, 7) for stream in own),
        *((current, stream, 10) for stream in own),
    ]
    played.run()
    assert float(cast[0][0, 0].float() * cast[1][0, 0]) == 1
    expected = reference.moe_low_latency_dispatch(batch.x, batch.topk_idx, num_experts=6)
    for rank, (experts, counts) in enumerate(expected):
        assert torch.equal(masked_m[rank], counts)
        for e, rows in enumerate(experts):
            assert isinstance(rows, Tensor)
            assert same_bits(recv_x[rank][e, : rows.size(0)], rows)


def test_results_live_until_the_hook(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels that receive write them, also where the caller has dropped them."""
    monkeypatch.setattr("pykernels.moe.peer.strided_view", strided_view)  # which keeps nothing
    played.gpu.runs_at_once = True
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    found, masked_m, handles, hook = buffer.low_latency_dispatch(
        *batch, fp8=False, return_recv_hook=True
    )
    written = [weakref.ref(tensor) for tensor in (*found, *masked_m)]
    written += [weakref.ref(handle.row_weights) for handle in handles]
    y = [each.nan_to_num(0) for each in found]
    del found, masked_m
    gc.collect()
    assert all(each() is not None for each in written)
    hook()
    outs, hook = buffer.low_latency_combine(y, handles, return_recv_hook=True)
    written += [weakref.ref(tensor) for tensor in outs]
    del outs, handles
    gc.collect()
    assert [each() is not None for each in written] == [False] * 3 + [True] * 9
    hook()
    gc.collect()
    assert not any(each() is not None for each in written)


@pytest.mark.parametrize("masked", [0, 2])
def test_masked_ranks(played: Played, masked: int) -> None:
    batch = ROUTING.batch(HIDDEN)
    buffer: Any = RunAtOnce(make_buffer(), played)
    check_grouped(ROUTING, batch, buffer, batch.x)
    buffer.mask_ranks([masked])
    before = len(played.driver.launches)
    check_grouped(ROUTING, batch, buffer, batch.x, [masked])
    assert len(played.driver.launches) - before == 2 * 3
    buffer.mask_ranks([])
    buffer.reset()
    check_grouped(ROUTING, batch, buffer, batch.x)
    buffer.check()


# ---- errors ----


def test_a_wrong_expert_is_found_by_check(played: Played) -> None:
    batch = ROUTING.batch(HIDDEN)
    wrong = [idx.clone() for idx in batch.topk_idx]
    wrong[1][3, 2] = 6
    buffer = make_buffer()
    buffer.dispatch(batch.x, wrong, batch.topk_weights)
    with pytest.raises(ValueError, match="rank 1 must be from -1 to 5, got 6 at token 3, k = 2"):
        buffer.check()
    with pytest.raises(RuntimeError, match="refuses work"):
        buffer.dispatch(*batch)
    buffer.reset()
    check_grouped(ROUTING, batch, RunAtOnce(buffer, played), batch.x)  # type: ignore[arg-type]


def test_the_next_call_raises_what_has_happened(played: Played) -> None:
    """Without waiting: a call that comes before the kernels have run goes on."""
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    buffer.dispatch(*batch, capacity=1)
    buffer.dispatch(*batch)
    launched = len(played.driver.launches)
    played.run()
    with pytest.raises(ValueError, match=r"capacity must be at least \d+, the rows that rank 0"):
        buffer.dispatch(*batch)
    assert len(played.driver.launches) == launched


def test_reset_zeroes_what_the_kernels_use(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    windows = [rank._zero_window.__self__ for rank in ranks_of(buffer)]
    absent = Absent(monkeypatch, 2)
    buffer.dispatch(*batch)
    with pytest.raises(moe.MoeTimeoutError, match="rank 0 waited for rank 2"):
        buffer.check()
    assert all(bool(window.any()) for window in windows)
    waits = buffer.wait_stats()
    assert waits[0][2].seconds >= TIMEOUT
    absent.comes_back()
    waited = played.gpu.num_synchronized
    buffer.reset()
    assert played.gpu.num_synchronized > waited
    assert buffer.wait_stats() == waits  # since the buffer was made
    for rank, window in zip(ranks_of(buffer), windows, strict=True):
        assert not bool(window.any())
        assert not bool(rank._state[: native().moe_memory()["waits_offset"]].any())
        assert rank.record() is None
    check_grouped(ROUTING, batch, RunAtOnce(buffer, played), batch.x)  # type: ignore[arg-type]


def test_close_waits_for_the_kernels(played: Played) -> None:
    buffer = make_buffer()
    buffer.dispatch(*ROUTING.batch(HIDDEN))
    waited = played.num_host_waits
    buffer.close()
    assert played.num_host_waits == waited + 1
    assert len(played.cuda.emulator.reports) == 1


# ---- graphs ----


def there_and_back(buffer: moe.Buffer, batch: Batch) -> tuple[Any, Any, Any]:
    recv_x, offsets, handles = buffer.dispatch(*batch, capacity=capacity_of(ROUTING))
    return recv_x, offsets, buffer.combine(recv_x, handles)


def check_replay(batch: Batch, results: tuple[Any, Any, Any]) -> None:
    recv_x, offsets, outs = results
    expected = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=ROUTING.num_experts)
    for found, ends, (rows, wanted) in zip(recv_x, offsets, expected, strict=True):
        assert isinstance(rows, Tensor)
        assert torch.equal(ends, wanted)
        assert same_bits(found[: rows.size(0)], rows)
    exact = reference.moe_combine(
        recv_x, batch.topk_idx, batch.topk_weights, num_experts=ROUTING.num_experts
    )
    assert all(map(same_bits, outs, exact))


def change(batch: Batch, seed: int) -> None:
    for tensors, others in zip(batch, ROUTING.batch(HIDDEN, seed), strict=True):
        for tensor, other in zip(tensors, others, strict=True):
            tensor.copy_(other)


def test_graphs(played: Played) -> None:
    """One capture serves all inputs and every call's number, between other calls too."""
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    check_grouped(ROUTING, batch, RunAtOnce(buffer, played), batch.x)  # type: ignore[arg-type]
    with played.cuda.on(0, played.driver.create_stream(0)), played.gpu.capture():
        waited = played.num_host_waits
        results = there_and_back(buffer, batch)
        assert played.num_host_waits == waited
    captured = [launch for launch in played.driver.launches if launch.captured]
    assert len(captured) == 9
    assert len({launch.stream for launch in captured}) == 3
    played.run()
    for seed in range(1, 4):
        change(batch, seed)
        for tensor in (tensor for part in results for tensor in part):
            tensor.view(torch.uint8).fill_(0x7F)
        played.driver.replay()
        played.run()
        check_replay(batch, results)
        if seed == 2:
            check_grouped(ROUTING, batch, RunAtOnce(buffer, played), batch.x)  # type: ignore[arg-type]
    buffer.check()
    epochs = [int(rank._state[:8].view(torch.int64)) for rank in ranks_of(buffer)]
    assert epochs == [2 + 3 * 2 + 2] * 3


def test_errors_inside_graphs(played: Played) -> None:
    batch = ROUTING.batch(HIDDEN)
    buffer = make_buffer()
    with played.cuda.on(0, played.driver.create_stream(0)), played.gpu.capture():
        there_and_back(buffer, batch)
    played.driver.replay()
    buffer.check()
    batch.topk_idx[2][0, 0] = 77
    played.driver.replay()
    with pytest.raises(ValueError, match="topk_idx of rank 2 must be from -1 to 5, got 77"):
        buffer.check()


def test_devices_of_launches(make_played: Callable[..., Played]) -> None:
    """The GPU of the tensors, not the current one."""
    played = make_played(num_devices=2)
    played.driver.set_current_device(0)
    with played.cuda.on(1):
        make_buffer().dispatch(*ROUTING.batch(HIDDEN))
    assert {launch.device_index for launch in played.driver.launches} == {1}
    assert played.driver.current_device() == 0
    assert isinstance(played.gpu.launcher(), _C.CudaDevice)
