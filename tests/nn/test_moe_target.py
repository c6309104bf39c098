"""Whole MoE layers, on one rank and on four of one process, in the emulator or on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pykernels import moe
from pykernels.nn import MoeLayer, forward_local_ranks
from tests import target
from tests.nn.moe_models import DEEPSEEK, Model, assert_as_fp8
from tests.nn.test_moe import counts_of
from tests.nn.test_moe_ranks import NUM_SMS, NUM_TOKENS, x_of


def forward(
    x: Sequence[Tensor], layers: Sequence[MoeLayer], low_latency: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Results and counts of each rank, on the tensors' device."""
    device = x[0].device
    moved = [copy.deepcopy(layer).to(device) for layer in layers]
    num_sms = NUM_SMS if device.type == "cpu" else None
    with torch.no_grad():
        if len(layers) == 1:
            outs = [moved[0](x[0])]
        else:
            group, most = moe.LocalGroup(len(layers)), max(NUM_TOKENS)
            with moved[0].make_buffer(
                group, num_max_tokens_per_rank=most, num_sms=num_sms
            ) as buffer:
                for layer in moved:
                    layer.use_buffers(buffer)
                outs = forward_local_ranks(moved, x, low_latency=low_latency)
                buffer.check()
        return outs, [layer.expert_counts() for layer in moved]


def check(model: Model, x: list[Tensor], low_latency: bool) -> None:
    layers = model.layers(len(x))
    (outs, counts), _ = target.selected().call(forward, x, layers, low_latency)
    tokens = torch.cat(x)
    assert_as_fp8(torch.cat(outs), model, tokens, len(x), emulated=True)
    assert torch.equal(torch.cat(counts), counts_of(model, tokens))


@pytest.mark.parametrize("num_tokens", [0, 1, 9])
def test_one_rank(num_tokens: int) -> None:
    check(DEEPSEEK, [DEEPSEEK.x(num_tokens)], False)


@pytest.mark.parametrize("low_latency", [False, True], ids=["dispatch", "low_latency"])
@pytest.mark.parametrize("num_tokens", [NUM_TOKENS, (0, 0, 0, 0)], ids=["some", "none"])
def test_four_ranks(num_tokens: tuple[int, ...], low_latency: bool) -> None:
    check(DEEPSEEK, x_of(DEEPSEEK, num_tokens), low_latency)
