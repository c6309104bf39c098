"""Where arrays lie in memory, and whether they still lie there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import torch

from pykernels.checks import shown

Array = Union[torch.Tensor, "np.ndarray[Any, Any]"]

# Address, bytes, name, writable: memory that a launch may touch.
MemoryRange = tuple[int, int, str, bool]


@dataclass(frozen=True, eq=False)
class ArrayView:
    """Where an array lies. Keeps it and its memory alive.

    Attributes:
        address: Of the first element.
        dtype: Its name, without a library's prefix.
        itemsize: Bytes of an element.
        sizes: Elements.
        strides: Elements.
        writable: Whether kernels may write to it.
        owner: The array.
        storage: Of a tensor, which may be given another one later; of an array itself.
    """

    address: int
    dtype: str
    itemsize: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    writable: bool
    owner: Array
    storage: object

    @property
    def spanned_bytes(self) -> int:
        """From the first byte to behind the last one, gaps included; 0 for an empty array."""
        if 0 in self.sizes:
            return 0
        last = sum(
            (size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True)
        )
        return (last + 1) * self.itemsize

    def memory_range(self, name: str) -> MemoryRange:
        """What a launch may touch through this array."""
        return (self.address, self.spanned_bytes, name, self.writable)

    def current(self, name: str) -> ArrayView:
        """The view once more, of the array as it is now.

        Raises:
            ValueError: the array's memory has been replaced or resized since.
        """
        now = view_of(name, self.owner)
        before, after = self.memory_range(name), now.memory_range(name)
        if before[:2] != after[:2]:
            raise ValueError(
                f"{name} must lie where it lay when its address was taken: it had {before[1]} "
                f"bytes at {before[0]:#x}, and now has {after[1]} at {after[0]:#x}; encode the "
                "tensor map, or register the tensor, after its memory has been replaced or resized"
            )
        return now


def view_of(name: str, array: object) -> ArrayView:
    """Describe a torch CPU tensor or a NumPy array.

    Raises:
        ValueError: it is neither, is not dense in host memory, runs backwards, or has elements
            that no kernel can read.
    """
    if isinstance(array, torch.Tensor):
        return _tensor_view(name, array)
    if isinstance(array, np.ndarray):
        return _numpy_view(name, array)
    raise ValueError(f"{name} must be a torch CPU tensor or a NumPy array, got {shown(array)}")


def _tensor_view(name: str, tensor: torch.Tensor) -> ArrayView:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} must be a CPU tensor, got one on {tensor.device}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested one" if tensor.is_nested else str(tensor.layout)
        raise ValueError(f"{name} must be a dense tensor, got {kind}")
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError(
            f"{name} is a lazily negated or conjugated view, whose memory holds other values; "
            f"pass {name}.resolve_neg().resolve_conj()"
        )
    try:
        storage = tensor.untyped_storage()
        has_memory = storage.device.type == "cpu"
    except (RuntimeError, NotImplementedError):  # a wrapper, as of torch.func
        has_memory = False
    if not has_memory:
        raise ValueError(f"{name} must have memory of its own, got a {type(tensor).__name__}")
    view = ArrayView(
        tensor.data_ptr(),
        str(tensor.dtype).removeprefix("torch."),
        tensor.element_size(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        True,
        tensor,
        storage,
    )
    end = tensor.storage_offset() * view.itemsize + view.spanned_bytes
    if view.spanned_bytes > 0 and end > storage.nbytes():
        raise ValueError(
            f"{name} must lie within its storage, which has been resized: it ends at byte {end} "
            f"of {storage.nbytes()}"
        )
    return view


def _numpy_view(name: str, array: np.ndarray[Any, Any]) -> ArrayView:
    dtype, itemsize = array.dtype, array.itemsize
    if dtype.hasobject or itemsize == 0:
        raise ValueError(
            f"{name} must have elements of plain bytes (numbers, or structs of them), got dtype "
            f"{dtype}"
        )
    if not dtype.isnative:
        raise ValueError(
            f"{name} must be in the machine's byte order, got dtype {dtype}; convert it with "
            f"{name}.astype({name}.dtype.newbyteorder('='))"
        )
    if any(stride < 0 or stride % itemsize for stride in array.strides):
        raise ValueError(
            f"{name} must have non-negative strides that are multiples of its {itemsize} bytes "
            f"an element, got {array.strides} bytes"
        )
    return ArrayView(
        array.__array_interface__["data"][0],
        dtype.name,
        itemsize,
        array.shape,
        tuple(stride // itemsize for stride in array.strides),
        bool(array.flags.writeable),
        array,
        array,
    )
