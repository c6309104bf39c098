"""Fixtures of the integrations' tests."""

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo


@pytest.fixture(autouse=True)
def _for_inference() -> Iterator[None]:
    with torch.no_grad():
        yield
    torch._dynamo.reset()
