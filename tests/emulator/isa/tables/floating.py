"""FP32, FP64 and packed BF16 arithmetic: expected values from NumPy, ml_dtypes and rationals."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.emulator.isa.lanewise_program import floats, flush
from tests.emulator.numerics.rounding import F32, round_fraction

from .lanewise import lanewise
from .logic import doubles
from .row import Array, Row

Floats = npt.NDArray[np.float32]


def _maximum(a: Array, b: Array) -> Array:
    """The number where one is NaN; -0 is less than 0."""
    result: Array = np.where(np.isnan(a) | (b > a) | ((a == b) & np.signbit(a)), b, a)
    return result


def _maximum_nan(a: Array, b: Array) -> Array:
    return np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), _maximum(a, b))


_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "sub.rn": np.subtract,
    "mul": np.multiply,
    "mul.rn": np.multiply,
    "add.rn": np.add,
    "div.rn": np.divide,
    "copysign": lambda a, b: np.copysign(b, a),  # PTX: the sign of the first operand
    "max": _maximum,
    "min": lambda a, b: -_maximum(-a, -b),
    "max.NaN": _maximum_nan,
}
_UNARY: dict[str, Callable[[Array], Array]] = {
    "abs": np.abs,
    "neg": np.negative,
    "sqrt.rn": np.sqrt,
    "rcp.rn": lambda a: a.dtype.type(1) / a,
}
_EXACT = {
    "f32": "add add.rn sub sub.rn mul mul.rn max max.NaN div.rn copysign abs neg sqrt.rn rcp.rn",
    "ftz.f32": "add sub mul max",
    "f64": "add sub mul add.rn mul.rn div.rn max min copysign abs neg sqrt.rn rcp.rn",
}


def _exact() -> list[Row]:
    rows = []
    for kind, names in _EXACT.items():
        a, b = doubles() if kind == "f64" else floats(6)
        x, y = (flush(a), flush(b)) if kind == "ftz.f32" else (a, b)
        for name in names.split():
            with np.errstate(all="ignore"):
                expected = _BINARY[name](x, y) if name in _BINARY else _UNARY[name](x)
            inputs = (a, b) if name in _BINARY else (a,)
            if kind == "ftz.f32":
                expected = flush(expected)
            rows.append(lanewise(f"{name}.{kind}", expected, *inputs))
    return rows


def _fma32(a: float, b: float, c: float, mode: str) -> np.float32:
    if not all(map(math.isfinite, (a, b, c))):
        with np.errstate(all="ignore"):
            return np.float32(np.float64(a) * b + c)
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total:
        code = round_fraction(total, F32, mode)
    else:  # an exact zero is positive unless both terms are negative zeros, or in mode rm
        product_negative = math.copysign(1, a) * math.copysign(1, b) < 0
        signs = {product_negative, math.copysign(1, c) < 0}
        zeros = a * b == 0 and c == 0
        negative = signs == {True} if zeros and len(signs) == 1 else mode == "rm"
        code = F32.sign if negative else 0
    return np.uint32(code).view(np.float32)


def _fused() -> list[Row]:
    a, b, c = floats(7, count=3)
    rows = []
    for form, mode, flushes in (
        ("fma.rn.f32", "rn", False),
        ("fma.rn.ftz.f32", "rn", True),
        ("fma.rm.f32", "rm", False),
        ("fma.rz.f32", "rz", False),
    ):
        x, y, z = (flush(v) if flushes else v for v in (a, b, c))
        triples = zip(x.tolist(), y.tolist(), z.tolist(), strict=True)
        expected = np.array([_fma32(*triple, mode) for triple in triples], np.float32)
        rows.append(lanewise(form, flush(expected) if flushes else expected, a, b, c))
    finite = np.isfinite(a) & np.isfinite(b)
    terms = zip(a[finite].tolist(), b[finite].tolist(), strict=True)
    sums = np.array([_fma32(x, 1.0, y, "rz") for x, y in terms], np.float32)
    rows.append(lanewise("add.rz.f32", sums, a[finite], b[finite]))
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(2, 128))
    z = np.where(np.arange(128) % 2 == 0, -x * y, rng.normal(size=128))  # shows the rounding error
    exact = [Fraction(p) * Fraction(q) + Fraction(r) for p, q, r in zip(x, y, z, strict=True)]
    rows.append(lanewise("fma.rn.f64", np.array([float(value) for value in exact]), x, y, z))
    return rows


def _approximate() -> list[Row]:
    """Tolerances: at least what the PTX ISA states for these ranges."""
    rng = np.random.default_rng(10)
    a, b = rng.uniform(0.3, 3, (2, 128)).astype(np.float32)
    x, y = a.astype(np.float64), b.astype(np.float64)
    unary: dict[str, tuple[Array, float]] = {
        "cos.approx.f32": (np.cos(x / 4), 2.0**-20),
        "sin.approx.f32": (np.sin(x / 4), 2.0**-19),
        "ex2.approx.f32": (np.exp2(x), 2.0**-22),
        "ex2.approx.ftz.f32": (np.exp2(x), 2.0**-22),
        "rcp.approx.f32": (1 / x, 2.0**-22),
        "rcp.approx.ftz.f32": (1 / x, 2.0**-22),
        "rsqrt.approx.f32": (1 / np.sqrt(x), 2.0**-22),
        "rsqrt.approx.ftz.f32": (1 / np.sqrt(x), 2.0**-22),
    }
    rows = []
    for form, (expected, tolerance) in unary.items():
        source = a / np.float32(4) if form[:3] in ("cos", "sin") else a
        rows.append(lanewise(form, expected.astype(np.float32), source, tolerance=tolerance))
    for form in ("div.approx.f32", "div.approx.ftz.f32", "div.full.f32"):
        rows.append(lanewise(form, (x / y).astype(np.float32), a, b, tolerance=2.0**-21.5))
    large = a + np.float32(4)  # logarithms away from 0
    logarithms = np.log2(large.astype(np.float64)).astype(np.float32)
    for form in ("lg2.approx.f32", "lg2.approx.ftz.f32"):
        rows.append(lanewise(form, logarithms, large, tolerance=2.0**-21))
    # Powers of two: the documented table look-up of 20 mantissa bits is exact on them.
    powers = np.array([2.0**e * s for e in range(-20, 21) for s in (1, -1)])
    rows.append(lanewise("rcp.approx.ftz.f64", 1 / powers, powers))
    wide = rng.uniform(0.3, 3, 64)
    roots = 1 / np.sqrt(wide)
    rows.append(lanewise("rsqrt.approx.ftz.f64", roots, wide, tolerance=2.0**-19))
    return rows


def _packed() -> list[Row]:
    rng = np.random.default_rng(11)
    a, b = rng.normal(size=(2, 256)).astype(ml_dtypes.bfloat16)
    a[:8], b[:8] = [0, -0.0, 1, -1, 3e38, -3e38, 0.5, 2], [-0.0, 0, 1, 1, 3e38, -3e38, 2, 0.5]
    words = [values.view(np.uint32) for values in (a, b)]
    wide = [values.astype(np.float32) for values in (a, b)]
    with np.errstate(over="ignore"):
        results = {
            "add": wide[0] + wide[1],
            "mul": wide[0] * wide[1],
            "max": _maximum(wide[0], wide[1]),
            "min": -_maximum(-wide[0], -wide[1]),
        }
    return [
        lanewise(f"{name}.bf16x2", value.astype(ml_dtypes.bfloat16).view(np.uint32), *words)
        for name, value in results.items()
    ]


def rows() -> list[Row]:
    """All rows of this table."""
    return [*_exact(), *_fused(), *_approximate(), *_packed()]
