"""What the kernels over peer memory need of torch's CUDA: streams, waiting, pinned memory.

All of it comes from what :func:`find` returns; tests replace that to drive this path with a
recording driver on a machine with no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pykernels import device as devices
from pykernels.native import native

if TYPE_CHECKING:
    from pykernels import _C


def find(device: torch.device) -> Gpu | None:
    """The GPU that tensors on this device are on; None for the CPU. CUDA devices have an index."""
    return Gpu(device) if device.type == "cuda" else None


class Point(NamedTuple):
    """Where in a stream's work something has been launched."""

    stream: int
    is_captured: bool
    event: Any


class Gpu:
    """One GPU.

    Attributes:
        index: its number.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.index: int = device.index

    @cached_property
    def _nothing(self) -> Tensor:
        return torch.empty(0, device=self._device)

    def current_stream(self) -> int:
        found = devices.cuda_stream(self._nothing)
        assert found is not None
        return found[1]

    def launcher(self, stream: int | None = None) -> _C.CudaDevice:
        """What launches on a stream, by default the current one.

        Raises:
            RuntimeError: the GPU cannot run the kernels, or the driver cannot.
        """
        stream = self.current_stream() if stream is None else stream
        made: _C.CudaDevice = native().CudaDevice(self.index, stream)
        return made

    def synchronize(self) -> None:
        """Waits for all work of this GPU."""
        torch.cuda.synchronize(self._device)

    def point(self) -> Point:
        """Behind what the current stream has."""
        stream = torch.cuda.current_stream(self._device)
        captured = devices.is_capturing(self._nothing)
        return Point(stream.cuda_stream, captured, stream.record_event())

    def follow(self, point: Point) -> bool:
        """Makes the current stream's work wait for a point of another; whether it is of another.

        Inside and outside of a graph's capture are apart: torch waits for one ahead of the other.
        """
        stream = torch.cuda.current_stream(self._device)
        if stream.cuda_stream == point.stream:
            return False
        if devices.is_capturing(self._nothing) == point.is_captured:
            stream.wait_event(point.event)
        return True

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Their memory is not given away before the current stream has done its work so far."""
        stream = torch.cuda.current_stream(self._device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def pinned(self, tensor: Tensor) -> Tensor:
        """A copy in memory that has the same address on the host and on GPUs."""
        return tensor.pin_memory()

    def new_streams(self, count: int) -> Sequence[Any]:
        """For :meth:`forked`."""
        return [torch.cuda.Stream(self._device) for _ in range(count)]

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """The stream is the current one in the block."""
        with torch.cuda.stream(stream):
            yield

    @contextmanager
    def forked(self, streams: Sequence[Any]) -> Iterator[list[int]]:
        """Handles of the streams, which follow and precede all other work of the current stream."""
        current = torch.cuda.current_stream(self._device)
        for stream in streams:
            stream.wait_stream(current)
        try:
            yield [stream.cuda_stream for stream in streams]
        finally:
            for stream in streams:
                current.wait_stream(stream)
