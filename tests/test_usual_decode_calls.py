"""What mla_decode's host path accepts at once, its checks accept too; and the usual calls are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pykernels
from pykernels import mla
from pykernels.mla_checks import MlaPlan
from pykernels.mla_decode_checks import check_mla_decode
from pykernels.native import native, tensor_parts
from pykernels.usual_decode_calls import (
    is_usual_decode_call,
    usual_decode_outputs,
    usual_decode_parts,
)
from tests.mla_cases import LATENT, SOFTMAX_SCALE, MlaCase, Operands

CASES = [
    MlaCase((70, 0, 33), 5, "three requests", seqlen_q=2, page_size=16),
    MlaCase((70, 3), 16, "two requests", fp8=True),
    MlaCase((5,), 128, "one request", page_size=1),
]
FEW: dict[str, Any] = {"num_sms": 4}  # whose plans are small
PLANS: list[dict[str, Any]] = [FEW, {"batch_invariant": True}, {"num_sms": 1}]

Call = dict[str, Any]


@functools.cache
def operands_of(case: MlaCase) -> Operands:
    return case.operands()


def usual_call(case: MlaCase, plan_options: dict[str, Any]) -> Call:
    operands = operands_of(case)
    out, lse = operands.poisoned_outputs()
    plan = operands.plan(**plan_options)
    return {
        "q_nope": operands.q[..., :LATENT],
        "q_rope": operands.q[..., LATENT:],
        "kv_cache": operands.kv_cache,
        "block_table": operands.block_table,
        "cache_seqlens": operands.cache_seqlens,
        **plan._asdict(),
        "softmax_scale": SOFTMAX_SCALE,
        "out": out,
        "lse": lse,
    }


def narrowed(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.narrow(dim, 0, t.size(dim) - 1) if t.dim() > dim and t.size(dim) else t


def spread(dim: int, by: int) -> Callable[[Tensor], Tensor]:
    """The same shape and type, with another stride in one dimension."""

    def change(tensor: Tensor) -> Tensor:
        if tensor.dim() <= dim:
            return tensor
        strides = list(tensor.stride())
        strides[dim] = max(strides[dim] + by, 0)
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True) if n > 0)
        return torch.zeros(max(span, 1), dtype=tensor.dtype).as_strided(tensor.shape, strides)

    return change


def doubled(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.cat([t, t], dim) if t.dim() > dim else t


def late(tensor: Tensor) -> Tensor:
    """It starts an element after a multiple of 16 bytes."""
    return torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)


ODD: list[Callable[[Tensor], Tensor]] = [
    *(narrowed(dim) for dim in range(4)),
    *(doubled(dim) for dim in range(4)),
    *(spread(dim, by) for dim in range(4) for by in (1, 8, -8, 16)),
    late,
    lambda t: t[None],
    lambda t: t[0] if t.dim() and t.size(0) else t,
    lambda t: t[:0],
    lambda t: t.to("meta"),
    lambda t: t.transpose(0, -1),
    lambda t: t.to(torch.float32),
    lambda t: t.to(torch.int64),
    lambda t: t.view(torch.float8_e4m3fn) if t.dtype == torch.uint8 else t.bfloat16(),
    lambda t: t.expand(2, *t.shape[1:]) if t.dim() and t.size(0) == 1 else t,
]
TENSORS = [
    "q_nope", "q_rope", "kv_cache", "block_table", "cache_seqlens", *MlaPlan._fields[:-1], "out",
    "lse",
]  # fmt: skip
ODDITIES = [(name, i) for name in TENSORS for i in range(len(ODD))]
INPUTS = TENSORS[:5]
PLAN = TENSORS[5:10]


def accepted(call: Call) -> tuple[bool, bool]:
    """Whether inputs and results are accepted at once; if so, the checks must agree."""
    inputs, plan = [call[name] for name in INPUTS], [call[name] for name in PLAN]
    scale = call["softmax_scale"]
    arguments: Any = *inputs, *plan, scale
    parts = usual_decode_parts(*arguments)
    if parts is None:
        return False, False
    decode = mla._call_of((*inputs, *plan, scale, True))
    check_mla_decode(decode, None)
    tensors = [*inputs, *plan]
    if tensors[2].dtype == torch.uint8:
        tensors[2] = tensors[2].view(torch.float8_e4m3fn)
    as_view = native().as_tensor_view
    for mine, tensor in zip(parts, tensors, strict=True):
        assert repr(as_view(mine)) == repr(as_view(tensor_parts(tensor)))
        assert mine[0] == tensor.data_ptr()
    results = usual_decode_outputs(call["out"], call["lse"], call["q_nope"], parts)
    if results is None:
        return True, False
    check_mla_decode(decode, (call["out"], call["lse"]))
    for mine, tensor in zip(results, (call["out"], call["lse"]), strict=True):
        assert mine == tensor_parts(tensor)
    return True, True


@pytest.mark.parametrize("options", PLANS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_usual_calls_are_accepted(case: MlaCase, options: dict[str, Any]) -> None:
    call = usual_call(case, options)
    assert accepted(call) == (True, True)
    plan = MlaPlan(*(call[name] for name in MlaPlan._fields))
    inputs = tuple(call[name] for name in INPUTS)
    for out in (None, (call["out"], call["lse"])):
        assert is_usual_decode_call(inputs, SOFTMAX_SCALE, True, plan, False, out)


@settings(max_examples=200, deadline=None)
@given(
    case=st.sampled_from(CASES),
    options=st.sampled_from(PLANS),
    oddities=st.lists(st.sampled_from(ODDITIES), min_size=1, max_size=2),
    scale=st.sampled_from([SOFTMAX_SCALE] * 9 + [0.0, -1.0, float("nan"), 1e-40, 3e38]),
)
def test_what_is_accepted_the_checks_accept(
    case: MlaCase, options: dict[str, Any], oddities: list[tuple[str, int]], scale: float
) -> None:
    call = usual_call(case, options) | {"softmax_scale": scale}
    for name, i in oddities:
        call[name] = ODD[i](call[name])
    event(str(accepted(call)))


@pytest.mark.parametrize("name", TENSORS)
def test_each_oddity_alone(name: str) -> None:
    """None is accepted that the checks refuse, for every tensor and oddity."""
    for case in CASES:
        for odd in ODD:
            call = usual_call(case, FEW)
            accepted(call | {name: odd(call[name])})


@pytest.mark.parametrize("name", ["q_nope", "kv_cache", "block_table", "items", "lse"])
def test_results_in_memory_that_is_read_are_not_usual(name: str) -> None:
    call = usual_call(CASES[0], FEW)
    shape, size = call["out"].shape, call["out"].numel()
    memory = torch.zeros(10 * size, dtype=torch.bfloat16)
    call["out"] = memory[:size].view(shape)
    other = memory[size // 2 : size // 2 + call[name].numel() * call[name].element_size() // 2]
    call[name] = other.view(call[name].dtype).view(call[name].shape)
    assert accepted(call) == (True, False)


@pytest.mark.parametrize(
    "change",
    [
        {"softmax_scale": 1},
        {"softmax_scale": float("inf")},
        {"causal": 1},
        {"plan": None},
        {"batch_invariant": True},
        {"batch_invariant": 0},
        {"out": torch.zeros(2)},
        {"out": (torch.zeros(2), None)},
        {"out": (torch.zeros(2), torch.zeros(2, requires_grad=True))},
        {"inputs": (None,) * 5},
        {"inputs": (torch.zeros(2).to_sparse(),) * 5},
        {"inputs": (torch.zeros(2, requires_grad=True),) * 5},
    ],
    ids=str,
)
def test_others_are_left_to_the_checks(change: dict[str, Any]) -> None:
    operands: Operands = CASES[0].operands()
    inputs: Any = dataclasses.astuple(operands)[:4]
    named = {
        "inputs": inputs,
        "softmax_scale": SOFTMAX_SCALE,
        "causal": True,
        "plan": operands.plan(),
        "batch_invariant": False,
        "out": None,
    }
    assert is_usual_decode_call(**named)
    assert not is_usual_decode_call(**(named | change))


def test_a_plan_that_is_none_of_tensors() -> None:
    operands = CASES[0].operands()
    missing: Any = None
    plan = operands.plan()._replace(items=missing)
    inputs: Any = dataclasses.astuple(operands)[:4]
    assert not is_usual_decode_call(inputs, SOFTMAX_SCALE, True, plan, False, None)
    with pytest.raises(ValueError, match=r"plan\.items must be a tensor"):
        operands.call(plan=plan)


def test_the_usual_way_leads_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = CASES[0].operands()
    with pykernels.emulate(num_sms=4):
        plan = operands.plan()
        expected = operands.call(plan=plan)
        for name in ("usual_decode_parts", "is_usual_decode_call"):
            monkeypatch.setattr(f"pykernels.mla.{name}", lambda *_: None)
        results = operands.call(plan=plan)
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual.view(torch.int16), wanted.view(torch.int16))
