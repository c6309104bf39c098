"""What a kernel moves and issues for a call, counted in the emulator: no times."""

from __future__ import annotations

import dataclasses
from typing import Any

from pykernels.config import Candidate
from pykernels.emulator import Counters

from .problem import Options, Problem, ProblemT

# Above this a launch takes many seconds here, so a smaller one is counted.
_MAX_MULTIPLY_ADDS = 2**34


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counters of one launch, and the least that any kernel must do for the call."""

    problem: Problem[Any]  # that was emulated
    counters: Counters

    @property
    def ratios(self) -> dict[str, float]:
        """Counted over least possible: bytes read and written, multiply-adds if any."""
        counters, problem = self.counters, self.problem
        footprint = counters.global_footprint_bytes_read
        ratios = {
            "global_bytes_read": counters.global_bytes_read / problem.bytes_read,
            "global_footprint_bytes_read": footprint / problem.bytes_read,
            "global_bytes_written": counters.global_bytes_written / problem.bytes_written,
        }
        if problem.flops > 0:
            ratios["tensor_multiply_adds"] = counters.tensor_multiply_adds / (problem.flops / 2)
        return ratios

    def row(self) -> dict[str, Any]:
        """For JSON."""
        plain = {
            field.name: getattr(self.counters, field.name)
            for field in dataclasses.fields(self.counters)
            if field.name != "warp_instructions"
        }
        plain["warp_instructions"] = self.counters.instructions
        return {"shape": str(self.problem), "counts": plain, "ratios": self.ratios}


def emulated_problem(problem: ProblemT) -> ProblemT:
    """The problem itself, or a smaller one of its kind."""
    while problem.emulation_work > _MAX_MULTIPLY_ADDS:
        smaller = problem.smaller()
        if smaller is None:
            break
        problem = smaller
    return problem


def count(problem: Problem[Any], candidate: Candidate, options: Options) -> Counts:
    """Emulates one launch of the candidate, without checks.

    Raises:
        EmulationError: the launch cannot go on.
    """
    emulated = emulated_problem(problem)
    return Counts(emulated, emulated.emulate(candidate, options))
