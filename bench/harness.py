"""How every bench measures: graph replay, rotated inputs, warm-up by time; and on what machine.

Ranks of torch.distributed measure together: they agree on all numbers of calls, and of each sample
the slowest rank's time counts.
"""

from __future__ import annotations

import dataclasses
import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
L2_BYTES = 50 * 2**20  # H100 and H200
_ROTATED_BYTES = 4 * L2_BYTES  # inputs of one round: when a set comes round again it has left L2
_MAX_SETS = 64
_GRAPH_US = 2000.0  # length of one replay: its own start is below 1 % of that
_WARM_UP_S = 0.2
_MAX_SAMPLES = 50

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds of one call, over the samples (each the mean of one replay)."""

    median_us: float
    p10_us: float
    p90_us: float
    num_samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        ordered = sorted(samples)
        last = len(ordered) - 1
        return cls(
            statistics.median(ordered),
            ordered[round(0.1 * last)],
            ordered[round(0.9 * last)],
            len(ordered),
        )


@dataclasses.dataclass(frozen=True)
class Turns:
    """One contender's turns among others': its time over all, and the median of each turn."""

    timing: Timing
    medians_us: tuple[float, ...]

    def ratio_to(self, other: Turns) -> float:
        """How many times the other's time this one takes: the median over the rounds."""
        pairs = zip(self.medians_us, other.medians_us, strict=True)
        return statistics.median(own / others for own, others in pairs)


def agreed(number: int) -> int:
    """The largest number of all ranks, where they measure together; else the number itself."""
    return int(_largest([float(number)])[0])


def _largest(values: list[float]) -> list[float]:
    """Of each value the largest of all ranks of torch.distributed, where there are several."""
    if not torch.distributed.is_initialized():
        return values
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    slowest: list[float] = shared.tolist()
    return slowest


def num_rotated_sets(bytes_per_set: int) -> int:
    """How many copies of the operands make each call find its inputs outside of L2."""
    return max(1, min(_MAX_SETS, -(-_ROTATED_BYTES // max(bytes_per_set, 1))))


def time_calls(calls: Sequence[Call], *, sample_s: float = 0.2) -> Timing:
    """Times calls that differ in their memory only, on the GPU.

    All calls are captured into one graph, often enough that a replay takes milliseconds; replays
    are timed by events after a warm-up by time.

    Args:
        calls: One for each set of rotated inputs; a single one measures with a warm L2.
        sample_s: How long samples are taken, in seconds.
    """
    replay = _Replay.of(calls)
    _run_for(_WARM_UP_S, replay.run)
    samples: list[float] = []
    deadline = time.perf_counter() + sample_s
    while len(samples) < 5 or (
        agreed(time.perf_counter() < deadline) and len(samples) < _MAX_SAMPLES
    ):
        samples.append(replay.sample_us())
    return Timing.of(_largest(samples))


def time_interleaved(
    contenders: Mapping[str, Sequence[Call]], *, num_rounds: int = 10, samples: int = 4
) -> dict[str, Turns]:
    """Times several contenders in turns, A B C A B C, so that a drift of clocks hits all alike.

    Args:
        contenders: For each the calls that :func:`time_calls` takes.
        num_rounds: How often each has its turn.
        samples: Of one turn; a replay that is not timed goes before them.
    """
    replays = {name: _Replay.of(calls) for name, calls in contenders.items()}
    turns: dict[str, list[list[float]]] = {name: [] for name in replays}
    for replay in replays.values():
        _run_for(_WARM_UP_S / len(replays), replay.run)
    for _ in range(num_rounds):
        for name, replay in replays.items():
            replay.run()
            turns[name].append(_largest([replay.sample_us() for _ in range(samples)]))
    return {
        name: Turns(
            Timing.of([sample for turn in own for sample in turn]),
            tuple(statistics.median(turn) for turn in own),
        )
        for name, own in turns.items()
    }


@dataclasses.dataclass(frozen=True)
class _Replay:
    """Calls captured into one graph, often enough that a replay takes milliseconds."""

    graph: torch.cuda.CUDAGraph
    num_calls: int

    @classmethod
    def of(cls, calls: Sequence[Call]) -> _Replay:
        for call in calls:
            call()
        torch.cuda.synchronize()
        rounds = agreed(_rounds(_capture(calls, 1)))
        return cls(_capture(calls, rounds), rounds * len(calls))

    def run(self) -> None:
        self.graph.replay()

    def sample_us(self) -> float:
        """The mean call of one replay."""
        return _event_us(self.graph.replay) / self.num_calls


def _capture(calls: Sequence[Call], rounds: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph


def rehearse(call: Call) -> None:
    """Captures a call and drops it: what cannot be captured says so before it is among others."""
    if torch.cuda.is_available():
        call()
        torch.cuda.synchronize()
        _capture([call], 1)


def _rounds(one_round: torch.cuda.CUDAGraph) -> int:
    """By the GPU's time: eager calls take the host's, and short kernels would get short replays."""
    one_round.replay()  # the first one also uploads the graph
    return max(1, min(1000, round(_GRAPH_US / max(_event_us(one_round.replay), 1.0))))


def _run_for(seconds: float, call: Call) -> None:
    deadline = time.perf_counter() + seconds
    while agreed(time.perf_counter() < deadline):
        call()
        torch.cuda.synchronize()


def _event_us(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1000.0 * float(start.elapsed_time(end))


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy of 1 GiB, bytes read and written."""
    source = torch.randint(0, 256, (2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = time_calls([lambda: target.copy_(source)])
    return 2 * source.numel() / timing.median_us / 1000


@dataclasses.dataclass(frozen=True)
class Roofline:
    """What one call must do at least, and how long that takes at best."""

    flops: float
    num_bytes: float
    copy_gbps: float
    peak_tflops: float
    link_us: float = 0.0  # of the busiest link between GPUs

    @property
    def compute_us(self) -> float:
        return self.flops / self.peak_tflops / 1e6

    @property
    def memory_us(self) -> float:
        return self.num_bytes / self.copy_gbps / 1e3

    @property
    def bound(self) -> str:
        if self.link_us > max(self.memory_us, self.compute_us):
            return "link"
        return "memory" if self.memory_us > self.compute_us else "compute"

    def row(self, timing: Timing) -> dict[str, Any]:
        """The columns of a result that every bench has."""
        best_us = max(self.memory_us, self.compute_us, self.link_us)
        return {
            "us": timing.median_us,
            "us_p10": timing.p10_us,
            "us_p90": timing.p90_us,
            "tflops": self.flops / timing.median_us / 1e6,
            "gbps": self.num_bytes / timing.median_us / 1e3,
            "bound": self.bound,
            "roofline_share": best_us / timing.median_us,
        }


def environment() -> dict[str, Any]:
    """The machine and the code, as every result file carries them."""
    found: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "host": platform.machine(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["capability"] = list(torch.cuda.get_device_capability())
        found["nvidia_smi"] = nvidia_smi()
    return found


def commit() -> str:
    """The commit of the checkout, with ``-dirty`` where files differ; "unknown" outside of git."""
    if not (ROOT / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


_SMI_FIELDS = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks, power and temperature now; empty without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    values = result.stdout.splitlines()[0].split(", ")
    return dict(zip(_SMI_FIELDS, values, strict=True))
