"""Integer arithmetic, with carries: expected values from Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tests.emulator.isa.lanewise_program import integers

from .lanewise import lanewise
from .row import Array, Row


def integer_type(name: str) -> np.dtype[np.generic]:
    """NumPy's type of a PTX type such as ``s32``; ``b`` types are unsigned."""
    return np.dtype(f"{'i' if name[0] == 's' else 'u'}{int(name[1:]) // 8}")


def wrap(value: int, dtype: npt.DTypeLike) -> int:
    """The value modulo the type's range."""
    dtype = np.dtype(dtype)
    bits = 8 * dtype.itemsize
    value &= 2**bits - 1
    return value - 2**bits if dtype.kind == "i" and value >> (bits - 1) else value


def table(
    form: str,
    out: npt.DTypeLike,
    types: list[npt.DTypeLike],
    reference: Callable[..., int],
    code: str = "",
) -> Row:
    """A row on edge values and random ones."""
    columns = [integers(dtype, seed=3, count=3)[i] for i, dtype in enumerate(types)]
    count = min(map(len, columns))
    columns = [column[:count] for column in columns]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    expected = np.array([wrap(reference(*row), out) for row in rows], out)
    return lanewise(form, expected, *columns, code=code)


def _quotient(a: int, b: int) -> int:
    return (1 if (a < 0) == (b < 0) else -1) * (abs(a) // abs(b))


def _divisor(b: int) -> int:
    """Division by zero is not defined: the tables divide by 7 then, as their code does."""
    return b if b else 7


_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}
_BINARY_TYPES = {
    "add": ("s16", "s32", "s64", "u64"),
    "sub": ("s16", "s32", "s64"),
    "mul.lo": ("s16", "s32", "s64", "u32"),
    "min": ("s32", "s64", "u32", "u64"),
    "max": ("s32", "s64", "u32", "u64"),
}


def _plain() -> list[Row]:
    return [
        table(f"{name}.{kind}", integer_type(kind), [integer_type(kind)] * 2, _BINARY[name])
        for name, kinds in _BINARY_TYPES.items()
        for kind in kinds
    ]


def _divisions() -> list[Row]:
    rows = []
    for name, kinds in {"div": "s32 s64 u32 u64", "rem": "s32 s64 u32"}.items():
        for kind in kinds.split():
            bits = kind[1:]
            register = {"32": "r30", "64": "rd30"}[bits]
            code = (
                f"setp.eq.b{bits} p1, {{b}}, 0; selp.b{bits} {register}, 7, {{b}}, p1; "
                f"{{form}} {{d}}, {{a}}, {register};"
            )

            def reference(a: int, b: int, name: str = name) -> int:
                quotient = _quotient(a, _divisor(b))
                return quotient if name == "div" else a - _divisor(b) * quotient

            dtype = integer_type(kind)
            rows.append(table(f"{name}.{kind}", dtype, [dtype] * 2, reference, code))
    return rows


def _sum_of_bytes(a: int, b: int) -> int:
    return sum((a >> s & 255) * (b >> s & 255) for s in range(0, 32, 8))


def _larger_halves(a: int, b: int) -> int:
    halves = [(wrap(a >> s, np.int16), wrap(b >> s, np.int16)) for s in (0, 16)]
    return sum((max(pair) & 0xFFFF) << 16 * i for i, pair in enumerate(halves))


def _products() -> list[Row]:
    rows = []
    for kind in ("s32", "s64", "u32", "u64"):
        dtype, bits = integer_type(kind), int(kind[1:])
        rows.append(table(f"mul.hi.{kind}", dtype, [dtype] * 2, lambda a, b, s=bits: a * b >> s))
    for kind in ("s16", "s32", "u16", "u32"):
        dtype, wide = integer_type(kind), integer_type(f"{kind[0]}{2 * int(kind[1:])}")
        rows.append(table(f"mul.wide.{kind}", wide, [dtype] * 2, lambda a, b: a * b))
        if kind.endswith("32"):
            rows.append(
                table(f"mad.wide.{kind}", wide, [dtype, dtype, wide], lambda a, b, c: a * b + c)
            )
    word = np.dtype(np.uint32)
    rows += [
        table("mad.hi.u32", word, [word] * 3, lambda a, b, c: (a * b >> 32) + c),
        table("sad.s32", word, [np.dtype(np.int32)] * 3, lambda a, b, c: abs(a - b) + c),
        table("abs.s64", np.int64, [np.dtype(np.int64)], abs),
        table("dp4a.u32.u32", word, [word] * 3, lambda a, b, c: c + _sum_of_bytes(a, b)),
        table("max.s16x2", word, [word] * 2, _larger_halves),
    ]
    for kind in ("s32", "s64"):
        dtype = integer_type(kind)
        rows.append(table(f"mad.lo.{kind}", dtype, [dtype] * 3, lambda a, b, c: a * b + c))
        rows.append(table(f"neg.{kind}", dtype, [dtype], lambda a: -a))
    return rows


