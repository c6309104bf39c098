"""What launches found and counted, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pykernels.emulator.errors import EmulationError
from pykernels.emulator.trace import Steps, Trace, steps_from_native

if TYPE_CHECKING:
    from pykernels import _C

_MOST_FINDINGS = 20  # that are printed


@dataclass(frozen=True)
class Site:
    """One side of a finding: an instruction, and who executed it.

    Attributes:
        kernel: Name of the entry point.
        ptx: The statement as written.
        ptx_line: Its line in the PTX, from 1.
        cuda_file: The CUDA source, empty where the PTX names none.
        cuda_line: The line in it.
        source: The same with the lines at which the functions around it were inlined.
        grid: Index of the launch in ``launch_concurrent``, else 0.
        rank: ``Launch.rank``, the GPU that it ran on.
        ctaid: The CTA, (x, y, z).
        thread: Linear index in the CTA, or -1 for an asynchronous agent or a whole warp.
    """

    kernel: str
    ptx: str
    ptx_line: int
    cuda_file: str
    cuda_line: int
    source: str
    grid: int
    rank: int
    ctaid: tuple[int, int, int]
    thread: int

    def __str__(self) -> str:
        source = f"\n      from {self.source}" if self.source else ""
        thread = f" thread {self.thread}" if self.thread >= 0 else ""
        launch = f"launch {self.grid} on rank {self.rank}, " if self.grid or self.rank else ""
        return (
            f"{self.kernel}, PTX line {self.ptx_line}: {self.ptx.strip()} "
            f"({launch}CTA {self.ctaid}{thread}){source}"
        )


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        kind: ``"memory"``, ``"init"``, ``"race"``, ``"sync"`` or ``"deadlock"``.
        message: What happened, with the values.
        sites: The instructions involved.
        occurrences: How often, at the same instructions.
    """

    kind: str
    message: str
    sites: tuple[Site, ...] = ()
    occurrences: int = 1

    @property
    def first(self) -> Site | None:
        """The instruction at which it was found."""
        return self.sites[0] if self.sites else None

    @property
    def second(self) -> Site | None:
        """The other instruction, where there is one."""
        return self.sites[1] if len(self.sites) > 1 else None

    def __str__(self) -> str:
        times = f" ({self.occurrences} times)" if self.occurrences > 1 else ""
        return "\n    ".join([f"[{self.kind}] {self.message}{times}", *map(str, self.sites)])


def listed(findings: Sequence[Finding]) -> list[str]:
    """Findings as text: the first ones, and of what kinds the others are."""
    lines = [str(finding) for finding in findings[:_MOST_FINDINGS]]
    rest = Counter(finding.kind for finding in findings[_MOST_FINDINGS:])
    if rest:
        kinds = ", ".join(f"{count} {kind}" for kind, count in rest.items())
        lines.append(f"and {rest.total()} more: {kinds}")
    return lines


