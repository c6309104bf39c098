"""Integer and floating-point arithmetic against exact references in Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import Module, PtxError
from tests.emulator.ptx_program import ptx_program

from .lanewise_program import canonical, evaluate, floats, flush, integers

INTEGER_TYPES = {
    "u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32,
    "u64": np.uint64, "s64": np.int64,
}  # fmt: skip
SIGNED_TYPES = [name for name in INTEGER_TYPES if name[0] == "s"]


def wrap(value: int, dtype: npt.DTypeLike) -> int:
    bits = 8 * np.dtype(dtype).itemsize
    value &= 2**bits - 1
    return value - 2**bits if np.dtype(dtype).kind == "i" and value >> (bits - 1) else value


def check_integers(
    code: str,
    dtype: npt.DTypeLike,
    reference: Callable[..., int],
    *,
    count: int = 2,
    out: npt.DTypeLike | None = None,
) -> None:
    inputs = integers(dtype, count=count)
    got = evaluate(code, out or dtype, *inputs)
    columns = [values.tolist() for values in inputs]
    expected = [wrap(reference(*row), out or dtype) for row in zip(*columns, strict=True)]
    np.testing.assert_array_equal(got, np.array(expected, out or dtype))


def truncated_quotient(a: int, b: int) -> int:
    return -1 if b == 0 else int(math.copysign(1, a * b)) * (abs(a) // abs(b))


def truncated_remainder(a: int, b: int) -> int:
    return a if b == 0 else int(math.copysign(1, a)) * (abs(a) % abs(b))


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": truncated_quotient,
    "rem": truncated_remainder,
}


@pytest.mark.parametrize("kind", INTEGER_TYPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary_integer(name: str, kind: str) -> None:
    check_integers(f"{name}.{kind} {{d}}, {{a}}, {{b}};", INTEGER_TYPES[kind], BINARY[name])


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_products(kind: str) -> None:
    dtype = INTEGER_TYPES[kind]
    bits = 8 * np.dtype(dtype).itemsize
    check_integers(f"mul.hi.{kind} {{d}}, {{a}}, {{b}};", dtype, lambda a, b: a * b >> bits)
    check_integers(
        f"mad.lo.{kind} {{d}}, {{a}}, {{b}}, {{c}};", dtype, lambda a, b, c: a * b + c, count=3
    )
    check_integers(
        f"mad.hi.{kind} {{d}}, {{a}}, {{b}}, {{c}};",
        dtype,
        lambda a, b, c: (a * b >> bits) + c,
        count=3,
    )
    check_integers(
        f"sad.{kind} {{d}}, {{a}}, {{b}}, {{c}};", dtype, lambda a, b, c: abs(a - b) + c, count=3
    )


@pytest.mark.parametrize(
    ("kind", "wide"),
    [("u16", np.uint32), ("s16", np.int32), ("u32", np.uint64), ("s32", np.int64)],
)
def test_wide_products(kind: str, wide: npt.DTypeLike) -> None:
    check_integers(
        f"mul.wide.{kind} {{d}}, {{a}}, {{b}};", INTEGER_TYPES[kind], lambda a, b: a * b, out=wide
    )
    check_integers(
        f"mad.wide.{kind} {{d}}, {{a}}, {{b}}, -5;",
        INTEGER_TYPES[kind],
        lambda a, b: a * b - 5,
        out=wide,
    )


@pytest.mark.parametrize("kind", SIGNED_TYPES)
def test_signs_of_integers(kind: str) -> None:
    check_integers(f"neg.{kind} {{d}}, {{a}};", INTEGER_TYPES[kind], lambda a: -a, count=1)
    check_integers(f"abs.{kind} {{d}}, {{a}};", INTEGER_TYPES[kind], abs, count=1)


def clamp(value: int) -> int:
    return max(-(2**31), min(2**31 - 1, value))


def low_24(value: int) -> int:
    return (value & 0xFFFFFF) - (0x1000000 if value & 0x800000 else 0)


SPECIAL: dict[str, tuple[npt.DTypeLike, int, Callable[..., int]]] = {
    "add.sat.s32 {d}, {a}, {b};": (np.int32, 2, lambda a, b: clamp(a + b)),
    "sub.sat.s32 {d}, {a}, {b};": (np.int32, 2, lambda a, b: clamp(a - b)),
    "mad.hi.sat.s32 {d}, {a}, {b}, {c};": (np.int32, 3, lambda a, b, c: clamp((a * b >> 32) + c)),
    "mul24.lo.s32 {d}, {a}, {b};": (np.int32, 2, lambda a, b: low_24(a) * low_24(b)),
    "mul24.hi.s32 {d}, {a}, {b};": (np.int32, 2, lambda a, b: low_24(a) * low_24(b) >> 16),
    "mad24.lo.u32 {d}, {a}, {b}, {c};": (
        np.uint32,
        3,
        lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    ),
    "min.relu.s32 {d}, {a}, {b};": (np.int32, 2, lambda a, b: max(0, min(a, b))),
    "max.relu.s32 {d}, {a}, {b};": (np.int32, 2, lambda a, b: max(0, a, b)),
}


@pytest.mark.parametrize("code", SPECIAL)
def test_special_integer_form(code: str) -> None:
    dtype, count, reference = SPECIAL[code]
    check_integers(code, dtype, reference, count=count)


@pytest.mark.parametrize("a_type", ["u32", "s32"])
@pytest.mark.parametrize("b_type", ["u32", "s32"])
def test_dot_products(a_type: str, b_type: str) -> None:
    def part(value: int, shift: int, bits: int, kind: str) -> int:
        field = value >> shift & (2**bits - 1)
        return field - 2**bits if kind == "s32" and field >> (bits - 1) else field

    def dp4a(a: int, b: int, c: int) -> int:
        return c + sum(part(a, s, 8, a_type) * part(b, s, 8, b_type) for s in (0, 8, 16, 24))

    def dp2a(a: int, b: int, c: int) -> int:
        return c + sum(part(a, 16 * i, 16, a_type) * part(b, 16 + 8 * i, 8, b_type) for i in (0, 1))

    types = f"{a_type}.{b_type}"
    check_integers(f"dp4a.{types} {{d}}, {{a}}, {{b}}, {{c}};", np.uint32, dp4a, count=3)
    check_integers(f"dp2a.hi.{types} {{d}}, {{a}}, {{b}}, {{c}};", np.uint32, dp2a, count=3)


@pytest.mark.parametrize("part", [np.uint8, np.uint16, np.int8, np.int16])
def test_differences_of_parts(part: type[np.integer]) -> None:
    a, b, c = integers(np.uint32, count=3)
    x, y = (v.view(part).astype(np.int64).reshape(len(a), -1) for v in (a, b))
    differences = np.abs(x - y)
    kind = "s32" if np.dtype(part).kind == "i" else "u32"
    form = f"vabsdiff{x.shape[1]}.u32.{kind}.{kind}"
    got = evaluate(f"{form} {{d}}, {{a}}, {{b}}, {{c}};", np.uint32, a, b, c)
    unsigned = np.dtype(f"u{np.dtype(part).itemsize}")
    np.testing.assert_array_equal(got.view(unsigned), differences.astype(unsigned).ravel())
    got = evaluate(f"{form}.add {{d}}, {{a}}, {{b}}, {{c}};", np.uint32, a, b, c)
    np.testing.assert_array_equal(got, (differences.sum(axis=1) + c).astype(np.uint32))


def test_carry_chains() -> None:
    a, b = integers(np.uint64)
    code = """
        .reg .b32 x<8>;
        mov.b64 {{x0, x1}}, {a};
        mov.b64 {{x2, x3}}, {b};
        %s.cc.u32 x4, x0, x2;
        %sc.u32 x5, x1, x3;
        mov.b64 {d}, {{x4, x5}};
    """
    np.testing.assert_array_equal(evaluate(code % ("add", "add"), np.uint64, a, b), a + b)
    np.testing.assert_array_equal(evaluate(code % ("sub", "sub"), np.uint64, a, b), a - b)


def test_the_flag_of_a_subtraction_says_that_nothing_was_borrowed() -> None:
    """NVIDIA's 128-bit division reads it with addc after subc.cc."""
    a, b = integers(np.uint32)
    got = evaluate(".reg .b32 x; sub.cc.u32 x, {a}, {b}; addc.u32 {d}, 0, 0;", np.uint32, a, b)
    np.testing.assert_array_equal(got, a >= b)
    got = evaluate(".reg .b32 x; sub.cc.u32 x, {a}, {b}; subc.u32 {d}, 0, 0;", np.int32, a, b)
    np.testing.assert_array_equal(got, np.where(a >= b, 0, -1))


