"""Launch arguments: arrays as addresses, numbers as the kernel's parameters type them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch

if TYPE_CHECKING:
    from pykernels.emulator.module import Kernel, Parameter
    from pykernels.emulator.tensor_map import TensorMap

Array = Union[torch.Tensor, "np.ndarray[Any, Any]"]
Argument = Union[Array, int, float, bytes, "TensorMap", None]

# Address, bytes, name, writable: memory that a launch may touch.
MemoryRange = tuple[int, int, str, bool]

_FLOAT_FORMATS = {"f16": "<e", "f32": "<f", "b32": "<f", "f64": "<d", "b64": "<d"}


@dataclass(frozen=True)
class ArrayView:
    """Where an array lies. Keeps it alive.

    Attributes:
        address: Of the first element.
        dtype: Its name, without a library's prefix.
        itemsize: Bytes of an element.
        sizes: Elements.
        strides: Elements.
        writable: Whether kernels may write to it.
        owner: The array.
    """

    address: int
    dtype: str
    itemsize: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    writable: bool
    owner: Array

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


def view_of(name: str, array: object) -> ArrayView:
    """Describe a torch CPU tensor or a NumPy array.

    Raises:
        ValueError: it is neither, is not dense in host memory, or runs backwards.
    """
    if isinstance(array, torch.Tensor):
        if array.device.type != "cpu":
            raise ValueError(f"{name} must be a CPU tensor, got one on {array.device}")
        if array.layout is not torch.strided or array.is_nested:
            kind = "a nested one" if array.is_nested else str(array.layout)
            raise ValueError(f"{name} must be a dense tensor, got {kind}")
        if array.is_neg() or array.is_conj():
            raise ValueError(
                f"{name} is a lazily negated or conjugated view, whose memory holds other values; "
                f"pass {name}.resolve_neg().resolve_conj()"
            )
        return ArrayView(
            array.data_ptr(),
            str(array.dtype).removeprefix("torch."),
            array.element_size(),
            tuple(array.shape),
            tuple(array.stride()),
            True,
            array,
        )
    if isinstance(array, np.ndarray):
        itemsize = array.itemsize
        if any(stride < 0 or stride % itemsize for stride in array.strides):
            raise ValueError(
                f"{name} must have non-negative strides that are multiples of its {itemsize} bytes "
                f"an element, got {array.strides} bytes"
            )
        return ArrayView(
            array.__array_interface__["data"][0],
            array.dtype.name,
            itemsize,
            array.shape,
            tuple(stride // itemsize for stride in array.strides),
            bool(array.flags.writeable),
            array,
        )
    raise ValueError(f"{name} must be a torch CPU tensor or a NumPy array, got {array!r}")


def pack_arguments(
    kernel: Kernel, arguments: Sequence[Argument]
) -> tuple[bytes, list[MemoryRange], list[object]]:
    """Lay out the parameter block of a launch.

    Returns:
        The block, the memory that the arguments name, and objects to keep alive during the launch.

    Raises:
        ValueError: the count or a type does not fit the kernel's parameters.
    """
    if len(arguments) != len(kernel.params):
        names = ", ".join(f"{param.name}: {param.type}" for param in kernel.params)
        raise ValueError(
            f"{kernel.name} takes {len(kernel.params)} arguments ({names}), got {len(arguments)}"
        )
    block = bytearray(kernel.native.param_bytes)
    memory: list[MemoryRange] = []
    kept: list[object] = []
    for param, argument in zip(kernel.params, arguments, strict=True):
        packed = _pack(param, argument, memory, kept)
        block[param.offset : param.offset + param.bytes] = packed
    return bytes(block), memory, kept


def _pack(
    param: Parameter, argument: Argument, memory: list[MemoryRange], kept: list[object]
) -> bytes:
    from pykernels.emulator.tensor_map import TensorMap

    if isinstance(argument, TensorMap):
        memory.append(argument.view.memory_range(param.name))
        kept.append(argument)
        return _pack_tensor_map(param, bytes(argument), memory, kept)
    if isinstance(argument, (bytes, bytearray)):
        return _pack_struct(param, bytes(argument))
    if isinstance(argument, (torch.Tensor, np.ndarray)):
        view = view_of(param.name, argument)
        memory.append(view.memory_range(param.name))
        kept.append(argument)
        return _pack_integer(param, view.address)
    if argument is None:
        return _pack_integer(param, 0)
    if isinstance(argument, (float, np.floating)):
        return _pack_float(param, float(argument))
    if isinstance(argument, (int, np.integer, np.bool_)):
        if param.type in ("f16", "f32", "f64"):
            try:
                return _pack_float(param, float(argument))
            except OverflowError as error:
                raise ValueError(f"{param.name} must fit a float, got {argument}") from error
        return _pack_integer(param, int(argument))
    raise ValueError(
        f"{param.name} must be a tensor, an array, a number, bytes, a TensorMap or None, "
        f"got {argument!r}"
    )


def _pack_tensor_map(
    param: Parameter, encoded: bytes, memory: list[MemoryRange], kept: list[object]
) -> bytes:
    """By value, or by address where the parameter is a pointer."""
    if param.bytes != 8:
        return _pack_struct(param, encoded)
    storage = np.empty(len(encoded) + 64, dtype=np.uint8)
    start = -storage.ctypes.data % 64
    storage[start : start + len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
    kept.append(storage)
    address = storage.ctypes.data + start
    memory.append((address, len(encoded), param.name, True))
    return _pack_integer(param, address)


def _pack_struct(param: Parameter, value: bytes) -> bytes:
    if len(value) != param.bytes:
        raise ValueError(f"{param.name} must have {param.bytes} bytes, got {len(value)}")
    return value


def _pack_float(param: Parameter, value: float) -> bytes:
    if param.type not in _FLOAT_FORMATS:
        raise ValueError(f"{param.name} is of type .{param.type} and takes no float, got {value!r}")
    if param.type in ("f64", "b64"):
        return struct.pack("<d", value)
    # NumPy rounds and overflows to infinity as the hardware does; struct raises.
    dtype = np.float16 if param.type == "f16" else np.float32
    with np.errstate(over="ignore"):
        return bytes(dtype(value).tobytes())


def _pack_integer(param: Parameter, value: int) -> bytes:
    bits = 8 * param.bytes
    if param.bytes > 8 or param.type.startswith("f"):
        raise ValueError(
            f"{param.name} is of type .{param.type} and {param.bytes} bytes and takes no integer "
            f"or address, got {value!r}"
        )
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise ValueError(f"{param.name} must fit {bits} bits, got {value}")
    return (value & ((1 << bits) - 1)).to_bytes(param.bytes, "little")
