"""Memory that GPUs of other processes reach, through the recording driver: processes are played."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pykernels import _C
from pykernels.emulator import EmulationError
from tests.recording import Cuda
from tests.registered_program import RegisterProgram
from tests.test_run_together import EXCHANGE, WAIT, zeros

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_SUPPORTED = 801
PAGE = 2 << 20


@contextmanager
def process(cuda: Cuda, index: int) -> Iterator[None]:
    """Calls in the block come from this process."""
    cuda.driver.set_process(index)
    try:
        yield
    finally:
        cuda.driver.set_process(0)


def contents(memory: _C.PeerMemory | _C.MappedPeer, count: int) -> bytes:
    return ctypes.string_at(memory.address, count)


def test_memory_is_zeroed_and_freed(cuda: Cuda) -> None:
    stream = cuda.driver.create_stream(1)
    memory = _C.PeerMemory(1, 1000, stream)
    assert (memory.bytes, memory.device_index) == (1000, 1)
    assert memory.address % 512 == 0
    assert contents(memory, 1000) == bytes(1000)
    ctypes.memset(memory.address, 7, 1000)
    memory.zero(stream)
    assert contents(memory, 1000) == bytes(1000)
    memory.close()
    assert memory.address == 0
    memory.close()  # does nothing
    calls = cuda.driver.calls
    assert [calls[name] for name in ("cuMemAlloc", "cuMemFree", "cuMemsetD8Async")] == [1, 1, 2]
    assert calls["cuStreamSynchronize"] == 2
    assert cuda.driver.current_device() == -1


def test_memory_is_freed_with_its_object(cuda: Cuda) -> None:
    memory = _C.PeerMemory(0, 16)
    handle = memory.handle()
    with process(cuda, 1):
        mapped = _C.MappedPeer(1, handle)
        del mapped
        gc.collect()
    del memory
    gc.collect()
    assert cuda.driver.calls["cuIpcCloseMemHandle"] == 1
    assert cuda.driver.calls["cuMemFree"] == 1
    assert cuda.driver.violations == []


def test_handles_lead_to_the_memory(cuda: Cuda) -> None:
    memory = _C.PeerMemory(0, PAGE + 1)
    handle = memory.handle()
    assert len(handle) == 64
    with process(cuda, 1):
        mapped = _C.MappedPeer(1, handle)
        again = _C.MappedPeer(1, handle)
        assert again.address == mapped.address
        assert mapped.device_index == 1
        ctypes.memset(mapped.address + PAGE, 9, 1)
        again.close()
        mapped.close()
        mapped.close()  # does nothing
        assert mapped.address == 0
    assert contents(memory, PAGE + 1) == bytes(PAGE) + b"\x09"
    assert cuda.driver.calls["cuIpcCloseMemHandle"] == 2
    memory.close()
    assert cuda.driver.violations == []


def test_wrong_handles(cuda: Cuda) -> None:
    memory = _C.PeerMemory(0, 16)
    handle = memory.handle()
    with pytest.raises(RuntimeError, match=r"INVALID_CONTEXT.*in the process that made it"):
        _C.MappedPeer(0, handle)
    with pytest.raises(RuntimeError, match="in the process that made it"):
        _C.MappedPeer(1, handle)
    with process(cuda, 1):
        with pytest.raises(ValueError, match="a handle has 64 bytes, got 63"):
            _C.MappedPeer(0, handle[1:])
        with pytest.raises(RuntimeError, match=r"cuIpcOpenMemHandle on device 0 failed: .*HANDLE"):
            _C.MappedPeer(0, bytes(64))
        with pytest.raises(RuntimeError, match="no CUDA device 2"):
            _C.MappedPeer(2, handle)
    memory.close()
    with pytest.raises(ValueError, match="this peer memory has been closed"):
        memory.handle()
    with pytest.raises(ValueError, match="this peer memory has been closed"):
        memory.zero(0)
    with (
        process(cuda, 1),
        pytest.raises(RuntimeError, match=r"must still be allocated, and its process alive"),
    ):
        _C.MappedPeer(0, handle)
    assert cuda.driver.calls["cuMemFree"] == 1
    with pytest.raises(ValueError, match="at least 1 byte"):
        _C.PeerMemory(0, 0)


def test_gpus_without_peer_access(make_cuda: Callable[..., Cuda]) -> None:
    cuda = make_cuda(num_devices=2, peer_access=False)
    assert not _C.can_access_peer(0, 1)
    assert _C.can_access_peer(1, 1)
    with pytest.raises(RuntimeError, match="cuDeviceGet of device 2 failed"):
        _C.can_access_peer(0, 2)
    memory = _C.PeerMemory(0, 16)
    handle = memory.handle()
    with process(cuda, 1):
        with pytest.raises(RuntimeError, match=r"PEER_ACCESS_UNSUPPORTED .* need NVLink"):
            _C.MappedPeer(1, handle)
        _C.MappedPeer(0, handle).close()


def test_gpus_with_peer_access(cuda: Cuda) -> None:
    assert _C.can_access_peer(0, 1)
    assert _C.can_access_peer(1, 0)


def test_containers_are_hinted_at(cuda: Cuda) -> None:
    memory = _C.PeerMemory(0, 16)
    for function in ("cuIpcGetMemHandle", "cuIpcOpenMemHandle"):
        cuda.driver.fail(function, NOT_SUPPORTED)
    with pytest.raises(RuntimeError, match=r"cuIpcGetMemHandle .*NOT_SUPPORTED.*--ipc=host"):
        memory.handle()
    with pytest.raises(RuntimeError, match=r"cuIpcOpenMemHandle .*NOT_SUPPORTED.*--pid=host"):
        _C.MappedPeer(0, bytes(64))


@pytest.mark.parametrize("function", ["cuMemAlloc", "cuMemsetD8Async", "cuStreamSynchronize"])
def test_failed_allocation_leaves_nothing(cuda: Cuda, function: str) -> None:
    cuda.driver.set_current_device(1)
    cuda.driver.fail(function, OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match=rf"{function}.* on device 0 failed: .*OUT_OF_MEMORY"):
        _C.PeerMemory(0, 16)
    assert cuda.driver.current_device() == 1
    calls = cuda.driver.calls
    assert calls.get("cuMemFree", 0) == (function != "cuMemAlloc")


def test_close_raises_and_the_end_of_an_object_does_not(cuda: Cuda) -> None:
    memories = [_C.PeerMemory(0, 16), _C.PeerMemory(0, 16)]
    cuda.driver.fail("cuMemFree", INVALID_VALUE)
    with pytest.raises(RuntimeError, match="cuMemFree on device 0 failed"):
        memories[0].close()
    memories.clear()
    gc.collect()
    assert cuda.driver.calls["cuMemFree"] == 2


@pytest.mark.parametrize("other", [False, True], ids=["no driver", "another driver"])
def test_memory_outlives_the_driver(make_cuda: Callable[..., Cuda], other: bool) -> None:
    """As at the end of a process: its functions fail, and nothing is raised."""
    cuda = make_cuda(num_devices=2)
    memory = _C.PeerMemory(0, 16)
    handle = memory.handle()
    with process(cuda, 1):
        mapped = _C.MappedPeer(1, handle)
    cuda.driver.close()
    if other:
        make_cuda()
    with pytest.raises(RuntimeError):
        memory.handle()
    del memory, mapped
    gc.collect()


def test_under_capture(cuda: Cuda) -> None:
    """Memory may come and go while another stream is captured, whichever thread does that."""
    stream = cuda.driver.create_stream(0)
    cuda.driver.begin_capture(stream)
    memory = _C.PeerMemory(0, 16)
    handle = memory.handle()
    with process(cuda, 1):
        _C.MappedPeer(0, handle).close()
    with pytest.raises(RuntimeError, match="900"):
        memory.zero(stream)
    memory.close()
    cuda.driver.end_capture()


def test_stream_of_another_device(cuda: Cuda) -> None:
    stream = cuda.driver.create_stream(1)
    with pytest.raises(RuntimeError, match=r"cuMemsetD8Async .*INVALID_HANDLE"):
        _C.PeerMemory(0, 16, stream)


def test_freeing_what_a_peer_has_mapped_is_a_violation(cuda: Cuda) -> None:
    memory = _C.PeerMemory(0, 16)
    handle = memory.handle()
    with process(cuda, 3):
        mapped = _C.MappedPeer(1, handle)
    memory.close()
    (violation,) = cuda.driver.violations
    assert violation == "cuMemFree of memory of process 0 that process 3 has mapped on device 1"
    with process(cuda, 3):
        mapped.close()


def test_memory_of_another_process(cuda: Cuda) -> None:
    """A process neither frees nor exports what it has mapped, and closes only that."""
    memory, other = _C.PeerMemory(0, 16), _C.PeerMemory(0, 16)
    handle = memory.handle()
    with process(cuda, 1):
        mapped = _C.MappedPeer(0, handle)
        with pytest.raises(RuntimeError, match=r"cuIpcGetMemHandle .*INVALID_VALUE"):
            memory.handle()
        with pytest.raises(RuntimeError, match=r"cuMemFree .*INVALID_VALUE"):
            other.close()
    with pytest.raises(RuntimeError, match=r"cuIpcCloseMemHandle .*INVALID_VALUE"):
        mapped.close()


# ---- launches of several processes ----


class Rank:
    """A process with a window, its peer's mapped, and a result."""

    def __init__(self, cuda: Cuda, index: int, device: int) -> None:
        self.cuda, self.index = cuda, index
        self.out = zeros(1)
        with process(cuda, index):
            self.window = _C.PeerMemory(device, 8)
            self.handle = self.window.handle()
            self.device = _C.CudaDevice(device, cuda.driver.create_stream(device))

    def map_peer(self, handle: bytes) -> None:
        with process(self.cuda, self.index):
            self.peer = _C.MappedPeer(self.device.device_index, handle)

    def run(self, launch: _C.Launch) -> None:
        with process(self.cuda, self.index):
            self.device.run(launch)

    def close(self) -> None:
        with process(self.cuda, self.index):
            self.peer.close()

    def free(self) -> None:
        with process(self.cuda, self.index):
            self.window.close()


