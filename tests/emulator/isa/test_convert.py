"""Conversions between every pair of types, against NumPy, ml_dtypes and Python integers."""

from __future__ import annotations

import math
from collections.abc import Callable

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import Module, PtxError
from tests.emulator.ptx_program import ptx_program

from .lanewise_program import canonical, evaluate, floats, flush, integers

INTEGERS = {
    "u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16,
    "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64,
}  # fmt: skip


def limits(kind: str) -> tuple[int, int]:
    info = np.iinfo(INTEGERS[kind])
    return int(info.min), int(info.max)


def wrap(value: int, kind: str) -> int:
    low, high = limits(kind)
    return (value - low) % (high - low + 1) + low


def register_type(kind: str) -> npt.DTypeLike:
    """What an 8-bit result looks like in its 16-bit register."""
    return {"u8": np.uint16, "s8": np.int16}.get(kind, INTEGERS[kind])


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", INTEGERS)
def test_integers(target: str, source: str) -> None:
    (a,) = integers(INTEGERS[source], count=1)
    out = register_type(target)
    got = evaluate(f"cvt.{target}.{source} {{d}}, {{a}};", out, a)
    np.testing.assert_array_equal(got, np.array([wrap(v, target) for v in a.tolist()], out))
    low, high = limits(target)
    got = evaluate(f"cvt.sat.{target}.{source} {{d}}, {{a}};", out, a)
    np.testing.assert_array_equal(got, np.array([min(max(v, low), high) for v in a.tolist()], out))


def test_values_in_wider_registers() -> None:
    """Types come from the instruction: a register may hold more than the type."""
    (a,) = integers(np.uint64, count=1)
    got = evaluate("cvt.s64.s32 {d}, {a};", np.int64, a)
    np.testing.assert_array_equal(got, a.astype(np.uint32).view(np.int32).astype(np.int64))
    b = a.astype(np.uint32)
    got = evaluate("cvt.s32.s8 {d}, {a};", np.int32, b)
    np.testing.assert_array_equal(got, b.astype(np.uint8).view(np.int8).astype(np.int32))
    got = evaluate("cvt.u8.u32 {d}, {a};", np.uint32, b)
    np.testing.assert_array_equal(got, b & 0xFF)
    got = evaluate("cvt.u16.u32 {d}, {a};", np.uint64, b)
    np.testing.assert_array_equal(got, b & 0xFFFF)


ROUNDING: dict[str, Callable[[float], float]] = {
    "rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil,
}  # fmt: skip


def to_integer(value: float, mode: str, kind: str, *, wide_source: bool) -> int:
    low, high = limits(kind)
    if math.isnan(value):
        wide = wide_source or kind in ("u64", "s64")
        return (low if low else 1 << 63 if kind == "u64" else 1 << int(kind[1:]) - 1) if wide else 0
    if math.isinf(value):
        return high if value > 0 else low
    return min(max(int(ROUNDING[mode](value)), low), high)


@pytest.mark.parametrize("mode", ROUNDING)
@pytest.mark.parametrize("kind", ["s16", "u32", "s32", "s64"])
def test_floats_to_integers(kind: str, mode: str) -> None:
    rng = np.random.default_rng(0)
    values = [0.0, -0.5, 0.5, 1.5, 2.5, -1.5, 1e5, -1e5, 3e9, -3e9, 1e19, -1e19, np.inf, -np.inf]
    a = np.concatenate([values, rng.normal(scale=1e3, size=50)]).astype(np.float32)
    expected = [to_integer(v, mode, kind, wide_source=False) for v in a.tolist()]
    got = evaluate(f"cvt.{mode}.{kind}.f32 {{d}}, {{a}};", INTEGERS[kind], a)
    np.testing.assert_array_equal(got, np.array(expected, INTEGERS[kind]))
    got = evaluate(f"cvt.{mode}.{kind}.f64 {{d}}, {{a}};", INTEGERS[kind], a.astype(np.float64))
    np.testing.assert_array_equal(got, np.array(expected, INTEGERS[kind]))


def test_nan_to_integer_is_zero() -> None:
    a = np.array([np.nan], np.float32)
    assert evaluate("cvt.rni.s32.f32 {d}, {a};", np.int32, a).tolist() == [0]