def test_multiplication_with_carry() -> None:
    a, b = integers(np.uint32)
    code = """
        .reg .b32 x<4>;
        mad.lo.cc.u32 x0, {a}, {b}, {b};
        madc.hi.u32 x1, {a}, {b}, 0;
        mov.b64 {d}, {{x0, x1}};
    """
    got = evaluate(code, np.uint64, a, b)
    expected = a.astype(np.uint64) * b.astype(np.uint64) + b.astype(np.uint64)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("suffix", "flushes", "saturates"),
    [("", False, False), (".rn", False, False), (".ftz", True, False), (".rn.ftz.sat", True, True)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_f32_to_nearest(name: str, suffix: str, flushes: bool, saturates: bool) -> None:
    a, b, c = floats(count=3)
    if name == "fma":
        suffix = suffix if suffix.startswith(".rn") else ".rn" + suffix
        got = evaluate(f"fma{suffix}.f32 {{d}}, {{a}}, {{b}}, {{c}};", np.uint32, a, b, c)
    else:
        got = evaluate(f"{name}{suffix}.f32 {{d}}, {{a}}, {{b}};", np.uint32, a, b)
    x, y, z = (flush(v) if flushes else v for v in (a, b, c))
    with np.errstate(all="ignore"):
        if name == "fma":
            expected = exact_fma(x, y, z)
        else:
            expected = {"add": x + y, "sub": x - y, "mul": x * y}[name]
        if saturates:
            expected = np.where(expected > 0, np.minimum(expected, np.float32(1)), np.float32(0))
    expected = flush(expected) if flushes else expected
    np.testing.assert_array_equal(got, canonical(expected))


def exact_fma(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], c: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """a * b + c, rounded once, by rational numbers."""
    results = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
            results.append(np.float32(x * y + z))
            continue
        total = Fraction(x) * Fraction(y) + Fraction(z)
        if total == 0:
            results.append(np.float32(x * y + z))
            continue
        results.append(round_to_f32(total))
    return np.array(results, np.float32)


def round_to_f32(value: Fraction) -> np.float32:
    """To nearest, ties to even."""
    magnitude = abs(value)
    exponent = max(-126, magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 1)
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - 23)
    rounded = round(magnitude / unit) * unit
    if rounded >= Fraction(2) ** 128:
        return np.float32(math.copysign(math.inf, value))
    return np.float32(math.copysign(float(rounded), value))


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_f32_directed_rounding(name: str, mode: str) -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.normal(size=256).astype(np.float32) for _ in range(3))
    operands = "{a}, {b}, {c}" if name == "fma" else "{a}, {b}"
    inputs = (a, b, c) if name == "fma" else (a, b)
    got = evaluate(f"{name}.{mode}.f32 {{d}}, {operands};", np.float32, *inputs)
    for i, value in enumerate(got.tolist()):
        x, y, z = Fraction(float(a[i])), Fraction(float(b[i])), Fraction(float(c[i]))
        exact = {"add": x + y, "sub": x - y, "mul": x * y, "fma": x * y + z}[name]
        below, above = (
            Fraction(np.nextafter(np.float32(value), np.float32(-np.inf)).item()),
            Fraction(np.nextafter(np.float32(value), np.float32(np.inf)).item()),
        )
        result = Fraction(value)
        toward_minus = mode == "rm" or (mode == "rz" and exact > 0)
        if toward_minus:
            assert result <= exact < above
        else:
            assert below < exact <= result


