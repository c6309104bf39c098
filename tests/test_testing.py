"""pykernels.testing: the tolerance must fail where a looser one would pass."""

from __future__ import annotations

import pytest
import torch

from pykernels import reference
from pykernels.testing import (
    TENSOR_CORE_FLOOR,
    assert_rows_close,
    gemm_operands,
    grouped_gemm_operands,
)
from tests import gemm_kernels


def exact_result() -> torch.Tensor:
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_passes(dtype: torch.dtype) -> None:
    assert_rows_close(exact_result().to(dtype), exact_result(), floor=0.0)


@pytest.mark.parametrize("spoil", ["zero row", "shifted row", "one element", "NaN"])
def test_a_spoilt_row_fails(spoil: str) -> None:
    actual = exact_result().bfloat16()
    if spoil == "zero row":
        actual[7] = 0
    elif spoil == "shifted row":
        actual[7] = actual[7].roll(1)
    elif spoil == "one element":
        actual[7, 3] += 0.2
    else:
        actual[7, 3] = torch.nan
    with pytest.raises(AssertionError, match="row 7"):
        assert_rows_close(actual, exact_result(), floor=TENSOR_CORE_FLOOR)


def test_values_where_zeros_belong_fail() -> None:
    exact = exact_result()
    exact[5] = 0
    with pytest.raises(AssertionError, match="row 5"):
        assert_rows_close(exact_result().bfloat16(), exact, floor=TENSOR_CORE_FLOOR)


def test_another_shape_fails() -> None:
    with pytest.raises(AssertionError, match=r"shape \(1, 128\) instead of \(64, 128\)"):
        assert_rows_close(exact_result()[:1], exact_result(), floor=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("m", "n", "k", "seed"),
    [
        (384, 8, 128, 1000),
        (384, 8, 128, 1006),
        (384, 8, 1040, 0),
        (384, 16, 128, 1006),
        (384, 16, 512, 0),
        (256, 136, 128, 56),  # nearly all of some rows lies in the second block of eight columns
    ],
)
def test_right_rows_of_few_columns_pass(
    m: int, n: int, k: int, seed: int, dtype: torch.dtype
) -> None:
    """Of the emulator's products; several had rows beyond a floor that knew no columns."""
    a, b = gemm_operands(m, n, k, seed=seed)
    plain = gemm_kernels.Scheduled(gemm_kernels.PLAIN, (1, 1, 1))
    product = gemm_kernels.run(plain, a, b, dtype, checks=())
    assert_rows_close(product, reference.fp8_gemm_nt(a, b), floor=TENSOR_CORE_FLOOR)


@pytest.mark.parametrize("columns", [8, 16, 136])
@pytest.mark.parametrize("spoil", ["zero row", "shifted row", "one element"])
def test_spoilt_rows_of_few_columns_fail(columns: int, spoil: str) -> None:
    exact = exact_result().repeat(1, 2)[:, :columns]
    for row in range(exact.size(0)):
        actual = exact.float()
        if spoil == "zero row":
            actual[row] = 0
        elif spoil == "shifted row":
            actual[row] = actual[row].roll(1)
        else:
            actual[row, row % columns] += 0.01 * exact[row].norm()
        with pytest.raises(AssertionError, match=f"row {row}"):
            assert_rows_close(actual, exact, floor=TENSOR_CORE_FLOOR)


@pytest.mark.parametrize(
    ("row", "widening"),
    [
        ([1.0] * 128, 1.0),
        ([1.0] * 32, 1.0),
        ([1.0] * 8, 2.0),
        ([1.0] * 8 + [0.0] * 128, 2.0),  # as many columns as have a share in the magnitude
        ([1.0], 32**0.5),
    ],
)
def test_the_floor_widens_as_fewer_columns_count(row: list[float], widening: float) -> None:
    exact = torch.tensor([row], dtype=torch.float64)
    for share, passes in ((0.99, True), (1.01, False)):
        actual = exact.clone()
        actual[0, 0] += share * widening * TENSOR_CORE_FLOOR * exact.norm()
        if passes:
            assert_rows_close(actual, exact, floor=TENSOR_CORE_FLOOR)
        else:
            with pytest.raises(AssertionError, match="row 0"):
                assert_rows_close(actual, exact, floor=TENSOR_CORE_FLOOR)


def test_rows_of_zeros_pass() -> None:
    assert_rows_close(torch.zeros(2, 8), torch.zeros(2, 8), floor=TENSOR_CORE_FLOOR)


def test_operands_of_groups_differ() -> None:
    """A result by another group's weight or scales is no result of the row's own."""
    a, (b, sfb) = grouped_gemm_operands(3, 5, 136, 272, seed=2)
    assert (a[0].shape, a[1].shape) == ((5, 272), (5, 3))
    assert (b.shape, sfb.shape) == ((3, 136, 272), (3, 2, 3))
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert (b[first].float() != b[second].float()).float().mean() > 0.9
        assert bool((sfb[first] != sfb[second]).all())
    again = grouped_gemm_operands(3, 5, 136, 272, seed=2)[1]
    assert torch.equal(again[1], sfb)
    empty = grouped_gemm_operands(0, 5, 8, 0)
    assert [tuple(t.shape) for pair in empty for t in pair] == [
        (5, 0),
        (5, 0),
        (0, 8, 0),
        (0, 1, 0),
    ]