def make_ranks(cuda: Cuda, devices: list[int]) -> list[Rank]:
    """In a ring: each reaches the window of the next."""
    ranks = [Rank(cuda, index, device) for index, device in enumerate(devices)]
    for index, rank in enumerate(ranks):
        rank.map_peer(ranks[(index + 1) % len(ranks)].handle)
        cuda.driver.register_memory(rank.out.ctypes.data, rank.out.nbytes, f"out {index}")
    return ranks


def exchange(register: RegisterProgram, scope: str = "sys") -> Callable[..., _C.Launch]:
    """What makes a rank's launch: it sends a value to its peer and stores what it receives.

    In turn t flags are t.
    """
    body = "griddepcontrol.wait;" + EXCHANGE.format(scope=scope)
    body = body.replace("mov.u32 r1, 1;", "mov.u32 r1, turn;")
    body = body.replace("setp.eq.u32 p0, r2, 0;", "setp.lt.u32 p0, r2, turn;")
    names = ("mine", "theirs", "out")
    example = {name: zeros(1) for name in names}
    program = register(body, **example, value=np.uint32(0), turn=np.uint32(0))

    def make(rank: Rank, value: int, turn: int = 1, **options: bool) -> _C.Launch:
        launch = program.launch(None, None, rank.out, np.uint32(value), np.uint32(turn))
        addresses = np.array([rank.window.address, rank.peer.address], np.uint64).tobytes()
        return _C.Launch(
            launch.kernel,
            launch.grid,
            launch.block,
            addresses + launch.arguments[16:],
            **options,
        )

    return make


