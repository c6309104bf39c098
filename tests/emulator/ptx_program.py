"""Tiny PTX programs: a few instructions, with the prologue that every test would repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pykernels.emulator import Emulator, Module, Report, TensorMap
from pykernels.emulator.arguments import Argument

_HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"

# Registers that a body may use: p0.., h0.., r0.., f0.., rd0.., fd0.., q0.. by class.
_REGISTERS = """
    .reg .pred p<16>;
    .reg .b16 h<32>;
    .reg .b32 r<64>;
    .reg .f32 f<64>;
    .reg .b64 rd<64>;
    .reg .f64 fd<16>;
    .reg .b128 q<8>;
    .reg .b32 tid;
    .reg .b32 lane;
"""


def ptx_program(body: str, args: Mapping[str, Argument], *, module: str = "") -> str:
    """The text of a module with one kernel, ``kernel``; see :func:`ptx_entry`.

    Args:
        body: Instructions.
        args: By name.
        module: Declarations at module scope (shared variables and the like).
    """
    return f"{_HEADER}{module}\n{ptx_entry(body, args)}"


def ptx_entry(body: str, args: Mapping[str, Argument], *, name: str = "kernel") -> str:
    """One kernel of a module.

    Args:
        body: Instructions. ``tid`` and ``lane`` hold the thread; a register of each argument's
            name its value: the address of an array, the generic address of a tensor map, a number.
        args: By name; they decide the parameters' types.
        name: The kernel's.
    """
    params = []
    prologue = ["mov.u32 tid, %tid.x;", "mov.u32 lane, %laneid;"]
    for argument, value in args.items():
        kind, loads = _parameter(argument, value)
        params.append(kind)
        prologue += loads
    return (
        f".visible .entry {name}(\n    "
        + ",\n    ".join(params)
        + f"\n)\n{{\n{_REGISTERS}    "
        + "\n    ".join(prologue)
        + f"\n{body}\n    ret;\n}}\n"
    )


def run_ptx(
    body: str,
    args: Mapping[str, Argument],
    *,
    module: str = "",
    grid: Sequence[int] = (1,),
    block: Sequence[int] = (32,),
    cluster: Sequence[int] = (1,),
    dynamic_smem_bytes: int = 0,
    emulator: Emulator | None = None,
) -> Report:
    """Run such a program; arrays among the arguments are changed in place."""
    kernel = Module.from_ptx(ptx_program(body, args, module=module))["kernel"]
    return (emulator or Emulator()).launch(
        kernel, grid, block, list(args.values()), cluster, dynamic_smem_bytes
    )


def _parameter(name: str, value: Argument) -> tuple[str, list[str]]:
    param = f"{name}_param"
    if isinstance(value, TensorMap):
        return f".param .align 64 .b8 {param}[128]", [
            f".reg .b64 {name};",
            f"mov.b64 {name}, {param};",
            f"cvta.param.u64 {name}, {name};",
        ]
    if isinstance(value, bytes):
        return f".param .align 16 .b8 {param}[{len(value)}]", []
    if isinstance(value, (float, np.float32)):
        kind = "f32"
    elif isinstance(value, (int, np.integer)):
        kind = "u64" if isinstance(value, (np.int64, np.uint64)) else "u32"
    else:
        kind = "u64"
    return f".param .{kind} {param}", [
        f".reg .{kind} {name};",
        f"ld.param.{kind} {name}, [{param}];",
    ]
