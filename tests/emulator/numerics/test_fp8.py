"""FP8 WGMMA arithmetic against mmaemu's published model of Hopper, every bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mmaemu.model
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pykernels import _C

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
TYPE_PAIRS = [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"), ("e5m2", "e5m2")]


def expected(d: Words, a: Codes, b: Codes, a_type: str, b_type: str) -> Words:
    """mmaemu's chain over k for every pair of a row of a and a row of b."""
    shape = (a.shape[0], b.shape[0], a.shape[1])
    a_codes = torch.from_numpy(a)[:, None, :].expand(shape).view(DTYPES[a_type])
    b_codes = torch.from_numpy(b)[None, :, :].expand(shape).view(DTYPES[b_type])
    c = torch.from_numpy(d.view(np.float32))
    result = mmaemu.model.dot(a_codes.contiguous(), b_codes.contiguous(), c, preset="hopper")
    return result.numpy().view(np.uint32)


@dataclass(frozen=True)
class Distribution:
    """How operands and accumulators of a random tile are drawn."""

    name: str
    finite_only: bool = True
    zero_share: float = 0.0
    subnormal_share: float = 0.0
    exponent_spread: bool = False  # codes uniform, so that magnitudes span the whole format
    accumulator: str = "zero"  # "zero", "near", "any", "special"


DISTRIBUTIONS = [
    Distribution("normal_values"),
    Distribution("all_magnitudes", exponent_spread=True, accumulator="near"),
    Distribution("zeros", zero_share=0.8, exponent_spread=True, accumulator="near"),
    Distribution("subnormals", subnormal_share=0.9, accumulator="near"),
    Distribution("all_zero", zero_share=1.0, accumulator="any"),
    Distribution("any_accumulator", exponent_spread=True, accumulator="any"),
    Distribution("special_accumulator", zero_share=0.3, accumulator="special"),
    Distribution("any_code", finite_only=False, exponent_spread=True, accumulator="special"),
]


def draw_codes(
    rng: np.random.Generator, rows: int, k: int, code_type: str, case: Distribution
) -> Codes:
    if case.exponent_spread:
        codes = rng.integers(0, 256, (rows, k), dtype=np.uint8)
    else:
        values = torch.from_numpy(rng.standard_normal((rows, k)).astype(np.float32) * 8)
        codes = values.to(DTYPES[code_type]).view(torch.uint8).numpy()
    subnormal_codes = 7 if code_type == "e4m3" else 3
    sign = codes & 0x80
    small = rng.integers(0, subnormal_codes + 1, (rows, k), dtype=np.uint8) | sign
    codes = np.where(rng.random((rows, k)) < case.subnormal_share, small, codes)
    codes = np.where(rng.random((rows, k)) < case.zero_share, sign, codes)
    first_special = 0x7F if code_type == "e4m3" else 0x7C
    special = (codes & 0x7F) >= first_special
    if case.finite_only:
        codes = np.where(special, codes & 0x83, codes)
    else:  # a few rows keep them: otherwise every result would be NaN
        keep = (rng.random((rows, k)) < 0.02) & (rng.random((rows, 1)) < 0.3)
        codes = np.where(special & ~keep, codes & 0x83, codes)
    return codes.astype(np.uint8)


def draw_accumulators(rng: np.random.Generator, n: int, case: Distribution) -> Words:
    shape = (64, n)
    if case.accumulator == "zero":
        return np.zeros(shape, np.uint32)
    if case.accumulator == "near":  # of the products' magnitudes, and some negative zeros
        exponents = rng.integers(-40, 24, shape)
        values = np.ldexp(rng.standard_normal(shape), exponents).astype(np.float32)
        values[rng.random(shape) < 0.05] = -0.0
        return values.view(np.uint32)
    words = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    if case.accumulator == "special":
        special = np.array(
            [
                *(0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF),
                *(0xFF7FFFFF, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000),
                *(0x80000000, 0, 0x80000200, 0x80000400),  # 2^-140 is truncated away, 2^-139 is not
            ],
            np.uint32,
        )
        chosen = special[rng.integers(0, len(special), shape)]
        words = np.where(rng.random(shape) < 0.5, chosen, words)
    return words


