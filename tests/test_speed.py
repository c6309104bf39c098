"""Figures that the project states for one core, each with a factor of two for a busy machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import pytest

import pykernels
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
