"""Launches of kernels in the emulator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from numbers import Integral

from pykernels import _C
from pykernels.checks import check_flag, check_integer, items, shown
from pykernels.emulator.arguments import Argument, pack_arguments
from pykernels.emulator.array_view import Array, ArrayView, view_of
from pykernels.emulator.errors import EmulationError
from pykernels.emulator.module import Kernel
from pykernels.emulator.options import MAX_WARP_INSTRUCTIONS, checked_options
from pykernels.emulator.report import Report
from pykernels.emulator.trace import Steps, Trace

MAX_SHARED_BYTES = 232448  # of a CTA on sm_90, static and dynamic together
MAX_THREADS = 1024
MAX_REGISTERS = 256  # of a thread; ptxas counts up to 255, setmaxnreg up to 256
MAX_CLUSTER = 16
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)


@dataclass(frozen=True, eq=False, repr=False)
class Launch:
    """A kernel launch as a value. Equal to itself alone: arrays are compared by no one.

    Attributes:
        kernel: What runs.
        grid: CTAs, (x, y, z); missing dimensions are 1.
        block: Threads of a CTA, (x, y, z).
        args: One per parameter of the kernel. Torch CPU tensors and NumPy arrays are passed as
            addresses and bounded by their own bytes; ints and floats are typed by the parameter;
            ``TensorMap``; ``bytes`` for by-value structs; None for a null pointer.
        cluster: CTAs of a cluster, (x, y, z); (1, 1, 1) stands for what the kernel requires.
        dynamic_smem_bytes: Dynamic shared memory of a CTA.
        programmatic_dependent: Whether the launch before, of the same rank, may still run; see
            ``griddepcontrol``.
        registers: Per thread at launch, as ptxas reports; 0 if unknown. ``setmaxnreg`` is checked
            against it.
        rank: The GPU that it runs on: launches of different ranks have SMs of their own, and
            synchronise at ``.sys`` scope only.

    Raises:
        ValueError: a dimension, size or argument is not possible on sm_90.
    """

    kernel: Kernel
    grid: Sequence[int]
    block: Sequence[int]
    args: Sequence[Argument] = field(default=())
    cluster: Sequence[int] = (1, 1, 1)
    dynamic_smem_bytes: int = 0
    programmatic_dependent: bool = False
    registers: int = 0
    rank: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise ValueError(f"kernel must be a Kernel of a Module, got {shown(self.kernel)}")
        if not isinstance(self.args, Sequence):
            raise ValueError(f"args must be a sequence, one per parameter, got {shown(self.args)}")
        check_flag("programmatic_dependent", self.programmatic_dependent)
        check_integer("registers", self.registers, 0, MAX_REGISTERS)
        check_integer("rank", self.rank, 0, 2**31 - 1)
        check_integer("dynamic_smem_bytes", self.dynamic_smem_bytes, 0, MAX_SHARED_BYTES)
        for name, limits in (("grid", _MAX_GRID), ("block", _MAX_BLOCK), ("cluster", (16, 16, 16))):
            object.__setattr__(self, name, _dimensions(name, getattr(self, name), limits))
        self._check_threads()
        self._check_cluster()
        if any(grid % cluster for grid, cluster in zip(self.grid, self.cluster, strict=True)):
            raise ValueError(
                f"grid must be a multiple of the cluster {self.cluster}, got {self.grid}"
            )
        static = self.kernel.static_shared_bytes
        if static > MAX_SHARED_BYTES:
            raise ValueError(
                f"kernel {self.kernel.name!r} declares {static} bytes of static shared memory, a "
                f"CTA has at most {MAX_SHARED_BYTES}"
            )
        total = self.dynamic_smem_bytes + static
        if total > MAX_SHARED_BYTES:
            raise ValueError(
                f"dynamic_smem_bytes must be at most {MAX_SHARED_BYTES} less the "
                f"{static} static bytes, got {self.dynamic_smem_bytes}"
            )

    def __repr__(self) -> str:
        values = (f"{item.name}={shown(getattr(self, item.name))}" for item in fields(self))
        return f"Launch({', '.join(values)})"

    def _check_threads(self) -> None:
        threads = math.prod(self.block)
        limit = min(MAX_THREADS, self.kernel.max_threads or MAX_THREADS)
        required = self.kernel.required_threads
        if threads > limit or (required and threads != required):
            wanted = f"exactly {required}" if required else f"at most {limit}"
            raise ValueError(f"block must have {wanted} threads, got {threads} ({self.block})")

    def _check_cluster(self) -> None:
        required = self.kernel.required_cluster
        if required and self.cluster == (1, 1, 1):
            object.__setattr__(self, "cluster", required)
        if required and self.cluster != required:
            raise ValueError(
                f"cluster must be {required}, as .reqnctapercluster says, got {self.cluster}"
            )
        size = math.prod(self.cluster)
        limit = min(MAX_CLUSTER, self.kernel.max_cluster_rank or MAX_CLUSTER)
        if size > limit:
            raise ValueError(f"cluster must have at most {limit} CTAs, got {size} ({self.cluster})")


class Emulator:
    """Runs PTX kernels on the CPU, and checks what they do."""

    def __init__(
        self,
        num_sms: int = 132,
        seed: int = 0,
        async_completion: str = "late",
        checks: str | Iterable[str] = "all",
        max_warp_instructions: int = MAX_WARP_INSTRUCTIONS,
        schedule: str = "random",
        num_change_points: int = 3,
        expected_steps: int = 0,
        record_trace: bool = False,
        trace: Trace | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Make an emulated GPU.

        Args:
            num_sms: Its SMs: how many CTAs are resident at a time. Each rank has as many.
            seed: Decides all that hardware leaves open; the same seed gives the same run (where
                clusters race, on one thread only; see ``num_threads``).
            async_completion: When TMA, WGMMA and bulk copies take effect: ``"early"`` (at once),
                ``"late"`` (only when a wait needs them) or ``"random"`` (by the seed).
            checks: ``"all"``, or a set out of ``"memory"``, ``"init"``, ``"race"``, ``"sync"``;
                ``()`` for speed.
            max_warp_instructions: A launch that has not ended by then is ended as hung.
            schedule: ``"random"``: a cluster at a time, any of its warps, in turns of thousands of
                instructions. ``"priority"``: of all resident warps the one with the highest
                priority, which the seed draws; with random completion asynchronous operations have
                priorities too.
            num_change_points: How often, at instructions that the seed draws, the running warp
                falls behind all others (``"priority"`` only).
            expected_steps: About how many of its instructions other warps can notice: change points
                are drawn from these. ``report.visible_instructions`` of a run before; 0 if unknown.
            record_trace: Whether the scheduler's decisions are kept; see :attr:`trace`.
            trace: Decisions to follow. ``num_sms``, ``seed`` and ``async_completion`` are then the
                trace's, and ``schedule`` has no effect. Each launch follows the next of its runs.
            num_threads: At most so many threads run a grid whose clusters cannot notice one
                another (no atomics, strong accesses or reductions in global memory, no clocks);
                None: one for each core that the process may use. Results do not depend on it as
                long as clusters do not race. The race check reports a race with any number, but
                what it leaves in memory, and what follows from values so read, may differ from run
                to run with more than one.

        Raises:
            ValueError: an argument is not as above.
        """
        options = checked_options(
            num_sms,
            seed,
            async_completion,
            checks,
            max_warp_instructions,
            schedule,
            num_change_points,
            expected_steps,
            record_trace,
            trace,
            num_threads,
        )
        self._to_replay: list[list[tuple[int, int, int, int, int]]] | None = options.pop("traces")
        schedule_names = (
            "schedule",
            "num_change_points",
            "expected_steps",
            "record_trace",
        )
        schedule_options = {name: options.pop(name) for name in schedule_names}
        self._options = _C.emulator.Options(**options)
        self._options.set_schedule(**schedule_options)
        self._identity = options["num_sms"], options["seed"], options["async_completion"]
        self._recorded: list[Steps] = []
        self._registered: list[ArrayView] = []

    def register(self, tensor: Array) -> None:
        """Let kernels reach this memory through pointers that are stored in memory.

        The emulator keeps it alive. A launch raises ``ValueError`` if the tensor's memory has been
        replaced or resized since.
        """
        self._registered.append(view_of("tensor", tensor))

    def launch(
        self,
        kernel: Kernel,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Argument] = (),
        cluster: Sequence[int] = (1, 1, 1),
        dynamic_smem_bytes: int = 0,
    ) -> Report:
        """Run one kernel to its end; see :class:`Launch` for the arguments.

        Raises:
            ValueError: an argument is not possible on sm_90 or does not fit the kernel.
            EmulationError: the launch cannot go on.
        """
        return self.launch_concurrent(
            [Launch(kernel, grid, block, args, cluster, dynamic_smem_bytes)]
        )

    def launch_concurrent(self, launches: Sequence[Launch]) -> Report:
        """Run several kernels together: ranks of a collective, or a producer and its consumer.

        Raises:
            ValueError: ``launches`` is no sequence of them, or an argument does not fit its kernel.
            EmulationError: the launches cannot go on.
        """
        if not isinstance(launches, Sequence) or not all(isinstance(x, Launch) for x in launches):
            raise ValueError(f"launches must be a sequence of Launches, got {shown(launches)}")
        names = [f"registered tensor {i}" for i in range(len(self._registered))]
        views = [view.current(name) for name, view in zip(names, self._registered, strict=True)]
        registered = [view.memory_range(name) for name, view in zip(names, views, strict=True)]
        native = []
        kept: list[object] = [*views]
        for launch in launches:
            block, memory, objects = pack_arguments(launch.kernel, launch.args)
            kept += objects
            native.append(
                _C.emulator.MachineLaunch(
                    kernel=launch.kernel.native,
                    grid=tuple(launch.grid),
                    block=tuple(launch.block),
                    cluster=tuple(launch.cluster),
                    dynamic_shared_bytes=launch.dynamic_smem_bytes,
                    programmatic_dependent=bool(launch.programmatic_dependent),
                    registers=launch.registers,
                    rank=launch.rank,
                    parameters=block,
                    memory=[entry for entry in memory + registered if entry[1] > 0],
                )
            )
        if self._to_replay is not None:
            self._options.set_trace(self._to_replay.pop(0) if self._to_replay else [])
        try:
            report = Report.from_native(_C.emulator.run(self._options, native))
        except EmulationError as error:
            self._recorded.append(error.report.trace)
            raise
        self._recorded.append(report.trace)
        return report

    @property
    def trace(self) -> Trace:
        """What the scheduler decided in all launches so far, those that failed included.

        Its runs are empty unless ``record_trace`` is set.
        """
        num_sms, seed, async_completion = self._identity
        return Trace(num_sms, seed, async_completion, tuple(self._recorded))


def _dimensions(name: str, value: object, limits: tuple[int, int, int]) -> tuple[int, int, int]:
    # Of an iterator, which may have no end, no more are read than it takes to see that it is wrong.
    listed = items(islice(value, 4) if isinstance(value, Iterator) else value)
    given = (value,) if listed is None else listed
    if not 1 <= len(given) <= 3 or not all(isinstance(size, Integral) for size in given):
        raise ValueError(f"{name} must be one to three integers, got {shown(value)}")
    sizes = tuple(int(size) for size in given) + (1,) * (3 - len(given))
    if not all(1 <= size <= limit for size, limit in zip(sizes, limits, strict=True)):
        raise ValueError(f"{name} must be from (1, 1, 1) to {limits}, got {shown(sizes)}")
    return sizes[0], sizes[1], sizes[2]
