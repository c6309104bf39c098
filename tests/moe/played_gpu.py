"""A recording driver in the place of CUDA's and of torch's streams, for the kernels' own transport.

CPU tensors play CUDA tensors. Launches are collected, since they wait for one another, and run when
a test says so; what is launched before them, torch does at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor

from pykernels import moe
from pykernels.moe.gpu import Gpu, Point
from pykernels.native import native, strided_view
from tests.recording import Cuda

if TYPE_CHECKING:
    from pykernels import _C


class PlayedGpu(Gpu):
    """The GPU of the calling thread, by ``cuda.on``.

    Attributes:
        waits: of streams for another one: (waiting, awaited, launches made before).
        kept: tensors that another stream uses than the one they were made on.
        num_synchronized: how often the host has waited for it.
        runs_at_once: whether launches of several ranks run before torch does anything else.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.waits: list[tuple[int, int, int]] = []
        self.kept: list[Tensor] = []
        self.num_synchronized = 0
        self.captured: set[int] = set()
        self.runs_at_once = False

    @property
    def index(self) -> int:  # type: ignore[override]
        return self._place[0]

    @property
    def _place(self) -> tuple[int, int]:
        return self._cuda.stream_of(Tensor())

    def current_stream(self) -> int:
        return self._place[1]

    def synchronize(self) -> None:
        self.num_synchronized += 1
        self._cuda.driver.run_collected()

    def point(self) -> Point:
        stream = self.current_stream()
        return Point(stream, stream in self.captured, self._cuda.driver.num_collected)

    def follow(self, point: Point) -> bool:
        stream = self.current_stream()
        if stream == point.stream:
            return False
        if (stream in self.captured) == point.is_captured:
            self.waits.append((stream, point.stream, point.event))
            self._cuda.driver.wait_stream(stream, point.stream, point.event)
        return True

    def keep(self, tensors: Sequence[Tensor]) -> None:
        self.kept += tensors

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def new_streams(self, count: int) -> Sequence[int]:
        return [self._cuda.driver.create_stream(self.index) for _ in range(count)]

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        before = self._place
        with self._cuda.on(self.index, stream):
            yield
        self._cuda.place.current = before

    @contextmanager
    def forked(self, streams: Sequence[int]) -> Iterator[list[int]]:
        for stream in streams:
            self._wait(stream, self.current_stream())
        yield list(streams)
        for stream in streams:
            self._wait(self.current_stream(), stream)
        if self.runs_at_once:
            self._cuda.driver.run_collected()

    def _wait(self, waiting: int, awaited: int) -> None:
        driver = self._cuda.driver
        self.waits.append((waiting, awaited, len(driver.launches)))
        driver.wait_stream(waiting, awaited, driver.num_collected)
        if awaited in self.captured and waiting not in self.captured:
            self._cuda.driver.join_capture(waiting)
            self.captured.add(waiting)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """What the block launches on the current stream, or on others forked from it, is kept."""
        self._cuda.driver.begin_capture(self.current_stream())
        self.captured = {self.current_stream()}
        yield
        self._cuda.driver.end_capture()
        self.captured = set()


class Played:
    """What a test works with: the driver, and the GPU as the all-to-all sees it."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.gpu = PlayedGpu(cuda)
        self.driver = cuda.driver
        self._kept: list[Tensor] = []

    def view(self, tensor: Tensor) -> Any:
        """Stands in for pykernels.native.strided_view.

        Keeps the memory of what has not run yet, as the order of a stream and a graph's pool do.
        """
        self._kept.append(tensor)
        return strided_view(tensor)

    def run(self) -> None:
        """Runs what has been launched."""
        self.driver.run_collected()
        assert self.findings == []

    @property
    def findings(self) -> list[Any]:
        return [each for _, report in self.cuda.emulator.reports for each in report["findings"]]

    @property
    def num_host_waits(self) -> int:
        calls = self.driver.calls
        names = ("cuStreamSynchronize", "cuCtxSynchronize")
        return self.gpu.num_synchronized + sum(calls.get(name, 0) for name in names)

    def launched_since(self, count: int) -> list[_C.RecordedLaunch]:
        return list(self.driver.launches[count:])


class RunAtOnce:
    """A buffer whose launches run before a call returns, so that results can be looked at."""

    def __init__(self, buffer: moe.Buffer, played: Played) -> None:
        self._buffer = buffer
        self._played = played

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._buffer, name)
        return self._running(found) if callable(found) else found

    def _running(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            self._played.run()
            if isinstance(result, tuple) and callable(result[-1]):
                return *result[:-1], self._running(result[-1])
            return result

        return run


@pytest.fixture
def make_played(
    make_cuda: Callable[..., Cuda], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Played]:
    def make(**options: Any) -> Played:
        played = Played(make_cuda(collects=True, **options))
        monkeypatch.setattr("pykernels.moe.gpu.find", lambda device: played.gpu)
        monkeypatch.setattr("pykernels.moe.peer.strided_view", played.view)
        return played

    native()
    return make
