"""Runs launches under many schedules, and finds what only some of them show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeAlias

from pykernels.checks import check_flag, check_integer, items, shown
from pykernels.emulator.array_view import Array
from pykernels.emulator.emulator import Emulator, Launch
from pykernels.emulator.errors import EmulationError
from pykernels.emulator.exploration_runs import CalledTarget, LaunchTarget, Outcome, Target, Variant
from pykernels.emulator.options import (
    COMPLETIONS,
    MAX_WARP_INSTRUCTIONS,
    SCHEDULERS,
    checked_names,
    checked_options,
)
from pykernels.emulator.reduction import Reduction, signatures
from pykernels.emulator.report import Finding, Report, listed
from pykernels.emulator.trace import Trace

Explored: TypeAlias = "Launch | Sequence[Launch] | Callable[[], object]"

# (schedule, asynchronous completion), in the order of the runs of a seed.
SCHEDULES = (
    ("random", "late"),
    ("random", "early"),
    ("random", "random"),
    ("priority", "late"),
    ("priority", "early"),
    ("priority", "random"),
)
_MOST_FAILURES = 20  # that are printed


@dataclass(frozen=True)
class Failure:
    """What went wrong in a run, and how to see it again.

    Attributes:
        findings: Of the run: those of its launches, and ``"schedule"`` for results with other bits
            than those of the first run.
        error: Why a launch could not go on, or None.
        options: Of ``Emulator`` (or ``pykernels.emulate``): run under these, it fails again.
        order: Which launches ran together, by index: groups, one after the other.
        trace: The shortest schedule found that fails in the same way; also in the options.
        occurrences: In how many runs the same was found.
    """

    findings: tuple[Finding, ...]
    error: EmulationError | None
    options: Mapping[str, Any]
    order: tuple[tuple[int, ...], ...]
    trace: Trace | None
    occurrences: int = 1

    def emulator(self) -> Emulator:
        """An emulator in which the launches of :attr:`order` fail in the same way."""
        return Emulator(**self.options)

    def __str__(self) -> str:
        shown = {
            name: value
            for name, value in self.options.items()
            if name not in ("trace", "record_trace", "max_warp_instructions")
        }
        lines = [", ".join(f"{name}={value!r}" for name, value in shown.items())]
        if len(self.order) > 1:
            lines.append("launches, one after the other: " + ", then ".join(map(str, self.order)))
        lines += listed(self.findings)
        if self.trace is not None:
            lines.append(f"replayed by a trace: {_shortened(str(self.trace))}")
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Exploration:
    """What an exploration found.

    Attributes:
        runs: Of the launches, under a schedule each.
        reduction_runs: Further ones, to reduce failures.
        failures: Each kind of failure once, in the order in which they were found.
    """

    runs: int
    reduction_runs: int
    failures: tuple[Failure, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all failures."""
        return tuple(finding for failure in self.failures for finding in failure.findings)

    def raise_if_findings(self) -> None:
        """Raise.

        Raises:
            EmulationError: a run failed; the message lists the failures.
        """
        if self.failures:
            first = self.failures[0]
            report = first.error.report if first.error is not None else Report()
            raise EmulationError(str(self), replace(report, findings=first.findings))

    def __str__(self) -> str:
        if not self.failures:
            return f"no failure in {self.runs} runs"
        head = f"{len(self.failures)} failures in {self.runs} runs"
        shown_failures = list(map(str, self.failures[:_MOST_FAILURES]))
        if (more := len(self.failures) - _MOST_FAILURES) > 0:
            shown_failures.append(f"and {more} more failures")
        return "\n".join([head, *shown_failures])


