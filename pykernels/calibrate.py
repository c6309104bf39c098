"""Fits the constants of the GEMM's cost model to measured times.

The model's error is the logarithm of modelled over measured time, so that a small shape counts as
much as a large one. Gauss-Newton steps, damped, with weights that bound what an outlier can pull
(Huber), and with a weak pull to the constants of now: what the measurements do not tell stays.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pykernels.checks import MAX_SIZE, check_gemm_sizes, check_integer
from pykernels.native import kernel_metadata, native

if TYPE_CHECKING:
    from rich.console import Console

    from pykernels import _C

# What is fitted: the estimates of gpu_model.cpp that times of GEMMs can tell apart. Latencies are
# not among them: they add to the start as launch_us does.
FITTED = (
    "hbm_share",
    "l2_bytes_per_clock",
    "tensor_share",
    "sm_bytes_per_clock",
    "split_wait_us",
    "epilogue_clocks",
    "launch_us",
)
_SHARES = ("hbm_share", "tensor_share")  # at most 1
_STEP = 1e-3  # of a constant's logarithm, for derivatives
_MAX_ITERATIONS = 60
_CONVERGED = 1e-5  # largest change of a logarithm
_PRIOR_WEIGHT = 0.02  # of the pull: a factor of e counts as much as an error of 2 % in one time
_HUBER = 1.5  # standard deviations from which an error counts linearly
_TOLD_LOSS = 0.02  # choices that lose less are not listed
_BFLOAT16_BYTES = 2
_FAMILY = "fp8_gemm_nt"  # whose times count: grouped ones depend on rows that a shape does not tell

_Vector = NDArray[np.float64]


class Shape(NamedTuple):
    """A problem as it was measured."""

    m: int
    n: int
    k: int
    num_sms: int | None

    def __str__(self) -> str:
        limit = "" if self.num_sms is None else f" on {self.num_sms} SMs"
        return f"{self.m}x{self.n}x{self.k}{limit}"


Way = tuple[str, tuple[int, ...]]  # kernel, schedule
Times = dict[Shape, dict[Way, float]]  # microseconds


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        before: The GPU's constants of now.
        after: The fitted ones.
        errors_before: Logarithms of modelled over measured time.
        errors_after: The same with the fitted constants.
    """

    before: _C.GpuModel
    after: _C.GpuModel
    errors_before: _Vector
    errors_after: _Vector


