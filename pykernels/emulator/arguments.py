"""Launch arguments: arrays as addresses, numbers as the kernel's parameters type them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Union

import numpy as np
import torch

from pykernels.checks import shown
from pykernels.emulator.array_view import Array, MemoryRange, view_of

if TYPE_CHECKING:
    from pykernels.emulator.module import Kernel, Parameter
    from pykernels.emulator.tensor_map import TensorMap

Argument = Union[Array, int, float, bytes, "TensorMap", None]

_FLOAT_FORMATS = {"f16": "<e", "f32": "<f", "b32": "<f", "f64": "<d", "b64": "<d"}


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
        view = argument.view.current(param.name)
        memory.append(view.memory_range(param.name))
        kept += [argument, view]
        return _pack_tensor_map(param, bytes(argument), memory, kept)
    if isinstance(argument, (bytes, bytearray)):
        return _pack_struct(param, bytes(argument))
    if isinstance(argument, (torch.Tensor, np.ndarray)):
        view = view_of(param.name, argument)
        memory.append(view.memory_range(param.name))
        kept.append(view)
        return _pack_address(param, view.address, "an array")
    if argument is None:
        return _pack_address(param, 0, "None")
    if isinstance(argument, (float, np.floating)):
        return _pack_float(param, float(argument))
    if isinstance(argument, (int, np.integer, np.bool_)):
        if param.type in ("f16", "f32", "f64"):
            try:
                return _pack_float(param, float(argument))
            except OverflowError as error:
                raise ValueError(f"{param.name} must fit a float, got {shown(argument)}") from error
        return _pack_integer(param, int(argument))
    raise ValueError(
        f"{param.name} must be a tensor, an array, a number, bytes, a TensorMap or None, "
        f"got {shown(argument)}"
    )


def _pack_tensor_map(
    param: Parameter, encoded: bytes, memory: list[MemoryRange], kept: list[object]
) -> bytes:
    """By value, or by address where the parameter is a pointer."""
    if param.bytes == len(encoded):
        return encoded
    storage = np.empty(len(encoded) + 64, dtype=np.uint8)
    start = -storage.ctypes.data % 64
    storage[start : start + len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
    kept.append(storage)
    address = storage.ctypes.data + start
    memory.append((address, len(encoded), param.name, True))
    return _pack_address(param, address, "a TensorMap")


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
        raise _wrong_kind(param, f"the integer {shown(value)}")
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise ValueError(f"{param.name} must fit {bits} bits, got {shown(value)}")
    return (value & ((1 << bits) - 1)).to_bytes(param.bytes, "little")


def _pack_address(param: Parameter, address: int, what: str) -> bytes:
    if param.bytes != 8 or param.type.startswith("f"):
        raise _wrong_kind(param, what)
    return address.to_bytes(8, "little")


def _wrong_kind(param: Parameter, got: str) -> ValueError:
    """The error for a value of another kind than the parameter's type."""
    if param.type.startswith("f"):
        takes = "a float"
    elif param.bytes == 8:
        takes = "an array, an integer or None"
    elif param.bytes < 8:
        takes = "an integer"
    else:
        takes = f"{param.bytes} bytes"
    return ValueError(f"{param.name} is of type .{param.type} and takes {takes}, got {got}")
