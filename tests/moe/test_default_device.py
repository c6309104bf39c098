"""Buffers where ``torch.set_default_device`` names another device than theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

import pykernels
from tests.moe.checking import HIDDEN, buffer_of, check_grouped, check_low_latency
from tests.moe.routings import Routing
from tests.moe_launch import NUM_SMS

ROUTING = Routing("uniform", (4, 3), 8, 2, 4)
ALONE = Routing("alone", (5,), 4, 4, 5)


@pytest.fixture
def group() -> Iterator[None]:
    """One rank, in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def with_gradients(routing: Routing, group: Any = "local") -> list[torch.Tensor]:
    batch = routing.batch(HIDDEN)
    lists = [batch.x, batch.topk_idx, batch.topk_weights]
    x, idx, weights = lists if group == "local" else [each[0] for each in lists]
    for tensor in (*batch.x, *batch.topk_weights):
        tensor.requires_grad_()
    with torch.device("meta"), buffer_of(routing, group=group) as buffer:
        recv_x, _, handle = buffer.dispatch(x, idx, weights)
        outs = buffer.combine(recv_x, handle)
        losses = [out.float().sum() for out in ([outs] if group is None else outs)]
        torch.stack(losses).sum().backward()
        buffer.check()
        buffer.wait_stats()
        buffer.reset()
    return [each.grad for each in (*batch.x, *batch.topk_weights) if each.grad is not None]


def test_a_local_group() -> None:
    batch = ROUTING.batch(HIDDEN)
    with torch.device("meta"):
        buffer = buffer_of(ROUTING)
        recv_x, _, handle = buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
        outs = buffer.combine(recv_x, handle)
    assert all(out.device.type == "cpu" for out in (*recv_x, *outs))
    assert len(with_gradients(ROUTING)) == 4


def test_torch_distributed(group: None) -> None:
    assert len(with_gradients(ALONE, None)) == 2


def test_the_kernels() -> None:
    """The record of their errors is in host memory, whatever the default."""
    with pykernels.emulate() as report:
        with torch.device("meta"):
            buffer = buffer_of(ROUTING, num_sms=NUM_SMS)
            buffer.check()
        batch = ROUTING.batch(HIDDEN)
        check_grouped(ROUTING, batch, buffer, batch.x)
        check_low_latency(ROUTING, buffer, "fp32", split=True)
        wrong = [torch.full_like(idx, ROUTING.num_experts) for idx in batch.topk_idx]
        with torch.device("meta"), pytest.raises(ValueError, match="topk_idx of rank 0 must be"):
            buffer.dispatch(batch.x, wrong, batch.topk_weights)
    assert not report.findings
