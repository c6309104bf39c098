"""FP16, BF16, TF32 and integer WGMMA arithmetic against the stated model in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from pykernels import _C
from tests.emulator.numerics.rounding import (
    BF16,
    F16,
    F32,
    TF32,
    Format,
    is_finite,
    round_fraction,
    to_fraction,
)

multiply_wide = _C.emulator.multiply_wide
FRACTION_BITS = 25
TYPES = {"f16": (F16, np.uint16), "bf16": (BF16, np.uint16), "tf32": (TF32, np.uint32)}


def exponent_of(code: int, source: Format) -> int:
    return max((code & (source.sign - 1)) >> source.fraction_bits, 1) - source.bias


def model(c: int, a: list[int], b: list[int], source: Format) -> int:
    """Aligned to the largest exponent, truncated to 25 fraction bits, summed, truncated to FP32."""
    terms = []
    for x, y in zip(a, b, strict=True):
        product = to_fraction(x, source) * to_fraction(y, source)
        terms.append((product, exponent_of(x, source) + exponent_of(y, source)))
    accumulator = to_fraction(c, F32)
    if accumulator:
        terms.append((accumulator, math.frexp(float(accumulator))[1] - 1))
    terms = [term for term in terms if term[0]]
    if not terms:
        return 0
    unit = Fraction(2) ** (max(exponent for _, exponent in terms) - FRACTION_BITS)
    total = sum((math.trunc(value / unit) for value, _ in terms), 0) * unit
    if abs(total) >= 2**128:
        return F32.overflow | (F32.sign if total < 0 else 0)
    code = round_fraction(total, F32, "rz")
    return 0 if code & 0x7FFFFFFF == 0 else code


def element_codes(
    rng: np.random.Generator, shape: tuple[int, int], source: Format
) -> list[list[int]]:
    """Near one another, with some zeros, subnormals and far exponents."""
    codes = rng.integers(0, 2 * source.sign, shape)
    exponents = rng.integers(source.bias - 6, source.bias + 6, shape) << source.fraction_bits
    keep = source.sign | ((1 << source.fraction_bits) - 1)
    codes = np.where(rng.random(shape) < 0.8, codes & keep | exponents, codes)
    codes = np.where(rng.random(shape) < 0.1, codes & keep, codes)
    codes = np.where(rng.random(shape) < 0.1, 0, codes)
    rows: list[list[int]] = codes.tolist()
    return [[c if is_finite(c, source) else 0 for c in row] for row in rows]


def to_bytes(codes: list[list[int]], name: str) -> npt.NDArray[np.uint8]:
    dtype = TYPES[name][1]
    words = np.array(codes, dtype)
    if name == "tf32":  # the 13 lower bits must not matter
        words = words << 13 | np.uint32(0x1ABC)
    return words.view(np.uint8)


@pytest.mark.parametrize("name", TYPES)
def test_wide_products(name: str) -> None:
    source, dtype = TYPES[name]
    rng = np.random.default_rng(sorted(TYPES).index(name))
    k = 32 // np.dtype(dtype).itemsize
    a = element_codes(rng, (64, k), source)
    b = element_codes(rng, (16, k), source)
    d = np.ldexp(rng.standard_normal((64, 16)), rng.integers(-12, 12, (64, 16)))
    words = np.where(rng.random(d.shape) < 0.1, 0, d).astype(np.float32).view(np.uint32)
    got = {path: multiply_wide(words, to_bytes(a, name), to_bytes(b, name), name, path)
           for path in _C.emulator.wide_paths()}  # fmt: skip
    for row in range(64):
        for column in range(16):
            want = model(int(words[row, column]), a[row], b[column], source)
            assert {
                path: int(result[row, column]) for path, result in got.items()
            } == dict.fromkeys(got, want), (row, column)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("n", [8, 16, 24, 120, 256])
def test_paths_agree(name: str, n: int) -> None:
    """Any operand codes, with and without infinities and NaN; accumulators of any pattern."""
    source, dtype = TYPES[name]
    rng = np.random.default_rng(n)
    k = 64 // np.dtype(dtype).itemsize  # two steps
    for keep_special in (False, True):
        operands = []
        for rows in (64, n):
            codes = rng.integers(0, 2 * source.sign, (rows, k))
            special = (codes & (source.sign - 1)) > source.max_finite
            keep = keep_special & (rng.random((rows, k)) < 0.02)
            operands.append(to_bytes(np.where(special & ~keep, 0, codes).tolist(), name))
        words = rng.integers(0, 1 << 32, (64, n), dtype=np.uint32)
        words[rng.random(words.shape) < 0.02] = 0x7F800000
        want = multiply_wide(words, *operands, name, "scalar")
        for path in _C.emulator.wide_paths():
            np.testing.assert_array_equal(multiply_wide(words, *operands, name, path), want)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("path", _C.emulator.wide_paths())
def test_wide_specials(path: str, name: str) -> None:
    source, dtype = TYPES[name]
    k = 32 // np.dtype(dtype).itemsize
    one = source.bias << source.fraction_bits
    infinity, nan = source.overflow, source.overflow + 1
    a = [[one] * k for _ in range(64)]
    a[0][3] = infinity
    a[1][0] = nan
    a[2][0], a[2][1] = infinity, infinity | source.sign
    b = [[one] * k for _ in range(8)]
    b[1][3] = 0
    b[2][3] = one | source.sign
    d = np.zeros((64, 8), np.uint32)
    d[3, 0], d[4, 0], d[5, 0] = 0x7F800000, 0xFFFFFFFF, 0xFF800000
    got = multiply_wide(d, to_bytes(a, name), to_bytes(b, name), name, path)
    assert got[0, 0] == 0x7F800000
    assert got[0, 1] == 0x7FFFFFFF  # infinity times zero
    assert got[0, 2] == 0xFF800000
    assert (got[1] == 0x7FFFFFFF).all()
    assert got[2, 0] == 0x7FFFFFFF
    assert (got[3:6, 0] == [0x7F800000, 0x7FFFFFFF, 0xFF800000]).all()
    assert got[6, 0] == np.float32(k).view(np.uint32)


@pytest.mark.parametrize("signs", [(True, True), (False, False), (True, False)])
def test_int8_products(signs: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(4)
    a = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    b = rng.integers(0, 256, (24, 64), dtype=np.uint8)
    d = rng.integers(-(1 << 31), 1 << 31, (64, 24), dtype=np.int64).astype(np.int32)
    left, right = (
        (codes.view(np.int8) if is_signed else codes).astype(np.int64)
        for codes, is_signed in zip((a, b), signs, strict=True)
    )
    exact = left @ right.T + d
    got = _C.emulator.multiply_int8(d.view(np.uint32), a, b, *signs)
    np.testing.assert_array_equal(got.view(np.int32), exact.astype(np.int32))
    first = np.clip(left[:, :32] @ right[:, :32].T + d, -(1 << 31), (1 << 31) - 1)
    saturated = np.clip(first + left[:, 32:] @ right[:, 32:].T, -(1 << 31), (1 << 31) - 1)
    got = _C.emulator.multiply_int8(d.view(np.uint32), a, b, *signs, satfinite=True)
    np.testing.assert_array_equal(got.view(np.int32), saturated)