@pytest.mark.parametrize("devices", [[0, 1], [0, 0], [0, 1, 2, 2]], ids=str)
def test_ranks_of_several_processes(
    make_cuda: Callable[..., Cuda], register_program: RegisterProgram, devices: list[int]
) -> None:
    """Launches of all ranks meet, whatever the order in which they were made."""
    cuda = make_cuda(num_devices=3, collects=True)
    make_launch = exchange(register_program)
    ranks = make_ranks(cuda, devices)
    for turn in (1, 2):
        for rank in ranks:
            launch = make_launch(rank, 10 * turn + rank.index, turn, programmatic_dependent=True)
            rank.run(launch)
        cuda.driver.run_collected()
    assert [report["findings"] for _, report in cuda.emulator.reports] == [[], []]
    received = [int(rank.out[0]) for rank in ranks]
    assert received == [20 + (rank.index - 1) % len(ranks) for rank in ranks]
    recorded = cuda.driver.launches[: len(ranks)]
    assert [launch.process for launch in recorded] == list(range(len(ranks)))
    assert [launch.launch.rank for launch in recorded] == devices
    for rank in ranks:
        rank.close()
    for rank in ranks:
        rank.free()
    assert cuda.driver.violations == []


def test_the_rank_of_a_launch_is_its_gpu(
    make_cuda: Callable[..., Cuda], register_program: RegisterProgram
) -> None:
    """So scope gpu is enough on one, and a race between two."""
    for devices, kinds in (([1, 1], set()), ([0, 1], {"race"})):
        cuda = make_cuda(num_devices=2, collects=True)
        make_launch = exchange(register_program, "gpu")
        ranks = make_ranks(cuda, devices)
        for rank in ranks:
            rank.run(make_launch(rank, 1))
        cuda.driver.run_collected()
        ((_, report),) = cuda.emulator.reports
        assert {finding["kind"] for finding in report["findings"]} == kinds
        cuda.driver.close()


