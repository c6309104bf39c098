"""Tensor maps: what cuTensorMapEncodeTiled documents as valid, and the emulator's own 128 bytes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykernels import _C

UINT8, UINT16, FLOAT32, BFLOAT16 = 0, 1, 7, 9
ELEMENT_BYTES = (1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4)
INTERLEAVE_16B, INTERLEAVE_32B = 1, 2
SWIZZLE_NONE, SWIZZLE_32B, SWIZZLE_64B, SWIZZLE_128B = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Fields:
    """The arguments of cuTensorMapEncodeTiled; by default valid ones of a matrix of bytes."""

    type: int = UINT8
    address: int = 0x7000
    dims: tuple[int, ...] = (1000, 300)
    strides: tuple[int, ...] = (1008,)
    box: tuple[int, ...] = (128, 64)
    element_strides: tuple[int, ...] | None = None
    interleave: int = 0
    swizzle: int = SWIZZLE_128B
    l2_promotion: int = 0
    fill: int = 0

    def encode(self) -> bytes:
        modes = [self.interleave, self.swizzle, self.l2_promotion, self.fill]
        element_strides = self.element_strides or (1,) * len(self.dims)
        return _C.emulator.encode_tensor_map(
            self.type, self.address, self.dims, self.strides, self.box, element_strides, modes
        )

    def as_dict(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        fields["element_strides"] = self.element_strides or (1,) * len(self.dims)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


CUBE = Fields(dims=(64, 8, 8), strides=(64, 512), box=(64, 8, 8), swizzle=SWIZZLE_NONE)

INVALID = {
    "null address": (Fields(address=0), "address must not be null"),
    "address off 16": (Fields(address=0x7008), r"address must be a multiple of 16, got .*\b8\b"),
    "type unknown": (Fields(type=13), "type must be from 0 to 12, got 13"),
    "no elements": (Fields(dims=(1000, 0)), "size of dimension 1 must be from 1 to 2^32, got 0"),
    "too many elements": (Fields(dims=(2**32 + 1, 3)), "size of dimension 0 .* got 4294967297"),
    "stride off 16": (Fields(strides=(1001,)), "stride of dimension 1 .* got 1001"),
    "stride too large": (Fields(strides=(2**40,)), "stride of dimension 1 .* got 1099511627776"),
    "box empty": (Fields(box=(128, 0)), "box of dimension 1 must be from 1 to 256, got 0"),
    "box too large": (Fields(box=(128, 257)), "box of dimension 1 must be from 1 to 256, got 257"),
    "box off 16 bytes": (Fields(box=(120, 64)), "multiple of 16 bytes, got 120"),
    "box beyond 128B swizzle": (Fields(box=(144, 64)), "swizzle's 128 bytes, got 144"),
    "box beyond 64B swizzle": (Fields(swizzle=SWIZZLE_64B), "swizzle's 64 bytes, got 128"),
    "box beyond 32B swizzle": (
        Fields(type=UINT16, box=(32, 8), swizzle=SWIZZLE_32B),
        "swizzle's 32 bytes, got 64",
    ),
    "element stride 0": (Fields(element_strides=(1, 0)), "element stride of dimension 1 .* got 0"),
    "element stride 9": (Fields(element_strides=(1, 9)), "element stride of dimension 1 .* got 9"),
    "NaN fill of integers": (Fields(fill=1), "NaN needs a floating-point type, got type 0"),
    "fill unknown": (Fields(type=FLOAT32, box=(32, 8), fill=2), "fill must be 0 or 1, got 2"),
    "swizzle unknown": (Fields(swizzle=4), "swizzle must be from 0 to 3, got 4"),
    "interleave unknown": (Fields(interleave=3), "interleave must be from 0 to 2, got 3"),
    "promotion unknown": (Fields(l2_promotion=4), "L2 promotion must be from 0 to 3, got 4"),
    "interleave of a matrix": (
        Fields(interleave=INTERLEAVE_16B),
        "rank must be from 3 to 5, got 2",
    ),
    "interleave 32B without its swizzle": (
        dataclasses.replace(CUBE, interleave=INTERLEAVE_32B),
        "interleave 32B needs swizzle 32B, got swizzle 0",
    ),
    "interleave 32B, address off 32": (
        dataclasses.replace(CUBE, interleave=INTERLEAVE_32B, swizzle=SWIZZLE_32B, address=0x7010),
        "address must be a multiple of 32",
    ),
    "interleave 32B, stride off 32": (
        dataclasses.replace(
            CUBE, interleave=INTERLEAVE_32B, swizzle=SWIZZLE_32B, strides=(80, 640)
        ),
        "stride of dimension 1 must be a multiple of 32 bytes",
    ),
}


@pytest.mark.parametrize(("fields", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_fields_are_refused(fields: Fields, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("2^32", r"2\^32")):
        fields.encode()


@pytest.mark.parametrize(
    "fields",
    [
        Fields(),
        CUBE,
        Fields(dims=(2**32,), strides=(), box=(128,)),
        Fields(strides=(2**40 - 16,)),
        Fields(strides=(0,)),  # broadcast rows
        Fields(type=BFLOAT16, box=(64, 256), fill=1, l2_promotion=3),
        dataclasses.replace(CUBE, interleave=INTERLEAVE_32B, swizzle=SWIZZLE_32B),
        Fields(element_strides=(1, 8)),
    ],
    ids=str,
)
def test_valid_fields_come_back(fields: Fields) -> None:
    encoded = fields.encode()
    assert len(encoded) == 128
    assert _C.decode_tensor_map(encoded) == fields.as_dict()


@st.composite
def valid_fields(draw: st.DrawFn) -> Fields:
    element_type = draw(st.integers(0, 12))
    rank = draw(st.integers(1, 5))
    swizzle = draw(st.integers(0, 3))
    bytes_limit = (16 << swizzle) if swizzle else 256 * ELEMENT_BYTES[element_type]
    units = draw(st.integers(1, bytes_limit // 16))
    inner = min(units * 16 // ELEMENT_BYTES[element_type], 256)
    inner -= inner * ELEMENT_BYTES[element_type] % 16 // ELEMENT_BYTES[element_type]

    def sizes(count: int, low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    return Fields(
        type=element_type,
        address=draw(st.integers(1, 2**43)) * 16,
        dims=sizes(rank, 1, 2**32),
        strides=tuple(16 * stride for stride in sizes(rank - 1, 0, 2**36 - 1)),
        box=(inner, *sizes(rank - 1, 1, 256)),
        element_strides=sizes(rank, 1, 8),
        swizzle=swizzle,
        l2_promotion=draw(st.integers(0, 3)),
        fill=draw(st.integers(0, 1)) if element_type >= 6 else 0,
    )


@given(valid_fields())
def test_any_valid_fields_come_back(fields: Fields) -> None:
    assert _C.decode_tensor_map(fields.encode()) == fields.as_dict()


@pytest.mark.parametrize("garbage", [bytes(128), b"\xff" * 128])
def test_foreign_bytes_are_refused(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="no tensor map of the emulator"):
        _C.decode_tensor_map(garbage)


def test_length_is_checked() -> None:
    with pytest.raises(ValueError, match="has 128 bytes, got 127"):
        _C.decode_tensor_map(bytes(127))
