"""Damaged PTX: texts with a few tokens changed, and runs of what still loads.

A mutation is a value, so that hypothesis can draw and shrink lists of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pykernels.emulator import EmulationError, Emulator, Kernel, Launch, Module, PtxError, TensorMap
from pykernels.emulator.arguments import Argument

_TOKEN = re.compile(r"[%$A-Za-z_][\w$]*|\.[\w:]+|\d[\w.]*|\"[^\"\n]*\"|\s+|.", re.DOTALL)

KINDS = ("delete", "duplicate", "swap", "replace", "insert", "truncate", "repeat")
_WORDS = r"""
.u8 .s16 .u32 .s32 .b64 .u64 .f16 .f32 .f64 .b128 .pred .bf16x2 .e4m3x2 .tf32 .v2 .v4 .v8 .add .and
.reg .shared .local .param .global .const .align .func .entry .extern .branchtargets .loc .sync
.aligned .relaxed .acquire .cluster .sys .wide .sat .rn .shared::cluster .multicast::cluster .x4
.trans .cta .noinc .L2::128B
0 1 -1 3 7 31 32 33 255 65536 0x7fffffff 0xffffffff 4294967296 2147483648 9223372036854775807
18446744073709551615 18446744073709551616 1e400 1.5 08 0x 0b12 0f7fc00000 0d7ff8000000000000
99999999999999999999 <4000000000> [1000000] {{{0}}}
{ } ( ) [ ] < > , ; : @ ! | + - = * _ // /* */ \ # $ % . " "text"
%tid.x %laneid %clock64 %envreg40 %r1 p0 r0 rd0 f0 h0 q0
ret bra brx.idx call exit trap bar.sync membar.gl generic WARP_SZ
"""
# What a token is replaced by, or gets inserted, beside tokens of the text itself.
SPARE_TOKENS = (
    *_WORDS.split(),
    *("\n", "\0", "\x01", "é", "\udcfc"),
    *("{" * 300, "(" * 300, "[" * 300, "a" * 5000, "1" * 5000),
)


@dataclass(frozen=True)
class Mutation:
    """A change at a token.

    Attributes:
        kind: One of ``KINDS``.
        at: Which token, modulo their number.
        other: A second token or a length, as the kind needs it.
        spare: Which of ``SPARE_TOKENS`` a replacement is; behind their end, a token of the text.
    """

    kind: str
    at: int
    other: int
    spare: int


def mutate(text: str, mutations: Sequence[Mutation]) -> str:
    tokens = _TOKEN.findall(text)
    for mutation in mutations:
        if not tokens:
            break
        at = mutation.at % len(tokens)
        other = mutation.other % len(tokens)
        length = 1 + mutation.other % 8
        spare = (
            SPARE_TOKENS[mutation.spare] if mutation.spare < len(SPARE_TOKENS) else tokens[other]
        )
        if mutation.kind == "delete":
            del tokens[at : at + length]
        elif mutation.kind == "duplicate":
            tokens[at:at] = tokens[at : at + length]
        elif mutation.kind == "swap":
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif mutation.kind == "replace":
            tokens[at] = spare
        elif mutation.kind == "insert":
            tokens.insert(at, spare)
        elif mutation.kind == "truncate":
            del tokens[at:]
        else:
            tokens[at:at] = tokens[at : at + length] * (1 + mutation.other % 40)
    return "".join(tokens)


def exercise(text: str, *, max_warp_instructions: int = 4096) -> str:
    """Load the text, and run what loads for a while.

    Returns:
        What became of it: ``"refused"``, ``"ran"`` or ``"failed"``. Anything but the documented
        errors is raised.
    """
    try:
        module = Module.from_ptx(text)
    except PtxError as error:
        if not 1 <= error.line <= text.count("\n") + 1 or not str(error):
            raise AssertionError(f"line {error.line}: {error}") from error
        return "refused"
    result = "ran"
    for kernel in list(module.kernels.values())[:2]:
        try:
            _run(kernel, max_warp_instructions)
        except (EmulationError, ValueError):
            result = "failed"
    return result


def _run(kernel: Kernel, max_warp_instructions: int) -> None:
    threads = kernel.required_threads or min(64, kernel.max_threads or 64)
    emulator = Emulator(max_warp_instructions=max_warp_instructions, num_sms=4)
    launch = Launch(kernel, (2,), (threads,), [_argument(p.type, p.bytes) for p in kernel.params])
    emulator.launch_concurrent([launch])


def _argument(kind: str, size: int) -> Argument:
    if kind == "b8" and size == 128:
        return TensorMap.encode_tiled(np.zeros((64, 64), np.float32), box=(8, 8))
    if size > 8 or kind == "b8":
        return bytes(size)
    if size == 8 and not kind.startswith("f"):
        return np.zeros(1024, dtype=np.uint32)
    return 1.0 if kind.startswith("f") else 1
