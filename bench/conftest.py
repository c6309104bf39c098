"""The ``--device`` option for the benches, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pykernels import _C
from pykernels.native import native
from tests.device_option import pytest_collection_modifyitems

from . import contest, harness
from .problem import Options, Problem

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("none", "cuda"),
        default="none",
        help="with cuda, kernels are measured too; else only what runs before them on the host",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a Hopper GPU; runs with `--device cuda` only")
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda needs a GPU that torch can use; it finds none")


@pytest.fixture(scope="session")
def copy_gbps() -> float:
    return harness.copy_bandwidth()


@pytest.fixture
def measure(benchmark: Any, copy_gbps: float) -> Callable[[Problem[Any]], None]:
    """The GPU's own time stands in extra_info; the benchmark times one synchronised call."""

    def run(problem: Problem[Any]) -> None:
        row = contest.measure(problem, copy_gbps)
        benchmark.extra_info.update(row, **harness.environment())
        prepared = problem.prepare_op(Options(), problem.gpu_operands(seed=0))

        def call() -> None:
            prepared.call()
            torch.cuda.synchronize()

        benchmark(call)

    return run


@pytest.fixture
def driver() -> Iterator[_C.RecordingDriver]:
    """Takes launches and runs nothing."""
    native()  # registers the kernels
    with _C.RecordingDriver() as driver:
        driver.set_current_device(0)
        yield driver