def test_every_path_of_this_processor_is_compared() -> None:
    """The tests below loop over what the extension reports; the kernel says what must be there."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    expected_paths = ["auto", "scalar"]
    if {"avx2", "fma"} <= flags:
        expected_paths.append("avx2")
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        expected_paths.append("avx512")
    assert _C.emulator.fp8_paths() == expected_paths


def test_unknown_path() -> None:
    with pytest.raises(ValueError, match="the path must be one that this CPU runs, got mmx"):
        _C.emulator.multiply_fp8(
            np.zeros((64, 8), np.uint32),
            np.zeros((64, 32), np.uint8),
            np.zeros((8, 32), np.uint8),
            path="mmx",
        )


@pytest.mark.parametrize("types", TYPE_PAIRS, ids="x".join)
@pytest.mark.parametrize("case", DISTRIBUTIONS, ids=lambda case: case.name)
def test_random_dot_products(case: Distribution, types: tuple[str, str]) -> None:
    """32 cases of 4 tiles of 64 x 152: 1.25 million dot products, on every path."""
    a_type, b_type = types
    rng = np.random.default_rng(DISTRIBUTIONS.index(case) * 4 + TYPE_PAIRS.index(types))
    n = 152  # blocks of 32 and one of 24 columns, or of 64 and one of 24
    for _ in range(4):
        a = draw_codes(rng, 64, 32, a_type, case)
        b = draw_codes(rng, n, 32, b_type, case)
        d = draw_accumulators(rng, n, case)
        want = expected(d, a, b, a_type, b_type)
        for path in _C.emulator.fp8_paths():
            got = _C.emulator.multiply_fp8(d, a, b, a_type, b_type, path=path)
            mismatches = np.argwhere(got != want)
            assert len(mismatches) == 0, (
                f"{path}: {len(mismatches)} of {got.size} differ, first at {mismatches[0]}: "
                f"{got[tuple(mismatches[0])]:#010x}, expected {want[tuple(mismatches[0])]:#010x}"
            )


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_every_width(n: int) -> None:
    """Each n of the instruction, two steps of k: the second starts from the first's result."""
    rng = np.random.default_rng(n)
    case = Distribution("chain", exponent_spread=True)
    a = draw_codes(rng, 64, 64, "e4m3", case)
    b = draw_codes(rng, n, 64, "e4m3", case)
    d = draw_accumulators(rng, n, Distribution("near", accumulator="near"))
    want = _C.emulator.multiply_fp8(d, a, b, path="scalar")
    for path in _C.emulator.fp8_paths():
        got = _C.emulator.multiply_fp8(d, a, b, path=path)
        np.testing.assert_array_equal(got, want, err_msg=path)
    np.testing.assert_array_equal(want[:, -8:], expected(d[:, -8:], a, b[-8:], "e4m3", "e4m3"))


@pytest.mark.parametrize("path", _C.emulator.fp8_paths())
def test_scale_d_false_ignores_the_accumulator(path: str) -> None:
    rng = np.random.default_rng(0)
    case = Distribution("values")
    a = draw_codes(rng, 64, 32, "e4m3", case)
    b = draw_codes(rng, 40, 32, "e4m3", case)
    nan = np.full((64, 40), 0x7FC00000, np.uint32)
    zero = np.zeros((64, 40), np.uint32)
    got = _C.emulator.multiply_fp8(nan, a, b, scale_d=False, path=path)
    np.testing.assert_array_equal(got, _C.emulator.multiply_fp8(zero, a, b, path=path))


@pytest.mark.parametrize("path", _C.emulator.fp8_paths())
def test_rounding_mode_is_restored(path: str) -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 126, (64, 32), dtype=np.uint8)
    b = rng.integers(0, 126, (256, 32), dtype=np.uint8)
    _C.emulator.multiply_fp8(np.zeros((64, 256), np.uint32), a, b, path=path)
    assert np.float32(1) + np.float32(2**-24 + 2**-40) == np.float32(1 + 2**-23)  # rounds up
