"""Launches the Triton baseline on a GPU, or compiles it to a cubin for its listing."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import torch

from . import Baseline, Operands, Prepared, Unavailable

KERNEL = "fp8_gemm_nt"
_GROUP_M = 8


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


SMALL, LARGE = Tile(64, num_warps=4), Tile(128)


def baseline() -> Baseline:
    """Tiles of 64 rows up to m = 64, of 128 above."""
    return Baseline("Triton", "1x128 by 128x128 scales, as ours", _prepare)


def _prepare(operands: Operands) -> Prepared:
    if importlib.util.find_spec("triton") is None:
        raise Unavailable("not installed")
    from triton.tools.tensor_descriptor import TensorDescriptor

    from .triton_gemm import fp8_gemm_nt

    a, sfa, b, sfb, out = operands
    m, n, k = a.size(0), b.size(0), a.size(1)
    tile = SMALL if m <= SMALL.block_m else LARGE
    result = torch.empty_like(out)

    def descriptor(tensor: torch.Tensor, block: list[int]) -> Any:
        return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)

    descriptors = (
        descriptor(a, [tile.block_m, 128]),
        descriptor(b, [tile.block_n, 128]),
        descriptor(result, [tile.block_m, tile.block_n]),
    )
    grid = (-(-m // tile.block_m) * -(-n // tile.block_n),)

    def call() -> object:
        return fp8_gemm_nt[grid](
            *descriptors,
            sfa,
            sfb,
            *(m, n, k),
            *sfa.stride(),
            *sfb.stride(),
            **tile.constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    return Prepared(call, result, sfa, sfb)


def compile_kernel(tile: Tile) -> Any:
    """The kernel for sm_90a as Triton's compiler leaves it; needs no GPU.

    Raises:
        RuntimeError: there is no Triton.
    """
    try:
        from triton import compile as triton_compile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise RuntimeError(
            "the Triton baseline needs triton, which torch for CUDA brings; else "
            "`pip install triton`"
        ) from error
    from .triton_gemm import fp8_gemm_nt

    types = {
        "a": f"tensordesc<fp8e4nv[{tile.block_m},128]>",
        "b": f"tensordesc<fp8e4nv[{tile.block_n},128]>",
        "d": f"tensordesc<bf16[{tile.block_m},{tile.block_n}]>",
        "sfa_ptr": "*fp32",
        "sfb_ptr": "*fp32",
    }
    sizes = ("m", "n", "k", "sfa_stride_m", "sfa_stride_k", "sfb_stride_n", "sfb_stride_k")
    signature = {
        **types,
        **dict.fromkeys(sizes, "i32"),
        **dict.fromkeys(tile.constants, "constexpr"),
    }
    # As the launcher finds for torch's tensors: pointers are multiples of 16 bytes.
    aligned: dict[tuple[int, ...], Any] = {(i,): [["tt.divisibility", 16]] for i in (3, 4)}
    return triton_compile(
        ASTSource(fp8_gemm_nt, signature, constexprs=tile.constants, attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def write_cubin(folder: Path, tile: Tile) -> Path:
    """The machine code, assembled by Triton's own ptxas, for its listing."""
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"triton_m{tile.block_m}n{tile.block_n}.cubin"
    cubin.write_bytes(compile_kernel(tile).asm["cubin"])
    return cubin
