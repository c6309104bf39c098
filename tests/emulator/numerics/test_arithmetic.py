"""Floating-point operations of the emulator against exact fractions, in every rounding mode."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from pykernels import _C
from tests.emulator.numerics.rounding import (
    BF16,
    F16,
    F32,
    MODES,
    Format,
    is_finite,
    round_fraction,
    to_fraction,
)

emulator = _C.emulator
NAN = 0x7FFFFFFF
INFINITY = 0x7F800000
SIGN = 0x80000000


def float_of(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def operands(seed: int, count: int) -> list[tuple[int, int, int]]:
    """Triples of finite patterns: any, near one another (cancellation), subnormal, exact halves."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 32, (count, 3), dtype=np.uint64)
    near = (words & 0x807FFFFF) | (rng.integers(110, 140, (count, 3), dtype=np.uint64) << 23)
    small = words & 0x81FFFFFF
    coarse = near & 0xFFFFF000
    triples = np.concatenate([words, near, small, coarse]).tolist()
    return [tuple(t) for t in triples if all(is_finite(v, F32) for v in t)]


def exact_sum(a: int, b: int, mode: str, target: Format) -> int:
    """Code of a + b, with the sign that IEEE gives an exact zero."""
    total = to_fraction(a, target) + to_fraction(b, target)
    both_negative = bool(a & b & target.sign)
    either_negative = bool((a | b) & target.sign)
    zero_is_negative = either_negative if mode == "rm" else both_negative
    return round_fraction(total, target, mode, negative_zero=zero_is_negative)


@pytest.mark.parametrize("mode", MODES)
def test_f32_operations(mode: str) -> None:
    for a, b, c in operands(MODES.index(mode), 400):
        x, y, z = (to_fraction(v, F32) for v in (a, b, c))
        sign = (a ^ b) & SIGN
        assert emulator.arithmetic_f32(a, b, 0, "add", mode) == exact_sum(a, b, mode, F32)
        want = round_fraction(x * y, F32, mode, negative_zero=bool(sign))
        assert emulator.arithmetic_f32(a, b, 0, "mul", mode) == want
        if y != 0:
            want = round_fraction(x / y, F32, mode, negative_zero=bool(sign))
            assert emulator.arithmetic_f32(a, b, 0, "div", mode) == want
        if x * y + z != 0:
            want = round_fraction(x * y + z, F32, mode)
            assert emulator.arithmetic_f32(a, b, c, "fma", mode) == want, (hex(a), hex(b), hex(c))


@pytest.mark.parametrize("mode", MODES)
def test_f32_square_root(mode: str) -> None:
    for a, _, _ in operands(10, 200):
        bits = a & ~SIGN
        got = to_fraction(emulator.arithmetic_f32(bits, 0, 0, "sqrt", mode), F32)
        value = to_fraction(bits, F32)
        ulp = Fraction(1, 2**23) * got
        if mode == "rn":
            assert (got - ulp) ** 2 < value < (got + ulp) ** 2 or value == got**2
        elif mode == "rp":
            assert (got - ulp) ** 2 <= value <= got**2
        else:
            assert got**2 <= value <= (got + ulp) ** 2


def test_f32_zero_results_of_fma() -> None:
    one, minus_one = 0x3F800000, 0xBF800000
    assert emulator.arithmetic_f32(one, one, minus_one, "fma", "rn") == 0
    assert emulator.arithmetic_f32(one, one, minus_one, "fma", "rm") == SIGN
    assert emulator.arithmetic_f32(SIGN, one, SIGN, "fma", "rn") == SIGN
    assert emulator.arithmetic_f32(SIGN, one, 0, "fma", "rn") == 0
    assert emulator.arithmetic_f32(SIGN, one, 0, "fma", "rm") == SIGN


def test_f32_specials_and_flushing() -> None:
    for operation in ("add", "mul", "div", "fma"):
        assert emulator.arithmetic_f32(0x7FC00001, 0x3F800000, 0, operation) == NAN
        assert emulator.arithmetic_f32(0xFFFFFFFF, 0x3F800000, 0, operation, "rz") == NAN
    assert emulator.arithmetic_f32(INFINITY, INFINITY | SIGN, 0, "add") == NAN
    assert emulator.arithmetic_f32(INFINITY, 0, 0, "mul") == NAN
    assert emulator.arithmetic_f32(0, 0, 0, "div") == NAN
    assert emulator.arithmetic_f32(0xBF800000, 0, 0, "sqrt") == NAN
    assert emulator.arithmetic_f32(0x3F800000, SIGN, 0, "div") == INFINITY | SIGN
    subnormal = 0x80000001
    assert emulator.arithmetic_f32(subnormal, 0, 0, "add", ftz=True) == 0
    assert emulator.arithmetic_f32(subnormal, 0x3F800000, 0, "mul", ftz=True) == SIGN
    smallest = 0x00800000
    assert emulator.arithmetic_f32(smallest, 0xBF000000, 0, "mul", ftz=True) == SIGN
    assert emulator.arithmetic_f32(smallest, 0xBF000000, 0, "mul") == SIGN | 0x00400000


