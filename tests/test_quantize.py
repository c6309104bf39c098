"""The casts: torch implementation and kernels against the reference, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import reference
from tests.cases import assert_same_bits, ceil_div
from tests.target import selected

Pair = tuple[Tensor, Tensor]
OPS: list[tuple[Callable[..., Pair], Callable[..., Pair], int]] = [
    (pykernels.quantize_1x128, reference.quantize_1x128, 1),
    (pykernels.quantize_128x128, reference.quantize_128x128, 128),
]
BY_NAME = pytest.mark.parametrize(
    ("op", "specification", "block_rows"), OPS, ids=["1x128", "128x128"]
)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
FORMATS = pytest.mark.parametrize("scale_fmt", ["fp32", "ue8m0"])
MODES = ("early", "late", "random")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of x and what they exercise."""

    m: int
    k: int
    what: str

    def __str__(self) -> str:
        return f"{self.m}x{self.k}-{self.what.replace(' ', '_')}"


CASES = [
    Case(1, 1, "one element"),
    Case(1, 16, "one chunk"),
    Case(3, 17, "a chunk and one element"),
    Case(33, 128, "one block a row, a CTA and one"),
    Case(127, 127, "a block less one"),
    Case(128, 128, "one block"),
    Case(129, 129, "a block and one"),
    Case(70, 272, "ragged both ways"),
]


