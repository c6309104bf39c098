"""MLA decode on the CUDA path without a GPU: what the driver gets, graphs, errors.

A recording driver runs what it gets in the emulator; CPU tensors stand in for CUDA tensors.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.testing import Pair
from tests.cases import assert_same_bits
from tests.mla_cases import KERNEL_FLOOR, KERNEL_LSE, MlaCase, Operands, assert_close
from tests.recording import Cuda

FP8 = pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
CASE = MlaCase((300, 64, 0, 33), 5, "mixed", seqlen_q=2, page_size=16)
SHORT = MlaCase((40, 60, 33, 20), 5, "short", page_size=16)


def assert_right(actual: Pair, operands: Operands) -> None:
    assert_close(actual, operands.exact(), KERNEL_FLOOR, KERNEL_LSE)


@FP8
def test_results(cuda: Cuda, fp8: bool) -> None:
    """The argument blocks that the driver gets run in the emulator, without findings."""
    operands = dataclasses.replace(CASE, fp8=fp8).operands()
    plan = operands.plan()
    out, lse = operands.poisoned_outputs()
    operands.call(plan=plan, out=(out, lse))
    assert_right((out, lse), operands)
    allocated = operands.call(plan=plan)
    assert_same_bits(allocated[0], out)
    assert_same_bits(allocated[1], lse)
    reports = cuda.emulator.reports
    assert [report["findings"] for _, report in reports] == [[]] * len(reports)


@FP8
def test_one_graph_for_all_lengths(cuda: Cuda, fp8: bool) -> None:
    """The update of the plan and a call, captured once; the host reads no length and no page."""
    operands = dataclasses.replace(CASE, fp8=fp8).operands()
    lengths, table = operands.cache_seqlens.clone(), operands.block_table.clone()
    plan, (out, lse) = operands.plan(), operands.poisoned_outputs()
    stream = cuda.driver.create_stream(0)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        operands.cache_seqlens.fill_(-77)  # whoever reads them now, finds them wrong
        operands.block_table.fill_(-77)
        pykernels.mla_update_plan(plan, operands.cache_seqlens)
        operands.call(plan=plan, out=(out, lse))
    cuda.driver.end_capture()
    assert cuda.last.captured
    assert bool((out == 7).all())
    operands.block_table.copy_(table)
    for changed in (lengths.tolist(), [0, 0, 0, 0], [1, 2, 0, 33], [299, 64, 0, 1]):
        operands.cache_seqlens.copy_(torch.tensor(changed))
        out.fill_(7.0)
        cuda.driver.replay()
        assert_right((out, lse), operands)
    pykernels.check_errors()


def put(what: str, *place: int, value: int) -> Callable[[Operands], Operands]:
    def change(operands: Operands) -> Operands:
        tensor: Tensor = getattr(operands, what).clone()
        tensor[place] = value
        return dataclasses.replace(operands, **{what: tensor})

    return change


# What is wrong of request 1, and what check_errors says of it.
ERRORS: dict[str, tuple[Callable[[Operands], Operands], str]] = {
    "length": (
        put("cache_seqlens", 1, value=97),
        "cache_seqlens of request 1 must be from 0 to 96, what its row of block_table reaches, got "
        "97; out and lse of this request are NaN",
    ),
    "page": (
        put("block_table", 1, 3, value=-1),
        "block_table of request 1 must name pages from 0 to 14, got -1; out and lse of this "
        "request are NaN",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("index", [0, 1])
def test_wrong_values_are_raised_once_by_check_errors(
    cuda: Cuda, name: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the call, nor for the other GPU; the other requests are right."""
    monkeypatch.delenv("PYKERNELS_DEBUG", raising=False)
    change, message = ERRORS[name]
    operands = SHORT.operands()
    exact = operands.exact()
    out, lse = operands.poisoned_outputs()
    with cuda.on(index, cuda.driver.create_stream(index)):
        change(operands).call(out=(out, lse))
    assert (cuda.last.device_index, cuda.last.stream != 0) == (index, True)
    assert "cuStreamSynchronize" not in cuda.driver.calls
    pykernels.check_errors(1 - index)
    whole = re.escape(f"{message} (CUDA device {index})")
    with pytest.raises(ValueError, match=f"^{whole}$"):
        pykernels.check_errors()
    pykernels.check_errors()
    assert bool(out[1].isnan().all())
    assert bool(lse[1].isnan().all())
    others = [0, 2, 3]
    right: Any = tuple(tensor[others] for tensor in exact)
    assert_close((out[others], lse[others]), right, KERNEL_FLOOR, KERNEL_LSE)


@pytest.mark.parametrize("name", ERRORS)
def test_with_debug_the_call_raises(cuda: Cuda, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYKERNELS_DEBUG", "1")
    change, message = ERRORS[name]
    operands = SHORT.operands()
    with cuda.on(0), pytest.raises(ValueError, match=re.escape(message)):
        change(operands).call()
    pykernels.check_errors()
    with cuda.on(0):
        assert_right(operands.call(), operands)
