"""Launches MLA decode in Triton on a GPU, or compiles its kernels to cubins for their listings."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import Baseline, MlaOperands, Prepared, Unavailable
from .triton_launch import compile_function

SPLIT, COMBINE = "attend", "combine"
_NUM_STAGES = 2  # blocks of tokens in flight
_MIN_SPLIT = 256  # tokens: a shorter split costs more to combine than it saves


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows and tokens that a program takes at a time, and how it is compiled; not tuned by shape.

    Attributes:
        block_rows: 16, the fewest that tensor cores take by ``mma.sync``, or 64 for WGMMA.
        block_tokens: Of the cache.
        num_warps: Of a program.
        programs_per_sm: By registers and shared memory.
    """

    block_rows: int
    block_tokens: int
    num_warps: int
    programs_per_sm: int

    def constants(self, fp8: bool) -> dict[str, int]:
        return {"block_rows": self.block_rows, "block_tokens": self.block_tokens, "fp8": fp8}

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": _NUM_STAGES}


SMALL, LARGE = Tile(16, 64, 8, 2), Tile(64, 64, 8, 1)


def baselines() -> list[Baseline[MlaOperands]]:
    """With both tiles: which is faster is not known of any shape."""
    note = "two kernels: splits of equal length, as many as fill the GPU; then their sum"
    return [
        Baseline(f"Triton, {tile.block_rows} rows a tile", note, partial(_prepare, tile))
        for tile in (SMALL, LARGE)
    ]


class Call(NamedTuple):
    """Grids and arguments, without constants, of both kernels."""

    split_grid: tuple[int, int, int]
    split_arguments: tuple[Any, ...]
    combine_grid: tuple[int, int]
    combine_arguments: tuple[Any, ...]


def call_for(tile: Tile, operands: MlaOperands, num_sms: int) -> Call:
    """``num_sms``: that the splits should fill."""
    q, cache, table, lengths, out, lse, host_lengths, softmax_scale = operands
    batch, seqlen_q, num_heads, _ = q.shape
    num_rows = seqlen_q * num_heads
    tiles = -(-num_rows // tile.block_rows)
    longest = max(host_lengths, default=0)
    fill = num_sms * tile.programs_per_sm // (batch * tiles)
    num_splits = max(1, min(fill, longest // _MIN_SPLIT))
    partial_out = q.new_empty(batch, num_splits, num_rows, 512, dtype=torch.float32)
    partial_lse = q.new_empty(batch, num_splits, num_rows, dtype=torch.float32)
    token_bytes = cache.element_size()
    split_arguments = (
        *(q, cache.view(torch.uint8), table, lengths, partial_out, partial_lse),
        *(softmax_scale / math.log(2), seqlen_q, num_heads, num_rows, cache.size(1), num_splits),
        *(cache.stride(0) * token_bytes, cache.stride(1) * token_bytes, table.stride(0)),
    )
    sizes = seqlen_q, num_heads, num_rows, num_splits
    combine_arguments = (partial_out, partial_lse, out, lse, *sizes)
    return Call(
        (batch, tiles, num_splits),
        split_arguments,
        (batch, num_rows),
        combine_arguments,
    )


def _prepare(tile: Tile, operands: MlaOperands) -> Prepared:
    num_rows = operands.q.size(1) * operands.q.size(2)
    if tile is LARGE and num_rows <= LARGE.block_rows // 2:
        raise Unavailable(f"{num_rows} rows are less than half of a tile")
    try:
        from . import triton_mla
    except ImportError as error:
        raise Unavailable("not installed") from error
    num_sms = torch.cuda.get_device_properties(operands.q.device).multi_processor_count
    found = call_for(tile, operands, num_sms)
    constants = tile.constants(operands.is_fp8)

    def call() -> None:
        triton_mla.attend[found.split_grid](*found.split_arguments, **constants, **tile.options)
        triton_mla.combine[found.combine_grid](*found.combine_arguments, num_warps=4)

    return Prepared(call, operands.out)


def compile_kernel(name: str, tile: Tile = SMALL, *, fp8: bool = False) -> Any:
    """A kernel for sm_90a as Triton's compiler leaves it; needs no GPU.

    Raises:
        RuntimeError: there is no Triton.
    """
    types = {
        "q_ptr": "*bf16",
        "cache_ptr": "*u8",
        "table_ptr": "*i32",
        "lengths_ptr": "*i32",
        "partial_out_ptr": "*fp32",
        "partial_lse_ptr": "*fp32",
        "out_ptr": "*bf16",
        "lse_ptr": "*fp32",
        "scale_log2": "fp32",
    }
    return compile_function(
        "triton_mla",
        name,
        types=types,
        constants=tile.constants(fp8) if name == SPLIT else {},
        multiples_of_16=("page_stride", "token_stride"),
        options=tile.options if name == SPLIT else {"num_warps": 4},
    )


def write_cubin(folder: Path, tile: Tile, *, fp8: bool) -> Path:
    """The machine code of the first kernel, assembled by Triton's own ptxas, for its listing."""
    cubin = folder / f"triton_mla_m{tile.block_rows}n{tile.block_tokens}{'_fp8' * fp8}.cubin"
    cubin.write_bytes(compile_kernel(SPLIT, tile, fp8=fp8).asm["cubin"])
    return cubin
