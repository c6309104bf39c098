"""The recording driver in the place of CUDA's, and CPU tensors in that of CUDA tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor

from pykernels.native import native

if TYPE_CHECKING:
    from pykernels import _C


class Cuda:
    """The recording driver, and the device and stream that calls are made on."""

    def __init__(self, emulator: dict[str, Any] | None = None, **options: Any) -> None:
        self.emulator = native().EmulatedDevice(**(emulator or {}))
        self.driver = native().RecordingDriver(self.emulator, **options)
        self.place = threading.local()

    def stream_of(self, tensor: Tensor) -> tuple[int, int]:
        """Stands in for pykernels.device.cuda_stream."""
        current: tuple[int, int] = getattr(self.place, "current", (0, 0))
        return current

    @contextmanager
    def on(self, device_index: int, stream: int = 0) -> Iterator[None]:
        """Tensors of calls in the block lie on this device; this is its current stream."""
        self.place.current = (device_index, stream)
        try:
            yield
        finally:
            del self.place.current

    @property
    def last(self) -> _C.RecordedLaunch:
        return self.driver.launches[-1]


@pytest.fixture
def make_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cuda]]:
    installed: list[Cuda] = []

    def make(**options: Any) -> Cuda:
        cuda = Cuda(**options)
        installed.append(cuda)
        monkeypatch.setattr("pykernels.device.cuda_stream", cuda.stream_of)
        return cuda

    yield make
    for cuda in installed:
        cuda.driver.close()


@pytest.fixture
def cuda(make_cuda: Callable[..., Cuda]) -> Cuda:
    return make_cuda(num_devices=2)