def explore(
    launch: Explored,
    *,
    seeds: int | Iterable[int] = 4,
    schedules: Iterable[tuple[str, str]] = SCHEDULES,
    num_sms: int = 132,
    checks: str | Iterable[str] = "all",
    num_change_points: int = 3,
    max_warp_instructions: int = MAX_WARP_INSTRUCTIONS,
    arrays: Sequence[Array] = (),
    same_bits: bool = True,
    serial: bool = True,
    stop_at_first: bool = True,
    max_reduction_runs: int = 200,
    progress: bool = True,
) -> Exploration:
    """Run launches under many schedules.

    Every run starts from the same memory, and afterwards all arrays hold again what they held
    before. Several launches run together, one after the other in both orders (in their own only if
    one is a programmatic dependent), and together on no more SMs than one for each CTA of a rank.
    All run on one thread, so that the same call finds the same.

    Args:
        launch: A ``Launch``, a sequence of co-resident ones, or a function without arguments: it is
            called inside ``pykernels.emulate`` for each run, calls ops, and returns their results.
            Every run must launch something there: an ``Emulator`` of its own is not explored.
        seeds: Which, or how many from 0.
        schedules: Pairs of ``schedule`` and ``async_completion`` of ``Emulator``, all with each
            seed.
        num_sms: Of the emulator.
        checks: Of the emulator.
        num_change_points: Of priority schedules.
        max_warp_instructions: A launch that has not ended by then is ended as hung.
        arrays: Further arrays: that the launches reach through pointers in memory, or that the
            function's ops write to.
        same_bits: Whether results that differ between schedules are a failure.
        serial: Whether several launches also run one after the other: False for those that wait
            for each other.
        stop_at_first: Whether the first failure ends the exploration.
        max_reduction_runs: At most so many further runs look for a shorter schedule of a failure;
            0 for none.
        progress: Whether a progress bar is shown, where the package ``rich`` is installed and
            standard error is a terminal.

    Returns:
        The failures, each with the options that show it again.

    Raises:
        ValueError: an argument is not as above, or the memory of an array is replaced or resized
            during the exploration.
        Exception: whatever the function raises beside ``EmulationError``, which is a failure.
    """
    seed_list = _checked_seeds(seeds)
    pairs = _checked_schedules(schedules)
    check_integer("max_reduction_runs", max_reduction_runs, 0, 2**31)
    flags = {
        "same_bits": same_bits,
        "serial": serial,
        "stop_at_first": stop_at_first,
        "progress": progress,
    }
    for name, value in flags.items():
        check_flag(name, value)
    options: dict[str, Any] = {
        "num_sms": num_sms,
        "checks": checks if isinstance(checks, str) else checked_names(checks),
        "max_warp_instructions": max_warp_instructions,
        "num_change_points": num_change_points,
        "num_threads": 1,  # what a race leaves in memory depends on it, and then the failures
    }
    checked_options(**options)
    target = _target(launch, arrays)
    search = _Search(target, same_bits, max_reduction_runs)
    variants = target.variants(num_sms, serial)
    num_runs = len(seed_list) * len(variants) * len(pairs)
    try:
        with _progress_bar(progress, num_runs) as advance:
            for seed, variant, (schedule, completion) in _runs(seed_list, variants, pairs):
                chosen = {"schedule": schedule, "async_completion": completion, "seed": seed}
                failed = search.run(variant, {**options, **variant.options, **chosen})
                advance(len(search.failures))
                if failed and stop_at_first:
                    break
    finally:
        target.restore()
    return Exploration(search.runs, search.reduction_runs, tuple(search.failures))