def test_order_in_a_stream(
    make_cuda: Callable[..., Cuda], register_program: RegisterProgram
) -> None:
    """A launch is behind the one before it in its stream."""
    cuda = make_cuda(collects=True)
    data = zeros(3)
    body = """
        ld.global.u32 r1, [data];
        mul.lo.u32 r1, r1, 10;
        add.u32 r1, r1, value;
        st.global.u32 [data], r1;
    """
    program = register_program(body, data=data, value=np.uint32(0))
    streams = [cuda.driver.create_stream(0), cuda.driver.create_stream(0), 0]
    for index, value in ((0, 1), (0, 2), (1, 3), (2, 5), (1, 4)):
        device = _C.CudaDevice(0, streams[index])
        device.run(program.launch(data[index : index + 1], np.uint32(value)))
    cuda.driver.run_collected()
    assert data.tolist() == [12, 34, 5]
    (report,) = (report for _, report in cuda.emulator.reports)
    assert report["findings"] == []
    cuda.driver.run_collected()  # nothing is left
    assert len(cuda.emulator.reports) == 1


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_order_between_streams(
    make_cuda: Callable[..., Cuda],
    register_program: RegisterProgram,
    captured: bool,
    waits: bool,
) -> None:
    """There is none but where a stream waits for another; in a graph as well."""
    cuda = make_cuda(collects=True)
    data = zeros(1)
    program = register_program("st.global.u32 [data], value;", data=data, value=np.uint32(0))
    first, second = (cuda.driver.create_stream(0) for _ in range(2))
    if captured:
        cuda.driver.begin_capture(first)
        cuda.driver.join_capture(second)
    _C.CudaDevice(0, first).run(program.launch(data, np.uint32(1)))
    if waits:
        cuda.driver.wait_stream(second, first, cuda.driver.num_collected)
    _C.CudaDevice(0, second).run(program.launch(data, np.uint32(2)))
    if captured:
        cuda.driver.end_capture()
        cuda.driver.replay()
    cuda.driver.run_collected()
    findings = cuda.emulator.reports[-1][1]["findings"]
    assert [finding["kind"] for finding in findings] == ([] if waits else ["race"])
    assert not waits or data[0] == 2


