"""The built kernels of the grouped FP8 GEMM; the dense kernel gives the right bits of a problem."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pykernels.native import kernel_metadata, native
from pykernels.testing import Pair, gemm_operands
from tests import gemm_kernels
from tests.cases import assert_same_bits
from tests.gemm_kernels import Schedule
from tests.target import selected

KERNELS: dict[str, dict[str, int]] = {
    str(kernel["name"]): kernel["config"]
    for kernel in kernel_metadata()
    if kernel["family"] == "grouped_fp8_gemm_nt"
}
UNTOUCHED = 7.0  # what rows of no group hold before and after
_FP8_NAN = 0x7F


@dataclass(frozen=True)
class Scheduled:
    """A kernel with one of its schedules."""

    kernel: str
    schedule: Schedule

    def __str__(self) -> str:
        cluster_m, cluster_n, _ = self.schedule
        return f"{self.kernel.removeprefix('grouped_fp8_gemm_nt_')}-{cluster_m}x{cluster_n}"

    @property
    def block_m(self) -> int:
        return KERNELS[self.kernel]["block_m"]

    @property
    def block_n(self) -> int:
        return KERNELS[self.kernel]["block_n"]

    @property
    def cluster(self) -> int:
        cluster_m, cluster_n, _ = self.schedule
        return cluster_m * cluster_n


def schedules(config: dict[str, int]) -> list[Schedule]:
    """What a kernel of this config can run."""
    if not config["swap_ab"]:
        return [(1, 1, 1)] if config["cluster"] == 1 else [(2, 1, 1), (1, 2, 1)]
    return [(1, sharing, 1) for sharing in (1, 2, 4) if config["block_m"] // sharing >= 8]


ALL = [Scheduled(name, one) for name, config in KERNELS.items() for one in schedules(config)]
RICHEST = [Scheduled(name, schedules(config)[-1]) for name, config in KERNELS.items()]


@dataclass(frozen=True)
class Problem:
    """Groups of these numbers of rows; rows of no group and groups without rows hold NaN.

    Attributes:
        sizes: Rows of each group.
        n: Columns of the result.
        k: Columns of the operands.
        before: Rows of no group ahead of the first one.
        behind: Rows of no group behind the last one.
    """

    sizes: tuple[int, ...]
    n: int
    k: int
    before: int = 0
    behind: int = 0

    @property
    def m(self) -> int:
        return self.before + sum(self.sizes) + self.behind

    @property
    def offsets(self) -> list[int]:
        return list(itertools.accumulate(self.sizes, initial=self.before))

    @property
    def segments(self) -> list[slice]:
        return [slice(*pair) for pair in itertools.pairwise(self.offsets)]

    def weights(self) -> Pair:
        """``b``: NaN in the groups without rows, whose weights no one needs."""
        return _weights(self.sizes, self.n, self.k)

    def rows(self) -> Pair:
        """``a``: NaN in the rows of no group."""
        k_blocks = -(-self.k // 128)
        values = torch.full((self.m, self.k), _FP8_NAN, dtype=torch.uint8)
        scales = torch.full((self.m, k_blocks), torch.nan)
        for group, rows in enumerate(self.segments):
            if rows.start < rows.stop:
                (q, sfa), _ = _group(group, self.sizes[group], self.n, self.k)
                values[rows] = q.view(torch.uint8)
                scales[rows] = sfa
        return values.view(torch.float8_e4m3fn), scales

    def expected(self, dtype: torch.dtype) -> Tensor:
        """The right bits, and UNTOUCHED where there is no group."""
        out = torch.full((self.m, self.n), UNTOUCHED)
        for group, rows in enumerate(self.segments):
            if rows.start < rows.stop:
                out[rows] = _product(group, self.sizes[group], self.n, self.k)
        return out.to(dtype)


@lru_cache(maxsize=256)
def _group(group: int, rows: int, n: int, k: int) -> tuple[Pair, Pair]:
    return gemm_operands(rows, n, k, seed=group + 1)


@lru_cache(maxsize=256)
def _product(group: int, rows: int, n: int, k: int) -> Tensor:
    """One group's FP32 totals by the plain dense kernel."""
    plain = gemm_kernels.Scheduled(gemm_kernels.PLAIN, (1, 1, 1))
    a, b = _group(group, rows, n, k)
    return gemm_kernels.run(plain, a, b, torch.float32, checks=())


