"""Rows of instructions that work on registers: a thread an element."""

from __future__ import annotations

import numpy as np

from .row import Array, Row

_WARP = 32
_NAMES = "abce"
# Register of the first of several operands, by bytes.
_REGISTERS = {1: "h", 2: "h", 4: "r", 8: "rd"}


def lanewise(
    form: str,
    expected: Array,
    *inputs: Array,
    code: str = "",
    tolerance: float = 0.0,
    note: str = "",
    module: str = "",
) -> Row:
    """A row whose thread i turns element i of the inputs into element i of ``out``.

    Args:
        form: The form.
        expected: The results.
        *inputs: Arrays of the length of ``expected``.
        code: Instructions in which ``{form}`` stands for the form, ``{d}`` for the result, and
            ``{a}``, ``{b}``, ``{c}``, ``{e}`` for the inputs; all of them in this order if empty.
        tolerance: See ``Row``.
        note: Tells rows of one form apart.
        module: See ``Row``.
    """
    pairs = list(zip(_NAMES, inputs, strict=False))
    count = -(-len(expected) // _WARP) * _WARP
    names = {letter: _register(x, i + 1) for i, (letter, x) in enumerate(pairs)}
    result = _register(expected, 20)
    loads = [_access("ld", f"in_{letter}", x.itemsize, names[letter]) for letter, x in pairs]
    code = code or "{form} " + ", ".join(["{d}"] + [f"{{{letter}}}" for letter in names]) + ";"
    body = f"""
        mov.u32 r40, %ctaid.x;
        mad.lo.s32 r41, r40, {_WARP}, lane;
        {" ".join(loads)}
        {code.format(form=form, d=result, **names)}
        {_access("st", "out", expected.itemsize, result)}
    """
    arrays = {f"in_{letter}": np.resize(x, count) for letter, x in pairs}
    wanted = np.resize(expected, count)
    return Row(
        form,
        body,
        arrays,
        {"out": wanted},
        module=module,
        grid=count // _WARP,
        tolerance=tolerance,
        note=note,
    )


def _register(values: Array, index: int) -> str:
    return f"{_REGISTERS[values.itemsize]}{index}"


def _access(opcode: str, name: str, size: int, register: str) -> str:
    address = f"mad.wide.s32 rd40, r41, {size}, {name};"
    kind = f"{'u' if opcode == 'ld' else 'b'}{8 * size}"
    operands = f"{register}, [rd40]" if opcode == "ld" else f"[rd40], {register}"
    return f"{address} {opcode}.global.{kind} {operands};"