def test_f32_division_and_roots() -> None:
    a, b = floats()
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            evaluate("div.rn.f32 {d}, {a}, {b};", np.uint32, a, b), canonical(a / b)
        )
        np.testing.assert_array_equal(
            evaluate("rcp.rn.f32 {d}, {a};", np.uint32, a), canonical(np.float32(1) / a)
        )
        np.testing.assert_array_equal(
            evaluate("sqrt.rn.f32 {d}, {a};", np.uint32, a), canonical(np.sqrt(a))
        )


APPROXIMATE: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "ex2.approx": np.exp2,
    "lg2.approx": np.log2,
    "rcp.approx": lambda a: 1 / a,
    "rsqrt.approx": lambda a: 1 / np.sqrt(a),
    "sqrt.approx": np.sqrt,
    "sin.approx": np.sin,
    "cos.approx": np.cos,
    "tanh.approx": np.tanh,
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_functions(name: str) -> None:
    """Within the error that the PTX ISA allows; the emulator is closer."""
    a = np.random.default_rng(2).uniform(0.05, 3, 256).astype(np.float32)
    got = evaluate(f"{name}.f32 {{d}}, {{a}};", np.float32, a)
    np.testing.assert_allclose(got, APPROXIMATE[name](a.astype(np.float64)), rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("form", ["div.approx", "div.full", "div.approx.ftz"])
def test_approximate_division(form: str) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.uniform(0.5, 100, 64).astype(np.float32) for _ in range(2))
    got = evaluate(f"{form}.f32 {{d}}, {{a}}, {{b}};", np.float32, a, b)
    np.testing.assert_allclose(got, a.astype(np.float64) / b, rtol=2.4e-7)


