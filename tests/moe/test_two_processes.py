"""Two processes of one node, on one GPU where there is one (``--device cuda``), else on CPUs.

On a GPU these are the kernels over peer memory: windows of another process, and what happens when
that process is killed. The GPU runs the processes in turns, so calls take milliseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels import reference
from tests import target
from tests.moe import gloo_calls
from tests.moe.checking import same_bits
from tests.moe.gloo import run_ranks
from tests.moe.routings import Routing

ROUTING = Routing("uniform", (6, 4), 8, 3, 6)


def device() -> str:
    return "cuda:0" if target.selected().kind == "cuda" else "cpu"


def test_two_processes() -> None:
    """Whole calls, and halves on a buffer beside."""
    answers = run_ranks(2, gloo_calls.exchange_on, device(), ROUTING, timeout=180)
    batch = ROUTING.batch(gloo_calls.HIDDEN)
    expected = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=8)
    y = [rows for rows, _ in expected if isinstance(rows, Tensor)]
    exact = reference.moe_combine(y, batch.topk_idx, batch.topk_weights, num_experts=8)
    for rank, (rows, offsets, out, counts) in enumerate(answers):
        assert torch.equal(offsets, expected[rank][1])
        assert same_bits(rows, y[rank])
        assert same_bits(out, exact[rank])
        goes = [(idx // 4 == rank).any(dim=1).sum() for idx in batch.topk_idx]
        assert counts.tolist() == goes


def test_a_killed_process() -> None:
    """The other one gets an error in time, leaves it out, and works on."""
    survivor, killed = run_ranks(2, gloo_calls.peer_dies_on, device(), ROUTING, timeout=180)
    assert killed is None
    error, seconds, out = survivor
    assert error.startswith("MoeTimeoutError: rank 0 waited for rank 1")
    assert seconds < 15
    batch = ROUTING.batch(gloo_calls.HIDDEN)
    received = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=8, masked_ranks=[1])
    y = [rows for rows, _ in received if isinstance(rows, Tensor)]
    (exact, _) = reference.moe_combine(
        y, batch.topk_idx, batch.topk_weights, num_experts=8, masked_ranks=[1]
    )
    assert same_bits(out, exact)
