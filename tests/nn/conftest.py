"""Fixtures of the modules' tests."""

from collections.abc import Iterator

import pytest
import torch._dynamo

from tests.moe.played_gpu import make_played

__all__ = ["make_played"]


@pytest.fixture(autouse=True)
def compile_anew() -> Iterator[None]:
    """What one test compiles counts neither for another nor towards torch's limit."""
    yield
    torch._dynamo.reset()
