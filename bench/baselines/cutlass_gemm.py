"""CUTLASS's block-scaled FP8 GEMM through the shared libraries that ``build.py`` makes."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from . import Baseline, Operands, Prepared, Unavailable
from .build import VARIANTS, Variant, find

_NOTES = {
    "cutlass_groupwise_m128": "example 67, 128x128 tiles, cluster 2",
    "cutlass_groupwise_m64": "example 67 with 64x128 tiles, ping-pong",
    "cutlass_blockwise_m128": "example 67, a scale for 128 rows of a: less work",
    "cutlass_grouped_m128": "example 68 with one group",
}
_BLOCKWISE, _GROUPWISE = 0, 1
_TMA_SCALES = 4  # rows of scales start at multiples of 16 bytes


class Problem(ctypes.Structure):
    """``Problem`` of cutlass_gemm.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "sfa", "b", "sfb", "d", "workspace")),
        *((name, ctypes.c_int32) for name in ("m", "n", "k", "sfa_rows")),
    )


def baselines() -> list[Baseline]:
    """One for each variant; scales are brought into CUTLASS's layout before the clock starts."""
    return [
        Baseline(
            f"CUTLASS {variant.name.removeprefix('cutlass_')}",
            f"{_NOTES[variant.name]}; scales transposed outside the timed part",
            functools.partial(_prepare, variant),
        )
        for variant in VARIANTS
    ]


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """The library with its functions declared."""
    library = ctypes.CDLL(str(path))
    library.baseline_workspace_bytes.argtypes = (ctypes.POINTER(Problem),)
    library.baseline_workspace_bytes.restype = ctypes.c_int64
    for function in (library.baseline_prepare, library.baseline_run):
        function.argtypes = (ctypes.POINTER(Problem), ctypes.c_void_p)
        function.restype = ctypes.c_char_p
    return library


def _prepare(variant: Variant, operands: Operands) -> Prepared:
    path = find(variant)
    if path is None:
        raise Unavailable("not built: run `python -m bench.baselines.build`")
    try:
        library = load(path)
    except OSError as error:
        raise Unavailable(str(error)) from error
    a, sfa, b, sfb, out = operands
    m, k = a.shape
    if variant.variant == _BLOCKWISE:
        sfa = sfa[:: variant.block_m]  # of each block's first row
    columns = m_major(sfa)
    blocks = sfb.contiguous() if variant.variant == _GROUPWISE else sfb.t().contiguous()
    result = torch.empty_like(out)
    addresses = [tensor.data_ptr() for tensor in (a, columns, b, blocks, result)]
    problem = Problem(*addresses, None, m, b.size(0), k, columns.size(1))
    num_bytes = library.baseline_workspace_bytes(problem)
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device=a.device)
    problem.workspace = workspace.data_ptr()
    kept = (a, columns, b, blocks, workspace)

    def launch(function: str) -> None:
        stream = torch.cuda.current_stream(kept[0].device).cuda_stream
        error = getattr(library, function)(problem, stream)
        if error is not None:
            raise Unavailable(f"{function}: {error.decode()}")

    launch("baseline_prepare")
    if variant.variant == _BLOCKWISE:
        sfa = sfa.repeat_interleave(variant.block_m, dim=0)[:m]
    return Prepared(functools.partial(launch, "baseline_run"), result, sfa, sfb)


def m_major(sfa: Tensor) -> Tensor:
    """``[k blocks, rows]``, rows padded to what TMA takes."""
    rows = -(-sfa.size(0) // _TMA_SCALES) * _TMA_SCALES
    columns = torch.ones(sfa.size(1), rows, device=sfa.device)
    columns[:, : sfa.size(0)] = sfa.t()
    return columns