def test_fma_lanes_equal_the_scalar_operation() -> None:
    rng = np.random.default_rng(5)
    specials = np.array([0, SIGN, INFINITY, INFINITY | SIGN, 0x7FC00001, 1, 0x7F7FFFFF], np.uint32)
    for _ in range(60):
        a, b, c = (rng.integers(0, 1 << 32, 32, dtype=np.uint32) for _ in range(3))
        for values in (a, b, c):
            values[rng.integers(0, 32, 4)] = rng.choice(specials, 4)
        got = emulator.fma_lanes(a, b, c)
        want = [
            emulator.arithmetic_f32(int(x), int(y), int(z), "fma")
            for x, y, z in zip(a, b, c, strict=True)
        ]
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("mode", MODES)
def test_f64_operations(mode: str) -> None:
    rng = np.random.default_rng(6)
    for _ in range(300):
        a, b, c = (math.ldexp(m, int(e)) for m, e in zip(
            rng.uniform(-1, 1, 3), rng.integers(-40, 40, 3), strict=True))  # fmt: skip
        x, y, z = Fraction(a), Fraction(b), Fraction(c)
        for operation, exact in (
            ("add", x + y), ("mul", x * y), ("div", x / y), ("fma", x * y + z),
        ):  # fmt: skip
            got = Fraction(emulator.arithmetic_f64(a, b, c, operation, mode))
            bound = abs(exact) / (2**53 if mode == "rn" else 2**52)
            assert abs(got - exact) <= bound
            assert mode != "rm" or got <= exact
            assert mode != "rp" or got >= exact
            assert mode != "rz" or abs(got) <= abs(exact)


@pytest.mark.parametrize("target", [F16, BF16], ids=lambda target: target.name)
def test_half_operations(target: Format) -> None:
    rng = np.random.default_rng(7)
    for triple in rng.integers(0, 1 << 16, (3000, 3)).tolist():
        a, b, c = triple
        if not all(is_finite(v, target) for v in triple):
            continue
        x, y, z = (to_fraction(v, target) for v in triple)
        name = target.name
        assert emulator.arithmetic_half(a, b, 0, "add", name) == exact_sum(a, b, "rn", target)
        want = round_fraction(x * y, target, "rn", negative_zero=bool((a ^ b) & target.sign))
        assert emulator.arithmetic_half(a, b, 0, "mul", name) == want
        if x * y + z != 0:
            want = round_fraction(x * y + z, target, "rn")
            assert emulator.arithmetic_half(a, b, c, "fma", name) == want
    nan, infinity = target.sign - 1, target.overflow
    assert emulator.arithmetic_half(infinity, infinity | target.sign, 0, "add", target.name) == nan


FUNCTIONS = {
    "ex2": (math.exp2 if hasattr(math, "exp2") else lambda x: 2.0**x, -20.0, 20.0),
    "lg2": (math.log2, 1e-30, 1e30),
    "rcp": (lambda x: 1 / x, 1e-30, 1e30),
    "rsqrt": (lambda x: 1 / math.sqrt(x), 1e-30, 1e30),
    "sqrt": (math.sqrt, 1e-30, 1e30),
    "sin": (math.sin, -3.0, 3.0),
    "cos": (math.cos, -3.0, 3.0),
    "tanh": (math.tanh, -8.0, 8.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_approximate_functions(name: str) -> None:
    function, low, high = FUNCTIONS[name]
    for value in np.linspace(low, high, 500).astype(np.float32):
        got = float_of(emulator.approximate_f32(int(value.view(np.uint32)), 0, name))
        assert got == pytest.approx(function(float(value)), rel=2**-23, abs=1e-30)


def test_approximate_specials() -> None:
    def apply(a: int, name: str, b: int = 0, ftz: bool = False) -> int:
        result: int = emulator.approximate_f32(a, b, name, ftz)
        return result

    assert apply(INFINITY | SIGN, "ex2") == 0
    assert apply(INFINITY, "ex2") == INFINITY
    assert apply(0x00000001, "ex2", ftz=True) == 0x3F800000
    assert apply(0, "lg2") == INFINITY | SIGN
    assert apply(0xBF800000, "lg2") == NAN
    assert apply(SIGN, "rcp") == INFINITY | SIGN
    assert apply(INFINITY, "rcp") == 0
    assert apply(0xBF800000, "rsqrt") == NAN
    assert apply(INFINITY, "sin") == NAN
    assert apply(0x3F800000, "div", 0x7F000000) == 0  # 1 / 2^127
    assert apply(INFINITY, "div", 0x7F000000) == NAN
    assert apply(0x3F800000, "div_full", 0x7F000000) == 0x00400000
