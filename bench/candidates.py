"""The cost model's ranking of kernels and schedules for a call, and the bound of its time."""

from __future__ import annotations

from typing import Any

import pykernels
from pykernels.config import Candidate, gpu_model

from .problem import Options, Problem


def rank(problem: Problem[Any], options: Options) -> list[Candidate]:
    """The cost model's candidates, cheapest first."""
    return pykernels.explain_config(
        problem.op,
        device=options.device,
        num_sms=options.num_sms,
        batch_invariant=options.batch_invariant,
        **problem.sizes,
    )


def roofline(problem: Problem[Any], options: Options) -> dict[str, Any]:
    """The least time by the datasheet of the GPU that is modelled, and what bounds it."""
    gpu = gpu_model(options.device)
    memory_us = problem.num_bytes / gpu.constants["hbm_gbps"] / 1e3
    compute_us = problem.flops / peak_tflops(options) / 1e6
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
