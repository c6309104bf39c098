"""The matrix instructions' wrappers, ptx/wgmma_{e4m3,bf16}.cuh: one function a width of the tile.

``PYTHONPATH=csrc python -m kernel_build.wgmma_forms`` writes the headers; a test compares them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

# Columns of the tiles whose first instruction of a chain only writes the accumulators.
WIDTHS = (8, 16, 32, 48, 64, 80, 96, 112, 128)
# Columns of those with one accumulator for all chains, whose registers must stay the same ones.
WIDTHS_IN_PLACE = (144, 160, 192)
# BF16: columns of the tiles whose first instruction of a chain only writes the accumulators; of the
# tiles with A or B transposed, whose accumulators live through all chains.
WIDTHS_BF16 = (8, 16, 32, 64)
WIDTHS_A_TRANSPOSED = (8, 16, 32)
WIDTHS_B_TRANSPOSED = (256,)
_LINE = 100

_HEADER = """\
// Asynchronous warpgroup matrix multiply-accumulate of FP8 operands in shared memory, by the number
// of columns: overloads, told apart by the accumulators, one for every two columns in each thread.
// Written by `PYTHONPATH=csrc python -m kernel_build.wgmma_forms`; a test keeps it so.
//
// The wrappers are volatile, so that their order stays, but have no "memory" clobber: the
// accumulators are operands, and the shared memory that they read is ordered by the barriers
// around them.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {
"""

_FOOTER = """
}  // namespace pykernels::ptx
"""

_WRITES = """
/// {opcode} d, a, b, 0, 1, 1;      PTX 8.0, sm_90a
///
/// d = a * b for a [64, 32] and b [{n}, 32], given by descriptors. The first of a chain: d is
/// written only (scale-d 0). Asynchronous; d may be used after wait_group. All warps of a
/// warpgroup, converged, after wgmma_fence.
"""

_ADDS = """
/// {opcode} d, a, b, 1, 1, 1;      PTX 8.0, sm_90a
///
/// d += a * b, else as the scale_d_0 form.
/// All warps of a warpgroup, converged, after wgmma_fence.
"""

_IN_PLACE = """
/// {opcode} d, a, b, p, 1, 1;      PTX 8.0, sm_90a
///
/// d = a * b + (scale_d ? d : 0) for a [64, 32] and b [{n}, 32], given by descriptors. With a
/// `scale_d` that only the run knows, d stays in the same registers from chain to chain.
/// Asynchronous; d may be used after wait_group. All warps of a warpgroup, converged, after
/// wgmma_fence.
"""


_BF16_HEADER = """\
// Asynchronous warpgroup matrix multiply-accumulate of BF16 operands, by the number of columns:
// overloads, told apart by the accumulators, one for every two columns in each thread. B is in
// shared memory, A too or in registers.
// Written by `PYTHONPATH=csrc python -m kernel_build.wgmma_forms`; a test keeps it so.
//
// As in wgmma_e4m3.cuh the wrappers are volatile and have no "memory" clobber.
#pragma once

#include "ptx/types.cuh"

