"""Looks for a shorter schedule that fails in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pykernels.emulator.exploration_runs import Outcome, Target, Variant
from pykernels.emulator.report import Finding
from pykernels.emulator.trace import Trace, TraceStep

_MOST_SEEDS = 16  # lower seeds that are tried
_MOST_INSTRUCTIONS = 1 << 16  # of one step of a trace: the machine cuts off more

Signature = tuple[str, str, int]
# A step, and the launch of the emulator that it belongs to.
Placed = tuple[int, TraceStep]


def signatures(findings: Sequence[Finding]) -> set[Signature]:
    """What makes findings of different runs the same: kind, and kernel and line of the first."""
    return {
        (finding.kind, finding.first.kernel, finding.first.ptx_line)
        if finding.first is not None
        else (finding.kind, "", 0)
        for finding in findings
    }


class Reduction:
    """Reduces one failing run.

    Attributes:
        runs: How many were spent.
    """

    def __init__(
        self,
        target: Target,
        variant: Variant,
        wanted: set[Signature],
        expected: Sequence[bytes] | None,
        max_runs: int,
    ) -> None:
        """Prepare.

        Args:
            target: What runs.
            variant: In which order.
            wanted: What a run must find all of to have failed in the same way.
            expected: The right results, None where they may differ.
            max_runs: At most.
        """
        self._target = target
        self._variant = variant
        self._wanted = wanted
        self._expected = expected
        self._max_runs = max_runs
        self.runs = 0

    def reduce(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], Trace | None]:
        """The options with the least seed, fewest change points and shortest trace."""
        reduced = dict(options)
        for seed in range(min(reduced["seed"], _MOST_SEEDS)):
            if self._fails({**reduced, "seed": seed}):
                reduced["seed"] = seed
                break
        if reduced["schedule"] == "priority":
            for count in range(reduced["num_change_points"]):
                if self._fails({**reduced, "num_change_points": count}):
                    reduced["num_change_points"] = count
                    break
        trace = self._record(reduced)
        if trace is None:
            return reduced, None
        steps = [(run, step) for run, steps in enumerate(trace.runs) for step in steps]
        steps = self._shorten(reduced, trace, self._merge(reduced, trace, steps))
        trace = _with_steps(trace, self._merge(reduced, trace, steps))
        return {**reduced, "trace": trace}, trace

    def _outcome(self, options: Mapping[str, Any]) -> Outcome | None:
        if self.runs >= self._max_runs:
            return None
        self.runs += 1
        return self._target.run(self._variant, options)

    def _has_failed(self, outcome: Outcome) -> bool:
        findings = list(outcome.findings)
        if self._expected is not None and outcome.error is None:
            findings += outcome.differences(self._expected)
        return self._wanted <= signatures(findings)

    def _fails(self, options: Mapping[str, Any]) -> bool:
        outcome = self._outcome(options)
        return outcome is not None and self._has_failed(outcome)

    def _record(self, options: Mapping[str, Any]) -> Trace | None:
        """The trace of the failing run, if it replays it."""
        outcome = self._outcome({**options, "record_trace": True})
        if outcome is None or not self._fails({**options, "trace": outcome.trace}):
            return None
        return outcome.trace

    def _shorten(
        self, options: Mapping[str, Any], trace: Trace, steps: list[Placed]
    ) -> list[Placed]:
        """Delta debugging: leaves out parts, halved whenever none can be left out."""
        size = len(steps)
        while size >= 1 and steps and self.runs < self._max_runs:
            start = (len(steps) - 1) // size * size  # the end first: it matters least
            while start >= 0:
                without = steps[:start] + steps[start + size :]
                if self._fails({**options, "trace": _with_steps(trace, without)}):
                    steps = without
                start -= size
            size //= 2
        return steps

    def _merge(self, options: Mapping[str, Any], trace: Trace, steps: list[Placed]) -> list[Placed]:
        """Turns of the same warp in a row become one, where it fails all the same."""
        merged: list[Placed] = []
        for run, step in steps:
            if merged and _same_warp(merged[-1], (run, step)):
                count = merged[-1][1].value + step.value
                if count <= _MOST_INSTRUCTIONS:
                    merged[-1] = (run, step._replace(value=count))
                    continue
            merged.append((run, step))
        if len(merged) == len(steps):
            return steps
        return merged if self._fails({**options, "trace": _with_steps(trace, merged)}) else steps


def _same_warp(a: Placed, b: Placed) -> bool:
    return a[0] == b[0] and a[1].kind == b[1].kind == "run" and a[1][:4] == b[1][:4]


def _with_steps(trace: Trace, steps: Sequence[Placed]) -> Trace:
    runs: list[list[TraceStep]] = [[] for _ in trace.runs]
    for run, step in steps:
        runs[run].append(step)
    return replace(trace, runs=tuple(tuple(run) for run in runs))
