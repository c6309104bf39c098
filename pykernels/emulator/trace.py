"""What a scheduler decided, as plain values: enough to run the same thing again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from pykernels.checks import shown

_KINDS = ("start", "run", "read_source", "complete")  # as the extension numbers them
_FORMAT = "pykernels emulator trace 1"
_LIMITS = (2**32 - 1, 2**64 - 1, 2**32 - 1, 2**64 - 1)  # of launch, cluster, warp, value


class TraceStep(NamedTuple):
    """One decision.

    Attributes:
        kind: ``"start"``: a cluster became resident; ``"run"``: a warp ran; ``"read_source"``,
            ``"complete"``: an asynchronous operation did its first step, or took effect.
        launch: Index among the launches that run together.
        cluster: Index in the launch.
        warp: Index in the cluster, CTA by CTA.
        value: Of ``"run"`` the warp instructions, of operations the number among the warp's own.
    """

    kind: str
    launch: int
    cluster: int
    warp: int = 0
    value: int = 0

    def __str__(self) -> str:
        where = f"launch {self.launch} cluster {self.cluster}"
        if self.kind == "start":
            return f"start {where}"
        if self.kind == "run":
            return f"run {where} warp {self.warp} for {self.value} instructions"
        return f"{self.kind} operation {self.value} of {where} warp {self.warp}"


Steps = tuple[TraceStep, ...]


@dataclass(frozen=True)
class Trace:
    """The schedule of the launches of an emulator.

    ``Emulator(trace=trace)`` and ``pykernels.emulate(trace=trace)`` follow it. A step that is not
    possible is left out, and after the last one the warps run by index, each as long as it can, so
    a trace with steps removed is a trace too.

    Attributes:
        num_sms: Of the emulator.
        seed: Of the emulator: warps draw spurious failures from it.
        async_completion: Of the emulator.
        runs: The decisions of each launch (or launches together), in their order.
    """

    num_sms: int
    seed: int
    async_completion: str
    runs: tuple[Steps, ...]

    @property
    def num_switches(self) -> int:
        """How often another warp than the one before gets its turn, over all launches."""
        switches = 0
        for steps in self.runs:
            turns = [(s.launch, s.cluster, s.warp) for s in steps if s.kind == "run"]
            switches += sum(a != b for a, b in pairwise(turns))
        return switches

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        return json.dumps(
            {
                "format": _FORMAT,
                "num_sms": self.num_sms,
                "seed": self.seed,
                "async_completion": self.async_completion,
                "runs": [[list(step) for step in steps] for steps in self.runs],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """A trace of its text.

        Raises:
            ValueError: the text is no trace; the message says what is wrong with it.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {type(text).__name__}")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # integers of thousands of digits too
            raise ValueError(f"text is no JSON: {error}") from error
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f'text must be an object with "format": "{_FORMAT}"')
        runs = values.get("runs")
        if not isinstance(runs, list) or not all(isinstance(steps, list) for steps in runs):
            raise ValueError(f'"runs" must be a list of lists of steps, got {shown(runs)}')
        return cls(
            values.get("num_sms", 0),
            values.get("seed", 0),
            values.get("async_completion", "late"),
            tuple(tuple(_step(step) for step in steps) for steps in runs),
        )

    def __str__(self) -> str:
        lines = [
            f"{self.num_sms} SMs, seed {self.seed}, {self.async_completion} completion, "
            f"{self.num_switches} context switches"
        ]
        for index, steps in enumerate(self.runs):
            lines += [f"  launch {index}: {step}" for step in steps]
        return "\n".join(lines)


def steps_from_native(values: list[tuple[int, int, int, int, int]]) -> Steps:
    """The steps that the extension has recorded."""
    return tuple(TraceStep(_KINDS[kind], *rest) for kind, *rest in values)


def runs_to_native(runs: object) -> list[list[tuple[int, int, int, int, int]]]:
    """The runs of a trace as the extension takes them.

    Raises:
        ValueError: they are no sequences of steps; the message names what is wrong.
    """
    if isinstance(runs, str) or not isinstance(runs, Sequence):
        raise ValueError(f"runs of a trace must be a sequence, one a launch, got {shown(runs)}")
    for steps in runs:
        if isinstance(steps, str) or not isinstance(steps, Sequence):
            raise ValueError(f"a run of a trace must be a sequence of steps, got {shown(steps)}")
    return [_steps_to_native(steps) for steps in runs]


def _steps_to_native(steps: Sequence[object]) -> list[tuple[int, int, int, int, int]]:
    checked = (_step(step) for step in steps)
    return [(_KINDS.index(s.kind), s.launch, s.cluster, s.warp, s.value) for s in checked]


# Any: what JSON may hold.
def _step(value: Any) -> TraceStep:
    if not isinstance(value, (list, tuple)) or not 3 <= len(value) <= 5:
        raise _no_step(value)
    if isinstance(value[0], str) and value[0] in _KINDS:
        numbers = (*value[1:], 0, 0)[:4]
        if all(
            type(number) is int and 0 <= number <= most
            for number, most in zip(numbers, _LIMITS, strict=True)
        ):
            return TraceStep(value[0], *numbers)
    raise _no_step(value)


def _no_step(value: object) -> ValueError:
    return ValueError(
        f"a step of a trace must be (kind, launch, cluster, warp, value) with a kind out of "
        f"{', '.join(_KINDS)} and integers that are not negative, got {shown(value, 80)}"
    )
