"""What results are compared with: random operands, and a tolerance that is calibrated per row.

A row's error may be 1.5 times what rounding the exact row to the output type costs, plus a stated
floor: what the arithmetic alone costs. A row of zeros, a shifted row or one wrong element fail.

A row's error is a mean over its columns, weighted by their share in its magnitude. The columns'
errors are independent, so the fewer columns count, the more that mean varies: the floor is that of
rows in which ``FLOOR_COLUMNS`` or more count, and is wider by the root of what others lack.
"""

from __future__ import annotations

import torch
from torch import Tensor

# FP8 WGMMA keeps 13 fraction bits below the largest term of each block of 32 products, so a row of
# the product is off by a few 2^-14 even before it is rounded to the output type.
TENSOR_CORE_FLOOR = 4e-4
# FP32 sums of up to 128 exact products, and FP32 promotion.
FP32_FLOOR = 2e-6
FLOOR_COLUMNS = 32

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


def grouped_gemm_operands(
    num_groups: int, m: int, n: int, k: int, seed: int = 0
) -> tuple[Pair, Pair]:
    """The same with a weight for each of ``num_groups`` groups, all of them different.

    Returns:
        ``(a [m, k], sfa [m, ceil(k / 128)])`` and ``(b [num_groups, n, k], sfb [num_groups, ceil(n
        / 128), ceil(k / 128)])``, as :func:`pykernels.grouped_fp8_gemm_nt` takes them. The masked
        form takes rows as ``a.view(num_groups, -1, k)``.
    """
    n_blocks = -(-n // _SCALE_BLOCK)
    a, _ = gemm_operands(m, 0, k, seed)
    weights = [gemm_operands(0, n, k, seed + 1 + group)[1] for group in range(num_groups)]
    b = torch.empty(num_groups, n, k, dtype=torch.float8_e4m3fn)
    sfb = torch.empty(num_groups, n_blocks, a[1].size(1))
    for group, (values, scales) in enumerate(weights):
        b[group], sfb[group] = values, scales
    return a, (b, sfb)


def row_errors(actual: Tensor, exact: Tensor) -> Tensor:
    """Relative L2 error per row; 0 where the rows are equal, infinite where only one is zero."""
    difference = (actual.double() - exact.double()).norm(dim=1)
    magnitude = exact.double().norm(dim=1)
    return torch.where(difference == 0, 0.0, difference / magnitude)


def columns_that_count(exact: Tensor) -> Tensor:
    """How many columns of equal magnitude would spread a row's magnitude as its columns do.

    n where all n are equal, 1 where all others are zero, about n / 3 where they are normal.
    """
    squares = exact.double().square()
    total = squares.sum(dim=1)
    return torch.where(total == 0, 1.0, total.square() / squares.square().sum(dim=1))


def assert_rows_close(actual: Tensor, exact: Tensor, floor: float) -> None:
    """Every row within 1.5 times what rounding it to ``actual``'s type costs, plus a floor.

    The floor widens by ``sqrt(FLOOR_COLUMNS / columns)`` where fewer columns count.

    Raises:
        AssertionError: a row is not, or the shapes differ.
    """
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} instead of {tuple(exact.shape)}")
    errors = row_errors(actual, exact)
    widening = (FLOOR_COLUMNS / columns_that_count(exact)).sqrt().clamp(min=1)
    allowed = 1.5 * row_errors(exact.to(actual.dtype), exact) + floor * widening
    if bool((errors <= allowed).all()):
        return
    worst = int((errors - allowed).argmax())
    raise AssertionError(
        f"row {worst}: relative error {float(errors[worst]):.3g}, "
        f"allowed {float(allowed[worst]):.3g}"
    )
