"""DeepGEMM's dense FP8 GEMM, where the package is installed."""

from __future__ import annotations

from typing import Any

import torch

from . import Baseline, Operands, Prepared, Unavailable

# By release: the layout that TMA loads scales from, and the GEMM.
_LAYOUTS = ("get_mn_major_tma_aligned_tensor", "get_col_major_tma_aligned_tensor")
_GEMMS = ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt")


def baseline() -> Baseline:
    """Compiles its kernel at the first call, before the clock starts."""
    return Baseline("DeepGEMM", "1x128 by 128x128 scales, as ours", _prepare)


def _prepare(operands: Operands) -> Prepared:
    try:
        import deep_gemm
    except ImportError as error:
        raise Unavailable("not installed") from error
    layout, gemm = _function(deep_gemm, _LAYOUTS), _function(deep_gemm, _GEMMS)
    a, sfa, b, sfb, out = operands
    aligned = layout(sfa)
    result = torch.empty_like(out)

    def call() -> object:
        return gemm((a, aligned), (b, sfb), result)

    try:
        call()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    return Prepared(call, result, sfa, sfb)


def _function(module: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise Unavailable(f"this release has none of {', '.join(names)}")
