"""The built kernels of the FP8 GEMM, the schedules that each can run, and how to run one."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pykernels import reference
from pykernels.native import kernel_metadata, native
from pykernels.testing import Pair, gemm_operands
from tests.target import selected

Schedule = tuple[int, int, int]  # cluster_m, cluster_n, split_k
Sizes = tuple[int, int, int]  # m, n, k

KERNELS: dict[str, dict[str, int]] = {
    str(kernel["name"]): kernel["config"]
    for kernel in kernel_metadata()
    if kernel["family"] == "fp8_gemm_nt"
}
# Whose bits all others have that do not split k.
PLAIN = "fp8_gemm_nt_m64n64c1"


class Scheduled(NamedTuple):
    """A kernel with one of its schedules."""

    kernel: str
    schedule: Schedule

    def __str__(self) -> str:
        cluster_m, cluster_n, split_k = self.schedule
        return f"{self.kernel.removeprefix('fp8_gemm_nt_')}-{cluster_m}x{cluster_n}x{split_k}"

    @property
    def config(self) -> dict[str, int]:
        return KERNELS[self.kernel]

    @property
    def split_k(self) -> int:
        return self.schedule[2]

    @property
    def cluster(self) -> int:
        cluster_m, cluster_n, split_k = self.schedule
        return cluster_m * cluster_n * split_k


def schedules(config: dict[str, int]) -> list[Schedule]:
    """What a kernel of this config can run."""
    if not config["swap_ab"]:
        return [(1, 1, 1)] if config["cluster"] == 1 else [(2, 1, 1), (1, 2, 1)]
    units = config["block_m"] // 8 * (config["block_n"] // 16)
    return [
        (1, sharing, split)
        for sharing, split in itertools.product((1, 2, 4), range(1, 9))
        if sharing * split <= 8 and config["block_m"] // sharing >= 8 and split <= units
    ]


ALL = [Scheduled(name, one) for name, config in KERNELS.items() for one in schedules(config)]


def _richest(name: str) -> Scheduled:
    """Of a kernel's schedules with the largest cluster one that shares a tile, too, if it can."""
    ranked = sorted(schedules(KERNELS[name]), key=lambda one: (one[1] * one[2], one[1] > 1, one))
    return Scheduled(name, ranked[-1])


RICHEST = [_richest(name) for name in KERNELS]


def run(
    scheduled: Scheduled,
    a: Pair,
    b: Pair,
    dtype: torch.dtype,
    num_sms: int | None = None,
    **options: Any,
) -> Tensor:
    """The product; with ``--device cuda`` on the GPU. Demands no findings of the emulator."""
    out = torch.full((a[0].size(0), b[0].size(0)), torch.nan, dtype=dtype)
    run_into(out, scheduled, a, b, num_sms, **options)
    return out


def run_into(
    out: Tensor,
    scheduled: Scheduled,
    a: Pair,
    b: Pair,
    num_sms: int | None = None,
    **options: Any,
) -> None:
    """The same into a tensor given."""
    launched = selected().launch(
        native().fp8_gemm_nt,
        [*a, *b, out],
        num_sms,
        scheduled.kernel,
        scheduled.schedule,
        **options,
    )
    assert launched in ([scheduled.kernel], None)


@lru_cache(maxsize=64)
def exact(sizes: Sizes) -> Tensor:
    """The float64 reference on ``gemm_operands``."""
    return reference.fp8_gemm_nt(*gemm_operands(*sizes))


@lru_cache(maxsize=64)
def expected_bits(sizes: Sizes, split_k: int) -> Tensor:
    """FP32 totals on ``gemm_operands``: parts of k by the plain kernel, added in their order."""
    (a, sfa), (b, sfb) = gemm_operands(*sizes)
    plain = Scheduled(PLAIN, (1, 1, 1))
    num_k_tiles = sfa.size(1)
    total: Tensor | None = None
    for rank in range(split_k):
        first, end = (num_k_tiles * r // split_k for r in (rank, rank + 1))
        part = torch.zeros(a.size(0), b.size(0))
        if first < end:
            columns = slice(first * 128, end * 128)
            tiles = slice(first, end)
            part_a = a[:, columns].contiguous(), sfa[:, tiles]
            part_b = b[:, columns].contiguous(), sfb[:, tiles]
            part = run(plain, part_a, part_b, torch.float32, checks=())
        total = part if total is None else total + part
    assert total is not None
    return total