@lru_cache(maxsize=16)
def _weights(sizes: tuple[int, ...], n: int, k: int) -> Pair:
    values = torch.full((len(sizes), n, k), _FP8_NAN, dtype=torch.uint8)
    scales = torch.full((len(sizes), -(-n // 128), -(-k // 128)), torch.nan)
    for group, rows in enumerate(sizes):
        if rows > 0:
            _, (q, sfb) = _group(group, rows, n, k)
            values[group] = q.view(torch.uint8)
            scales[group] = sfb
    return values.view(torch.float8_e4m3fn), scales


def launch(
    scheduled: Scheduled | None,
    tensors: list[Tensor],
    source: str,
    *rest: Any,
    num_sms: int | None = None,
    **options: Any,
) -> None:
    """Runs a kernel on a, sfa, b, sfb, out and what says the groups; demands no findings."""
    kernel, schedule = (None, None) if scheduled is None else (scheduled.kernel, scheduled.schedule)
    hooks = rest or (None, None, False, 0)
    launched = selected().launch(
        native().grouped_fp8_gemm_nt,
        tensors,
        source,
        num_sms,
        None,
        *hooks,
        kernel,
        schedule,
        **options,
    )
    assert launched is None or kernel is None or launched == [kernel]


def run(
    scheduled: Scheduled | None,
    problem: Problem,
    dtype: torch.dtype,
    num_sms: int | None = None,
    **options: Any,
) -> Tensor:
    """By offsets; rows of no group hold UNTOUCHED before."""
    out = torch.full((problem.m, problem.n), UNTOUCHED, dtype=dtype)
    offsets = torch.tensor(problem.offsets, dtype=torch.int32)
    tensors = [*problem.rows(), *problem.weights(), out, offsets]
    launch(scheduled, tensors, "group_offsets", num_sms=num_sms, **options)
    return out


def run_indices(
    scheduled: Scheduled | None, problem: Problem, holes: list[int], dtype: torch.dtype
) -> None:
    """By the group of each row; ``holes`` are rows that belong to none. Demands the right bits."""
    out = torch.full((problem.m, problem.n), UNTOUCHED, dtype=dtype)
    indices = torch.full((problem.m,), -1, dtype=torch.int32)
    for group, rows in enumerate(problem.segments):
        indices[rows] = group
    indices[holes] = -1
    a, sfa = problem.rows()
    a.view(torch.uint8)[holes] = _FP8_NAN
    sfa[holes] = torch.nan
    expected = problem.expected(dtype)
    expected[holes] = UNTOUCHED
    launch(scheduled, [a, sfa, *problem.weights(), out, indices], "m_indices")
    assert_same_bits(out, expected)


def run_masked(
    scheduled: Scheduled | None, problem: Problem, max_m: int, dtype: torch.dtype, pad: int = 0
) -> None:
    """Each group's rows at the start of max_m; rows further apart by ``pad``. Demands the bits."""
    num_groups = len(problem.sizes)
    k_blocks = -(-problem.k // 128)
    values = torch.full((num_groups, max_m + pad, problem.k), _FP8_NAN, dtype=torch.uint8)
    scales = torch.full((num_groups, k_blocks, max_m + 3), torch.nan).transpose(1, 2)
    out = torch.full((num_groups, max_m + 2 * pad, problem.n), UNTOUCHED, dtype=dtype)
    expected = out.clone()
    rows, sfa = problem.rows()
    results = problem.expected(dtype)
    for group, segment in enumerate(problem.segments):
        size = problem.sizes[group]
        values[group, :size] = rows.view(torch.uint8)[segment]
        scales[group, :size] = sfa[segment]
        expected[group, :size] = results[segment]
    counts = torch.tensor(problem.sizes, dtype=torch.int32)
    a = values.view(torch.float8_e4m3fn)[:, :max_m], scales[:, :max_m]
    launch(scheduled, [*a, *problem.weights(), out[:, :max_m], counts], "masked_m")
    assert_same_bits(out, expected)
