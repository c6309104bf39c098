"""Tensor maps for TMA, encoded as the emulator's device reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from pykernels import _C
from pykernels.checks import check_integer, shown
from pykernels.emulator.array_view import Array, ArrayView, view_of

# Numbers of CUtensorMapDataType by dtype name. FP8 and signed bytes travel as uint8.
_TYPES = {
    "uint8": 0,
    "int8": 0,
    "bool": 0,
    "float8_e4m3fn": 0,
    "float8_e5m2": 0,
    "uint16": 1,
    "int16": 1,
    "uint32": 2,
    "int32": 3,
    "uint64": 4,
    "int64": 5,
    "float16": 6,
    "float32": 7,
    "float64": 8,
    "bfloat16": 9,
    "float32_ftz": 10,
    "tfloat32": 11,
    "tfloat32_ftz": 12,
}
_TYPE_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)
_INTERLEAVES = {"none": 0, "16B": 1, "32B": 2}
_SWIZZLES = {"none": 0, "32B": 1, "64B": 2, "128B": 3}
_L2_PROMOTIONS = {"none": 0, "64B": 1, "128B": 2, "256B": 3}
_FILLS = {"zeros": 0, "nan": 1}


@dataclass(frozen=True)
class TensorMapFields:
    """A tensor map in the driver's terms: dimension 0 is the contiguous one.

    Attributes:
        type: Element type, by name.
        address: Of the first element.
        dims: Elements.
        strides: Bytes, of dimension 1 and up.
        box: Elements.
        element_strides: Elements.
        interleave: ``"none"``, ``"16B"``, ``"32B"``.
        swizzle: ``"none"``, ``"32B"``, ``"64B"``, ``"128B"``.
        l2_promotion: ``"none"``, ``"64B"``, ``"128B"``, ``"256B"``.
        fill: Of elements out of bounds: ``"zeros"`` or ``"nan"``.
    """

    type: str
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    interleave: str
    swizzle: str
    l2_promotion: str
    fill: str


class TensorMap:
    """The 128 bytes that a kernel takes as a ``__grid_constant__`` parameter, and their meaning.

    It keeps the tensor and its memory alive, and holds its address: a launch raises ``ValueError``
    if the tensor's memory has been replaced or resized since. It can be copied with ``copy.copy``;
    a deep copy or a pickle would name memory of another tensor and raises ``TypeError``.
    """

    def __init__(self, fields: TensorMapFields, encoded: bytes, view: ArrayView) -> None:
        self._fields = fields
        self._encoded = encoded
        self.view = view

    @classmethod
    def encode_tiled(
        cls,
        tensor: Array,
        *,
        box: Sequence[int],
        swizzle: str = "none",
        interleave: str = "none",
        element_strides: Sequence[int] | None = None,
        l2_promotion: str = "none",
        fill: str = "zeros",
        type: str | None = None,
    ) -> TensorMap:
        """Encode a map of a tensor, as ``cuTensorMapEncodeTiled`` does.

        Args:
            tensor: Rank 1 to 5, last dimension contiguous, other strides multiples of 16 bytes.
            box: Elements that one copy moves, per dimension of the tensor, in its order.
            swizzle: ``"none"``, ``"32B"``, ``"64B"`` or ``"128B"``.
            interleave: ``"none"``, ``"16B"`` or ``"32B"``.
            element_strides: Per dimension of the tensor, in its order; None for ones.
            l2_promotion: ``"none"``, ``"64B"``, ``"128B"`` or ``"256B"``; has no effect here.
            fill: What elements out of bounds read as: ``"zeros"`` or ``"nan"``.
            type: Element type if it is not the tensor's dtype, for example ``"tfloat32"``.

        Raises:
            ValueError: an argument is not what ``cuTensorMapEncodeTiled`` documents as valid.
        """
        view = view_of("tensor", tensor)
        type_name = view.dtype if type is None else type
        type_number = _choice("type", type_name, _TYPES)
        modes = (
            _choice("interleave", interleave, _INTERLEAVES),
            _choice("swizzle", swizzle, _SWIZZLES),
            _choice("l2_promotion", l2_promotion, _L2_PROMOTIONS),
            _choice("fill", fill, _FILLS),
        )
        rank = len(view.sizes)
        steps = [1] * rank if element_strides is None else element_strides
        for name, values in (("box", box), ("element_strides", steps)):
            if not isinstance(values, Sequence) or len(values) != rank:
                raise ValueError(
                    f"{name} must have one value per dimension of the tensor ({rank}), "
                    f"got {shown(values)}"
                )
            for dimension, value in enumerate(values):
                check_integer(f"{name}[{dimension}]", value, 0, 2**32 - 1)
        if _TYPE_BYTES[type_number] != view.itemsize:
            raise ValueError(
                f"type must have the tensor's {view.itemsize} bytes an element, got {type_name}"
            )
        if rank > 0 and view.sizes[-1] > 1 and view.strides[-1] != 1:
            raise ValueError(
                "the last dimension of the tensor must be contiguous, "
                f"got stride {view.strides[-1]} elements"
            )
        fields = TensorMapFields(
            type=type_name,
            address=view.address,
            dims=tuple(reversed(view.sizes)),
            strides=tuple(stride * view.itemsize for stride in reversed(view.strides[:-1])),
            box=tuple(reversed([int(size) for size in box])),
            element_strides=tuple(reversed([int(step) for step in steps])),
            interleave=interleave,
            swizzle=swizzle,
            l2_promotion=l2_promotion,
            fill=fill,
        )
        return cls(fields, _encoded(type_number, fields, modes), view)

    def fields(self) -> TensorMapFields:
        """The map in the driver's terms: dimension 0 is the contiguous one."""
        return self._fields

    def __bytes__(self) -> bytes:
        return self._encoded

    def __copy__(self) -> TensorMap:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a TensorMap holds the address of its tensor, so that it can be neither pickled nor "
            "copied deeply: encode one of the tensor's copy with TensorMap.encode_tiled"
        )

    def __repr__(self) -> str:
        return f"TensorMap({self._fields})"


def _encoded(type_number: int, fields: TensorMapFields, modes: tuple[int, int, int, int]) -> bytes:
    """The encoded map; errors number dimensions as the tensor does."""
    rank = len(fields.dims)
    try:
        return _C.emulator.encode_tensor_map(
            type_number,
            fields.address,
            fields.dims,
            fields.strides,
            fields.box,
            fields.element_strides,
            modes,
        )
    except ValueError as error:
        message = re.sub(
            r"(?<=of dimension )\d+", lambda match: str(rank - 1 - int(match[0])), str(error)
        )
        raise ValueError(message) from None


def _choice(name: str, value: str, choices: dict[str, int]) -> int:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
    return choices[value]
