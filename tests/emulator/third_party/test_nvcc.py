"""What nvcc makes of ordinary CUDA C++, optimised and for debugging, against NumPy and Python."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import Emulator, Module

from .compile_once import compile_once

SOURCE = Path(__file__).with_name("nvcc_programs.cu")
COUNT = 256


@pytest.fixture(scope="module", params=["optimised", "debug"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Module:
    flags = ["-G"] if request.param == "debug" else []
    return Module.from_file(compile_once(tmp_path_factory, SOURCE, *flags, name=request.param))


def launch(module: Module, name: str, *args: object, **shape: object) -> None:
    grid, block = shape.pop("grid", (COUNT // 32,)), shape.pop("block", (32,))
    Emulator().launch(module[name], grid, block, list(args), **shape).raise_if_findings()


def functions(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> list[np.ndarray]:
    z = np.abs(x)
    return [
        np.sin(x), np.cos(x), np.tan(x), z**y, np.fmod(x, y), np.exp(x), np.log(z), np.log1p(z),
        np.arctan2(x, y), np.tanh(x), np.vectorize(math.erf)(x), np.hypot(x, y), np.cbrt(x), x / y,
        np.sqrt(z), 1 / np.sqrt(z), np.trunc(x), np.ceil(x), np.floor(x), np.rint(x), np.arcsinh(x),
        np.exp2(x), 10**x, np.sinh(x), np.trunc(x),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("single_functions", np.float32, 5e-7), ("double_functions", np.float64, 1e-13)],
)
def test_functions(programs: Module, name: str, dtype: npt.DTypeLike, tolerance: float) -> None:
    a, b = np.random.default_rng(0).normal(scale=4, size=(2, COUNT)).astype(dtype)
    b[:6] = [1, 2, 0.5, -1, -2, 4]
    expected = functions(a.astype(np.float64), b.astype(np.float64))
    out = np.zeros((len(expected), COUNT), dtype)
    launch(programs, name, a, b, out, COUNT)
    for i, values in enumerate(expected):
        np.testing.assert_allclose(out[i], values, rtol=tolerance, err_msg=f"result {i}")


def signed(value: int, bits: int = 64) -> int:
    value &= 2**bits - 1
    return value - 2**bits if value >> (bits - 1) else value


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a - b * quotient(a, b)


def integer_results(x: int, y: int) -> list[int]:
    ux, uy = x % 2**64, y % 2**64
    x32, y32, x16, y16 = signed(x, 32), signed(y | 1, 32), signed(x, 16), signed(y | 1, 16)
    return [
        quotient(x, y), remainder(x, y), signed(ux // uy), signed(ux % uy), signed(x * y),
        x * y >> 64, signed(ux * uy >> 64), ux.bit_count(), 64 - ux.bit_length(),
        signed(int(f"{ux:064b}"[::-1], 2)), (ux & -ux).bit_length(), signed(x << (uy & 63)),
        x >> (uy & 63), quotient(x32, y32), remainder(x32, y32), (x32 % 2**32) // (y32 % 2**32),
        quotient(x16, y16), signed(x * uy % 2**128 // 1000003), remainder(x * y, 1000000007),
    ]  # fmt: skip


def test_integers(programs: Module) -> None:
    a, b = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (2, COUNT))
    a[:100] >>= 40
    b[:50] >>= 50
    b[50:120] >>= 33
    b[b == 0] = 3
    expected = [integer_results(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    out = np.zeros((len(expected[0]), COUNT), np.int64)
    launch(programs, "integers", a, b, out, COUNT)
    np.testing.assert_array_equal(out, np.array(expected).T)


def steps(n: int) -> int:
    return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)


def test_control_flow(programs: Module) -> None:
    a = np.arange(1, 65, dtype=np.int32)
    out = np.zeros_like(a)
    launch(programs, "control_flow", a, out, grid=(1,), block=(64,))
    for x, got in zip(a.tolist(), out.tolist(), strict=True):
        s = steps(x)
        choices = [s + 100, s * 3, s ^ 0x55, (s - 7) << 2, s << 2, -s, s // 3, x]
        assert got == choices[x % 8], x


def test_cluster_sum(programs: Module) -> None:
    a = np.arange(256, dtype=np.float32)
    out = np.zeros_like(a)
    launch(
        programs,
        "cluster_sum",
        a,
        out,
        grid=(4,),
        block=(64,),
        cluster=(2,),
        dynamic_smem_bytes=256,
    )
    sums = a.reshape(2, 2, 2, 32)[:, ::-1].sum(axis=-1, keepdims=True)
    np.testing.assert_array_equal(out, np.broadcast_to(sums, (2, 2, 2, 32)).ravel())