@dataclass(frozen=True)
class Counters:
    """What was executed.

    A sum adds everything: a launch's footprint and the next one's count what both touch twice.

    Attributes:
        warp_instructions: Warp instructions by class.
        thread_instructions: The same times active lanes.
        wgmma: Warpgroup matrix instructions.
        tensor_multiply_adds: Multiply-adds of all matrix instructions.
        global_bytes_read: By threads, bulk copies and TMA, as often as they ask for them; of a box
            only the elements in bounds, once per multicast. Atomics and reductions read and write.
        global_bytes_written: The same, written.
        global_footprint_bytes_read: 32 times the distinct sectors (32 bytes at a multiple of 32)
            that ``global_bytes_read`` lies in, over all grids that ran together: what a GPU has to
            fetch from memory at least if its caches are cold. Parameters, tensor maps and
            constants do not count.
        global_footprint_bytes_written: The same, written.
        shared_bytes_read: By threads, bulk copies and TMA.
        shared_bytes_written: The same, written.
        tma_bytes_loaded: Whole boxes from global to shared, filled parts too, once per multicast.
        tma_bytes_stored: Whole boxes from shared to global.
        shared_bank_conflicts: Wavefronts of threads beyond the least possible.
    """

    warp_instructions: Mapping[str, int] = field(default_factory=dict)
    thread_instructions: int = 0
    wgmma: int = 0
    tensor_multiply_adds: int = 0
    global_bytes_read: int = 0
    global_bytes_written: int = 0
    global_footprint_bytes_read: int = 0
    global_footprint_bytes_written: int = 0
    shared_bytes_read: int = 0
    shared_bytes_written: int = 0
    tma_bytes_loaded: int = 0
    tma_bytes_stored: int = 0
    shared_bank_conflicts: int = 0

    @property
    def instructions(self) -> int:
        """Warp instructions of all classes."""
        return sum(self.warp_instructions.values())

    def __add__(self, other: Counters) -> Counters:
        classes = {
            **dict.fromkeys(self.warp_instructions),
            **dict.fromkeys(other.warp_instructions),
        }
        sums: dict[str, Any] = {
            item.name: getattr(self, item.name) + getattr(other, item.name)
            for item in fields(self)
            if item.name != "warp_instructions"
        }
        return Counters(
            {
                name: self.warp_instructions.get(name, 0) + other.warp_instructions.get(name, 0)
                for name in classes
            },
            **sums,
        )

    def __str__(self) -> str:
        lines = [f"{self.instructions} warp instructions:"]
        lines += [f"  {name} {count}" for name, count in self.warp_instructions.items() if count]
        lines += [
            f"{item.name} {getattr(self, item.name)}"
            for item in fields(self)
            if item.name != "warp_instructions"
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class MemoryTraffic:
    """What one rank's launches did with the memory that one of their arguments names.

    Attributes:
        bytes_read: As often as they ask for them; see :class:`Counters`, whose figures these are a
            part of.
        bytes_written: The same, written.
        footprint_bytes_read: 32 times the distinct sectors.
        footprint_bytes_written: The same, written.
    """

    bytes_read: int = 0
    bytes_written: int = 0
    footprint_bytes_read: int = 0
    footprint_bytes_written: int = 0


@dataclass(frozen=True)
class Report:
    """What one launch (or several together) found and counted.

    As text it has the first 20 findings, and the others by kind.

    Attributes:
        findings: In the order in which they were found.
        counters: What was executed.
        checks: The checks that ran.
        notes: What the result relies on that is not certain.
        seed: Of the emulator.
        async_completion: Of the emulator.
        visible_instructions: Warp instructions that other warps can notice: memory, atomics,
            barriers, fences, copies, matrices.
        trace: What the scheduler decided; empty unless it was to be recorded.
        traffic: By rank and name of the memory, its part of the global bytes: where a rank's
            memory has a name of its own, what others move over the links to it. Memory that no
            argument of a rank's launches names has the name ``""``. Empty where all launches are of
            one rank.
    """

    findings: tuple[Finding, ...] = ()
    counters: Counters = field(default_factory=Counters)
    checks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    async_completion: str = "late"
    visible_instructions: int = 0
    trace: Steps = field(default=(), repr=False)
    traffic: Mapping[tuple[int, str], MemoryTraffic] = field(default_factory=dict)

    @classmethod
    def from_native(cls, values: Mapping[str, Any]) -> Report:
        """The report of a run, from what the compiled part returns."""
        findings = tuple(
            Finding(**{**finding, "sites": tuple(Site(**site) for site in finding["sites"])})
            for finding in values["findings"]
        )
        return cls(
            findings,
            Counters(**values["counters"]),
            tuple(values["checks"]),
            tuple(values["notes"]),
            values["seed"],
            values["async_completion"],
            values["visible_instructions"],
            steps_from_native(values["trace"]),
            {(rank, name): MemoryTraffic(*sums) for rank, name, *sums in values["traffic"]},
        )

    def raise_if_findings(self) -> None:
        """Raise.

        Raises:
            EmulationError: there are findings; the message lists the first ones, and how many more
                there are of each kind.
        """
        if self.findings:
            raise EmulationError(str(self), self)

    def __str__(self) -> str:
        checks = ", ".join(self.checks) or "none"
        head = (
            f"{len(self.findings)} findings (checks: {checks}; seed {self.seed}, "
            f"{self.async_completion} completion)"
        )
        return "\n".join([head, *listed(self.findings), *(f"note: {n}" for n in self.notes)])


class EmulationReport:
    """All launches inside one ``pykernels.emulate`` block, also while it is still open."""

    def __init__(self, device: _C.EmulatedDevice) -> None:
        self._device = device

    @property
    def launches(self) -> Sequence[tuple[str, Report]]:
        """Kernel name and report of every launch, in their order."""
        return [(name, Report.from_native(values)) for name, values in self._device.reports]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all launches."""
        return tuple(finding for _, report in self.launches for finding in report.findings)

    @property
    def counters(self) -> Counters:
        """Sums over all launches."""
        return sum((report.counters for _, report in self.launches), Counters())

    @property
    def notes(self) -> tuple[str, ...]:
        """Of all launches, each once."""
        return tuple(dict.fromkeys(note for _, report in self.launches for note in report.notes))

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks that ran; empty before the first launch."""
        return tuple(dict.fromkeys(check for _, report in self.launches for check in report.checks))

    @property
    def trace(self) -> Trace:
        """What the scheduler decided in all launches; empty runs unless that was recorded."""
        launches = [report for _, report in self.launches]
        first = launches[0] if launches else Report()
        return Trace(
            self._device.properties.num_sms,
            first.seed,
            first.async_completion,
            tuple(report.trace for report in launches),
        )

    def raise_if_findings(self) -> None:
        """Raise.

        Raises:
            EmulationError: a launch has findings; the message and report are those of the first.
        """
        for _, report in self.launches:
            report.raise_if_findings()

    def __str__(self) -> str:
        return "\n".join(f"{name}: {report}" for name, report in self.launches)