def read_results(path: Path) -> tuple[Times, str | None]:
    """Times of kernels with schedules from a result file of the benches, and the GPU's name.

    Rows of other ops, of kernels that are not built, or without times are left out.

    Args:
        path: ``validation.json`` or ``bench.json`` of ``bench/validate_gpu.sh``, its
            ``bench.jsonl``, or a JSON list of such rows.

    Raises:
        ValueError: the file is none of these, a row is not as the benches write it, or there are
            no times of built kernels.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error}") from error
    try:
        found = json.loads(text)
    except ValueError:
        found = _read_lines(path, text)
    try:
        rows, name = _rows_of(found)
        times = _times_of(rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not times:
        raise ValueError(f"{path} has no row with m, n, k, kernel, schedule and us of a kernel")
    return times, name


def _read_lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(
                f"{path} is neither JSON nor JSON lines: line {number}: {error}"
            ) from error
    return rows


def _rows_of(found: Any) -> tuple[list[Any], str | None]:
    """The rows of a file and the name of the GPU, if it tells it."""
    if not isinstance(found, dict):
        return found if isinstance(found, list) else [], None
    environment = found.get("environment", {})
    _require(isinstance(environment, dict), "environment must be an object", environment)
    name = environment.get("gpu")
    _require(name is None or isinstance(name, str), "environment.gpu must be a string", name)
    rows = found.get("bench")  # null where it was not run
    rows = found if rows is None else rows
    _require(isinstance(rows, (dict, list)), "bench must be an object or a list", rows)
    if isinstance(rows, dict):
        rows = rows.get("rows", [rows])
        _require(isinstance(rows, list), "rows must be a list", rows)
    return rows, name


def _times_of(rows: Sequence[Any]) -> Times:
    known = {kernel["name"] for kernel in kernel_metadata() if kernel["family"] == _FAMILY}
    times: Times = {}
    for number, row in enumerate(rows, 1):
        place = f"row {number}"
        try:
            _require(isinstance(row, dict), "must be an object", row)
            if not {"m", "n", "k"} <= row.keys():
                continue
            shape = _shape_of(row)
            candidates = row.get("candidates", [])
            _require(isinstance(candidates, list), "candidates must be a list", candidates)
            for index, way in enumerate([row, *candidates]):
                place = f"row {number}, candidate {index}" if index else place
                _require(isinstance(way, dict), "must be an object", way)
                if {"kernel", "schedule", "us"} <= way.keys():
                    kernel, schedule, us = _time_of(way)
                    if kernel in known:
                        times.setdefault(shape, {})[kernel, schedule] = us
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return times


def _shape_of(row: Mapping[str, Any]) -> Shape:
    sizes = {name: row[name] for name in ("m", "n", "k")}
    if row.get("num_sms") is not None:
        sizes["num_sms"] = row["num_sms"]
    for name, size in sizes.items():
        _require(not isinstance(size, bool), f"{name} must be an integer", size)
        check_integer(name, size, 1, MAX_SIZE)
    check_gemm_sizes(row["m"], row["n"], row["k"])
    return Shape(row["m"], row["n"], row["k"], row.get("num_sms"))


def _time_of(way: Mapping[str, Any]) -> tuple[str, tuple[int, ...], float]:
    """Kernel, schedule and microseconds."""
    kernel, schedule, us = way["kernel"], way["schedule"], way["us"]
    _require(isinstance(kernel, str), "kernel must be a string", kernel)
    _require(
        isinstance(schedule, list)
        and len(schedule) == 3
        and all(type(extent) is int and extent > 0 for extent in schedule),
        "schedule must be three positive integers",
        schedule,
    )
    _require(
        type(us) in (int, float) and 0 < us <= sys.float_info.max,
        "us must be a positive number",
        us,
    )
    return kernel, tuple(schedule), float(us)


def _require(holds: bool, requirement: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{requirement}, got {reprlib.repr(value)}")


def modelled(gpu: _C.GpuModel, times: Times) -> dict[Shape, dict[Way, float]]:
    """The model's microseconds of all that was measured and that the model knows."""
    configs = {kernel["name"]: kernel["config"] for kernel in kernel_metadata()}
    found: Times = {}
    for shape, measured in times.items():
        ranked = native().explain_fp8_gemm_nt(
            shape.m,
            shape.n,
            shape.k,
            _BFLOAT16_BYTES,
            gpu,
            num_sms=shape.num_sms,
            configs={kernel: configs[kernel] for kernel, _ in measured},
        )
        every = {(c.kernel, tuple(c.schedule)): float(c.cost["total_us"]) for c in ranked}
        found[shape] = {way: every[way] for way in measured if way in every}
    return found


def _errors(gpu: _C.GpuModel, times: Times) -> _Vector:
    return np.array(
        [
            math.log(us / times[shape][way])
            for shape, ways in modelled(gpu, times).items()
            for way, us in ways.items()
        ]
    )


def fit(gpu: _C.GpuModel, times: Times) -> Fit:
    """The constants with which the model comes closest to the measured times.

    Raises:
        ValueError: there are fewer times of candidates that the model knows than constants.
    """
    start = np.log([gpu.constants[name] for name in FITTED])
    point, errors = start, _errors(gpu, times)
    if errors.size < len(FITTED):
        raise ValueError(
            f"{errors.size} of its times are of candidates that the model knows; "
            f"{len(FITTED)} constants need at least as many"
        )
    before = errors
    damping = 1e-3
    for _ in range(_MAX_ITERATIONS):
        weights = _weights(errors)
        derivatives = _derivatives(gpu, times, point, errors)
        pull = _PRIOR_WEIGHT**2
        matrix = derivatives.T @ (weights[:, None] * derivatives) + pull * np.eye(len(point))
        slope = derivatives.T @ (weights * errors) + pull * (point - start)
        step = -np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), slope)
        moved = _within_bounds(point + np.clip(step, -0.5, 0.5))
        moved_errors = _errors(_at(gpu, moved), times)
        if _loss(moved_errors, weights, moved - start) < _loss(errors, weights, point - start):
            change = np.abs(moved - point).max()
            point, errors, damping = moved, moved_errors, damping / 5
            if change < _CONVERGED:
                break
        elif damping > 1e6:
            break
        else:
            damping *= 10
    return Fit(gpu, _at(gpu, point), before, errors)


def _at(gpu: _C.GpuModel, point: _Vector) -> _C.GpuModel:
    values = dict(zip(FITTED, np.exp(point).tolist(), strict=True))
    return gpu.replaced(values)


