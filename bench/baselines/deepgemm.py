"""DeepGEMM's FP8 GEMMs, where the package is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Baseline, GroupedOperands, Operands, Prepared, Unavailable

# By release: the layout that TMA loads scales from, and the GEMMs.
_LAYOUTS = ("get_mn_major_tma_aligned_tensor", "get_col_major_tma_aligned_tensor")
_GEMMS = ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt")
_CONTIGUOUS = ("m_grouped_fp8_gemm_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous")
_MASKED = (
    "m_grouped_fp8_gemm_nt_masked",
    "fp8_m_grouped_gemm_nt_masked",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
)
_ALIGNMENT = 128  # rows that a group of the contiguous layout is padded to


def baseline() -> Baseline[Operands]:
    """Compiles its kernel at the first call, before the clock starts."""
    return Baseline("DeepGEMM", "1x128 by 128x128 scales, as ours", _prepare)


def grouped_baseline() -> Baseline[GroupedOperands]:
    """The contiguous layout, or the masked one where the operands are."""
    note = "as ours; ragged groups padded to 128 rows outside the timed part, as its layout asks"
    return Baseline("DeepGEMM", note, _prepare_grouped)


def _prepare(operands: Operands) -> Prepared:
    deep_gemm = _import()
    layout, gemm = _function(deep_gemm, _LAYOUTS), _function(deep_gemm, _GEMMS)
    a, sfa, b, sfb, out = operands
    aligned = layout(sfa)

    def call() -> object:
        return gemm((a, aligned), (b, sfb), out)

    return _called(call, Prepared(call, out, sfa, sfb))


def _prepare_grouped(operands: GroupedOperands) -> Prepared:
    deep_gemm = _import()
    if operands.groups.is_masked:
        return _prepare_masked(deep_gemm, operands)
    return _prepare_contiguous(deep_gemm, operands)


def _prepare_masked(deep_gemm: Any, operands: GroupedOperands) -> Prepared:
    layout, gemm = _function(deep_gemm, _LAYOUTS), _function(deep_gemm, _MASKED)
    a, sfa, b, sfb, out, groups, segments = operands
    aligned = layout(sfa)
    expected_m = -(-sum(s.end - s.begin for s in segments) // b.size(0))

    def call() -> object:
        return gemm((a, aligned), (b, sfb), out, groups.values, expected_m)

    return _called(call, Prepared(call, out, sfa, sfb))


def _prepare_contiguous(deep_gemm: Any, operands: GroupedOperands) -> Prepared:
    layout, gemm = _function(deep_gemm, _LAYOUTS), _function(deep_gemm, _CONTIGUOUS)
    rows, m_indices = padded_rows(operands)
    a = operands.a.new_zeros(m_indices.size(0), operands.a.size(1))
    a.view(torch.uint8)[rows] = operands.a.view(torch.uint8)[operands.rows()]
    padded_sfa = operands.sfa.new_zeros(m_indices.size(0), operands.sfa.size(1))
    padded_sfa[rows] = operands.sfa[operands.rows()]
    sfa = layout(padded_sfa)
    b, sfb = operands.b, operands.sfb
    out = operands.out.new_empty(m_indices.size(0), b.size(1))

    def call() -> object:
        return gemm((a, sfa), (b, sfb), out, m_indices)

    return _called(call, Prepared(call, out, operands.sfa, operands.sfb, rows))


def padded_rows(operands: GroupedOperands) -> tuple[Tensor, Tensor]:
    """Where the segments' rows stand with every group padded, and the group of each row or -1."""
    rows: list[Tensor] = []
    indices: list[Tensor] = []
    begin = 0
    for segment in operands.segments:
        size = segment.end - segment.begin
        padded = -(-size // _ALIGNMENT) * _ALIGNMENT
        rows.append(torch.arange(begin, begin + size))
        indices.append(torch.full((padded,), -1, dtype=torch.int32))
        indices[-1][:size] = segment.group
        begin += padded
    device = operands.a.device
    return torch.cat(rows).to(device), torch.cat(indices).to(device)


def _called(call: Callable[[], object], prepared: Prepared) -> Prepared:
    """Once: it says only then whether it takes the shape."""
    try:
        call()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    return prepared


def _import() -> Any:
    try:
        import deep_gemm
    except ImportError as error:
        raise Unavailable("not installed") from error
    return deep_gemm


def _function(module: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise Unavailable(f"this release has none of {', '.join(names)}")
