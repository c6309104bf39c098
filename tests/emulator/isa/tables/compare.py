"""setp, every form of the published programs: expected values from NumPy."""

from __future__ import annotations

import numpy as np

from tests.emulator.isa.lanewise_program import floats, flush, integers

from .integer import integer_type
from .lanewise import lanewise
from .logic import doubles
from .row import Array, Row

_INTEGER = {
    "eq": "b16 b32 s16 s32 s64", "ge": "s32 s64 u32 u64", "gt": "s32 s64 u16 u32 u64",
    "le": "s32 s64 u32 u64", "lt": "s32 s64 u16 u32 u64", "ne": "b32 b64 s16 s32 s64",
}  # fmt: skip
_FLOATING = {
    "eq": "f32 f64 ftz.f32", "equ": "ftz.f32", "ge": "f32 f64", "geu": "f32", "gt": "f32 f64",
    "gtu": "f32 f64", "le": "f32 f64", "leu": "f32 f64", "lt": "f32 f64", "ltu": "f32 f64",
    "nan": "f64", "neu": "f32 f64 ftz.f32",
}  # fmt: skip
_CODE = "{form} p1, {a}, {b}; selp.u32 {d}, 1, 0, p1;"


def _compare(name: str, a: Array, b: Array) -> Array:
    """The ordered comparison; ``neu`` is the negation of ``eq``."""
    result: Array = {
        "eq": np.equal, "ne": np.not_equal, "ge": np.greater_equal,
        "gt": np.greater, "le": np.less_equal, "lt": np.less,
    }[name](a, b)  # fmt: skip
    return result


def rows() -> list[Row]:
    """All rows of this table."""
    result = []
    for name, kinds in _INTEGER.items():
        for kind in kinds.split():
            a, b = integers(integer_type(kind), seed=4)
            b = np.where(np.arange(len(b)) % 5 == 0, a, b)
            expected = _compare(name, a, b).astype(np.uint32)
            result.append(lanewise(f"setp.{name}.{kind}", expected, a, b, code=_CODE))
    for name, kinds in _FLOATING.items():
        for kind in kinds.split():
            a, b = doubles() if kind == "f64" else floats(4)
            b = np.where(np.arange(len(b)) % 3 == 0, a, b)
            if kind == "f64":
                a = np.where(np.arange(len(a)) % 11 == 0, np.nan, a)
            x, y = (flush(a), flush(b)) if kind == "ftz.f32" else (a, b)
            unordered = np.isnan(x) | np.isnan(y)
            base = {"neu": "ne"}.get(name, name.removesuffix("u"))
            with np.errstate(invalid="ignore"):
                holds = unordered if name == "nan" else _compare(base, x, y)
            counts_unordered = name.endswith("u") or name == "nan"
            holds = holds | unordered if counts_unordered else holds & ~unordered
            expected = holds.astype(np.uint32)
            result.append(lanewise(f"setp.{name}.{kind}", expected, a, b, code=_CODE))
    return result
