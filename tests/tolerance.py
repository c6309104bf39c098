"""The tolerance of results that are not bitwise: calibrated by what the output type alone costs."""

from __future__ import annotations

import torch
from torch import Tensor

# FP8 WGMMA keeps 13 fraction bits below the largest term of each block of 32 products, so a row of
# the product is off by a few 2^-14 even before it is rounded to the output type.
TENSOR_CORE_FLOOR = 4e-4
# FP32 sums of up to 128 exact products, and FP32 promotion.
FP32_FLOOR = 2e-6


def row_errors(actual: Tensor, exact: Tensor) -> Tensor:
    """Relative L2 error per row; 0 where the rows are equal, infinite where only one is zero."""
    difference = (actual.double() - exact.double()).norm(dim=1)
    magnitude = exact.double().norm(dim=1)
    return torch.where(difference == 0, 0.0, difference / magnitude)


def assert_rows_close(actual: Tensor, exact: Tensor, floor: float) -> None:
    """Every row within 1.5 times what rounding it to ``actual``'s type costs, plus a floor."""
    assert actual.shape == exact.shape
    errors = row_errors(actual, exact)
    allowed = 1.5 * row_errors(exact.to(actual.dtype), exact) + floor
    worst = int((errors - allowed).argmax()) if errors.numel() else 0
    assert bool((errors <= allowed).all()), (
        f"row {worst}: relative error {float(errors[worst]):.3g}, "
        f"allowed {float(allowed[worst]):.3g}"
    )
