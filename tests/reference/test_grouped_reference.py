"""The references of the grouped GEMMs against a second formula: one sum over rows and groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pykernels import reference
from pykernels.testing import FP32_FLOOR, Pair, assert_rows_close
from tests.grouped_cases import EVERY_FORM, Groups

EDGES = [
    Groups("group_offsets", (0, 0, 0), 2, 5, "no rows of groups", n=8, k=16),
    Groups("group_offsets", (0,), 0, 3, "no groups", n=8, k=16),
    Groups("group_offsets", (0, 1, 3), 2, 3, "no columns of a", n=8, k=0),
    Groups("group_offsets", (0, 1, 3), 2, 3, "several blocks", n=264, k=400),
    Groups("m_indices", (-1, -1), 2, 2, "rows of no group", n=8, k=16),
    Groups("m_indices", (), 2, 0, "no rows", n=8, k=16),
    Groups("masked_m", (0, 2), 2, 2, "several blocks", n=264, k=400),
    Groups("masked_m", (0, 0), 2, 0, "no room", n=8, k=16),
]


def spread(scales: Tensor, rows: int, row_block: int, columns: int) -> Tensor:
    """Scale factors repeated to the elements that they stand for."""
    by_column = scales.double().repeat_interleave(128, dim=-1)[..., :columns]
    return by_column.repeat_interleave(row_block, dim=-2)[..., :rows, :]


def second_formula(groups: Groups, a: Pair, b: Pair) -> Tensor:
    """``sum over g, k of [row belongs to g] a[row, k] b[g, n, k]``."""
    values = a[0].double() * spread(a[1], groups.m, 1, groups.k)
    weights = b[0].double() * spread(b[1], groups.n, 128, groups.k)
    numbers = torch.arange(groups.num_groups)
    belongs = (groups.group_of_row[..., None] == numbers).double()
    return torch.einsum("...g,...k,gnk->...n", belongs, values, weights)


@pytest.mark.parametrize("groups", EVERY_FORM + EDGES, ids=str)
def test_second_formula(groups: Groups) -> None:
    a, b = groups.operands()
    result = groups.exact(a, b)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, second_formula(groups, a, b), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_one_product_a_group(groups: Groups) -> None:
    """The rows of each group are those of the dense reference with its weight."""
    a, b = groups.operands()
    result = groups.exact(a, b)
    for group in range(groups.num_groups):
        rows = groups.group_of_row == group
        product = reference.fp8_gemm_nt((a[0][rows], a[1][rows]), (b[0][group], b[1][group]))
        torch.testing.assert_close(result[rows], product, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("spoil", ["zero row", "neighbour's weight"])
@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_a_spoilt_row_fails(groups: Groups, spoil: str) -> None:
    """The comparison that the other tests use: of every row in turn."""
    a, b = groups.operands()
    exact = groups.exact(a, b)
    groups.assert_right(torch.where(groups.group_of_row[..., None] < 0, 7.0, exact), a, b, 0)
    turned = groups.exact(a, (b[0].roll(1, 0), b[1].roll(1, 0)))
    rows = (groups.group_of_row >= 0).flatten().nonzero().flatten().tolist()
    for row in rows:
        actual = exact.float().flatten(0, -2)
        actual[row] = 0 if spoil == "zero row" else turned.flatten(0, -2)[row]
        with pytest.raises(AssertionError, match="row"):
            assert_rows_close(actual, exact.flatten(0, -2), floor=FP32_FLOOR)


@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_a_row_that_was_not_to_be_written_fails(groups: Groups) -> None:
    a, b = groups.operands()
    out = torch.where(groups.group_of_row[..., None] < 0, 7.0, groups.exact(a, b))
    for row in (groups.group_of_row.flatten() < 0).nonzero().flatten().tolist():
        spoilt = out.clone()
        spoilt.view(-1, groups.n)[row, -1] = 0
        with pytest.raises(AssertionError):
            groups.assert_right(spoilt, a, b, 0)


@pytest.mark.parametrize("groups", EVERY_FORM, ids=str)
def test_nan_stays_in_its_row_and_group(groups: Groups) -> None:
    """In a scale factor of rows of no group, and of a weight."""
    a, b = groups.operands()
    a[1][groups.group_of_row < 0] = torch.nan
    b[1][3] = torch.nan
    expected = (groups.group_of_row == 3)[..., None].expand(*groups.rows, groups.n)
    assert torch.equal(groups.exact(a, b).isnan(), expected)
