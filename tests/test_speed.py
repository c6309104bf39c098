"""Figures that the project states for one core, each with a factor of two for a busy machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import pytest

import pykernels
from bench import emulator_bench, host_path
from pykernels.testing import gemm_operands


@pytest.fixture
def one_core() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("one_core")
def test_emulated_gemm_takes_under_a_second() -> None:
    """m=128, n=7168, k=2048 through the public op, checks off."""
    a, b = gemm_operands(128, 7168, 2048)
    seconds = []
    for _ in range(5):
        with pykernels.emulate(checks=()) as report:
            start = time.perf_counter()
            pykernels.fp8_gemm_nt(a, b)
            seconds.append(time.perf_counter() - start)
    assert report.counters.tensor_multiply_adds >= 128 * 7168 * 2048
    assert statistics.median(seconds) < 2 * 1.0, seconds


@pytest.mark.usefixtures("one_core")
def test_emulated_instructions_a_second() -> None:
    """FP8 WGMMA 8 G multiply-adds/s, ordinary PTX 2 G thread-instructions/s, with races 0.8."""
    assert emulator_bench.wgmma_rate() > 8.0 / 2
    assert emulator_bench.instruction_rate(()) > 2.0 / 2
    assert emulator_bench.instruction_rate({"race"}) > 0.8 / 2


@pytest.mark.usefixtures("one_core")
def test_numba_kernel_beats_its_simulator() -> None:
    """5,000 times the multiply-adds a second."""
    _, _, ratio = emulator_bench.numba_ratio()
    assert ratio > 5000 / 2


@pytest.mark.usefixtures("one_core")
def test_host_path_takes_microseconds() -> None:
    """An op call under 25 us, config and launch in C++ under 5 us: the best of many rounds."""
    figures = host_path.measure()
    best = {name: values["best_us"] for name, values in figures.items()}
    assert best["op"] < 2 * 25, figures
    assert best["op, options"] < 2 * 25, figures
    assert best["op, out="] < 2 * 25, figures
    assert best["C++"] < 2 * 5, figures
    assert best["C++, new shape"] < 2 * 5, figures


def test_parts_of_the_host_path_add_up() -> None:
    figures = host_path.measure(num_rounds=2)
    for statistic in ("median_us", "best_us"):
        parts = sum(figures[part][statistic] for part in host_path.PARTS)
        assert parts == pytest.approx(figures["op"][statistic])
    assert figures.keys() == host_path.PARTS.keys() | host_path.TOTALS.keys()
