"""What results are compared with: random operands, and a tolerance that is calibrated per row.

A row's error may be 1.5 times what rounding the exact row to the output type costs, plus a stated
floor: what the arithmetic alone costs. A row of zeros, a shifted row or one wrong element fail.
"""

from __future__ import annotations

import torch
from torch import Tensor

# FP8 WGMMA keeps 13 fraction bits below the largest term of each block of 32 products, so a row of
# the product is off by a few 2^-14 even before it is rounded to the output type.
TENSOR_CORE_FLOOR = 4e-4
# FP32 sums of up to 128 exact products, and FP32 promotion.
FP32_FLOOR = 2e-6

Pair = tuple[Tensor, Tensor]
_SCALE_BLOCK = 128


def gemm_operands(m: int, n: int, k: int, seed: int = 0) -> tuple[Pair, Pair]:
    """Random FP8 values whose scales differ per block by powers of ten and by mantissa.

    Returns:
        ``(a [m, k], sfa [m, ceil(k / 128)])`` and ``(b [n, k], sfb [ceil(n / 128), ceil(k /
        128)])``, on the CPU, as :func:`pykernels.fp8_gemm_nt` takes them.
    """
    generator = torch.Generator().manual_seed(seed + 7919 * m + 104729 * n + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    k_blocks = -(-k // _SCALE_BLOCK)
    a = (normal(m, k) * 40).to(torch.float8_e4m3fn)
    b = (normal(n, k) * 40).to(torch.float8_e4m3fn)
    sfa = torch.exp(normal(m, k_blocks))
    sfb = torch.exp(normal(-(-n // _SCALE_BLOCK), k_blocks))
    return (a, sfa), (b, sfb)


def row_errors(actual: Tensor, exact: Tensor) -> Tensor:
    """Relative L2 error per row; 0 where the rows are equal, infinite where only one is zero."""
    difference = (actual.double() - exact.double()).norm(dim=1)
    magnitude = exact.double().norm(dim=1)
    return torch.where(difference == 0, 0.0, difference / magnitude)


def assert_rows_close(actual: Tensor, exact: Tensor, floor: float) -> None:
    """Every row within 1.5 times what rounding it to ``actual``'s type costs, plus a floor.

    Raises:
        AssertionError: a row is not, or the shapes differ.
    """
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} instead of {tuple(exact.shape)}")
    errors = row_errors(actual, exact)
    allowed = 1.5 * row_errors(exact.to(actual.dtype), exact) + floor
    if bool((errors <= allowed).all()):
        return
    worst = int((errors - allowed).argmax())
    raise AssertionError(
        f"row {worst}: relative error {float(errors[worst]):.3g}, "
        f"allowed {float(allowed[worst]):.3g}"
    )
