"""Spoilt arguments: what the tests of the checks change, and the message that is expected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One spoilt argument and what the message must say."""

    name: str
    change: Callable[[dict[str, Any]], Any]
    message: str

    def __str__(self) -> str:
        return self.name


def put(**changes: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda arguments: {name: change(arguments) for name, change in changes.items()}


def misaligned(tensor: Tensor) -> Tensor:
    """The same values, one element past a 16-byte boundary."""
    storage = torch.empty(tensor.numel() + 16, dtype=tensor.dtype)
    view = storage[1 : 1 + tensor.numel()].view(tensor.shape)
    return view.copy_(tensor)


def padded(tensor: Tensor, columns: int) -> Tensor:
    """The same values with rows ``columns`` elements apart."""
    storage = torch.zeros(*tensor.shape[:-1], columns, dtype=tensor.dtype)
    storage[..., : tensor.size(-1)] = tensor
    return storage[..., : tensor.size(-1)]
