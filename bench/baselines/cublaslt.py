"""cuBLASLt through ``torch._scaled_mm``: with block scales where torch and CUDA have them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Baseline, GroupedOperands, Operands, Prepared, Unavailable
from .per_group import per_group


def baselines() -> list[Baseline[Operands]]:
    """Block-wise scales are our work; the others are less, and run where torch lacks the first."""
    return [
        Baseline("cuBLASLt block-wise", "1x128 by 128x128 scales, as ours", _block_wise),
        Baseline("cuBLASLt row-wise", "one scale a row: less work", _row_wise),
        Baseline("cuBLASLt per tensor", "one scale a tensor: less work", _per_tensor),
    ]


def grouped_baselines() -> list[Baseline[GroupedOperands]]:
    """cuBLASLt has no grouped GEMM with these scales."""
    block_wise, row_wise, _ = baselines()
    return [per_group(block_wise), per_group(row_wise)]


def _block_wise(operands: Operands) -> Prepared:
    _, sfa, _, sfb, _ = operands
    return _prepare(operands, (_m_major(sfa), sfb.t()), (sfa, sfb), fast=False)


def _row_wise(operands: Operands) -> Prepared:
    _, sfa, b, sfb, _ = operands
    rows = sfa[:, :1].contiguous()
    columns = torch.ones(1, b.size(0), device=b.device)
    applied = (rows.expand_as(sfa), torch.ones_like(sfb))
    return _prepare(operands, (rows, columns), applied, fast=True)


def _per_tensor(operands: Operands) -> Prepared:
    _, sfa, b, sfb, _ = operands
    one = torch.ones((), device=b.device)
    return _prepare(operands, (one, one), (torch.ones_like(sfa), torch.ones_like(sfb)), fast=True)


def _m_major(scales: Tensor) -> Tensor:
    return scales.t().contiguous().t()


def _prepare(
    operands: Operands, scales: tuple[Tensor, Tensor], applied: tuple[Tensor, Tensor], *, fast: bool
) -> Prepared:
    """Calls once: torch says only then whether it offers these scales."""
    a, _, b, _, out = operands

    def call() -> object:
        return torch._scaled_mm(
            a,
            b.t(),
            scale_a=scales[0],
            scale_b=scales[1],
            out_dtype=out.dtype,
            use_fast_accum=fast,
            out=out,
        )

    try:
        call()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        first_line = str(error).partition("\n")[0]
        raise Unavailable(f"torch {torch.__version__}: {first_line}") from error
    return Prepared(call, out, *applied)
