"""Logic, shifts and bit fields against references in Python integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import Module, PtxError
from tests.emulator.ptx_program import ptx_program

from .lanewise_program import evaluate, integers

UNSIGNED = {"b16": np.uint16, "b32": np.uint32, "b64": np.uint64}


def to_signed(value: int, bits: int) -> int:
    return value - 2**bits if value >> (bits - 1) else value


@pytest.mark.parametrize("kind", UNSIGNED)
def test_bitwise(kind: str) -> None:
    a, b = integers(UNSIGNED[kind])
    for name, expected in {"and": a & b, "or": a | b, "xor": a ^ b}.items():
        got = evaluate(f"{name}.{kind} {{d}}, {{a}}, {{b}};", a.dtype, a, b)
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(evaluate(f"not.{kind} {{d}}, {{a}};", a.dtype, a), ~a)
    np.testing.assert_array_equal(evaluate(f"cnot.{kind} {{d}}, {{a}};", a.dtype, a), a == 0)


@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        ("and.pred q, p, o;", lambda p, o: p & o),
        ("or.pred q, p, o;", lambda p, o: p | o),
        ("xor.pred q, p, o;", lambda p, o: p ^ o),
        ("and.pred q, p, !o;", lambda p, o: p & ~o),
        ("not.pred q, p;", lambda p, o: ~p),
        ("mov.pred q, !o;", lambda p, o: ~o),
        ("mov.pred q, -1;", lambda p, o: p | True),
        ("mov.pred q, 0;", lambda p, o: p & False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_predicates(operation: str, reference: Callable[..., npt.NDArray[np.bool_]]) -> None:
    a = np.arange(64, dtype=np.uint32)
    code = f"""
        .reg .pred p, o, q;
        .reg .b32 x<2>;
        and.b32 x0, {{a}}, 1;
        and.b32 x1, {{a}}, 2;
        setp.ne.u32 p, x0, 0;
        setp.ne.u32 o, x1, 0;
        {operation}
        selp.u32 {{d}}, 1, 0, q;
    """
    expected = reference((a & 1) != 0, (a & 2) != 0)
    np.testing.assert_array_equal(evaluate(code, np.uint32, a), expected)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"])
def test_shifts_clamp(kind: str) -> None:
    bits = int(kind[1:])
    a, amounts = (
        integers(f"u{bits // 8}")[0],
        np.resize(
            np.array([0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 2**31, 2**32 - 1], np.uint32), 256
        ),
    )
    right, left = [], []
    for value, amount in zip(a.tolist(), amounts.tolist(), strict=True):
        signed = to_signed(value, bits) if kind[0] == "s" else value
        right.append(signed >> min(amount, bits) & (2**bits - 1))
        left.append(value << min(amount, bits) & (2**bits - 1))
    got = evaluate(f"shr.{kind} {{d}}, {{a}}, {{b}};", a.dtype, a, amounts)
    np.testing.assert_array_equal(got, np.array(right, a.dtype))
    if kind[0] == "b":
        got = evaluate(f"shl.{kind} {{d}}, {{a}}, {{b}};", a.dtype, a, amounts)
        np.testing.assert_array_equal(got, np.array(left, a.dtype))


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("direction", ["l", "r"])
def test_funnel_shift(direction: str, mode: str) -> None:
    a, b, c = integers(np.uint32, count=3)
    c = np.where(np.arange(len(c)) % 2, c & 63, c)
    expected = []
    for low, high, amount in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        n = amount & 31 if mode == "wrap" else min(amount, 32)
        joined = high << 32 | low
        expected.append((joined << n >> 32 if direction == "l" else joined >> n) & 0xFFFFFFFF)
    code = f"shf.{direction}.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};"
    np.testing.assert_array_equal(evaluate(code, np.uint32, a, b, c), np.array(expected, np.uint32))


def field_operands() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    positions = np.array([0, 1, 5, 16, 31, 32, 40, 63, 64, 255], np.uint32)
    crossed = np.repeat(positions, len(positions)), np.tile(positions, len(positions))
    return np.resize(crossed[0], 256), np.resize(crossed[1], 256)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_field_extract(kind: str) -> None:
    bits = int(kind[1:])
    a = integers(f"u{bits // 8}", seed=5)[0]
    position, length = field_operands()
    expected = []
    for value, pos, size in zip(a.tolist(), position.tolist(), length.tolist(), strict=True):
        top = min(pos + size - 1, bits - 1)
        negative = kind[0] == "s" and size > 0 and value >> top & 1
        field = value >> pos & (2**size - 1) if pos < bits else 0
        kept = max(0, min(size, bits - pos))
        expected.append((field | (-1 << kept if negative else 0)) & (2**bits - 1))
    got = evaluate(f"bfe.{kind} {{d}}, {{a}}, {{b}}, {{c}};", a.dtype, a, position, length)
    np.testing.assert_array_equal(got, np.array(expected, a.dtype))


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_field_insert(bits: int) -> None:
    a, b = integers(f"u{bits // 8}", seed=6)
    position, length = field_operands()
    expected = []
    for x, y, pos, size in zip(*(v.tolist() for v in (a, b, position, length)), strict=True):
        mask = (2**size - 1) << pos & (2**bits - 1)
        expected.append((y & ~mask) | (x << pos & mask))
    code = f"bfi.b{bits} {{d}}, {{a}}, {{b}}, {{c}}, {{e}};"
    got = evaluate(code, a.dtype, a, b, position, length)
    np.testing.assert_array_equal(got, np.array(expected, a.dtype))


@pytest.mark.parametrize("bits", [32, 64])
def test_counting(bits: int) -> None:
    a = integers(f"u{bits // 8}")[0]
    values = a.tolist()
    cases = {
        f"popc.b{bits}": [value.bit_count() for value in values],
        f"clz.b{bits}": [bits - value.bit_length() for value in values],
        f"bfind.u{bits}": [value.bit_length() - 1 for value in values],
        f"bfind.shiftamt.u{bits}": [bits - value.bit_length() if value else -1 for value in values],
        f"bfind.s{bits}": [
            max(v, ~v).bit_length() - 1 for v in (to_signed(value, bits) for value in values)
        ],
    }
    for form, expected in cases.items():
        got = evaluate(f"{form} {{d}}, {{a}};", np.int32, a)
        np.testing.assert_array_equal(got, expected)
    reversed_bits = [int(f"{value:0{bits}b}"[::-1], 2) for value in values]
    got = evaluate(f"brev.b{bits} {{d}}, {{a}};", a.dtype, a)
    np.testing.assert_array_equal(got, np.array(reversed_bits, a.dtype))


def test_find_nth_set() -> None:
    mask = np.full(8, 0b1011_0000_0100, np.uint32)
    base = np.array([2, 0, 0, 31, 31, 9, 3, 40], np.uint32)
    n = np.array([0, 1, 2, -1, -2, 1, 0, 1], np.int32)
    got = evaluate("fns.b32 {d}, {a}, {b}, {c};", np.int32, mask, base, n)
    np.testing.assert_array_equal(got, [2, 2, 8, 11, 9, 9, -1, -1])


@pytest.mark.parametrize("table", [0x00, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x3C, 0xFF])
def test_lop3(table: int) -> None:
    a, b, c = integers(np.uint32, count=3)
    expected = np.zeros_like(a)
    for i in range(8):
        if table >> i & 1:
            terms = [v if i & bit else ~v for v, bit in ((a, 4), (b, 2), (c, 1))]
            expected |= terms[0] & terms[1] & terms[2]
    got = evaluate(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table};", np.uint32, a, b, c)
    np.testing.assert_array_equal(got, expected)


def test_lop3_with_predicate() -> None:
    a, b = integers(np.uint32)
    code = """
        .reg .pred p, q;
        .reg .b32 x;
        setp.lt.u32 q, {a}, {b};
        lop3.and.b32 x|p, {a}, {b}, 0, 0xc0, q;
        selp.u32 {d}, 1, 0, p;
    """
    expected = ((a & b) != 0) & (a < b)
    np.testing.assert_array_equal(evaluate(code, np.uint32, a, b), expected)


def permuted(a: int, b: int, selector: int) -> int:
    data = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    result = []
    for i in range(4):
        code = selector >> 4 * i & 15
        byte = data[code & 7]
        result.append((0xFF if byte & 0x80 else 0) if code & 8 else byte)
    return int.from_bytes(bytes(result), "little")


def test_permute() -> None:
    a, b, c = integers(np.uint32, count=3)
    expected = [permuted(*row) for row in zip(*(v.tolist() for v in (a, b, c)), strict=True)]
    got = evaluate("prmt.b32 {d}, {a}, {b}, {c};", np.uint32, a, b, c)
    np.testing.assert_array_equal(got, np.array(expected, np.uint32))


@pytest.mark.parametrize(
    ("mode", "selectors"),
    [
        ("f4e", (0x3210, 0x4321, 0x5432, 0x6543)),
        ("b4e", (0x5670, 0x6701, 0x7012, 0x0123)),
        ("rc8", (0x0000, 0x1111, 0x2222, 0x3333)),
        ("ecl", (0x3210, 0x3211, 0x3222, 0x3333)),
        ("ecr", (0x0000, 0x1110, 0x2210, 0x3210)),
        ("rc16", (0x1010, 0x3232, 0x1010, 0x3232)),
    ],
)
def test_permute_modes(mode: str, selectors: tuple[int, ...]) -> None:
    a = np.full(4, 0x33221100, np.uint32)
    b = np.full(4, 0x77665544, np.uint32)
    got = evaluate(
        f"prmt.b32.{mode} {{d}}, {{a}}, {{b}}, {{c}};",
        np.uint32,
        a,
        b,
        np.arange(4, dtype=np.uint32),
    )
    np.testing.assert_array_equal(got, [permuted(0x33221100, 0x77665544, s) for s in selectors])


def test_masks_and_extensions() -> None:
    a = np.array([0xFF, 0x80, 0x7F, 0xFFFFFFFF], np.uint32)
    n = np.full(4, 8, np.uint32)
    got = evaluate("szext.clamp.s32 {d}, {a}, {b};", np.int32, a, n)
    np.testing.assert_array_equal(got, [-1, -128, 127, -1])
    got = evaluate("szext.wrap.u32 {d}, {a}, {b};", np.uint32, a, n)
    np.testing.assert_array_equal(got, [255, 128, 127, 255])
    position = np.array([0, 4, 31, 32], np.uint32)
    got = evaluate("bmsk.clamp.b32 {d}, {a}, {b};", np.uint32, position, n)
    np.testing.assert_array_equal(got, [0xFF, 0xFF0, 0x80000000, 0])
    got = evaluate("bmsk.wrap.b32 {d}, {a}, {b};", np.uint32, position, n)
    np.testing.assert_array_equal(got, [0xFF, 0xFF0, 0x80000000, 0xFF])


@pytest.mark.parametrize(
    "body",
    [
        "and.b32 r1, r2, p1;",
        "shl.s32 r1, r2, 1;",
        "lop3.b32 r1, r2, r3, r4, 256;",
        "prmt.b32 r1, r2, r3;",
    ],
)
def test_wrong_form_is_an_error_at_load(body: str) -> None:
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(ptx_program(body, {"unused": 0}))
    assert body in caught.value.source_line
