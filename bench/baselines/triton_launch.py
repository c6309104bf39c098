"""Launches the Triton baselines on a GPU, or compiles them to cubins for their listings."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import Baseline, GroupedOperands, Operands, Prepared, Unavailable, flat

KERNEL, GROUPED_KERNEL = "fp8_gemm_nt", "grouped_fp8_gemm_nt"
_GROUP_M = 8
_SHARED_BYTES = 227 * 1024  # of an SM

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile and how it is compiled: the best of its size by main loop, not tuned by shape."""

    block_m: int
    block_n: int = 128
    num_warps: int = 8
    num_stages: int = 4

    @property
    def constants(self) -> dict[str, int]:
        sizes = {"block_m": self.block_m, "block_n": self.block_n, "block_k": 128}
        return {**sizes, "group_m": _GROUP_M}

    @property
    def ctas_per_sm(self) -> int:
        """By the shared memory of the stages."""
        return _SHARED_BYTES // (self.num_stages * (self.block_m + self.block_n) * 128)


SMALL, LARGE = Tile(64, num_warps=4), Tile(128)
_SCALES = "1x128 by 128x128 scales, as ours"


def baseline() -> Baseline[Operands]:
    """Tiles of 64 rows up to m = 64, of 128 above."""
    return Baseline("Triton", _SCALES, _prepare)


def grouped_baseline() -> Baseline[GroupedOperands]:
    """The same by the mean of the groups' rows."""
    note = f"{_SCALES}; each group's first and last row found outside the timed part"
    return Baseline("Triton", note, _prepare_grouped)


def tile_for(rows: float) -> Tile:
    """Of a product, or of the groups' mean."""
    return SMALL if rows <= SMALL.block_m else LARGE


def _descriptor(tensor: Tensor, block: list[int]) -> Any:
    try:
        from triton.tools.tensor_descriptor import TensorDescriptor
    except ImportError as error:
        raise Unavailable("not installed, or without TMA descriptors") from error
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)


def _prepare(operands: Operands) -> Prepared:
    a, sfa, b, sfb, out = operands
    m, n, k = a.size(0), b.size(0), a.size(1)
    tile = tile_for(m)
    descriptors = (
        _descriptor(a, [tile.block_m, 128]),
        _descriptor(b, [tile.block_n, 128]),
        _descriptor(out, [tile.block_m, tile.block_n]),
    )
    arguments = (*descriptors, sfa, sfb, m, n, k, *sfa.stride(), *sfb.stride())
    num_tiles = -(-m // tile.block_m) * -(-n // tile.block_n)
    return Prepared(_call(KERNEL, tile, num_tiles, arguments), out, sfa, sfb)


def _prepare_grouped(operands: GroupedOperands) -> Prepared:
    grouped = grouped_call(operands)
    boxes = [_descriptor(matrix, [rows, 128]) for matrix, rows in grouped.boxes]
    num_sms = torch.cuda.get_device_properties(operands.a.device).multi_processor_count
    programs = num_sms * grouped.tile.ctas_per_sm
    call = _call(GROUPED_KERNEL, grouped.tile, programs, (*boxes, *grouped.arguments))
    return Prepared(call, operands.out, operands.sfa, operands.sfb)


class GroupedCall(NamedTuple):
    """What the grouped kernel is called with.

    Attributes:
        tile: By the groups' mean.
        boxes: Of a and of b: the matrix of all groups' rows, and the rows of a box of 128 columns.
        arguments: What follows the descriptors.
    """

    tile: Tile
    boxes: tuple[tuple[Tensor, int], tuple[Tensor, int]]
    arguments: tuple[Any, ...]


def grouped_call(operands: GroupedOperands) -> GroupedCall:
    a, sfa, b, sfb, out, _, segments = operands
    num_groups, n, k = b.shape
    begins, ends = torch.zeros(2, num_groups, dtype=torch.int32)
    for group, begin, end in segments:
        begins[group], ends[group] = begin, end
    tile = tile_for((ends - begins).double().mean().item())
    tensors = flat(out), flat(sfa), sfb, begins.to(a.device), ends.to(a.device)
    sizes = num_groups, n, k, out.size(-1), *flat(sfa).stride(), *sfb.stride()
    return GroupedCall(tile, ((flat(a), tile.block_m), (flat(b), tile.block_n)), (*tensors, *sizes))


def _call(kernel: str, tile: Tile, programs: int, arguments: tuple[Any, ...]) -> Call:
    from . import triton_gemm

    function = getattr(triton_gemm, kernel)

    def call() -> object:
        return function[(programs,)](
            *arguments, **tile.constants, num_warps=tile.num_warps, num_stages=tile.num_stages
        )

    return call


def compile_kernel(tile: Tile, kernel: str = KERNEL) -> Any:
    """A kernel for sm_90a as Triton's compiler leaves it; needs no GPU.

    Raises:
        RuntimeError: there is no Triton.
    """
    types = {
        "a": f"tensordesc<fp8e4nv[{tile.block_m},128]>",
        "b": f"tensordesc<fp8e4nv[{tile.block_n},128]>",
        "d": f"tensordesc<bf16[{tile.block_m},{tile.block_n}]>",
        "d_ptr": "*bf16",
        "sfa_ptr": "*fp32",
        "sfb_ptr": "*fp32",
        "begins_ptr": "*i32",
        "ends_ptr": "*i32",
    }
    return compile_function(
        "triton_gemm",
        kernel,
        types=types,
        constants=tile.constants,
        multiples_of_16=("d_stride_m",),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def compile_function(
    module: str,
    function_name: str,
    *,
    types: Mapping[str, str],
    constants: Mapping[str, int],
    multiples_of_16: Sequence[str],
    options: Mapping[str, int],
) -> Any:
    """A function of a module beside this one for sm_90a, with the types of its tensors.

    As the launcher compiles it: torch's pointers are multiples of 16 bytes, of sizes those named.

    Raises:
        RuntimeError: there is no Triton.
    """
    try:
        from triton import compile as triton_compile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise RuntimeError(
            "the Triton baselines need triton, which torch for CUDA brings; else "
            "`pip install triton`"
        ) from error
    function = getattr(importlib.import_module(f".{module}", __package__), function_name)
    known = {**types, **dict.fromkeys(constants, "constexpr")}
    signature = {name: known.get(name, "i32") for name in function.arg_names}
    aligned: dict[tuple[int, ...], Any] = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, of) in enumerate(signature.items())
        if of[0] == "*" or name in multiples_of_16
    }
    return triton_compile(
        ASTSource(function, signature, constexprs=dict(constants), attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options=dict(options),
    )


def write_cubin(folder: Path, tile: Tile, kernel: str = KERNEL) -> Path:
    """The machine code, assembled by Triton's own ptxas, for its listing."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "triton" if kernel == KERNEL else "triton_grouped"
    cubin = folder / f"{prefix}_m{tile.block_m}n{tile.block_n}.cubin"
    cubin.write_bytes(compile_kernel(tile, kernel).asm["cubin"])
    return cubin
