"""What the kernels over peer memory need of torch's CUDA: streams, waiting, pinned memory.

All of it comes from what :func:`find` returns; tests replace that to drive this path with a
recording driver on a machine with no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels import device as devices
from pykernels.native import native

if TYPE_CHECKING:
    from pykernels import _C


def find(device: torch.device) -> Gpu | None:
    """The GPU that tensors on this device are on; None for the CPU. CUDA devices have an index."""
    return Gpu(device) if device.type == "cuda" else None


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

    def pinned(self, tensor: Tensor) -> Tensor:
        """A copy in memory that has the same address on the host and on GPUs."""
        return tensor.pin_memory()

    def new_streams(self, count: int) -> Sequence[Any]:
        """For :meth:`forked`."""
        return [torch.cuda.Stream(self._device) for _ in range(count)]

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
