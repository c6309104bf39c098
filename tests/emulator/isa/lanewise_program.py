"""Runs register instructions on arrays: an element a lane, half or all lanes active."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pykernels.emulator import Emulator
from tests.emulator.ptx_program import run_ptx

Array = npt.NDArray[np.generic]

WARP = 32
# Register of the first of several operands, by bytes, in the program of `ptx_program`.
_REGISTER = {1: "h", 2: "h", 4: "r", 8: "rd"}

INTEGER_EDGES = {
    bits: [0, 1, 2, 3, 7, 31, 2 ** (bits // 2), 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1]
    for bits in (8, 16, 32, 64)
}


def evaluate(code: str, out: npt.DTypeLike, *inputs: Array) -> Array:
    """Run instructions for every element of the inputs.

    The masked half of the run must leave the inactive lanes alone and give the active ones the
    same results.

    Args:
        code: Instructions in which ``{d}`` is the result and ``{a}``, ``{b}``, ``{c}``, ``{e}``
            are the inputs.
        out: Type of the result.
        *inputs: Arrays of one length.

    Returns:
        The results, one for each element.
    """
    count = len(inputs[0])
    padded = -(-count // WARP) * WARP
    out = np.dtype(out)
    full = np.zeros(padded, out)
    masked = np.zeros(padded, out)
    args: dict[str, Array] = {"full": full, "masked": masked}
    names = {}
    loads = []
    for i, values in enumerate(inputs):
        letter = "abcef"[i]
        args[f"in_{letter}"] = np.resize(values, padded)
        register = f"{_REGISTER[values.dtype.itemsize]}{i + 1}"
        names[letter] = register
        loads.append(_access("ld", f"in_{letter}", values.dtype.itemsize, register))
    result = f"{_REGISTER[out.itemsize]}20"
    statement = code.format(d=result, **names)
    preset = f"mov.b{max(16, 8 * out.itemsize)} {result}, 0x5a;"
    body = f"""
        mov.u32 r40, %ctaid.x;
        mad.lo.s32 r41, r40, {WARP}, lane;
        {" ".join(loads)}
        {preset}
        {{ {statement} }}
        {_access("st", "full", out.itemsize, result)}
        {preset}
        and.b32 r42, lane, 1;
        setp.eq.u32 p15, r42, 0;
        @p15 bra skip;
        {{ {statement} }}
    skip:
        {_access("st", "masked", out.itemsize, result)}
    """
    report = run_ptx(body, args, grid=(padded // WARP,), emulator=Emulator(checks=("memory",)))
    report.raise_if_findings()
    expected = full.copy().view(np.uint8).reshape(padded, -1)
    expected[::2] = np.frombuffer((0x5A).to_bytes(out.itemsize, "little"), np.uint8)
    np.testing.assert_array_equal(masked.view(np.uint8).reshape(padded, -1), expected)
    return full[:count]


def _access(opcode: str, name: str, size: int, register: str) -> str:
    address = f"mad.wide.s32 rd40, r41, {size}, {name};"
    kind = f"{'u' if opcode == 'ld' else 'b'}{8 * size}"
    operands = f"{register}, [rd40]" if opcode == "ld" else f"[rd40], {register}"
    return f"{address} {opcode}.global.{kind} {operands};"


def integers(dtype: npt.DTypeLike, seed: int = 0, *, count: int = 2) -> tuple[Array, ...]:
    """Edge values, each with each, then random ones: ``count`` arrays."""
    dtype = np.dtype(dtype)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    edges = np.array(INTEGER_EDGES[8 * dtype.itemsize], unsigned)
    rng = np.random.default_rng(seed)
    arrays = []
    for i in range(count):
        crossed = np.tile(np.repeat(edges, len(edges) ** (i % 2)), len(edges) ** (1 - i % 2))
        random = rng.integers(0, 2 ** (8 * dtype.itemsize), 156, unsigned)
        arrays.append(np.concatenate([crossed, random]).view(dtype))
    return tuple(arrays)


FLOAT_EDGES = np.array(
    [
        0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000,
        0xFFC00001, 0x00000001, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0x3F000000, 0x40400000,
        0xC2F6E979, 0x5F000000,
    ],
    np.uint32,
)  # fmt: skip


def floats(seed: int = 0, *, count: int = 2) -> tuple[npt.NDArray[np.float32], ...]:
    """FP32: edge values, each with each, random patterns, then numbers near 1."""
    rng = np.random.default_rng(seed)
    arrays = []
    for i in range(count):
        edges = len(FLOAT_EDGES)
        crossed = np.tile(np.repeat(FLOAT_EDGES, edges ** (i % 2)), edges ** (1 - i % 2))
        random = rng.integers(0, 2**32, 128, np.uint32)
        near = rng.normal(size=128).astype(np.float32).view(np.uint32)
        arrays.append(np.concatenate([crossed, random, near]).view(np.float32))
    return tuple(arrays)


def canonical(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Bit patterns with every NaN the one that FP32 instructions produce."""
    bits = values.view(np.uint32).copy()
    bits[np.isnan(values)] = 0x7FFFFFFF
    return bits


def flush(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Subnormals as zeros of their sign."""
    bits = values.view(np.uint32).copy()
    subnormal = (bits & 0x7F800000) == 0
    bits[subnormal] &= 0x80000000
    return bits.view(np.float32)
