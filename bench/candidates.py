"""The cost model's ranking of kernels and schedules for a shape, and launches of one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

import pykernels
from pykernels.config import Candidate, gpu_model
from pykernels.native import native, tensor_view


@dataclasses.dataclass(frozen=True)
class Shape:
    """One product."""

    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def bytes_read(self) -> int:
        """Operands and scales, each once."""
        k_blocks = -(-self.k // 128)
        return self.m * self.k + self.n * self.k + 4 * k_blocks * (self.m + -(-self.n // 128))

    @property
    def bytes_written(self) -> int:
        """The BF16 output, once."""
        return 2 * self.m * self.n

    @property
    def num_bytes(self) -> int:
        return self.bytes_read + self.bytes_written


@dataclasses.dataclass(frozen=True)
class Options:
    """How the op is called, and for which GPU it is modelled (None: the one at hand)."""

    num_sms: int | None = None
    batch_invariant: bool = False
    device: str | None = None


def rank(shape: Shape, options: Options) -> list[Candidate]:
    """The cost model's candidates, cheapest first."""
    return pykernels.explain_config(
        pykernels.fp8_gemm_nt,
        device=options.device,
        num_sms=options.num_sms,
        batch_invariant=options.batch_invariant,
        **dataclasses.asdict(shape),
    )


def roofline(shape: Shape, options: Options) -> dict[str, Any]:
    """The least time by the datasheet of the GPU that is modelled, and what bounds it."""
    gpu = gpu_model(options.device)
    memory_us = shape.num_bytes / gpu.constants["hbm_gbps"] / 1e3
    compute_us = shape.flops / peak_tflops(options) / 1e6
    bound = "memory" if memory_us > compute_us else "compute"
    return {"gpu": gpu.name, "roofline_us": max(memory_us, compute_us), "bound": bound}


def peak_tflops(options: Options) -> float:
    """FP8, dense, by the datasheet."""
    gpu = gpu_model(options.device)
    constants = gpu.constants
    per_clock = 2 * gpu.num_sms * constants["macs_per_clock"]
    return float(per_clock * constants["clock_ghz"] / 1e3)


def named(candidate: Candidate) -> dict[str, Any]:
    """The kernel and the schedule, for JSON."""
    return {"kernel": candidate.kernel, "schedule": list(candidate.schedule.values())}


def launch(device: Any, candidate: Candidate, options: Options, operands: Sequence[Tensor]) -> None:
    """Launches a candidate on a GPU or in the emulator, through the binding."""
    cluster_m, cluster_n, split_k = candidate.schedule.values()
    native().fp8_gemm_nt(
        device,
        *(tensor_view(tensor) for tensor in operands),
        options.num_sms,
        candidate.kernel,
        (cluster_m, cluster_n, split_k),
        options.batch_invariant,
    )