@pytest.mark.parametrize("propagates", [False, True], ids=["plain", "NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_f32_minimum_and_maximum(name: str, propagates: bool) -> None:
    a, b = floats()
    got = evaluate(
        f"{name}{'.NaN' if propagates else ''}.f32 {{d}}, {{a}}, {{b}};", np.uint32, a, b
    )
    for x, y, bits in zip(a, b, got.tolist(), strict=True):
        either, both = np.isnan(x) or np.isnan(y), np.isnan(x) and np.isnan(y)
        if both or (either and propagates):
            expected = 0x7FFFFFFF
        elif either:
            expected = int((y if np.isnan(x) else x).view(np.uint32))
        elif x == y:  # also zeros of either sign: -0 is the smaller one
            negative = np.signbit([x, y])
            picks_negative = negative.any() if name == "min" else negative.all()
            expected = int(np.copysign(x, -1 if picks_negative else 1).view(np.uint32))
        else:
            chosen = min(x, y) if name == "min" else max(x, y)
            expected = int(chosen.view(np.uint32))
        assert bits == expected, (x, y)


def test_xorsign_takes_the_product_of_signs() -> None:
    a = np.array([1, -2, 3, -4], np.float32)
    b = np.array([-3, -1, 2, 5], np.float32)
    got = evaluate("min.xorsign.abs.f32 {d}, {a}, {b};", np.float32, a, b)
    np.testing.assert_array_equal(got, [-1, 1, 2, -4])


def test_signs_of_floats() -> None:
    a, b = floats()
    bits = a.view(np.uint32)
    np.testing.assert_array_equal(evaluate("abs.f32 {d}, {a};", np.uint32, a), bits & 0x7FFFFFFF)
    np.testing.assert_array_equal(evaluate("neg.f32 {d}, {a};", np.uint32, a), bits ^ 0x80000000)
    np.testing.assert_array_equal(
        evaluate("neg.ftz.f32 {d}, {a};", np.uint32, a), flush(a).view(np.uint32) ^ 0x80000000
    )
    np.testing.assert_array_equal(
        evaluate("copysign.f32 {d}, {a}, {b};", np.uint32, a, b),
        (bits & 0x80000000) | (b.view(np.uint32) & 0x7FFFFFFF),
    )


CLASSES = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).tiny),
    "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str) -> None:
    (a,) = floats(count=1)
    wide = np.concatenate([a.astype(np.float64), [5e-324, -1e-310]])
    select = "selp.u32 {d}, 1, 0, q;"
    got = evaluate(f".reg .pred q; testp.{name}.f32 q, {{a}}; {select}", np.uint32, a)
    np.testing.assert_array_equal(got, CLASSES[name](a))
    got = evaluate(f".reg .pred q; testp.{name}.f64 q, {{a}}; {select}", np.uint32, wide)
    np.testing.assert_array_equal(got, CLASSES[name](wide))


