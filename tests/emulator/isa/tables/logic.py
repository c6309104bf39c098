"""Logic, shifts, bit fields, selections and moves: expected values from Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.emulator.isa.lanewise_program import floats, integers

from .integer import integer_type, table
from .lanewise import lanewise
from .row import Row

_LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


def _logic() -> list[Row]:
    rows = []
    for name, kinds in {"and": "16 32 64", "or": "16 32 64", "xor": "32 64"}.items():
        for bits in kinds.split():
            dtype = integer_type(f"b{bits}")
            rows.append(table(f"{name}.b{bits}", dtype, [dtype] * 2, _LOGIC[name]))
    for bits in ("16", "32", "64"):
        dtype = integer_type(f"b{bits}")
        rows.append(table(f"not.b{bits}", dtype, [dtype], lambda a: ~a))
    word = np.dtype(np.uint32)
    predicates = "setp.gt.s32 p1, {a}, 0; setp.gt.s32 p2, {b}, 0; "
    for name, reference in _LOGIC.items():
        code = predicates + "{form} p3, p1, p2; selp.u32 {d}, 1, 0, p3;"
        rows.append(
            table(
                f"{name}.pred",
                word,
                [np.dtype(np.int32)] * 2,
                lambda a, b, op=reference: op(int(a > 0), int(b > 0)),
                code,
            )
        )
    code = predicates + "{form} p3, p1; selp.u32 {d}, 1, 0, p3;"
    types = [np.dtype(np.int32)] * 2
    rows.append(table("not.pred", word, types, lambda a, b: int(a <= 0), code))
    return rows


def _shifts() -> list[Row]:
    """Shifts by up to twice the width: PTX clamps the distance."""
    rows = []
    word = np.dtype(np.uint32)
    distance = "and.b32 r30, {b}, 127; {form} {d}, {a}, r30;"
    for bits in (16, 32, 64):
        dtype = integer_type(f"b{bits}")
        rows.append(
            table(f"shl.b{bits}", dtype, [dtype, word], lambda a, b: a << (b & 127), distance)
        )
        for sign in "su":
            dtype = integer_type(f"{sign}{bits}")
            form = f"shr.{sign}{bits}"
            rows.append(table(form, dtype, [dtype, word], lambda a, b: a >> (b & 127), distance))
    rows.append(
        table(
            "shf.r.wrap.b32",
            word,
            [word] * 3,
            lambda a, b, c: (b << 32 | a) >> (c & 31),
        )
    )
    rows.append(
        table("shf.l.wrap.b32", word, [word] * 3, lambda a, b, c: (b << 32 | a) << (c & 31) >> 32)
    )
    code = "and.b32 r30, {c}, 63; {form} {d}, {a}, {b}, r30;"
    clamped = table(
        "shf.r.clamp.b32",
        word,
        [word] * 3,
        lambda a, b, c: (b << 32 | a) >> min(c & 63, 32),
        code,
    )
    rows.append(clamped)
    return rows


def _field(a: int, position: int, length: int, bits: int, signed: bool) -> int:
    """bfe: the field's bits beyond the register are copies of its sign."""
    top = min(position + length - 1, bits - 1)
    sign = a >> top & 1 if signed and length else 0
    value = 0
    for i in range(bits):
        inside = i < length and position + i < bits
        value |= (a >> position + i & 1 if inside else sign) << i
    return value


def _insert(a: int, b: int, position: int, length: int, bits: int) -> int:
    for i in range(length):
        if position + i < bits:
            b = b & ~(1 << position + i) | (a >> i & 1) << position + i
    return b


def _permute(a: int, b: int, selector: int) -> int:
    both = b << 32 | a
    value = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = both >> 8 * (nibble & 7) & 255
        if nibble & 8:
            byte = 255 if byte & 128 else 0
        value |= byte << 8 * i
    return value