@pytest.mark.parametrize("kind", ["s8", "u16", "s32", "u32", "s64", "u64"])
def test_integers_to_floats(kind: str) -> None:
    (a,) = integers(INTEGERS[kind], count=1)
    got = evaluate(f"cvt.rn.f32.{kind} {{d}}, {{a}};", np.float32, a)
    np.testing.assert_array_equal(got, a.astype(np.float32))
    got = evaluate(f"cvt.rn.f64.{kind} {{d}}, {{a}};", np.float64, a)
    np.testing.assert_array_equal(got, a.astype(np.float64))


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_rounding_of_integers(mode: str) -> None:
    a = np.array([2**24 + 1, -(2**24) - 1, 2**30 + 3, 7], np.int32)
    got = evaluate(f"cvt.{mode}.f32.s32 {{d}}, {{a}};", np.float32, a).astype(np.float64)
    if mode == "rm":
        assert (got <= a).all()
    elif mode == "rp":
        assert (got >= a).all()
    else:
        assert (np.abs(got) <= np.abs(a.astype(np.float64))).all()
    assert (np.abs(got - a) < 128).all()


@pytest.mark.parametrize("mode", ROUNDING)
def test_rounding_to_whole_numbers(mode: str) -> None:
    a = np.array([0.5, 1.5, 2.5, -0.5, -2.5, 3.7, -3.7, np.inf, 0.0, -0.0], np.float32)
    operation = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    for kind, dtype in (("f32", np.float32), ("f64", np.float64)):
        values = a.astype(dtype)
        got = evaluate(f"cvt.{mode}.{kind}.{kind} {{d}}, {{a}};", dtype, values)
        np.testing.assert_array_equal(got.view(np.uint8), operation(values).view(np.uint8))


def test_f32_and_f64() -> None:
    (a,) = floats(count=1)
    wide = np.concatenate([a.astype(np.float64) * (1 + 2**-30), [1e300, 1e-320]])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            evaluate("cvt.f64.f32 {d}, {a};", np.float64, a), a.astype(np.float64)
        )
        got = evaluate("cvt.rn.f32.f64 {d}, {a};", np.uint32, wide)
        np.testing.assert_array_equal(got, canonical(wide.astype(np.float32)))
        got = evaluate("cvt.rn.ftz.f32.f64 {d}, {a};", np.uint32, wide)
        np.testing.assert_array_equal(got, canonical(flush(wide.astype(np.float32))))


def test_saturation_to_the_unit_interval() -> None:
    (a,) = floats(count=1)
    got = evaluate("cvt.sat.f32.f32 {d}, {a};", np.float32, a)
    np.testing.assert_array_equal(got, np.where(a > 0, np.minimum(a, np.float32(1)), np.float32(0)))


def halves(dtype: npt.DTypeLike) -> npt.NDArray[np.uint16]:
    bits = np.arange(0, 2**16, 37, dtype=np.uint16)
    return bits[~np.isnan(bits.view(dtype).astype(np.float32))]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)], ids=["f16", "bf16"]
)
def test_halves(kind: str, dtype: npt.DTypeLike) -> None:
    bits = halves(dtype)
    got = evaluate(f"cvt.f32.{kind} {{d}}, {{a}};", np.float32, bits)
    np.testing.assert_array_equal(got, bits.view(dtype).astype(np.float32))
    (a,) = floats(count=1)
    a = a[~np.isnan(a)]
    with np.errstate(all="ignore"):
        expected = a.astype(dtype).view(np.uint16)
    np.testing.assert_array_equal(
        evaluate(f"cvt.rn.{kind}.f32 {{d}}, {{a}};", np.uint16, a), expected
    )
    relu = evaluate(f"cvt.rn.relu.{kind}.f32 {{d}}, {{a}};", np.uint16, a)
    np.testing.assert_array_equal(relu, np.where(expected & 0x8000, 0, expected))
    low, high = a, np.roll(a, 1)
    got = evaluate(f"cvt.rn.{kind}x2.f32 {{d}}, {{b}}, {{a}};", np.uint32, low, high)
    np.testing.assert_array_equal(got & 0xFFFF, expected)
    np.testing.assert_array_equal(got >> 16, np.roll(expected, 1))