def test_f64() -> None:
    a, b = (v.astype(np.float64) * 1.1 for v in floats())
    with np.errstate(all="ignore"):
        for name, expected in {
            "add": a + b, "sub.rn": a - b, "mul": a * b, "div.rn": a / b,
        }.items():  # fmt: skip
            got = evaluate(f"{name}.f64 {{d}}, {{a}}, {{b}};", np.float64, a, b)
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(evaluate("sqrt.rn.f64 {d}, {a};", np.float64, a), np.sqrt(a))
        np.testing.assert_array_equal(evaluate("rcp.rn.f64 {d}, {a};", np.float64, a), 1 / a)
        np.testing.assert_array_equal(
            evaluate("max.f64 {d}, {a}, {b};", np.float64, a, b), np.fmax(a, b)
        )


def test_f64_fma_rounds_once() -> None:
    a = np.array([1 + 2**-30], np.float64)
    got = evaluate("fma.rn.f64 {d}, {a}, {a}, 0dBFF0000000000000;", np.float64, a)
    assert Fraction(got[0]) == Fraction(a[0]) ** 2 - 1


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)], ids=["f16", "bf16"]
)
def test_half_arithmetic(name: str, kind: str, dtype: npt.DTypeLike) -> None:
    """FP32 results of these operations round to the format without a double rounding error."""
    rng = np.random.default_rng(4)
    a, b = (rng.normal(size=512).astype(dtype) for _ in range(2))
    with np.errstate(all="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        exact = {"add": x + y, "sub": x - y, "mul": x * y}[name]
    expected = round_to_half(exact, dtype)
    got = evaluate(
        f"{name}.{kind} {{d}}, {{a}}, {{b}};", np.uint16, *(v.view(np.uint16) for v in (a, b))
    )
    np.testing.assert_array_equal(got, expected)
    pairs = evaluate(
        f"{name}.{kind}x2 {{d}}, {{a}}, {{b}};", np.uint32, *(v.view(np.uint32) for v in (a, b))
    )
    np.testing.assert_array_equal(pairs.view(np.uint16), expected)


def round_to_half(values: npt.NDArray[np.float64], dtype: npt.DTypeLike) -> npt.NDArray[np.uint16]:
    if np.dtype(dtype) == np.float16:
        return values.astype(np.float16).view(np.uint16)
    _, exponent = np.frexp(values)
    unit = np.ldexp(1.0, exponent - 8)
    return (np.rint(values / unit) * unit).astype(ml_dtypes.bfloat16).view(np.uint16)


def test_half_fma_and_limits() -> None:
    a = np.array([1.5, -2, 3, 65504], np.float16)
    b = np.array([2, 2, -1, 2], np.float16)
    bits = [v.view(np.uint16) for v in (a, b)]
    got = evaluate("fma.rn.f16 {d}, {a}, {b}, {a};", np.uint16, *bits).view(np.float16)
    np.testing.assert_array_equal(got, np.array([4.5, -6, 0, np.inf], np.float16))
    got = evaluate("fma.rn.relu.f16 {d}, {a}, {b}, {a};", np.uint16, *bits).view(np.float16)
    np.testing.assert_array_equal(got, np.array([4.5, 0, 0, np.inf], np.float16))
    got = evaluate("add.sat.f16 {d}, {a}, {b};", np.uint16, *bits).view(np.float16)
    np.testing.assert_array_equal(got, np.array([1, 0, 1, 1], np.float16))
    got = evaluate("max.f16 {d}, {a}, {b};", np.uint16, *bits).view(np.float16)
    np.testing.assert_array_equal(got, np.maximum(a, b))


@pytest.mark.parametrize(
    "body",
    [
        "add.u32 r1, rd1, r2;",
        "add.s8 r1, r2, r3;",
        "add.f32 r1, f1;",
        "mul.s32 r1, r2, r3;",
        "add.u32 _, r1, r2;",
        "fma.f32 f1, f2, f3, f4;",
        "add.f64 fd1, fd2, 0f3F800000;",
    ],
)
def test_wrong_form_is_an_error_at_load(body: str) -> None:
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(ptx_program(body, {"unused": 0}))
    assert body in caught.value.source_line
