"""What the casts are compared with: a copy of as many bytes, torch's ops, and Triton."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import pykernels

from . import Baseline, CastOperands, Prepared, Unavailable, flat
from .triton_launch import compile_function

COPY = "copy"
BLOCK_M, NUM_WARPS = 8, 4  # of the Triton kernel: 16 bytes of each half a thread
_BLOCK = 128
_MAX = 448.0


def quantize_baselines(num_bytes: int, block_rows: int) -> list[Baseline[CastOperands]]:
    """Of a matrix that is cast; ``num_bytes``: that the cast reads and writes."""
    note = "the formula in ops of torch, one kernel each"
    return [_copy(num_bytes), Baseline("torch", note, partial(_prepare_torch, block_rows))]


def silu_mul_baselines(num_bytes: int) -> list[Baseline[CastOperands]]:
    """Of SwiGLU fused with the cast."""
    unfused = "y in BF16 in between; all rows that there is room for"
    return [
        _copy(num_bytes),
        Baseline("silu(gate) * up, quantize_1x128", unfused, _prepare_unfused),
        Baseline("Triton", "fused as ours; a program for all rows that there is room for", _triton),
    ]


def _copy(num_bytes: int) -> Baseline[CastOperands]:
    """From half as many bytes to as many others."""

    def prepare(operands: CastOperands) -> Prepared:
        size = (num_bytes // 2,)
        source = torch.randint(0, 256, size, dtype=torch.uint8, device=operands.x.device)
        target = torch.empty_like(source)
        return Prepared(lambda: target.copy_(source), target)

    note = "on the device, as many bytes read and written: the ratio is our share of its bandwidth"
    return Baseline(COPY, note, prepare, computes=False)


def _prepare_torch(block_rows: int, operands: CastOperands) -> Prepared:
    m, k = operands.x.shape
    if m % block_rows != 0 or k % _BLOCK != 0:
        raise Unavailable("whole blocks only")
    blocks = operands.x.view(m // block_rows, block_rows, k // _BLOCK, _BLOCK)
    q = operands.out.view(blocks.shape)

    def call() -> None:
        scales = (blocks.abs().amax(dim=(1, 3)).float() / _MAX).clamp(min=1e-30)
        operands.scales.copy_(scales)
        q.copy_((blocks / scales[:, None, :, None]).clamp(-_MAX, _MAX))

    return Prepared(call, operands.out)


def _prepare_unfused(operands: CastOperands) -> Prepared:
    gate, up = flat(operands.x).chunk(2, dim=-1)
    pair = flat(operands.out), flat(operands.scales)

    def call() -> None:
        pykernels.quantize_1x128(torch.nn.functional.silu(gate) * up, out=pair)

    return Prepared(call, operands.out)


def _triton(operands: CastOperands) -> Prepared:
    try:
        from . import triton_cast
    except ImportError as error:
        raise Unavailable("not installed") from error
    programs, arguments = triton_call(operands)

    def call() -> object:
        return triton_cast.silu_mul_quantize[(programs,)](
            *arguments, block_m=BLOCK_M, num_warps=NUM_WARPS
        )

    return Prepared(call, operands.out)


def triton_call(operands: CastOperands) -> tuple[int, tuple[Any, ...]]:
    """Programs, and arguments without constants.

    Raises:
        Unavailable: the room of a group is no multiple of a program's rows.
    """
    x, q, scales = map(flat, operands[:3])
    room = operands.x.size(-2)
    if room % BLOCK_M != 0 and operands.begins.numel() > 1:
        raise Unavailable(f"{room} rows of a group are no multiple of {BLOCK_M}")
    tensors = x, q, scales, operands.begins, operands.ends
    columns, k_blocks = q.size(1), scales.size(1)
    strides = x.stride(0), q.stride(0), scales.stride(0)
    return -(-x.size(0) // BLOCK_M) * k_blocks, (*tensors, room, columns, k_blocks, *strides)


def compile_triton() -> Any:
    """The kernel for sm_90a as Triton's compiler leaves it; needs no GPU.

    Raises:
        RuntimeError: there is no Triton.
    """
    pointers = {"x": "*bf16", "q": "*fp8e4nv", "scales": "*fp32", "begins": "*i32", "ends": "*i32"}
    return compile_function(
        "triton_cast",
        "silu_mul_quantize",
        types={f"{name}_ptr": of for name, of in pointers.items()},
        constants={"block_m": BLOCK_M},
        multiples_of_16=("columns", "x_stride", "q_stride", "scales_stride"),
        options={"num_warps": NUM_WARPS},
    )


def write_cubin(folder: Path) -> Path:
    """The Triton kernel's machine code, for its listing."""
    cubin = folder / "triton_silu_mul_quantize.cubin"
    cubin.write_bytes(compile_triton().asm["cubin"])
    return cubin
