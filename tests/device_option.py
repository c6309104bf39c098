"""A pytest plugin: ``--device``, where cases that go through ``tests.target`` run kernels."""

from __future__ import annotations

import pytest
import torch

from tests import target


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("emulator", "cuda"),
        default="emulator",
        help="run kernels in the emulator, or replay the same cases on a Hopper GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "gpu: needs a Hopper GPU; runs with `--device cuda` only, else is deselected"
    )
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda needs a GPU that torch can use; it finds none")
    target.select(config.getoption("--device"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device") == "cuda":
        return
    needs_gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    config.hook.pytest_deselected(items=needs_gpu)
    items[:] = [item for item in items if item not in needs_gpu]
