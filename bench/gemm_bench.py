"""The dense FP8 GEMM as benches take it: DeepSeek-V3's shapes, operands, correctness."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

import pykernels
from pykernels.config import Candidate
from pykernels.gemm import compute_in_torch
from pykernels.native import native, tensor_view
from pykernels.testing import TENSOR_CORE_FLOOR, assert_rows_close, gemm_operands

from .baselines import Baseline, Operands, Prepared, baselines
from .problem import Options, Problem, halved, random_fp8, random_scales

# n x k of DeepSeek-V3's linear layers.
WEIGHTS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
ROWS = (64, 128, 4096, 1, 16, 32, 256, 512, 1024, 2048, 8192)  # in the order of interest
MIN_K, MIN_COLUMNS, MIN_ROWS = 512, 2048, 1024  # of a shape that is not made smaller any more


@dataclasses.dataclass(frozen=True)
class Shape(Problem[Operands]):
    """One product."""

    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def op(self) -> Callable[..., Any]:
        return pykernels.fp8_gemm_nt

    @property
    def sizes(self) -> Mapping[str, int]:
        return dataclasses.asdict(self)

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def bytes_read(self) -> int:
        k_blocks = -(-self.k // 128)
        return self.m * self.k + self.n * self.k + 4 * k_blocks * (self.m + -(-self.n // 128))

    @property
    def bytes_written(self) -> int:
        return 2 * self.m * self.n

    def smaller(self) -> Shape | None:
        """k is halved first, then columns, then rows."""
        if self.k >= 2 * MIN_K:
            return Shape(self.m, self.n, halved(self.k, 128))
        if self.n >= 2 * MIN_COLUMNS:
            return Shape(self.m, halved(self.n, 128), self.k)
        if self.m >= 2 * MIN_ROWS:
            return Shape(halved(self.m, 128), self.n, self.k)
        return None

    def emulated_operands(self, seed: int = 0) -> Operands:
        a, b = gemm_operands(self.m, self.n, self.k, seed)
        return Operands(*a, *b, torch.empty(self.m, self.n, dtype=torch.bfloat16))

    def gpu_operands(self, seed: int) -> Operands:
        generator = torch.Generator("cuda").manual_seed(seed)
        blocks = -(-self.k // 128)
        return Operands(
            random_fp8(generator, self.m, self.k),
            random_scales(generator, self.m, blocks),
            random_fp8(generator, self.n, self.k),
            random_scales(generator, -(-self.n // 128), blocks),
            torch.empty(self.m, self.n, dtype=torch.bfloat16, device="cuda"),
        )

    def launch(
        self, device: Any, candidate: Candidate, options: Options, operands: Operands
    ) -> None:
        native().fp8_gemm_nt(
            device,
            *map(tensor_view, operands),
            options.num_sms,
            candidate.kernel,
            tuple(candidate.schedule.values()),
            options.batch_invariant,
        )

    def prepare_op(self, options: Options, operands: Operands) -> Prepared:
        a, sfa, b, sfb, out = operands
        arguments: dict[str, Any] = {"out": out, "num_sms": options.num_sms}
        if options.batch_invariant:
            arguments["batch_invariant"] = True
        call = partial(pykernels.fp8_gemm_nt, (a, sfa), (b, sfb), **arguments)
        return Prepared(call, out, sfa, sfb)

    def check(self, operands: Operands, prepared: Prepared) -> None:
        prepared.out.zero_()
        prepared.call()
        exact = torch.empty(prepared.out.shape, dtype=torch.float32, device=prepared.out.device)
        compute_in_torch(operands.a, prepared.sfa, operands.b, prepared.sfb, exact)
        assert_rows_close(prepared.out, exact, floor=TENSOR_CORE_FLOOR)

    def baselines(self) -> list[Baseline[Operands]]:
        return baselines()


def shapes() -> Iterator[Shape]:
    """All shapes, the most telling first: a run that is cut short has measured those."""
    for m in ROWS:
        for n, k in WEIGHTS:
            yield Shape(m, n, k)
