"""The ``--device`` option for the benches."""

from tests.device_option import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]
