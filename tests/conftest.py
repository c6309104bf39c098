"""The ``--device`` option for all tests."""

from tests.device_option import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]
