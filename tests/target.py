"""Where a test case runs: real kernels in the emulator, or, with ``--device cuda``, on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import pykernels


@dataclasses.dataclass(frozen=True)
class Target:
    """One of the two devices; the same case runs on both."""

    kind: str  # "emulator" or "cuda"

    def __str__(self) -> str:
        return self.kind

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda" if self.kind == "cuda" else "cpu")

    def move(self, value: Any) -> Any:
        """Tensors, also in nested tuples, to the target; strides are kept."""
        if isinstance(value, torch.Tensor):
            if self.kind != "cuda":
                return value
            moved = torch.empty_strided(
                value.size(), value.stride(), dtype=value.dtype, device=self.torch_device
            )
            return moved.copy_(value)
        if isinstance(value, tuple):
            return tuple(self.move(item) for item in value)
        return value

    @contextmanager
    def kernels(self, **options: Any) -> Iterator[None]:
        """Calls in the ``with`` block run the real kernels; the emulator's findings raise at its end.

        Args:
            options: those of :func:`pykernels.emulate`; a GPU has no use for them.
        """
        if self.kind == "cuda":
            yield
            torch.cuda.synchronize()
            return
        with pykernels.emulate(**options) as report:
            yield
        report.raise_if_findings()