def _bits() -> list[Row]:
    word, long = np.dtype(np.uint32), np.dtype(np.uint64)
    fields = "and.b32 r30, {b}, 255; and.b32 r31, {c}, 255; {form} {d}, {a}, r30, r31;"
    rows = [
        table(
            f"bfe.{kind}",
            word,
            [word] * 3,
            lambda a, b, c, s=kind == "s32": _field(a, b & 255, c & 255, 32, s),
            fields,
        )
        for kind in ("s32", "u32")
    ]
    for bits, dtype in ((32, word), (64, long)):
        register = "r" if bits == 32 else "rd"
        code = (
            "and.b32 r30, {c}, 63; shr.u32 r31, {c}, 26; "
            f"not.b{bits} {register}32, {{b}}; {{form}} {{d}}, {{a}}, {register}32, r30, r31;"
        )
        rows.append(
            table(
                f"bfi.b{bits}",
                dtype,
                [dtype, dtype, word],
                lambda a, b, c, n=bits: _insert(a, ~b & 2**n - 1, c & 63, c >> 26, n),
                code,
            )
        )
    rows += [
        table("bfind.u32", word, [word], lambda a: a.bit_length() - 1),
        table(
            "bfind.shiftamt.u32", word, [word], lambda a: 32 - a.bit_length() if a else 2**32 - 1
        ),
        table("brev.b32", word, [word], lambda a: int(f"{a:032b}"[::-1], 2)),
        table("brev.b64", long, [long], lambda a: int(f"{a:064b}"[::-1], 2)),
        table("clz.b32", word, [word], lambda a: 32 - a.bit_length()),
        table("popc.b64", word, [long], lambda a: a.bit_count()),
        table("clz.b64", word, [long], lambda a: 64 - a.bit_length()),
        table("popc.b32", word, [word], lambda a: a.bit_count()),
        table("prmt.b32", word, [word] * 3, _permute),
    ]
    return rows


def _selections() -> list[Row]:
    rows = []
    for kind in ("b16", "b32", "b64", "s64", "u16", "u32", "u64"):
        dtype = integer_type(kind)
        code = "setp.lt.s32 p1, {c}, 0; {form} {d}, {a}, {b}, p1;"
        types = [dtype, dtype, np.dtype(np.int32)]
        rows.append(table(f"selp.{kind}", dtype, types, lambda a, b, c: a if c < 0 else b, code))
    for kind, values in (("f32", floats()), ("f64", doubles())):
        choice = integers(np.int32, count=1)[0][: len(values[0])]
        values = tuple(x[: len(choice)] for x in values)
        expected = np.where(choice < 0, *values)
        code = "setp.lt.s32 p1, {c}, 0; {form} {d}, {a}, {b}, p1;"
        rows.append(lanewise(f"selp.{kind}", expected, *values, choice, code=code))
    return rows


def doubles() -> tuple[np.ndarray, np.ndarray]:
    """FP64: numbers of all magnitudes, signed zeros, infinities, subnormals."""
    rng = np.random.default_rng(9)
    edges = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, 5e-324, -2e-310, 1.7e308, 0.5, 3, -7.25])
    a = np.concatenate(
        [np.repeat(edges, 12), rng.normal(size=256) * 10.0 ** rng.integers(-9, 9, 256)]
    )
    b = np.concatenate(
        [np.tile(edges, 12), rng.normal(size=256) * 10.0 ** rng.integers(-9, 9, 256)]
    )
    return a, b


def _moves() -> list[Row]:
    rows = []
    for kind in ("b16", "b32", "b64", "s32", "u16", "u32", "u64", "f32", "f64"):
        dtype = integer_type(kind.replace("f", "b"))
        rows.append(table(f"mov.{kind}", dtype, [dtype], lambda a: a))
    code = "setp.lt.s32 p1, {a}, 0; {form} p2, p1; selp.u32 {d}, 1, 0, p2;"
    word, long = np.dtype(np.uint32), np.dtype(np.uint64)
    rows += [
        table("mov.pred", word, [np.dtype(np.int32)], lambda a: int(a < 0), code),
        table(
            "mov.b128",
            long,
            [long] * 2,
            lambda a, b: a ^ (b << 1),
            "{form} q1, {{{a}, {b}}}; {form} {{rd31, rd32}}, q1; "
            "shl.b64 rd32, rd32, 1; xor.b64 {d}, rd31, rd32;",
        ),
    ]
    return rows


def rows() -> list[Row]:
    """All rows of this table."""
    return [*_logic(), *_shifts(), *_bits(), *_selections(), *_moves()]