def _within_bounds(point: _Vector) -> _Vector:
    most = [0.0 if name in _SHARES else math.inf for name in FITTED]
    return np.minimum(point, most)


def _derivatives(gpu: _C.GpuModel, times: Times, point: _Vector, errors: _Vector) -> _Vector:
    columns = []
    for index in range(len(point)):
        moved = point.copy()
        moved[index] -= _STEP  # downwards: a share may be at its bound
        columns.append((errors - _errors(_at(gpu, moved), times)) / _STEP)
    return np.stack(columns, axis=1)


def _weights(errors: _Vector) -> _Vector:
    """1, less for errors far outside of what most have."""
    deviation = 1.4826 * float(np.median(np.abs(errors))) + 1e-9  # of a normal distribution
    weights: _Vector = np.minimum(1.0, _HUBER * deviation / np.maximum(np.abs(errors), 1e-12))
    return weights


def _loss(errors: _Vector, weights: _Vector, moved: _Vector) -> float:
    return float(np.sum(weights * errors**2) + _PRIOR_WEIGHT**2 * np.sum(moved**2))


class Choice(NamedTuple):
    """What the model would choose among the measured ways of a shape, and the best one."""

    shape: Shape
    chosen: Way
    best: Way
    loss: float  # measured time of the chosen over the best one's, less 1


def choices(gpu: _C.GpuModel, times: Times) -> list[Choice]:
    """For every shape of which more than one way was measured, the greatest loss first."""
    found = []
    for shape, ways in modelled(gpu, times).items():
        if len(ways) < 2:
            continue
        measured = times[shape]
        chosen = min(ways, key=ways.__getitem__)
        best = min(ways, key=measured.__getitem__)
        found.append(Choice(shape, chosen, best, measured[chosen] / measured[best] - 1))
    return sorted(found, key=lambda choice: -choice.loss)


def run(path: Path, gpu_name: str | None, console: Console) -> int:
    """The command ``python -m pykernels calibrate``."""
    times, measured_on = read_results(path)
    name = gpu_name or measured_on
    known = native().find_gpu_model(name) if name else None
    if known is None:
        names = ", ".join(gpu.name for gpu in native().gpu_models())
        raise ValueError(f"the GPU of {path} is {name or 'not told'}; --gpu must be one of {names}")
    try:
        found = fit(known, times)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    count = found.errors_before.size
    console.print(f"{count} times of {len(times)} shapes on {name}; constants of {known.name}\n")
    _print_errors(found, times, console)
    console.print("\ncsrc/gemm/gpu_model.cpp:", highlight=False)
    for line in constant_lines(found, f"fitted to {count} times of {path.name}"):
        console.print(line, highlight=False, markup=False)
    _print_losses(choices(found.after, times), console)
    return 0


def _print_errors(found: Fit, times: Times, console: Console) -> None:
    from rich.table import Table

    table = Table("", "median error", "90 % within", "choices: mean loss", "greatest loss")
    for title, gpu, errors in (
        ("before", found.before, found.errors_before),
        ("after", found.after, found.errors_after),
    ):
        sizes = np.exp(np.abs(errors)) - 1
        losses = [choice.loss for choice in choices(gpu, times)] or [0.0]
        table.add_row(
            title,
            f"{np.median(sizes):.1%}",
            f"{np.quantile(sizes, 0.9):.1%}",
            f"{np.mean(losses):.1%}",
            f"{max(losses):.1%}",
        )
    console.print(table)


def constant_lines(found: Fit, source: str) -> list[str]:
    """The fitted constants as the table of GPUs has them."""
    after: Mapping[str, float] = found.after.constants
    before: Mapping[str, float] = found.before.constants
    return [
        f"  gpu.{name} = {after[name]:.4g};  // {source}; was {before[name]:.4g}" for name in FITTED
    ]


def _print_losses(found: Sequence[Choice], console: Console) -> None:
    from rich.table import Table

    losing = [choice for choice in found if choice.loss > _TOLD_LOSS]
    if not losing:
        console.print(f"\nno choice loses more than {_TOLD_LOSS:.0%} against the best measured one")
        return
    table = Table("shape", "the model chooses", "the best measured", "loss", title="lost choices")
    for choice in losing:
        named = [
            f"{kernel} {'x'.join(map(str, by))}" for kernel, by in (choice.chosen, choice.best)
        ]
        table.add_row(str(choice.shape), *named, f"{choice.loss:.1%}")
    console.print(table)
