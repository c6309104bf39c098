"""Comparisons and selections against NumPy, NaN and boolean combination included."""

from __future__ import annotations

import operator
from collections.abc import Callable

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import Module, PtxError
from tests.emulator.ptx_program import ptx_program

from .lanewise_program import evaluate, floats, flush, integers

ORDERED: dict[str, Callable[..., npt.NDArray[np.bool_]]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
INTEGER_TYPES = {
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "b32": np.uint32, "u32": np.uint32,
    "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
}  # fmt: skip
TEST = ".reg .pred p; setp.{form} p, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, p;"


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_integers(kind: str) -> None:
    a, b = integers(INTEGER_TYPES[kind])
    for name, compare in ORDERED.items():
        got = evaluate(TEST.format(form=f"{name}.{kind}"), np.uint32, a, b)
        np.testing.assert_array_equal(got, compare(a, b), err_msg=name)


@pytest.mark.parametrize("name", ["lo", "ls", "hi", "hs"])
def test_names_of_unsigned_comparisons(name: str) -> None:
    a, b = integers(np.uint32)
    compare = ORDERED[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}[name]]
    got = evaluate(TEST.format(form=f"{name}.u32"), np.uint32, a, b)
    np.testing.assert_array_equal(got, compare(a, b))


def float_comparison(
    name: str, a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]
) -> npt.NDArray[np.bool_]:
    unordered = np.isnan(a) | np.isnan(b)
    if name in ("num", "nan"):
        return unordered if name == "nan" else ~unordered
    ordered = ORDERED[name[:2]](a, b)
    return ordered | unordered if name.endswith("u") else ordered & ~unordered


FLOAT_NAMES = [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"]


@pytest.mark.parametrize("name", FLOAT_NAMES)
def test_floats(name: str) -> None:
    a, b = floats()
    got = evaluate(TEST.format(form=f"{name}.f32"), np.uint32, a, b)
    np.testing.assert_array_equal(got, float_comparison(name, a, b))
    got = evaluate(TEST.format(form=f"{name}.ftz.f32"), np.uint32, a, b)
    np.testing.assert_array_equal(got, float_comparison(name, flush(a), flush(b)))
    wide = [v.astype(np.float64) for v in (a, b)]
    got = evaluate(TEST.format(form=f"{name}.f64"), np.uint32, *wide)
    np.testing.assert_array_equal(got, float_comparison(name, *wide))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)], ids=["f16", "bf16"]
)
@pytest.mark.parametrize("name", ["eq", "ltu", "ge", "nan"])
def test_halves(name: str, kind: str, dtype: npt.DTypeLike) -> None:
    bits = integers(np.uint16)
    wide = [v.view(dtype).astype(np.float32) for v in bits]
    expected = float_comparison(name, *wide)
    got = evaluate(TEST.format(form=f"{name}.{kind}"), np.uint32, *bits)
    np.testing.assert_array_equal(got, expected)
    code = f"""
        .reg .pred p, q;
        .reg .b32 x;
        setp.{name}.{kind}x2 p|q, {{a}}, {{b}};
        selp.u32 {{d}}, 1, 0, p;
        selp.u32 x, 2, 0, q;
        or.b32 {{d}}, {{d}}, x;
    """
    pairs = evaluate(code, np.uint32, *(v.view(np.uint32) for v in bits))
    np.testing.assert_array_equal(pairs, expected[::2] + 2 * expected[1::2])


@pytest.mark.parametrize("negated", [False, True], ids=["c", "not c"])
@pytest.mark.parametrize(
    ("name", "combine"), [("and", operator.and_), ("or", operator.or_), ("xor", operator.xor)]
)
def test_combination_and_second_result(
    name: str, combine: Callable[..., npt.NDArray[np.bool_]], negated: bool
) -> None:
    """The second predicate is the opposite comparison, combined with the same third operand."""
    a, b = integers(np.int32)
    code = f"""
        .reg .pred p, q, c;
        .reg .b32 x;
        setp.lt.s32 c, {{a}}, 5;
        setp.lt.{name}.s32 p|q, {{a}}, {{b}}, {"!" if negated else ""}c;
        selp.u32 {{d}}, 1, 0, p;
        selp.u32 x, 2, 0, q;
        or.b32 {{d}}, {{d}}, x;
    """
    third = (a < 5) ^ negated
    expected = combine(a < b, third) + 2 * combine(a >= b, third)
    np.testing.assert_array_equal(evaluate(code, np.uint32, a, b), expected)