def test_nan_becomes_the_canonical_one() -> None:
    a = np.array([0x7F800001, 0xFFFFFFFF], np.uint32)
    for kind in ("bf16", "f16"):
        assert evaluate(f"cvt.rn.{kind}.f32 {{d}}, {{a}};", np.uint16, a).tolist() == [0x7FFF] * 2
    got = evaluate("cvt.rn.bf16x2.f32 {d}, {a}, {a};", np.uint32, a)
    assert got.tolist() == [0x7FFF7FFF] * 2


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)],
    ids=["e4m3", "e5m2"],
)
def test_fp8_pairs(kind: str, dtype: npt.DTypeLike) -> None:
    rng = np.random.default_rng(1)
    a, b = (
        np.concatenate([rng.normal(scale=s, size=64) for s in (0.01, 1, 50, 1e6)]).astype(
            np.float32
        )
        for _ in range(2)
    )
    highest = float(ml_dtypes.finfo(dtype).max)
    low, high = (np.clip(v, -highest, highest).astype(dtype).view(np.uint8) for v in (a, b))
    got = evaluate(f"cvt.rn.satfinite.{kind}x2.f32 {{d}}, {{b}}, {{a}};", np.uint16, a, b)
    np.testing.assert_array_equal(got & 0xFF, low)
    np.testing.assert_array_equal(got >> 8, high)
    codes = np.arange(0, 2**16, 7, dtype=np.uint16)
    elements = codes.view(np.uint8).view(dtype).astype(np.float32)
    codes = codes[np.isfinite(elements).reshape(-1, 2).all(axis=1)]
    got = evaluate(f"cvt.rn.f16x2.{kind}x2 {{d}}, {{a}};", np.uint32, codes)
    np.testing.assert_array_equal(
        got.view(np.float16), codes.view(np.uint8).view(dtype).astype(np.float16)
    )
    back = evaluate(f"cvt.rn.satfinite.{kind}x2.f16x2 {{d}}, {{a}};", np.uint16, got)
    np.testing.assert_array_equal(back, codes)


def test_tf32() -> None:
    a = np.array([1 + 2**-11, 1 + 2**-11 + 2**-20, -1 - 2**-11, 1 + 3 * 2**-11], np.float32)
    nearest_even = evaluate("cvt.rn.tf32.f32 {d}, {a};", np.float32, a)
    np.testing.assert_array_equal(nearest_even, [1, 1 + 2**-10, -1, 1 + 2**-9])
    away = evaluate("cvt.rna.tf32.f32 {d}, {a};", np.float32, a)
    np.testing.assert_array_equal(away, [1 + 2**-10, 1 + 2**-10, -1 - 2**-10, 1 + 2**-9])


def test_pack() -> None:
    a = np.array([300, -5, 70000], np.int32)
    b = np.array([1, 255, -70000], np.int32)
    got = evaluate("cvt.pack.sat.u8.s32.b32 {d}, {a}, {b}, 0x1234;", np.uint32, a, b)
    assert got.tolist() == [0x1234FF01, 0x123400FF, 0x1234FF00]
    got = evaluate("cvt.pack.sat.s16.s32 {d}, {a}, {b};", np.uint32, a, b)
    assert got.tolist() == [0x012C0001, 0xFFFB00FF, 0x7FFF8000]


@pytest.mark.parametrize(
    "body",
    [
        "cvt.s32.f32 r1, f1;",
        "cvt.rn.s32.f32 r1, f1;",
        "cvt.f32.s32 f1, r1;",
        "cvt.rn.u32.u16 r1, h1;",
        "cvt.rn.e4m3x2.f32 h1, f1, f2;",
        "cvt.bf16x2.f32 r1, f1, f2;",
        "cvt.rn.bf16x2.f32 r1, f1;",
        "cvt.u64.u32 r1, r2;",
        "cvt.u32 r1, r2;",
    ],
)
def test_wrong_form_is_an_error_at_load(body: str) -> None:
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(ptx_program(body, {"unused": 0}))
    assert body in caught.value.source_line
