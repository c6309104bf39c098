"""Runs mutants until the emulator reports them or the result is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pykernels.emulator import EmulationError, Module, Report
from tests.cases import bits
from tests.kernel_launch import GemmLaunch
from tests.mutants.mutate import Mutant, mutants

MODES = ("late", "random", "early")
SEEDS = range(20)

# m and n ragged; k takes the main loop and its remainder, with more k tiles than stages. Few SMs:
# each CTA has several tiles, so that staging and stages are used again.
SHAPES = {
    "fp8_gemm_nt_m64n64c1": ((200, 136, 1136), 2, (1, 1, 1)),
    "fp8_gemm_nt_m128n128c2": ((400, 264, 1136), 4, (2, 1, 1)),
    "fp8_gemm_nt_m128n192c2": ((264, 600, 624), 4, (1, 2, 1)),
    "fp8_gemm_nt_swap_m16n64": ((40, 264, 7 * 1024 + 16), 6, (1, 2, 3)),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; `caught_by` is None if it survived every run."""

    mutant: Mutant
    caught_by: str | None
    runs: int


def hunt(kernel: str) -> Iterator[Outcome]:
    """Yields the outcome of every mutant of the kernel, in the order of its text."""
    sizes, num_sms, schedule = SHAPES[kernel]
    launches = [
        GemmLaunch.make(kernel, sizes, num_sms, dtype, schedule)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    ptx = launches[0].ptx()
    expected = []
    for launch in launches:
        launch.run(Module.from_ptx(ptx)).raise_if_findings()
        expected.append(bits(launch.out).clone())
    for mutant in mutants(ptx):
        yield _hunt_one(mutant, launches, expected)


def _hunt_one(mutant: Mutant, launches: list[GemmLaunch], expected: list[torch.Tensor]) -> Outcome:
    module = Module.from_ptx(mutant.ptx)
    runs = 0
    for seed in SEEDS:
        for mode in MODES:
            for launch, right in zip(launches, expected, strict=True):
                runs += 1
                caught = _run(module, launch, right, mode, seed)
                if caught is not None:
                    return Outcome(mutant, f"{caught} ({mode} completion, seed {seed})", runs)
    return Outcome(mutant, None, runs)


def _run(
    module: Module, launch: GemmLaunch, right: torch.Tensor, mode: str, seed: int
) -> str | None:
    try:
        report = launch.run(module, async_completion=mode, seed=seed)
    except EmulationError as error:
        return _first_finding(error.report)
    if report.findings:
        return _first_finding(report)
    return None if torch.equal(bits(launch.out), right) else "wrong result"


def _first_finding(report: Report) -> str:
    finding = report.findings[0]
    return f"{finding.kind}: {finding.message.splitlines()[0]}"
