"""What an exploration runs: launches, or a function that calls ops, under given options."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pykernels.emulator.array_view import Array
from pykernels.emulator.emulator import Emulator, Launch
from pykernels.emulator.errors import EmulationError
from pykernels.emulator.report import Finding, Report
from pykernels.emulator.snapshot import Snapshot, flatten, named_views
from pykernels.emulator.trace import Trace

Order = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Variant:
    """How several launches stand to each other.

    Attributes:
        order: Groups of launches by index: each runs together, one after the other.
        options: Of the emulator, in place of those of the exploration.
    """

    order: Order
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        findings: Of its launches.
        error: Why a launch could not go on, or None.
        results: Bytes of the arrays; empty after an error.
        differences: Findings for results with other bits than these.
        trace: What was decided, if that was recorded.
        steps: Visible instructions of the longest launch.
    """

    findings: tuple[Finding, ...]
    error: EmulationError | None
    results: Sequence[bytes]
    differences: Callable[[Sequence[bytes]], list[Finding]]
    trace: Trace
    steps: int


class Target(Protocol):
    """What is explored."""

    def variants(self, num_sms: int, serial: bool) -> list[Variant]: ...
    def run(self, variant: Variant, options: Mapping[str, Any]) -> Outcome: ...
    def restore(self) -> None: ...


class LaunchTarget:
    """Launches, and the arrays that they take."""

    def __init__(self, launches: Sequence[Launch], arrays: Sequence[Array]) -> None:
        self._launches = launches
        self._arrays = arrays
        self._snapshot = Snapshot.of_launches(launches, arrays)

    def variants(self, num_sms: int, serial: bool) -> list[Variant]:
        indices = range(len(self._launches))
        found = [Variant((tuple(indices),))]
        if len(indices) < 2:
            return found
        if serial:
            found.append(Variant(tuple((i,) for i in indices)))
        if serial and not any(launch.programmatic_dependent for launch in self._launches):
            found.append(Variant(tuple((i,) for i in reversed(indices))))
        ctas = Counter[int]()  # of each rank
        for launch in self._launches:
            ctas[launch.rank] += math.prod(launch.grid)
        if (most := max(ctas.values())) < num_sms:
            found.append(Variant((tuple(indices),), {"num_sms": most}))
        return found

    def run(self, variant: Variant, options: Mapping[str, Any]) -> Outcome:
        self.restore()
        emulator = Emulator(**options)
        for array in self._arrays:
            emulator.register(array)
        reports: list[Report] = []
        failure: EmulationError | None = None
        try:
            for group in variant.order:
                reports.append(emulator.launch_concurrent([self._launches[i] for i in group]))
        except EmulationError as error:
            failure = error
            reports.append(error.report)
        results = self._snapshot.contents() if failure is None else []
        return Outcome(
            tuple(finding for report in reports for finding in report.findings),
            failure,
            results,
            lambda expected: self._snapshot.differences(expected, results),
            emulator.trace,
            max(report.visible_instructions for report in reports),
        )

    def restore(self) -> None:
        self._snapshot.restore()


class CalledTarget:
    """A function that calls ops on CPU tensors."""

    def __init__(self, function: Callable[[], object], arrays: Sequence[Array]) -> None:
        self._function = function
        self._arrays = arrays
        self._snapshot = Snapshot(named_views(arrays))

    def variants(self, num_sms: int, serial: bool) -> list[Variant]:
        del num_sms, serial
        return [Variant(())]

    def run(self, variant: Variant, options: Mapping[str, Any]) -> Outcome:
        from pykernels.device import emulate

        del variant
        self.restore()
        failure: EmulationError | None = None
        results = Snapshot(())
        with emulate(**options) as report:
            try:
                returned = self._function()
            except EmulationError as error:
                failure = error
            else:
                results = Snapshot(flatten("result", returned) + named_views(self._arrays))
        launches = report.launches
        if not launches:
            raise ValueError(
                "launch must be a function that launches kernels, got one that launched nothing "
                "under pykernels.emulate (explore the Launches that an Emulator runs instead)"
            ) from failure
        got = results.contents()
        return Outcome(
            report.findings,
            failure,
            got,
            lambda expected: results.differences(expected, got),
            report.trace,
            max((launch.visible_instructions for _, launch in launches), default=0),
        )

    def restore(self) -> None:
        self._snapshot.restore()
