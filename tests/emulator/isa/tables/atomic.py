"""Atomic operations of every scope: each lane on a word of its own, then all lanes on one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.emulator.isa.lanewise_program import integers

from .forms import published_forms
from .integer import integer_type, wrap
from .row import Row

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "max": max,
    "min": min,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "inc": lambda a, b: 0 if a >= b else a + 1,
    "exch": lambda _, b: b,
}
_SHARED = ".shared .align 16 .b8 tile[256]; mov.u32 r8, tile;"


def _operation(form: str) -> str:
    return next(m for m in form.split(".") if m in _OPERATIONS or m == "cas")


def _place(form: str, size: int, bits: int, value: str) -> tuple[str, str, str]:
    """Code that puts the lane's word in its place, its address, code that copies it back."""
    word = f"mad.wide.u32 rd7, lane, {size}, words;"
    if ".shared" not in form:
        return word, "rd7", ""
    put = f"{_SHARED} mad.lo.u32 r9, lane, {size}, r8; ld.global.b{bits} {value}, [rd7]; "
    put += f"st.shared.b{bits} [r9], {value};"
    return (
        f"{word} {put}",
        "r9",
        f"ld.shared.b{bits} {value}, [r9]; st.global.b{bits} [rd7], {value};",
    )


def _own_words(form: str) -> Row:
    kind = form.split(".")[-1]
    dtype = integer_type(kind)
    size, bits = dtype.itemsize, 8 * dtype.itemsize
    register = "r" if bits == 32 else "rd"
    before, operand = (values[:32] for values in integers(dtype, seed=13))
    put, address, back = _place(form, size, bits, f"{register}20")
    loads = f"mad.wide.u32 rd10, lane, {size}, operands; ld.global.b{bits} {register}21, [rd10]; "
    sources = f"{register}21"
    name = _operation(form)
    inputs = {"words": before, "operands": operand}
    if name == "cas":
        compare = np.where(np.arange(32) % 2 == 0, before, before + dtype.type(1))
        inputs["compare"] = compare
        loads += (
            f"mad.wide.u32 rd11, lane, {size}, compare; ld.global.b{bits} {register}22, [rd11];"
        )
        sources = f"{register}22, {register}21"
        after = np.where(compare == before, operand, before)
    else:
        pairs = zip(before.tolist(), operand.tolist(), strict=True)
        after = np.array([wrap(_OPERATIONS[name](*pair), dtype) for pair in pairs], dtype)
    expected = {"words": after}
    if form.startswith("red"):
        code = f"{form} [{address}], {sources};"
    else:
        code = f"{form} {register}23, [{address}], {sources}; "
        code += f"mad.wide.u32 rd12, lane, {size}, old; st.global.b{bits} [rd12], {register}23;"
        expected["old"] = before
    return Row(form, f"{put} {loads} {code} {back}", inputs, expected)


def _one_word(form: str) -> Row:
    """128 lanes of 4 CTAs meet at one word; the order does not matter for what remains."""
    dtype = integer_type(form.split(".")[-1])
    size, bits = dtype.itemsize, 8 * dtype.itemsize
    register = "r" if bits == 32 else "rd"
    values = integers(dtype, seed=14, count=1)[0][-128:]
    start = values[:1].copy()
    total = int(start[0])
    for value in values.tolist():
        total = wrap(_OPERATIONS[_operation(form)](total, value), dtype)
    target = "" if form.startswith("red") else f"{register}22, "
    body = (
        "mov.u32 r8, %ctaid.x; mad.lo.u32 r8, r8, 32, lane; "
        f"mad.wide.u32 rd7, r8, {size}, operands; ld.global.b{bits} {register}21, [rd7]; "
        f"{form} {target}[word], {register}21;"
    )
    inputs = {"word": start, "operands": values}
    return Row(form, body, inputs, {"word": np.array([total], dtype)}, grid=4, note="one word")


def _floats() -> list[Row]:
    """Whole numbers, whose sums are exact in any order."""
    rng = np.random.default_rng(15)
    word, operands = (rng.integers(-99, 99, (count, 2)).astype(np.float32) for count in (1, 32))
    both = (
        "mad.wide.u32 rd7, lane, 8, operands; ld.global.v2.b32 {r20, r21}, [rd7]; "
        "{form} {r22, r23}, [word], {r20, r21};"
    )
    one = "mad.wide.u32 rd7, lane, 8, operands; ld.global.b32 r20, [rd7]; {form} r22, [word], r20;"
    total = word + operands.sum(axis=0)
    first = np.array([[total[0, 0], word[0, 1]]])
    inputs = {"word": word, "operands": operands}
    rows = []
    for form, body, expected in (
        ("atom.global.add.v2.f32", both, total),
        ("atom.global.add.f32", one, first),
        ("atom.global.gpu.acq_rel.add.f32", one, first),
    ):
        rows.append(Row(form, body.replace("{form}", form), inputs, {"word": expected}))
    return rows


def rows() -> list[Row]:
    """All rows of this table."""
    forms = [form for form in published_forms("atom", "red") if not form.endswith("f32")]
    shared = [
        form
        for form in forms
        if _operation(form) in ("add", "max", "min") and ".shared" not in form
        and ".cta" not in form
    ]  # fmt: skip
    return [*map(_own_words, forms), *map(_one_word, shared), *_floats()]
