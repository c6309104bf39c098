"""pytest-benchmark of the emulator: ``pytest bench/bench_emulator.py``.

Each row is one program on one core; ``test_figures`` is the whole table of ``emulator_bench``, and
fails where a figure is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pykernels.emulator import Report

from . import emulator_bench, harness


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    with emulator_bench.one_core():
        yield


_PROGRAMS: dict[str, tuple[Callable[[], Callable[[], Report]], str]] = {
    "gemm, checks off": (lambda: emulator_bench.gemm(()), "tensor_multiply_adds"),
    "gemm, all checks": (lambda: emulator_bench.gemm("all"), "tensor_multiply_adds"),
    "wgmma": (emulator_bench.wgmma_loop, "tensor_multiply_adds"),
    "mixed loop, checks off": (lambda: emulator_bench.mixed_loop(()), "thread_instructions"),
    "mixed loop, race": (lambda: emulator_bench.mixed_loop({"race"}), "thread_instructions"),
    "mixed loop, all checks": (lambda: emulator_bench.mixed_loop("all"), "thread_instructions"),
    "numba product": (emulator_bench.numba_product, "thread_instructions"),
}


@pytest.mark.parametrize("name", list(_PROGRAMS))
def test_program(benchmark: Any, name: str) -> None:
    make, counter = _PROGRAMS[name]
    report = benchmark(make())
    benchmark.extra_info.update(harness.environment())
    benchmark.extra_info[counter] = getattr(report.counters, counter)


def test_figures() -> None:
    figures = emulator_bench.measure()
    emulator_bench.print_table(figures)
    missed = [figure for figure in figures if not figure.holds]
    assert not missed