def spread(m: int, k: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random values whose rows differ in magnitude; rows padded to 16 bytes where k is odd."""
    generator = torch.Generator().manual_seed(seed + 1000003 * m + k)
    limit = 4 if dtype == torch.float16 else 30
    magnitude = torch.exp((torch.rand(m, 1, generator=generator) * 2 - 1) * limit)
    values = torch.randn(m, k, generator=generator) * magnitude
    x = torch.full((m, ceil_div(k, 16) * 16), torch.nan, dtype=dtype)[:, :k]
    return x.copy_(values)


def special(dtype: torch.dtype) -> Tensor:
    """Blocks with zeros of both signs, NaN, infinities, tiny and huge values, among plain ones."""
    x = spread(260, 256, dtype, seed=1)
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x[0] = 0
    x[1] = -0.0
    x[2, 7] = torch.nan
    x[3, 130] = torch.inf
    x[4, 0] = -torch.inf
    x[5] = largest
    x[6] = -smallest
    x[7] = smallest * 2.0 ** torch.arange(256).remainder(20).neg()  # subnormals, some zero
    x[8, :128] = 448.0  # scale exactly 1
    x[9, :128] = torch.arange(128) * 0.5
    x[10, 1:] = 0
    if dtype != torch.float16:
        x[11] = 2.0**-130 * torch.arange(256)
        x[12, ::2] = -0.0
    x[128:256, :128] = 0  # a whole square of zeros
    return x


def assert_same(actual: Pair, expected: Pair) -> None:
    assert_same_bits(actual[1], expected[1])
    assert_same_bits(actual[0], expected[0])


@BY_NAME
@DTYPES
@FORMATS
def test_torch_implementation(
    op: Callable[..., Pair],
    specification: Callable[..., Pair],
    block_rows: int,
    dtype: torch.dtype,
    scale_fmt: str,
) -> None:
    for case in CASES:
        x = spread(case.m, case.k, dtype)
        assert_same(op(x, scale_fmt=scale_fmt), specification(x, scale_fmt=scale_fmt))
    x = special(dtype)
    assert_same(op(x, scale_fmt=scale_fmt), specification(x, scale_fmt=scale_fmt))


def emulated(op: Callable[..., Pair], *arguments: Any, options: Any = None, **named: Any) -> Pair:
    """Runs the kernel, with ``--device cuda`` on the GPU, and demands no findings."""
    result, launched = selected().call(op, *arguments, options=options, **named)
    assert launched in ([op.__name__], None)
    pair: Pair = result
    return pair


@BY_NAME
@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(
    op: Callable[..., Pair],
    specification: Callable[..., Pair],
    block_rows: int,
    dtype: torch.dtype,
    case: Case,
) -> None:
    x = spread(case.m, case.k, dtype)
    assert_same(emulated(op, x), op(x))


@BY_NAME
@DTYPES
@FORMATS
def test_kernel_on_special_values(
    op: Callable[..., Pair],
    specification: Callable[..., Pair],
    block_rows: int,
    dtype: torch.dtype,
    scale_fmt: str,
) -> None:
    x = special(dtype)
    assert_same(emulated(op, x, scale_fmt=scale_fmt), specification(x, scale_fmt=scale_fmt))


@BY_NAME
def test_kernel_divides_as_ieee_does(
    op: Callable[..., Pair], specification: Callable[..., Pair], block_rows: int
) -> None:
    """Scales over the whole range of FP32, quotients at and beside every tie of e4m3."""
    exponents = torch.arange(-149, 128, 3).double()
    mantissas = torch.tensor([1.0, 1 + 2**-23, 2 - 2**-23, 1.37, 1.75])
    ties = torch.arange(16, 32).double()[None, :] * 2.0 ** torch.arange(-14, 4)[:, None]
    quotients = torch.cat([ties.flatten(), torch.tensor([448.0, 464.0])]).clamp(max=448)
    rows = []
    for exponent in exponents:
        for mantissa in mantissas:
            amax = float(mantissa) * 448 * 2.0 ** float(exponent)
            if amax < torch.finfo(torch.float32).max:
                rows.append(quotients[torch.randperm(len(quotients))[:126]] * amax / 448)
                rows[-1] = torch.cat([rows[-1], torch.tensor([amax, -amax])])
    x = torch.stack(rows).float()
    bits = x.view(torch.int32)
    nudge = torch.randint(-1, 2, bits.shape, dtype=torch.int32)
    x = torch.where(bits & 0x7FFFFFFF > 1, bits + nudge, bits).view(torch.float32)
    x = torch.where(x.isfinite(), x, 0.0)
    assert_same(emulated(op, x), op(x))


@BY_NAME
@pytest.mark.parametrize("mode", MODES)
def test_kernel_gives_the_same_bits_with_every_schedule(
    op: Callable[..., Pair], specification: Callable[..., Pair], block_rows: int, mode: str
) -> None:
    x = spread(130, 272, torch.bfloat16)
    expected = op(x)
    for seed in range(3):
        options = {"seed": seed, "async_completion": mode, "num_sms": seed + 1}
        assert_same(emulated(op, x, options=options), expected)


@BY_NAME
def test_strides(
    op: Callable[..., Pair], specification: Callable[..., Pair], block_rows: int
) -> None:
    """Rows apart, scales column-major and with gaps; what lies between stays untouched."""
    m, k = 70, 200
    wide = torch.full((m, 320), torch.nan)
    x = wide[:, 16 : 16 + k].copy_(spread(m, k, torch.float32))
    expected = op(x)
    blocks = expected[1].shape
    for emulate in (False, True):
        q_storage = torch.full((m, 256), 0x55, dtype=torch.uint8)
        scale_storage = torch.full((blocks[1], blocks[0] * 2 + 1), 7.0)
        q = q_storage[:, 16 : 16 + k].view(torch.float8_e4m3fn)
        scales = scale_storage[:, : 2 * blocks[0] : 2].T
        result = emulated(op, x, out=(q, scales)) if emulate else op(x, out=(q, scales))
        assert result[0] is q
        assert result[1] is scales
        assert_same(result, expected)
        assert bool((q_storage[:, :16] == 0x55).all())
        assert bool((q_storage[:, 16 + k :] == 0x55).all())
        assert bool((scale_storage[:, 1::2] == 7.0).all())


@BY_NAME
@pytest.mark.parametrize(("m", "k"), [(0, 128), (5, 0), (0, 0)])
def test_empty(
    op: Callable[..., Pair],
    specification: Callable[..., Pair],
    block_rows: int,
    m: int,
    k: int,
) -> None:
    with pykernels.emulate() as report:
        q, scales = op(torch.empty(m, k))
    assert not report.launches
    assert q.shape == (m, k)
    assert scales.shape == (ceil_div(m, block_rows), ceil_div(k, 128))


@BY_NAME
def test_non_contiguous_rows_allow_odd_k(
    op: Callable[..., Pair], specification: Callable[..., Pair], block_rows: int
) -> None:
    """An allocated q has rows that start at multiples of 16 bytes, so it fits the GEMM's rules."""
    q, _ = op(spread(5, 37, torch.bfloat16))
    assert q.shape == (5, 37)
    assert q.stride() == (48, 1)