def _carries() -> list[Row]:
    """Each form inside a sum or product of 64 or 96 bits, whose words show the carry."""
    u32, u64 = np.dtype(np.uint32), np.dtype(np.uint64)
    halves = "mov.b64 {{r30, r31}}, {a}; mov.b64 {{r32, r33}}, {b}; "
    pack = " mov.b64 {d}, {{r34, r35}};"
    double = halves + "{first} r34, r30, r32; {second} r35, r31, r33;" + pack
    # The high word of the 96-bit sum a + b + carry, twice, so that the middle one carries too.
    rows = []
    for form, first, second in (
        ("add.cc.u32", "add.cc.u32", "addc.u32"),
        ("addc.u32", "add.cc.u32", "addc.u32"),
        ("sub.cc.u32", "sub.cc.u32", "subc.u32"),
        ("subc.u32", "sub.cc.u32", "subc.u32"),
    ):
        sign = 1 if form.startswith("add") else -1
        code = double.replace("{first}", first).replace("{second}", second)
        rows.append(table(form, u64, [u64] * 2, lambda a, b, s=sign: a + s * b, code))
    for form, last in (("addc.cc.u32", "addc.u32"), ("subc.cc.u32", "subc.u32")):
        first = form.replace("c.cc", ".cc")
        sign = 1 if form.startswith("add") else -1
        code = f"{halves}{first} r34, r30, r32; {form} r34, r31, r33; {last} {{d}}, 0, 0;"
        rows.append(table(form, u32, [u64] * 2, lambda a, b, s=sign: a + s * b >> 64, code))
    rows.append(
        table(
            "mad.hi.cc.u32",
            u64,
            [u32] * 3,
            lambda a, b, c: (a * b >> 32) + c,
            "{form} r34, {a}, {b}, {c}; addc.u32 r35, 0, 0;" + pack,
        )
    )
    for name, sign in (("add", 1), ("sub", -1)):
        # The low word's carry enters the high word, whose own carry is counted: c is what remains.
        code = (
            f"{name}.cc.s64 rd30, {{a}}, {{b}}; {name}c.cc.s64 rd31, {{b}}, {{c}}; "
            f"{name}c.s64 rd32, 0, 0; xor.b64 rd31, rd31, rd30; add.s64 {{d}}, rd31, rd32;"
        )

        def reference(a: int, b: int, c: int, s: int = sign) -> int:
            total = (b << 64 | a) + s * (c << 64 | b)
            return (total ^ total >> 64 & 2**64 - 1) % 2**64 + (total >> 128)

        for form in (f"{name}.cc.s64", f"{name}c.cc.s64"):
            rows.append(table(form, u64, [u64] * 3, reference, code))
    rows.append(
        table(
            "mad.lo.cc.u32",
            u64,
            [u32] * 3,
            lambda a, b, c: (a * b & 0xFFFFFFFF) + c,
            "{form} r34, {a}, {b}, {c}; addc.u32 r35, 0, 0;" + pack,
        )
    )
    rows.append(
        table(
            "madc.hi.u32",
            u64,
            [u32] * 3,
            lambda a, b, c: a * b + c,
            "mad.lo.cc.u32 r34, {a}, {b}, {c}; {form} r35, {a}, {b}, 0;" + pack,
        )
    )
    # a * b + c, of which the first sum gives a carry in and the last a carry out.
    out = "{form} r35, {a}, {b}, {c}; addc.u32 r36, 0, 0; mov.b64 {d}, {{r35, r36}};"

    def carried(a: int, b: int, c: int, shift: int) -> int:
        low = (a * b & 0xFFFFFFFF) + c >> 32
        return (a * b >> shift & 0xFFFFFFFF) + c + low

    before = "mad.lo.cc.u32 r34, {a}, {b}, {c}; "
    for form, shift in (("madc.hi.cc.u32", 32), ("madc.lo.cc.u32", 0)):
        rows.append(
            table(form, u64, [u32] * 3, lambda a, b, c, s=shift: carried(a, b, c, s), before + out)
        )
    return rows


def rows() -> list[Row]:
    """All rows of this table."""
    return [*_plain(), *_divisions(), *_products(), *_carries()]


def bits_of(values: Array) -> list[int]:
    """The unsigned integers whose bits these are."""
    return [int(value) for value in values.view(f"u{values.itemsize}")]
