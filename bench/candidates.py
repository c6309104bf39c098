"""The cost model's ranking of kernels and schedules for a call, and the bound of its time."""

from __future__ import annotations

from typing import Any

from pykernels.config import Candidate, gpu_model

from .problem import Options, Problem


def rank(problem: Problem[Any], options: Options) -> list[Candidate]:
    """The candidates, cheapest first by the cost model where there is a choice."""
    return problem.candidates(options)


def roofline(problem: Problem[Any], options: Options) -> dict[str, Any]:
    """The least time by the datasheet of the GPU that is modelled, and what bounds it."""
    gpu = gpu_model(options.device)
    memory_us = problem.num_bytes / gpu.constants["hbm_gbps"] / 1e3
    compute_us = problem.flops / peak_tflops(options, problem.operand_bytes) / 1e6
    bounds = {"compute": compute_us, "memory": memory_us, "link": problem.link_us}
    bound = max(bounds, key=lambda name: bounds[name])
    return {"gpu": gpu.name, "roofline_us": bounds[bound], "bound": bound}


def peak_tflops(options: Options, operand_bytes: int = 1) -> float:
    """Dense, by the datasheet: of FP8, or of BF16 with ``operand_bytes`` 2."""
    gpu = gpu_model(options.device)
    constants = gpu.constants
    per_clock = 2 * gpu.num_sms * constants["macs_per_clock"]
    return float(per_clock * constants["clock_ghz"] / operand_bytes / 1e3)


def named(candidate: Candidate) -> dict[str, Any]:
    """The kernel and the schedule, for JSON."""
    return {"kernel": candidate.kernel, "schedule": list(candidate.schedule.values())}
