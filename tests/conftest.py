"""The ``--device`` option and the recording driver for all tests."""

from tests.device_option import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)
from tests.recording import cuda, make_cuda

__all__ = [
    "cuda",
    "make_cuda",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
]
