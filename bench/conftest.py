"""The ``--device`` option for the benches."""

from __future__ import annotations

import pytest
import torch

from tests.device_option import pytest_collection_modifyitems

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
