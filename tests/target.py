"""Where test cases run kernels: in the emulator, or, with ``--device cuda``, on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import pykernels
from pykernels.native import native, strided_view, tensor_view


@dataclasses.dataclass(frozen=True)
class Target:
    """One of the two places; cases are written with CPU tensors and run on either."""

    kind: str = "emulator"  # or "cuda"

    def launch(
        self, function: Callable[..., None], tensors: Sequence[Tensor], *rest: Any, **options: Any
    ) -> list[str] | None:
        """Calls a launching function of ``pykernels._C``; the tensors then hold what it wrote.

        Args:
            function: Takes the device, a view of each tensor, and ``rest``.
            tensors: Operands and outputs.
            rest: Further arguments.
            options: Those of ``EmulatedDevice``; a GPU has no use for them.

        Returns:
            The kernels that the emulator ran, without findings; None on a GPU.
        """
        if self.kind == "cuda":
            copies = Copies()
            moved = [copies.moved(tensor) for tensor in tensors]
            function(_cuda_device(), *map(_view, moved), *rest)
            copies.bring_back()
            return None
        device = native().EmulatedDevice(**options)
        function(device, *map(_view, tensors), *rest)
        assert [report["findings"] for _, report in device.reports] == [[]] * len(device.reports)
        return [name for name, _ in device.reports]

    def call(
        self, op: Callable[..., Any], *arguments: Any, options: Any = None, **named: Any
    ) -> tuple[Any, list[str] | None]:
        """Calls a public op on the target; its results, on the CPU, and the kernels as above.

        Args:
            op: The public function.
            arguments: Its positional arguments.
            options: Those of :func:`pykernels.emulate`, a dict; a GPU has no use for them.
            named: Its named arguments, ``out`` among them.
        """
        if self.kind == "cuda":
            copies = Copies()
            result = op(*copies.moved(arguments), **copies.moved(named))
            copies.bring_back()
            return copies.original(result), None
        with pykernels.emulate(**(options or {})) as report:
            result = op(*arguments, **named)
        report.raise_if_findings()
        return result, [name for name, _ in report.launches]


def _view(tensor: Tensor) -> Any:
    return tensor_view(tensor) if tensor.dim() == 2 else strided_view(tensor)


class Copies:
    """Copies on a device of whole storages, so that strides and what lies between stay the same."""

    def __init__(self, device: str = "cuda") -> None:
        self._device = device
        self._storages: dict[int, tuple[Any, Any]] = {}  # by address: on the CPU, on the GPU
        self._originals: dict[int, Tensor] = {}  # by id of the copy
        self._copies: list[Tensor] = []  # keeps the ids unique

    def moved(self, value: Any) -> Any:
        """The value with every tensor in it replaced by its copy."""
        if isinstance(value, Tensor):
            return self._moved_tensor(value)
        if isinstance(value, (tuple, list)):
            return _sequence_like(value, map(self.moved, value))
        if isinstance(value, dict):
            return {name: self.moved(item) for name, item in value.items()}
        return value

    def _moved_tensor(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self._storages:
            copy = torch.empty(storage.nbytes(), dtype=torch.uint8, device=self._device)
            copy.untyped_storage().copy_(storage)
            self._storages[key] = storage, copy.untyped_storage()
        copy = torch.empty(0, dtype=tensor.dtype, device=self._device)
        copy.set_(self._storages[key][1], tensor.storage_offset(), tensor.size(), tensor.stride())
        self._originals[id(copy)] = tensor
        self._copies.append(copy)
        return copy

    def bring_back(self) -> None:
        """Writes what the copies hold now into the tensors themselves."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        for storage, copy in self._storages.values():
            storage.copy_(copy)

    def original(self, value: Any) -> Any:
        """The tensor that a copy stands for, or a result moved to the CPU."""
        if isinstance(value, Tensor):
            known = self._originals.get(id(value))
            return value.cpu() if known is None else known
        if isinstance(value, (tuple, list)):
            return _sequence_like(value, map(self.original, value))
        return value


def _sequence_like(value: Any, items: Iterable[Any]) -> Any:
    """Of the type of `value`; a named tuple takes its fields one by one."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _cuda_device() -> Any:
    index = torch.cuda.current_device()
    return native().CudaDevice(index, torch.cuda.current_stream(index).cuda_stream)


_selected = Target()


def select(kind: str) -> None:
    """Chooses the target of this process: the ``--device`` option."""
    global _selected
    _selected = Target(kind)


def selected() -> Target:
    """The target that the ``--device`` option names."""
    return _selected
