"""Operands and edge shapes that the op tests share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


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


def gemm_operands(m: int, n: int, k: int, seed: int = 0) -> tuple[Pair, Pair]:
    """Random FP8 values whose scales differ per block by powers of ten and by mantissa."""
    generator = torch.Generator().manual_seed(seed + 7919 * m + 104729 * n + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    k_blocks = ceil_div(k, 128)
    a = (normal(m, k) * 40).to(torch.float8_e4m3fn)
    b = (normal(n, k) * 40).to(torch.float8_e4m3fn)
    sfa = torch.exp(normal(m, k_blocks))
    sfb = torch.exp(normal(ceil_div(n, 128), k_blocks))
    return (a, sfa), (b, sfb)


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
