"""Groups in each of the three forms that the grouped GEMMs take, and their calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pykernels
from pykernels import reference
from pykernels.testing import Pair, assert_rows_close, grouped_gemm_operands

FORMS = ("group_offsets", "m_indices", "masked_m")
UNTOUCHED = 7.0  # what outputs hold before a call


@dataclasses.dataclass(frozen=True)
class Groups:
    """Sizes of a call, the values of its group tensor, and what they exercise.

    ``m`` is the number of all rows, with ``masked_m`` of each group's.
    """

    form: str
    values: tuple[int, ...]
    num_groups: int
    m: int
    what: str
    n: int = 136
    k: int = 272

    def __str__(self) -> str:
        return f"{self.form}-{self.what.replace(' ', '_')}"

    @property
    def is_masked(self) -> bool:
        return self.form == "masked_m"

    @property
    def tensor(self) -> Tensor:
        return torch.tensor(self.values, dtype=torch.int32)

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading dimensions of ``a`` and ``out``."""
        return (self.num_groups, self.m) if self.is_masked else (self.m,)

    @property
    def group_of_row(self) -> Tensor:
        """Of each row the group, or -1; with ``masked_m`` ``[num_groups, max_m]``."""
        groups = torch.full(self.rows, -1)
        if self.form == "m_indices":
            groups[:] = self.tensor
        elif self.is_masked:
            for group, count in enumerate(self.values):
                groups[group, :count] = group
        else:
            for group in range(self.num_groups):
                groups[self.values[group] : self.values[group + 1]] = group
        return groups

    def operands(self, seed: int = 0) -> tuple[Pair, Pair]:
        num_rows = self.m * (self.num_groups if self.is_masked else 1)
        a, b = grouped_gemm_operands(self.num_groups, num_rows, self.n, self.k, seed)
        return (a[0].view(*self.rows, self.k), a[1].view(*self.rows, -(-self.k // 128))), b

    def output(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.full((*self.rows, self.n), UNTOUCHED, dtype=dtype)

    @property
    def op(self) -> Callable[..., Tensor]:
        """The public function."""
        if self.is_masked:
            return pykernels.grouped_fp8_gemm_nt_masked
        return pykernels.grouped_fp8_gemm_nt

    def call(self, a: Pair, b: Pair, **options: Any) -> Tensor:
        return self.op(a, b, **{self.form: self.tensor} | options)

    def exact(self, a: Pair, b: Pair) -> Tensor:
        """The float64 reference."""
        if self.is_masked:
            return reference.grouped_fp8_gemm_nt_masked(a, b, self.tensor)
        return reference.grouped_fp8_gemm_nt(a, b, **{self.form: self.tensor})

    def assert_right(self, out: Tensor, a: Pair, b: Pair, floor: float) -> None:
        """Rows of groups are close to the reference, all others untouched."""
        belongs = self.group_of_row >= 0
        assert out.shape == (*self.rows, self.n)
        assert_rows_close(out[belongs], self.exact(a, b)[belongs], floor=floor)
        assert bool((out[~belongs] == UNTOUCHED).all())


EVERY_FORM = [
    Groups("group_offsets", (3, 10, 10, 63, 64), 4, 70, "rows of no group at both ends"),
    Groups(
        "m_indices",
        (*[0] * 9, -1, *[3] * 20, *[1] * 33, -1, -1, *[0] * 5),
        4,
        70,
        "unsorted with gaps",
    ),
    Groups("masked_m", (20, 0, 3, 17), 4, 20, "full and empty"),
]
