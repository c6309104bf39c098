"""pykernels.testing: the tolerance must fail where a looser one would pass."""

from __future__ import annotations

import pytest
import torch

from pykernels.testing import TENSOR_CORE_FLOOR, assert_rows_close


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
