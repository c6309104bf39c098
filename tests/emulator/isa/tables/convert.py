"""Conversions: expected values from NumPy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.emulator.isa.lanewise_program import floats, integers

from .integer import integer_type, wrap
from .lanewise import lanewise
from .logic import doubles
from .row import Array, Row


def _integers() -> list[Row]:
    """Extension and truncation; 8-bit sources are the low bits of wider registers."""
    rows = []
    for form in (
        "cvt.s64.s32", "cvt.u16.u32", "cvt.u16.u64", "cvt.u32.u16", "cvt.u32.u64", "cvt.u64.u16",
        "cvt.u64.u32", "cvt.s16.s8", "cvt.s32.s8", "cvt.s32.s16", "cvt.s64.s16",
    ):  # fmt: skip
        _, out, source = form.split(".")
        register = out if source == "s8" else source  # of the source
        (values,) = integers(integer_type(register), seed=5, count=1)
        narrow = values.view(integer_type(register)).astype(integer_type(source))
        expected = [wrap(value, integer_type(out)) for value in narrow.tolist()]
        rows.append(lanewise(form, np.array(expected, integer_type(out)), values))
    return rows


def _from_integers() -> list[Row]:
    rows = []
    for form in (
        "cvt.rn.f32.s32", "cvt.rn.f32.s64", "cvt.rn.f32.u32", "cvt.rn.f64.s32", "cvt.rn.f64.s64",
    ):  # fmt: skip
        _, _, out, source = form.split(".")
        (values,) = integers(integer_type(source), seed=6, count=1)
        rows.append(lanewise(form, values.astype(f"f{int(out[1:]) // 8}"), values))
    return rows


def _to_integers() -> list[Row]:
    """Rounded, clamped to the type's range; NaN has no row, for its result is not stated."""
    rng = np.random.default_rng(12)
    edges = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0, -0.0, 1e10, -1e10, np.inf, -np.inf, 2.0**31]
    wide = np.concatenate([edges, rng.normal(size=115) * 10.0 ** rng.integers(0, 9, 115)])
    rows = []
    for form, rounding in (
        ("cvt.rmi.u32.f32", np.floor),
        ("cvt.rni.s32.f32", np.rint),
        ("cvt.rni.s32.f64", np.rint),
        ("cvt.rzi.s32.f32", np.trunc),
    ):
        _, _, out, source = form.split(".")
        values = wide.astype(f"f{int(source[1:]) // 8}")
        limits = np.iinfo(integer_type(out))
        rounded = np.clip(rounding(values.astype(np.float64)), limits.min, limits.max)
        rows.append(lanewise(form, rounded.astype(integer_type(out)), values))
    x, _ = doubles()
    (y,) = floats(12, count=1)
    modes = {"rmi": np.floor, "rni": np.rint, "rpi": np.ceil, "rzi": np.trunc}
    for mode, rounding in modes.items():
        rows.append(lanewise(f"cvt.{mode}.f64.f64", rounding(x), x))
        rows.append(lanewise(f"cvt.{mode}.f32.f32", rounding(y), y))
    inside = x[np.abs(x) < 2.0**62]
    rows.append(lanewise("cvt.rzi.s64.f64", inside.astype(np.int64), inside))
    return rows


def _floats() -> list[Row]:
    (x,) = floats(8, count=1)
    x = x[~np.isnan(x)]
    wide, _ = doubles()
    with np.errstate(all="ignore"):
        rows = [
            lanewise("cvt.f64.f32", x.astype(np.float64), x),
            lanewise("cvt.rn.f32.f64", wide.astype(np.float32), wide),
            lanewise("cvt.rn.f16.f32", x.astype(np.float16), x),
            lanewise("cvt.rn.bf16.f32", x.astype(ml_dtypes.bfloat16).view(np.uint16), x),
            lanewise("cvt.sat.f32.f32", np.clip(x, 0, 1) + np.float32(0), x),
        ]
    every = np.arange(2**16, dtype=np.uint16)[::37].copy()
    halves, brain = every.view(np.float16), every.view(ml_dtypes.bfloat16)
    rows.append(lanewise("cvt.f32.f16", halves.astype(np.float32), every))
    rows.append(lanewise("cvt.f32.bf16", brain.astype(np.float32), every))
    return rows


def _pack(low: Array, high: Array, bits: int) -> Array:
    """Codes of two values in one: the first source of a packing cvt goes to the upper half."""
    codes = [values.view(f"u{bits // 8}").astype(np.uint32) for values in (low, high)]
    packed = codes[1] << bits | codes[0]
    return packed.astype(np.uint32 if bits == 16 else np.uint16)


def _packed() -> list[Row]:
    a, b = floats(9)
    good = ~(np.isnan(a) | np.isnan(b))
    a, b = a[good], b[good]
    rows = []
    with np.errstate(all="ignore"):
        for form, dtype in (
            ("cvt.rn.bf16x2.f32", ml_dtypes.bfloat16),
            ("cvt.rn.f16x2.f32", np.float16),
        ):
            rows.append(lanewise(form, _pack(b.astype(dtype), a.astype(dtype), 16), a, b))
        limited = [np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn) for values in (b, a)]
        rows.append(lanewise("cvt.rn.satfinite.e4m3x2.f32", _pack(*limited, 8), a, b))
    codes = np.arange(2**16, dtype=np.uint16)[::13].copy()
    numbers = codes[((codes & 0x7F) != 0x7F) & ((codes >> 8 & 0x7F) != 0x7F)]
    halves = numbers.view(ml_dtypes.float8_e4m3fn).astype(np.float16).view(np.uint32)
    rows.append(lanewise("cvt.rn.f16x2.e4m3x2", halves, numbers))
    return rows


def rows() -> list[Row]:
    """All rows of this table."""
    return [*_integers(), *_from_integers(), *_to_integers(), *_floats(), *_packed()]
