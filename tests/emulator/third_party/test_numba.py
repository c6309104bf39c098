"""Numba kernels, compiled to PTX here, run in the emulator, against NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import Emulator, Kernel, Module

from . import numba_kernels as kernels

Array = npt.NDArray[Any]


def signature(*arguments: Any) -> tuple[Any, ...]:
    from numba import types

    return tuple(
        types.Array(getattr(types, value.dtype.name), value.ndim, "C")
        if isinstance(value, np.ndarray)
        else types.int64
        for value in arguments
    )


@functools.cache
def compiled(function: Callable[..., None], types: tuple[Any, ...]) -> Kernel:
    from numba import cuda

    ptx, _ = cuda.compile_ptx(function, types, cc=(9, 0))
    (kernel,) = Module.from_ptx(ptx).kernels.values()
    return kernel


def launch(
    function: Callable[..., None],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *arguments: Any,
    **options: Any,
) -> None:
    """Numba passes an array as two null pointers, counts, the data, its shape and strides."""
    values: list[Any] = []
    for value in arguments:
        if isinstance(value, np.ndarray):
            values += [None, None, value.size, value.itemsize, value, *value.shape, *value.strides]
        else:
            values.append(value)
    kernel = compiled(function, signature(*arguments))
    report = Emulator(**options).launch(kernel, grid, block, values)
    report.raise_if_findings()


def small_integers(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Their sums and products are exact in any order."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


@pytest.mark.parametrize("function", [kernels.matmul_naive, kernels.matmul_tiled])
def test_matmul(function: Callable[..., None]) -> None:
    a, b = small_integers(40, 35), small_integers(35, 50, seed=1)
    c = np.full((40, 50), np.nan, np.float32)
    for seed in range(2):
        launch(function, (3, 4), (16, 16), a, b, c, seed=seed)
        np.testing.assert_array_equal(c, a @ b)


@pytest.mark.parametrize("seed", range(3))
def test_reduce_sum(seed: int) -> None:
    x = small_integers(5000)
    total = np.zeros(1, np.float32)
    launch(kernels.reduce_sum, (6,), (128,), x, total, seed=seed)
    assert total[0] == x.sum()


def test_argmax() -> None:
    x = np.random.default_rng(2).permutation(256).astype(np.int64)
    best, place = np.full(1, -1, np.int64), np.full(1, 999, np.int64)
    launch(kernels.argmax, (1,), (256,), x, best, place)
    assert (best[0], place[0]) == (255, x.argmax())


def test_scan() -> None:
    x = np.random.default_rng(3).integers(-(2**60), 2**60, 256)
    out = np.zeros_like(x)
    launch(kernels.scan, (1,), (256,), x, out)
    np.testing.assert_array_equal(out, np.cumsum(x))


def test_histogram() -> None:
    x = np.random.default_rng(4).integers(0, 2**31, 1000).astype(np.int32)
    counts = np.zeros(64, np.int32)
    launch(kernels.histogram, (8,), (128,), x, counts)
    np.testing.assert_array_equal(counts, np.bincount(x & 63, minlength=64))


def test_mandelbrot() -> None:
    out = np.zeros((30, 20), np.int64)
    launch(kernels.mandelbrot, (2, 2), (16, 16), out, 40)
    c = -2.0 + 3.0 * np.arange(30)[:, None] / 30 + 1j * (-1.25 + 2.5 * np.arange(20) / 20)
    z, expected = np.zeros_like(c), np.zeros(c.shape, np.int64)
    for _ in range(40):
        inside = z.real**2 + z.imag**2 <= 4
        expected += inside
        z = np.where(inside, z * z + c, z)
    # Where rounding decides on which side of the circle a point lies, one step more or less.
    assert np.count_nonzero(out != expected) <= 2


def test_functions() -> None:
    x = np.random.default_rng(5).normal(size=64)
    out = np.zeros((8, 64))
    launch(kernels.functions, (2,), (32,), x, out)
    magnitude = np.abs(x)
    expected = [
        np.sin(x), np.exp(x), np.sqrt(magnitude), magnitude**0.3, np.arctan2(x, 0.7),
        np.vectorize(math.erf)(x), np.floor(x) + np.fmod(x, 0.4), x / (1 + x * x),
    ]  # fmt: skip
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-14)


def test_integers() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.integers(-(2**63), 2**63, (2, 64)) >> rng.integers(0, 60, (2, 64))
    b[b == 0] = 3
    out = np.zeros((9, 64), np.int64)
    launch(kernels.integers, (2,), (32,), a, b, out)
    unsigned = a.view(np.uint64).tolist()
    # Numba's brev takes 32 bits, whatever the argument's type.
    reversed_words = np.array([int(f"{value & 2**32 - 1:032b}"[::-1], 2) for value in unsigned])
    with np.errstate(over="ignore"):
        expected = [
            a // b, a % b, a * b, (a << 7) ^ (b >> 11),
            np.array([value.bit_count() for value in unsigned]),
            np.array([64 - value.bit_length() for value in unsigned]),
            reversed_words, np.minimum(a, b) - np.maximum(a, b), np.abs(a) & ~b,
        ]  # fmt: skip
    np.testing.assert_array_equal(out, np.array(expected))


def test_votes() -> None:
    x = np.random.default_rng(7).integers(0, 12, 32).astype(np.int32)
    out = np.zeros((6, 32), np.int64)
    launch(kernels.votes, (1,), (32,), x, out)
    lanes = np.arange(32)
    bits = np.uint32(1) << lanes.astype(np.uint32)
    ballot = int(bits[x % 2 == 1].sum())
    up = x[np.where(lanes >= 2, lanes - 2, lanes)]
    expected = [
        np.full(32, ballot), np.full(32, 2), [int(bits[x == value].sum()) for value in x],
        x[lanes ^ 3] + up, kernels.POWERS[x & 7], np.where(x % 2 == 1, 10, 20),
    ]  # fmt: skip
    np.testing.assert_array_equal(out & 0xFFFFFFFF, np.array(expected))


def test_local_sort() -> None:
    x = np.random.default_rng(8).normal(size=(64, 8))
    out = np.zeros_like(x)
    launch(kernels.local_sort, (2,), (32,), x, out)
    np.testing.assert_array_equal(out, np.sort(x, axis=1))


@pytest.mark.parametrize("seed", range(3))
def test_spin_lock(seed: int) -> None:
    lock, total = np.zeros(1, np.int32), np.zeros(1, np.int64)
    launch(kernels.spin_lock, (20,), (32,), lock, total, seed=seed)
    assert (lock[0], total[0]) == (0, 210)
