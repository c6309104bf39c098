"""What a call of ``fp8_gemm_nt`` costs the host before a kernel runs, in parts.

The recording driver takes the launches and runs nothing, and CPU tensors stand in for CUDA ones: an
allocation is malloc's instead of the caching allocator's, and torch is not asked for its stream.
``python -m bench.host_path`` prints the table.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pykernels import gemm
from pykernels.device import launch_device
from pykernels.native import Matrix, native, tensor_view
from pykernels.testing import gemm_operands
from pykernels.usual_calls import is_usual_gemm_call, usual_gemm_operands

Step = Callable[[], object]
Figures = dict[str, dict[str, float]]

SIZES = (128, 1024, 512)  # the host does the same work for any
_NUM_ROUNDS = 200
_NUM_CALLS = 10  # of a step in a round

PARTS = {
    "checks": "of the public function and of the op, for a usual call",
    "dispatch": "torch's, of an op implemented in Python",
    "allocation": "torch.empty",
    "device": "a CudaDevice of the tensor's GPU and stream",
    "config": "choice of the kernel (remembered), tensor maps, arguments",
    "launch": "cuLaunchKernelEx and its checks",
    "rest": "Python between the parts, which also run slower in turn than alone",
}
TOTALS = {
    "op": "fp8_gemm_nt(a, b)",
    "op, options": "with out_dtype=float32, num_sms=100, batch_invariant=True",
    "op, out=": "fp8_gemm_nt(a, b, out=out)",
    "C++": "config and launch, in C++ with the binding",
    "C++, new shape": "the same where the choice is not remembered",
}


def _first_gpu(tensor: Tensor) -> tuple[int, int]:
    """Stands in for pykernels.device.cuda_stream."""
    return 0, 0


@contextmanager
def recorded_launches() -> Iterator[Any]:
    """Within, calls on CPU tensors take the CUDA path, into the recording driver it yields."""
    with (
        native().RecordingDriver() as driver,
        mock.patch("pykernels.device.cuda_stream", _first_gpu),
    ):
        driver.set_current_device(0)
        yield driver


def measure(num_rounds: int = _NUM_ROUNDS) -> Figures:
    """Microseconds of each part and total, from each step's median (``median_us``) and least time.

    Every round calls every step, so that what else the machine does meets all of them; the least
    times (``best_us``) are those of an idle machine.
    """
    with recorded_launches() as driver:
        steps = _steps()
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(num_rounds):
            for name, step in steps.items():
                times[name].append(_microseconds(step))
            driver.clear_launches()
    median = _parts({name: statistics.median(values) for name, values in times.items()})
    best = _parts({name: min(values) for name, values in times.items()})
    return {name: {"median_us": median[name], "best_us": best[name]} for name in median}


def report(console: Console) -> Figures:
    """Measures, prints the table, and returns the figures."""
    figures = measure()
    m, n, k = SIZES
    table = Table(title=f"Host path of fp8_gemm_nt, m={m} n={n} k={k}, recording driver: us a call")
    for column in ("", "median", "best"):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("what")
    for name, what in (PARTS | TOTALS).items():
        if name == next(iter(TOTALS)):
            table.add_section()
        values = figures[name]
        table.add_row(name, f"{values['median_us']:.2f}", f"{values['best_us']:.2f}", what)
    console.print(table)
    return figures


def _steps() -> dict[str, Step]:
    """What is timed: whole calls, and what they call."""
    (m, n, k), dtype = SIZES, torch.bfloat16
    a, b = gemm_operands(m, n, k)
    out = torch.empty(m, n, dtype=dtype)
    operands = usual_gemm_operands(*a, *b, None)
    assert operands is not None
    views = (*operands, tensor_view(out))
    device: Any = launch_device(out)
    extension = native()
    launch = extension.make_fp8_gemm_nt_launch(device, *views)
    others = itertools.cycle(_other_shapes(views))
    choose = None, None, None, False
    overload = torch.ops.pykernels.fp8_gemm_nt.default
    return {
        "op": lambda: gemm.fp8_gemm_nt(a, b),
        "op, options": lambda: gemm.fp8_gemm_nt(
            a, b, out_dtype=torch.float32, num_sms=100, batch_invariant=True
        ),
        "op, out=": lambda: gemm.fp8_gemm_nt(a, b, out=out),
        "overload": lambda: overload(*a, *b),
        "implementation": lambda: gemm._allocate(*a, *b),
        "call checks": lambda: is_usual_gemm_call(a, b, None, dtype, None, False),
        "op checks": lambda: usual_gemm_operands(*a, *b, None),
        "allocation": lambda: torch.empty(m, n, dtype=dtype, device=out.device),
        "device": lambda: launch_device(out),
        "launch": lambda: device.run(launch),
        "C++": lambda: extension.fp8_gemm_nt(device, *views, *choose),
        "C++, new shape": lambda: extension.fp8_gemm_nt(device, *next(others), *choose),
    }


def _other_shapes(views: tuple[Matrix, ...]) -> list[tuple[Matrix, ...]]:
    """Parts of the operands: more shapes than a thread remembers choices of."""
    a, sfa, b, sfb, out = views

    def part(matrix: Matrix, rows: int, columns: int) -> Matrix:
        address, _, _, pitch, step, dtype = matrix
        return address, rows, columns, pitch, step, dtype

    m, n, k = SIZES
    k_blocks = sfa[2]
    return [
        (
            part(a, rows, k),
            part(sfa, rows, k_blocks),
            part(b, columns, k),
            sfb,
            part(out, rows, columns),
        )
        for rows in range(1, m + 1)
        for columns in range(n - 56, n + 1, 8)
    ]


def _parts(steps: dict[str, float]) -> dict[str, float]:
    """The parts and totals, from the times of the steps."""
    parts = {
        "checks": steps["call checks"] + steps["op checks"],
        "dispatch": steps["overload"] - steps["implementation"],
        "allocation": steps["allocation"],
        "device": steps["device"],
        "config": steps["C++"] - steps["launch"],
        "launch": steps["launch"],
    }
    parts["rest"] = steps["op"] - sum(parts.values())
    return parts | {total: steps[total] for total in TOTALS}


def _microseconds(step: Step) -> float:
    step()  # the step before it has left other things in the caches
    start = time.perf_counter()
    for _ in range(_NUM_CALLS):
        step()
    return (time.perf_counter() - start) / _NUM_CALLS * 1e6


if __name__ == "__main__":
    report(Console())
