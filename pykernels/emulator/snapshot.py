"""The arrays of an exploration: put back before each run, and compared after it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from pykernels.emulator.array_view import Array, ArrayView, view_of
from pykernels.emulator.emulator import Launch
from pykernels.emulator.report import Finding
from pykernels.emulator.tensor_map import TensorMap


class Snapshot:
    """Named arrays with what they hold now."""

    def __init__(self, arrays: Iterable[tuple[str, ArrayView]]) -> None:
        self._views: dict[tuple[int, int], tuple[str, ArrayView]] = {}
        for name, view in arrays:
            self._views.setdefault((view.address, view.spanned_bytes), (name, view))
        self._before = self.contents()

    @classmethod
    def of_launches(cls, launches: Sequence[Launch], arrays: Sequence[Array]) -> Snapshot:
        """Of all arrays that the launches take, and further ones."""
        found: list[tuple[str, ArrayView]] = []
        for index, launch in enumerate(launches):
            prefix = f"launch {index} " if len(launches) > 1 else ""
            for parameter, argument in zip(launch.kernel.params, launch.args, strict=False):
                name = f"{prefix}{parameter.name}"
                if isinstance(argument, TensorMap):
                    found.append((name, argument.view))
                elif isinstance(argument, (torch.Tensor, np.ndarray)):
                    found.append((name, view_of(name, argument)))
        return cls(found + named_views(arrays))

    def contents(self) -> list[bytes]:
        """What each array holds, gaps between its rows included.

        Raises:
            ValueError: the memory of one has been replaced or resized since.
        """
        current = [view.current(name) for name, view in self._views.values()]
        return [ctypes.string_at(view.address, view.spanned_bytes) for view in current]

    def restore(self) -> None:
        """Puts back what the arrays held at first.

        Raises:
            ValueError: the memory of one has been replaced or resized since.
        """
        for (name, view), before in zip(self._views.values(), self._before, strict=True):
            if view.current(name).writable:
                ctypes.memmove(view.address, before, len(before))

    def differences(self, expected: Sequence[bytes], got: Sequence[bytes]) -> list[Finding]:
        """A finding for each array of which the bytes differ."""
        return [
            _difference(name, view, first, second)
            for (name, view), first, second in zip(self._views.values(), expected, got, strict=True)
            if first != second
        ]


def named_views(arrays: Sequence[Array]) -> list[tuple[str, ArrayView]]:
    """The views of further arrays, by their place in the list.

    Raises:
        ValueError: one is no CPU tensor or NumPy array, or ``arrays`` is no sequence.
    """
    if isinstance(arrays, (torch.Tensor, np.ndarray, str)) or not isinstance(arrays, Sequence):
        raise ValueError(f"arrays must be a sequence of arrays, got {type(arrays).__name__}")
    return [(f"arrays[{i}]", view_of(f"arrays[{i}]", array)) for i, array in enumerate(arrays)]


def flatten(name: str, value: object) -> list[tuple[str, ArrayView]]:
    """The arrays in what an op returns: itself, or those in its tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        return [(name, view_of(name, value.detach()))]
    if isinstance(value, np.ndarray):
        return [(name, view_of(name, value))]
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in flatten(f"{name}[{key!r}]", item)]
    if isinstance(value, (tuple, list)):
        return [pair for i, item in enumerate(value) for pair in flatten(f"{name}[{i}]", item)]
    return []


def _difference(name: str, view: ArrayView, expected: bytes, got: bytes) -> Finding:
    if len(expected) != len(got):
        message = f"{name} has {len(got)} bytes, {len(expected)} in the first run"
        return Finding("schedule", message)
    unequal = np.flatnonzero(np.frombuffer(expected, np.uint8) != np.frombuffer(got, np.uint8))
    offset = int(unequal[0]) // view.itemsize * view.itemsize
    element = slice(offset, offset + view.itemsize)
    elements = len(np.unique(unequal // view.itemsize))
    return Finding(
        "schedule",
        f"the result depends on the schedule: {_place(name, view, offset)} is "
        f"0x{got[element][::-1].hex()}, 0x{expected[element][::-1].hex()} in the first run "
        f"({elements} elements differ)",
    )


def _place(name: str, view: ArrayView, offset: int) -> str:
    """The element at this byte, for example ``out[3, 0]``."""
    rest = offset // view.itemsize
    indices = [0] * len(view.sizes)
    for dimension in sorted(range(len(view.sizes)), key=lambda d: -view.strides[d]):
        stride = view.strides[dimension]
        if stride > 0:
            indices[dimension] = min(rest // stride, view.sizes[dimension] - 1)
            rest -= indices[dimension] * stride
    if rest != 0:
        return f"{name}, {offset} bytes behind its start"
    return f"{name}[{', '.join(map(str, indices))}]"
