"""Edge shapes and bitwise comparison that the op tests share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class GemmCase:
    """Sizes of one product and what they exercise."""

    m: int
    n: int
    k: int
    what: str

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}-{self.what.replace(' ', '_')}"


def ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as integers: NaN equals itself, and zeros differ by sign."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(widths[tensor.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    different = bits(actual) != bits(expected)
    if bool(different.any()):
        first = tuple(int(i) for i in different.nonzero()[0])
        raise AssertionError(
            f"{int(different.sum())} of {different.numel()} elements differ, first at {first}: "
            f"{float(actual[first])} instead of {float(expected[first])}"
        )