def test_results_may_be_discarded() -> None:
    a, b = integers(np.int32)
    code = ".reg .pred q; setp.lt.s32 _|q, {a}, {b}; selp.u32 {d}, 1, 0, q;"
    np.testing.assert_array_equal(evaluate(code, np.uint32, a, b), a >= b)


def test_set() -> None:
    a, b = floats()
    holds = float_comparison("lt", a, b)
    got = evaluate("set.lt.u32.f32 {d}, {a}, {b};", np.uint32, a, b)
    np.testing.assert_array_equal(got, np.where(holds, 0xFFFFFFFF, 0))
    got = evaluate("set.lt.f32.f32 {d}, {a}, {b};", np.float32, a, b)
    np.testing.assert_array_equal(got, holds.astype(np.float32))


def test_set_of_halves() -> None:
    a, b = integers(np.uint16)
    holds = float_comparison("le", a.view(np.float16), b.view(np.float16))
    got = evaluate("set.le.f16.f16 {d}, {a}, {b};", np.uint16, a, b)
    np.testing.assert_array_equal(got.view(np.float16), holds.astype(np.float16))
    got = evaluate("set.le.u32.f16 {d}, {a}, {b};", np.uint32, a, b)
    np.testing.assert_array_equal(got, np.where(holds, 0xFFFFFFFF, 0))
    pairs = (a.view(np.uint32), b.view(np.uint32))
    got = evaluate("set.le.f16x2.f16x2 {d}, {a}, {b};", np.uint32, *pairs)
    np.testing.assert_array_equal(got.view(np.float16), holds.astype(np.float16))
    got = evaluate("set.le.u32.f16x2 {d}, {a}, {b};", np.uint32, *pairs)
    np.testing.assert_array_equal(got.view(np.uint16), np.where(holds, 0xFFFF, 0))


@pytest.mark.parametrize("kind", ["b16", "u16", "s32", "f32", "b64", "f64"])
def test_selp(kind: str) -> None:
    a, b = integers(f"u{int(kind[1:]) // 8}")
    code = f"""
        .reg .pred p;
        .reg .b32 x;
        mov.u32 x, %laneid;
        and.b32 x, x, 3;
        setp.eq.u32 p, x, 3;
        selp.{kind} {{d}}, {{a}}, {{b}}, p;
    """
    expected = np.where(np.arange(len(a)) % 4 == 3, a, b)
    np.testing.assert_array_equal(evaluate(code, a.dtype, a, b), expected)


def test_slct() -> None:
    a, b = integers(np.uint64)
    (c,) = integers(np.int32, count=1)
    got = evaluate("slct.u64.s32 {d}, {a}, {b}, {c};", np.uint64, a, b, c)
    np.testing.assert_array_equal(got, np.where(c >= 0, a, b))
    (x,) = floats(count=1)
    a, b = (np.resize(v, len(x)).astype(np.uint32) for v in (a, b))
    with np.errstate(invalid="ignore"):
        expected = np.where(x >= 0, a, b)
    np.testing.assert_array_equal(
        evaluate("slct.b32.f32 {d}, {a}, {b}, {c};", np.uint32, a, b, x), expected
    )


@pytest.mark.parametrize(
    "body",
    [
        "setp.equ.s32 p1, r1, r2;",
        "setp.lt.f32 p1, r1;",
        "setp.and.s32 p1, r1, r2, p2;",
        "setp.lt.s32 r1, r2, r3;",
        "selp.u32 r1, r2, r3, r4;",
    ],
)
def test_wrong_form_is_an_error_at_load(body: str) -> None:
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(ptx_program(body, {"unused": 0}))
    assert body in caught.value.source_line