namespace pykernels::ptx {
"""

_BF16 = """
/// {opcode} d, a, b, {flags};  PTX 8.0, sm_90a
///
/// {effect} for a [64, 16]{a_place} and b [{n}, 16]{b_place}.
/// Asynchronous; d may be used{registers} after wait_group. All warps of a
/// warpgroup, converged, after wgmma_fence.
"""


def render_bf16() -> str:
    """The text of ptx/wgmma_bf16.cuh."""
    parts = [_BF16_HEADER]
    for n in WIDTHS_BF16:
        parts += [_bf16_function(n, scale_d=0), _bf16_function(n, scale_d=1)]
    parts += [_bf16_function(n, transpose_a=1) for n in WIDTHS_A_TRANSPOSED]
    for n in WIDTHS_B_TRANSPOSED:
        parts += [_bf16_function(n, transpose_b=1)]
        parts += [_bf16_function(n, transpose_b=1, a_in_registers=True)]
    return "".join([*parts, _FOOTER])


def _bf16_function(
    n: int,
    *,
    scale_d: int = 1,
    transpose_a: int = 0,
    transpose_b: int = 0,
    a_in_registers: bool = False,
) -> str:
    opcode = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16"
    count = n // 2
    num_a = 4 if a_in_registers else 1
    transposes = f"{transpose_b}" if a_in_registers else f"{transpose_a}, {transpose_b}"
    flags = f"{scale_d}, 1, 1, {transposes}"
    suffix = "_trans_a" * transpose_a + "_trans_b" * transpose_b
    suffix = f"_rs{suffix}" if a_in_registers else suffix or f"_scale_d_{scale_d}"
    a_type = "const uint32_t (&a)[4]" if a_in_registers else "uint64_t a"
    head = (
        f"__device__ __forceinline__ void wgmma_m64k16_f32_bf16_bf16{suffix}("
        f"float (&d)[{count}], {a_type}, uint64_t b)"
    )
    comment = _BF16.format(
        opcode=opcode,
        flags=flags,
        n=n,
        effect="d += a * b" if scale_d else "d = a * b (d is written only)",
        a_place=" in registers" if a_in_registers else " (M contiguous)" * transpose_a,
        b_place=" (N contiguous)" * transpose_b,
        registers=", a overwritten," if a_in_registers else "",
    )
    lines = [comment, _wrapped(head), " {\n  asm volatile(\n", f'      "{opcode} {{"\n']
    names = [f"%{i}" for i in range(count)]
    rows = [", ".join(names[i : i + 8]) for i in range(0, count, 8)]
    lines += [f'      "{row}, "\n' for row in rows[:-1]] + [f'      "{rows[-1]}"\n']
    a_names = ", ".join(f"%{count + i}" for i in range(num_a))
    a_text = f"{{{a_names}}}" if a_in_registers else a_names
    lines += [f'      "}}, {a_text}, %{count + num_a}, {flags};"\n']
    operands = [f'"{"+f" if scale_d else "=f"}"(d[{i}])' for i in range(count)]
    lines += [_filled("      : ", ", ".join(operands)), "\n"]
    a_operands = ", ".join(f'"r"(a[{i}])' for i in range(4)) if a_in_registers else '"l"(a)'
    lines += [f'      : {a_operands}, "l"(b));\n}}\n']
    return "".join(lines)


def render() -> str:
    """The text of ptx/wgmma_e4m3.cuh."""
    parts = [_HEADER]
    for n in WIDTHS:
        parts += [_function(n, "_scale_d_0", _WRITES), _function(n, "_scale_d_1", _ADDS)]
    parts += [_function(n, "", _IN_PLACE) for n in WIDTHS_IN_PLACE]
    return "".join([*parts, _FOOTER])


def _function(n: int, suffix: str, comment: str) -> str:
    opcode = f"wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3"
    count = n // 2
    in_place = suffix == ""
    parameter = ", bool scale_d" if in_place else ""
    head = (
        f"__device__ __forceinline__ void wgmma_m64k32_f32_e4m3_e4m3{suffix}("
        f"float (&d)[{count}], uint64_t a, uint64_t b{parameter})"
    )
    direction = "=f" if suffix == "_scale_d_0" else "+f"
    scale = "p" if in_place else suffix[-1]
    lines = [comment.format(opcode=opcode, n=n), _wrapped(head), " {\n  asm volatile(\n"]
    if in_place:
        lines += ['      "{\\n\\t"\n', '      ".reg .pred p;\\n\\t"\n']
        lines += [f'      "setp.ne.b32 p, %{count + 2}, 0;\\n\\t"\n']
    lines += [f'      "{opcode} {{"\n']
    names = [f"%{i}" for i in range(count)]
    rows = [", ".join(names[i : i + 16]) for i in range(0, count, 16)]
    lines += [f'      "{row}, "\n' for row in rows[:-1]] + [f'      "{rows[-1]}"\n']
    closing = '\\n\\t"\n      "}"\n' if in_place else '"\n'
    lines += [f'      "}}, %{count}, %{count + 1}, {scale}, 1, 1;{closing}']
    operands = [f'"{direction}"(d[{i}])' for i in range(count)]
    lines += [_filled("      : ", ", ".join(operands)), "\n"]
    flag = ', "r"(static_cast<uint32_t>(scale_d))' if in_place else ""
    lines += [f'      : "l"(a), "l"(b){flag});\n}}\n']
    return "".join(lines)


def _filled(indent: str, text: str) -> str:
    return textwrap.fill(text, _LINE, initial_indent=indent, subsequent_indent=" " * len(indent))


def _wrapped(head: str, indent: str = "") -> str:
    """Breaks the signature behind the parameters that fit the lines."""
    limit = _LINE - len(" {")
    if len(head) <= limit:
        return head
    cut = head.rindex(",", 0, _LINE) + 1
    indent = indent or " " * (head.index("(") + 1)
    return head[:cut] + "\n" + _wrapped(indent + head[cut:].strip(), indent)


def main() -> None:
    """Write the headers."""
    folder = Path(__file__).resolve().parent.parent.parent / "ptx"
    (folder / "wgmma_e4m3.cuh").write_text(render())
    (folder / "wgmma_bf16.cuh").write_text(render_bf16())


if __name__ == "__main__":
    main()