class _Search:
    """Runs one after the other, and gathers failures."""

    def __init__(self, target: Target, same_bits: bool, max_reduction_runs: int) -> None:
        self._target = target
        self._same_bits = same_bits
        self._max_reduction_runs = max_reduction_runs
        self._expected: Sequence[bytes] | None = None
        self._steps = 0
        self._known: dict[frozenset[tuple[str, str, int]], int] = {}
        self.failures: list[Failure] = []
        self.runs = 0
        self.reduction_runs = 0

    def run(self, variant: Variant, options: Mapping[str, Any]) -> bool:
        """True where the run failed."""
        options = {**options, "expected_steps": self._steps}
        outcome = self._target.run(variant, options)
        self.runs += 1
        self._steps = self._steps or outcome.steps
        findings = self._findings(outcome)
        if outcome.error is None and self._same_bits and self._expected is None:
            self._expected = outcome.results
        if not findings:
            return False
        key = frozenset(signatures(findings))
        if key in self._known:
            known = self.failures[self._known[key]]
            self.failures[self._known[key]] = replace(known, occurrences=known.occurrences + 1)
        else:
            self._known[key] = len(self.failures)
            self.failures.append(self._reduced(variant, options, findings, outcome))
        return True

    def _findings(self, outcome: Outcome) -> tuple[Finding, ...]:
        if self._expected is None or outcome.error is not None:
            return outcome.findings
        return outcome.findings + tuple(outcome.differences(self._expected))

    def _reduced(
        self,
        variant: Variant,
        options: dict[str, Any],
        findings: tuple[Finding, ...],
        outcome: Outcome,
    ) -> Failure:
        """The failure under the least schedule, with what that run finds."""
        reduction = Reduction(
            self._target, variant, signatures(findings), self._expected, self._max_reduction_runs
        )
        reduced, trace = reduction.reduce(options)
        self.reduction_runs += reduction.runs
        if reduced != options:
            outcome = self._target.run(variant, reduced)
            self.reduction_runs += 1
            findings = self._findings(outcome)
        return Failure(findings, outcome.error, reduced, variant.order, trace)


def _target(launch: Explored, arrays: Sequence[Array]) -> Target:
    if isinstance(launch, Launch):
        return LaunchTarget([launch], arrays)
    if isinstance(launch, Sequence) and launch and all(isinstance(x, Launch) for x in launch):
        return LaunchTarget(list(launch), arrays)
    if callable(launch):
        return CalledTarget(launch, arrays)
    raise ValueError(
        f"launch must be a Launch, a sequence of Launches or a function, got {shown(launch)}"
    )


def _runs(
    seeds: Sequence[int], variants: Sequence[Variant], schedules: Sequence[tuple[str, str]]
) -> Iterator[tuple[int, Variant, tuple[str, str]]]:
    """One by one: there may be a great many."""
    for seed in seeds:
        for variant in variants:
            for pair in schedules:
                yield seed, variant, pair


def _checked_seeds(seeds: object) -> Sequence[int]:
    if isinstance(seeds, Integral):
        check_integer("seeds", seeds, 1, 2**31)
        return range(int(seeds))
    values = seeds if isinstance(seeds, range) else items(seeds) or ()
    if not values:
        raise ValueError(f"seeds must be a number or integers, at least one, got {shown(seeds)}")
    for seed in values:
        check_integer("seeds", seed, 0, 2**64 - 1)
    return values


def _checked_schedules(schedules: object) -> Sequence[tuple[str, str]]:
    checked: list[tuple[str, str]] = []
    for pair in items(schedules) or (schedules,):
        names = pair if isinstance(pair, (tuple, list)) and len(pair) == 2 else (None, None)
        schedule, completion = (name if isinstance(name, str) else "" for name in names)
        if schedule not in SCHEDULERS or completion not in COMPLETIONS:
            raise ValueError(
                'schedules must be pairs of "random" or "priority" and "early", "late" or '
                f'"random", at least one, got {shown(pair)}'
            )
        checked.append((schedule, completion))
    return checked


@contextmanager
def _progress_bar(wanted: bool, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; yields what is to be called after each run with the failures."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        wanted = False
    if not wanted or not (console := Console(stderr=True)).is_terminal:
        yield lambda failures: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("exploring", total=total)
        yield lambda failures: bar.update(
            task, advance=1, description=f"exploring, {failures} failures" if failures else None
        )


def _shortened(text: str, most: int = 40) -> str:
    lines = text.split("\n")
    if len(lines) > most:
        lines = [*lines[:most], f"... and {len(lines) - most} more steps"]
    return "\n    ".join(lines)
