"""CUTLASS's block-scaled FP8 GEMMs through the shared libraries that ``build.py`` makes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import Baseline, GroupedOperands, Operands, Prepared, Unavailable, flat
from .build import BLOCKWISE, GROUPWISE, VARIANTS, Variant, find

_NOTES = {
    "cutlass_groupwise_m128": "example 67, 128x128 tiles, cluster 2",
    "cutlass_groupwise_m64": "example 67 with 64x128 tiles, ping-pong",
    "cutlass_blockwise_m128": "example 67, a scale for 128 rows of a: less work",
    "cutlass_grouped_m128": "example 68, 128x128 tiles, cluster 2",
    "cutlass_grouped_m64": "example 68 with 64x128 tiles, ping-pong",
}
_TMA_SCALES = 4  # rows of scales start at multiples of 16 bytes


class Group(ctypes.Structure):
    """``Group`` of cutlass_gemm.cu."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("first_row", "rows"))


class Problem(ctypes.Structure):
    """``Problem`` of cutlass_gemm.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "sfa", "b", "sfb", "d", "workspace")),
        ("groups", ctypes.POINTER(Group)),
        *((name, ctypes.c_int32) for name in ("m", "n", "k", "sfa_rows", "num_groups")),
    )


def baselines() -> list[Baseline[Operands]]:
    """One for each variant; scales are brought into CUTLASS's layout before the clock starts."""
    return [
        Baseline(
            _name(variant),
            f"{_NOTES[variant.name]}; scales transposed outside the timed part",
            functools.partial(_prepare_one_group if variant.grouped else _prepare, variant),
        )
        for variant in VARIANTS
    ]


def grouped_baselines() -> list[Baseline[GroupedOperands]]:
    """The grouped variants; sizes of groups are on the host too, by which the grid is chosen."""
    return [
        Baseline(
            _name(variant),
            f"{_NOTES[variant.name]}; scales transposed, tables of groups outside the timed part",
            functools.partial(_prepare_grouped, variant),
        )
        for variant in VARIANTS
        if variant.grouped
    ]


def _name(variant: Variant) -> str:
    return f"CUTLASS {variant.name.removeprefix('cutlass_')}"


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
    a, sfa, b, sfb, out = operands
    m, k = a.shape
    if variant.variant == BLOCKWISE:
        sfa = sfa[:: variant.block_m]  # of each block's first row
    columns = m_major(sfa)
    blocks = sfb.contiguous() if variant.variant == GROUPWISE else sfb.t().contiguous()
    problem = _problem((a, columns, b, blocks, out))
    problem.m, problem.n, problem.k = m, b.size(0), k
    problem.sfa_rows = columns.size(1)
    call = _call(variant, problem, (a, columns, b, blocks, out))
    if variant.variant == BLOCKWISE:
        sfa = sfa.repeat_interleave(variant.block_m, dim=0)[:m]
    return Prepared(call, out, sfa, sfb)


def _prepare_one_group(variant: Variant, operands: Operands) -> Prepared:
    a, sfa, b, sfb, out = operands
    return _prepare_groups(variant, Operands(a, sfa, b[None], sfb[None], out), [(0, 0, a.size(0))])


def _prepare_grouped(variant: Variant, operands: GroupedOperands) -> Prepared:
    a, sfa, b, sfb, out, _, segments = operands
    matrices = Operands(flat(a), flat(sfa), b, sfb, flat(out))
    prepared = _prepare_groups(variant, matrices, segments)
    return Prepared(prepared.call, out, sfa, sfb)


def _prepare_groups(
    variant: Variant, operands: Operands, segments: Sequence[tuple[int, int, int]]
) -> Prepared:
    """b and sfb of all groups; segments are a group's number, its first row and the one behind."""
    a, sfa, b, sfb, out = operands
    num_groups, n, k = b.shape
    groups = (Group * num_groups)()
    for group, begin, end in segments:
        groups[group] = Group(begin, end - begin)
    columns = torch.cat([sfa[begin:end].t().flatten() for _, begin, end in segments])
    blocks = sfb.transpose(1, 2).contiguous()
    problem = _problem((a, columns, b, blocks, out))
    problem.n, problem.k = n, k
    problem.groups, problem.num_groups = groups, num_groups
    return Prepared(_call(variant, problem, (a, columns, b, blocks, out)), out, sfa, sfb)


def _problem(tensors: tuple[Tensor, ...]) -> Problem:
    return Problem(*(tensor.data_ptr() for tensor in tensors))


def _call(variant: Variant, problem: Problem, kept: tuple[Tensor, ...]) -> functools.partial[None]:
    """Fills a workspace; the call keeps the tensors."""
    path = find(variant)
    if path is None:
        raise Unavailable("not built: run `python -m bench.baselines.build`")
    try:
        library = load(path)
    except OSError as error:
        raise Unavailable(str(error)) from error
    device = kept[0].device
    num_bytes = library.baseline_workspace_bytes(problem)
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    problem.workspace = workspace.data_ptr()
    all_kept = (*kept, workspace)

    def launch(function: str) -> None:
        error = getattr(library, function)(problem, _stream(all_kept[0]))
        if error is not None:
            raise Unavailable(f"{function}: {error.decode()}")

    launch("baseline_prepare")
    return functools.partial(launch, "baseline_run")


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream


def m_major(sfa: Tensor) -> Tensor:
    """``[k blocks, rows]``, rows padded to what TMA takes."""
    rows = -(-sfa.size(0) // _TMA_SCALES) * _TMA_SCALES
    columns = torch.ones(sfa.size(1), rows, device=sfa.device)
    columns[:, : sfa.size(0)] = sfa.t()
    return columns