def test_with_debug_launches_that_await_others_are_not_waited_for(
    make_cuda: Callable[..., Cuda],
    register_program: RegisterProgram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wait would last until the others' launches, which are made after it."""
    monkeypatch.setenv("PYKERNELS_DEBUG", "1")
    cuda = make_cuda(collects=True)
    make_launch = exchange(register_program)
    ranks = make_ranks(cuda, [0, 0])
    waited = cuda.driver.calls["cuStreamSynchronize"]
    for rank in ranks:
        rank.run(make_launch(rank, 5, awaits_others=True))
    assert cuda.driver.calls["cuStreamSynchronize"] == waited
    cuda.driver.run_collected()
    assert [int(rank.out[0]) for rank in ranks] == [5, 5]
    with pytest.raises(EmulationError, match="deadlock"):
        ranks[0].run(make_launch(ranks[0], 6, turn=2))
    assert cuda.driver.calls["cuStreamSynchronize"] == waited + 1


@pytest.mark.parametrize("wait", ["take_error", "close", "zero", "unmap"])
def test_what_waits_runs_what_was_collected(
    make_cuda: Callable[..., Cuda], register_program: RegisterProgram, wait: str
) -> None:
    cuda = make_cuda(collects=True)
    make_launch = exchange(register_program)
    ranks = make_ranks(cuda, [0, 0])
    for rank in ranks:
        rank.run(make_launch(rank, 5))
    last = ranks[0]
    with process(cuda, 0):
        actions = {
            "take_error": last.device.take_error,
            "close": last.window.close,
            "zero": lambda: last.window.zero(last.device.stream),
            "unmap": last.peer.close,
        }
        actions[wait]()
    assert [int(rank.out[0]) for rank in ranks] == [5, 5]


def test_captured_launches_are_collected_at_their_replay(
    make_cuda: Callable[..., Cuda], register_program: RegisterProgram
) -> None:
    cuda = make_cuda(collects=True)
    make_launch = exchange(register_program)
    ranks = make_ranks(cuda, [0, 0])
    cuda.driver.begin_capture(ranks[0].device.stream)
    cuda.driver.join_capture(ranks[1].device.stream)
    for rank in ranks:
        rank.run(make_launch(rank, 5))
    cuda.driver.end_capture()
    assert [launch.captured for launch in cuda.driver.launches] == [True, True]
    cuda.driver.run_collected()
    assert cuda.emulator.reports == []
    cuda.driver.replay()
    cuda.driver.run_collected()
    assert [int(rank.out[0]) for rank in ranks] == [5, 5]


def test_a_rank_whose_peer_is_absent_times_out(
    make_cuda: Callable[..., Cuda], register_program: RegisterProgram
) -> None:
    cuda = make_cuda(collects=True)
    record, flag, timeout = zeros(1), zeros(1), np.uint64(10**6)
    program = register_program(WAIT, flag=flag, record=record, timeout=timeout)
    _C.CudaDevice(0, 0).run(program.launch(flag, record, timeout))
    cuda.driver.run_collected()
    assert record[0] == 2


def test_memory_that_is_not_mapped_is_out_of_reach(
    make_cuda: Callable[..., Cuda], register_program: RegisterProgram
) -> None:
    """Where the memory of launches is registered, a process reaches its own and what it maps."""
    cuda = make_cuda()
    out = zeros(1)
    cuda.driver.register_memory(out.ctypes.data, out.nbytes, "out")
    program = register_program("st.global.u32 [window], 1;", window=np.uint64(0))
    memory = _C.PeerMemory(0, 16)
    handle = memory.handle()

    def store() -> None:
        _C.CudaDevice(0, 0).run(program.launch(np.uint64(memory.address)))

    store()
    with process(cuda, 1):
        with pytest.raises(EmulationError, match="0x"):
            store()
        mapped = _C.MappedPeer(0, handle)
        store()
        mapped.close()
        with pytest.raises(EmulationError):
            store()
    memory_address = memory.address
    memory.close()
    with pytest.raises(EmulationError):
        _C.CudaDevice(0, 0).run(program.launch(np.uint64(memory_address)))


def test_a_gpu_stream_runs_one_launch_at_a_time(
    cuda: Cuda, register_program: RegisterProgram
) -> None:
    data = zeros(1)
    launch = register_program("st.global.u32 [data], 7;", data=data).launch(data)
    device = _C.CudaDevice(0, 0)
    device.run_together([launch])
    assert data[0] == 7
    for launches in ([], [launch, launch]):
        with pytest.raises(ValueError, match=f"one launch at a time, got {len(launches)}"):
            device.run_together(launches)
