"""What the kernels' transport asks of torch's CUDA, with names of torch.cuda replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pykernels.moe import gpu


class Stream:
    """Writes down who waits for whom."""

    order: list[tuple[int, int]]
    captures: bool

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle

    def wait_stream(self, other: Stream) -> None:
        self.order.append((self.cuda_stream, other.cuda_stream))

    def record_event(self) -> int:
        return self.cuda_stream

    def wait_event(self, event: int) -> None:
        self.order.append((self.cuda_stream, event))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> gpu.Gpu:
    Stream.order, Stream.captures = [], False
    handles = iter((11, 12))
    current = Stream(7)
    asked: dict[str, Any] = {
        "Stream": lambda device: Stream(next(handles) if device.index == 1 else 0),
        "current_stream": lambda device: current if device.index == 1 else None,
    }
    for name, answer in asked.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    found = gpu.find(torch.device("cuda", 1))
    assert found is not None
    assert found.index == 1
    return found


def test_only_cuda_devices_are_gpus() -> None:
    assert gpu.find(torch.device("cpu")) is None


def test_streams_fork_and_join(device: gpu.Gpu) -> None:
    streams = device.new_streams(2)
    with device.forked(streams) as found:
        assert found == [11, 12]
        assert Stream.order == [(11, 7), (12, 7)]
    assert Stream.order[2:] == [(7, 11), (7, 12)]


def test_streams_join_after_an_error(device: gpu.Gpu) -> None:
    """What the others have launched precedes the current stream's work all the same."""
    streams = device.new_streams(2)
    with pytest.raises(RuntimeError, match="launch"), device.forked(streams):
        raise RuntimeError("the launch failed")
    assert Stream.order[2:] == [(7, 11), (7, 12)]


@pytest.mark.parametrize("captured", [False, True])
def test_a_point_of_another_stream_is_waited_for(
    device: gpu.Gpu, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both are in a graph's capture, or neither."""
    monkeypatch.setattr("pykernels.device.is_capturing", lambda tensor: Stream.captures)
    monkeypatch.setattr(gpu.Gpu, "_nothing", torch.empty(0))
    own = device.point()
    assert (own.stream, own.is_captured) == (7, False)
    assert not device.follow(own)
    Stream.captures = captured
    assert device.follow(own._replace(stream=8, event=8))
    assert Stream.order == ([] if captured else [(7, 8)])
    assert device.follow(gpu.Point(9, captured, 9))
    assert Stream.order[-1] == (7, 9)


def test_kept_tensors_are_recorded_on_the_current_stream(device: gpu.Gpu) -> None:
    class Recorded:
        def record_stream(self, stream: Stream) -> None:
            streams.append(stream.cuda_stream)

    streams: list[int] = []
    device.keep([Recorded(), Recorded()])  # type: ignore[list-item]
    assert streams == [7, 7]


def test_synchronize(device: gpu.Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device.synchronize()
    assert waited == [torch.device("cuda", 1)]


def test_launches_go_to_the_current_stream_or_to_another(
    device: gpu.Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Extension:
        CudaDevice = staticmethod(lambda index, stream: (index, stream))

    monkeypatch.setattr(gpu, "native", lambda: Extension)
    monkeypatch.setattr(torch, "empty", lambda size, device: (size, device))
    monkeypatch.setattr("pykernels.device.cuda_stream", lambda tensor: (tensor[1].index, 77))
    launchers: list[Any] = [device.launcher(), device.launcher(5)]
    assert launchers == [(1, 77), (1, 5)]
    assert device.current_stream() == 77
