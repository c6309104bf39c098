"""The ``--device`` option and fixtures for all tests."""

from tests.device_option import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)
from tests.recording import cuda, make_cuda
from tests.registered_program import register_program

__all__ = [
    "cuda",
    "make_cuda",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "register_program",
]
