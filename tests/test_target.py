"""The copies through which cases reach a GPU, with copies on the CPU in their place."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tests.target import Copies


def test_strides_and_surroundings_are_kept() -> None:
    storage = torch.arange(64, dtype=torch.float32)
    view = storage[4:60].view(8, 7)[:, ::3]
    moved = Copies("cpu").moved(view)
    assert torch.equal(moved, view)
    assert moved.stride() == view.stride()
    assert moved.storage_offset() == view.storage_offset()
    assert moved.data_ptr() != view.data_ptr()
    assert torch.equal(moved.as_strided((64,), (1,), 0), storage)


def test_results_come_back_into_the_tensors() -> None:
    storage = torch.zeros(16)
    out, pair = storage[::2], (torch.ones(3), "name")
    copies = Copies("cpu")
    moved = copies.moved({"out": out, "pair": pair})
    moved["out"].fill_(5)
    assert not storage.any()
    copies.bring_back()
    assert storage.tolist() == [5, 0] * 8
    new = torch.ones(2)
    result = copies.original((moved["out"], new))
    assert result[0] is out
    assert torch.equal(result[1], new)
    assert moved["pair"][1] == "name"


def test_tensors_of_one_storage_stay_together() -> None:
    storage = torch.arange(8.0)
    copies = Copies("cpu")
    first, second = copies.moved((storage[:4], storage[2:]))
    first[3] = 9
    assert second[1] == 9


class Named(NamedTuple):
    """Tensors and what they are for."""

    tensor: torch.Tensor
    what: str


def test_named_tuples_stay_such() -> None:
    named = Named(torch.ones(3), "a plan")
    copies = Copies("cpu")
    moved = copies.moved(named)
    assert isinstance(moved, Named)
    assert moved.what == "a plan"
    assert copies.original(moved).tensor is named.tensor


def test_empty_tensors() -> None:
    copies = Copies("cpu")
    assert copies.moved(torch.empty(0, 4, dtype=torch.float8_e4m3fn)).shape == (0, 4)
    copies.bring_back()
