"""A decode step of MoeLayer in a CUDA graph, without a GPU: replays with other tokens.

A recording driver runs what it gets in the emulator; CPU tensors stand in for CUDA tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import moe
from pykernels.nn import MoeLayer, forward_local_ranks
from tests.cases import assert_same_bits
from tests.moe.played_gpu import Played
from tests.nn.moe_models import DEEPSEEK
from tests.nn.played_moe_graph import PlayedGraph

NUM_SMS = 2  # of a rank
SEEDS = range(3)
BOTH = pytest.mark.parametrize("low_latency", [False, True], ids=["dispatch", "low_latency"])
SHARED = ["fp8_gemm_nt", "silu_mul_quantize_1x128", "fp8_gemm_nt"]
EXPERTS = ["grouped_fp8_gemm_nt", "silu_mul_quantize_1x128", "grouped_fp8_gemm_nt"]


@pytest.fixture(autouse=True)
def no_grad(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PYKERNELS_DEBUG", raising=False)
    with torch.no_grad():
        yield


def x_of(num_ranks: int, seed: int) -> list[Tensor]:
    """Of each rank other tokens: the last one has fewer."""
    return [DEEPSEEK.x(4 - rank, seed=10 * seed + rank) for rank in range(num_ranks)]


def use_buffer(layers: list[MoeLayer]) -> None:
    group = moe.LocalGroup(len(layers))
    buffer = layers[0].make_buffer(group, num_max_tokens_per_rank=4, num_sms=NUM_SMS)
    for layer in layers:
        layer.use_buffers(buffer)


def run(layers: list[MoeLayer], x: list[Tensor], low_latency: bool) -> list[Tensor]:
    if len(layers) == 1:
        return [layers[0](x[0], low_latency=low_latency)]
    return forward_local_ranks(layers, x, low_latency=low_latency)


def check_replays(
    make_played: Callable[..., Played],
    layers: list[MoeLayer],
    low_latency: bool,
    *,
    with_buffer: bool,
) -> list[str]:
    """Results and counts of each replay have the bits of a call in the emulator.

    Returns:
        The kernels of a replay, without what tells their configuration.
    """
    wanted = []
    with pykernels.emulate():
        if with_buffer:
            use_buffer(layers)
        for seed in SEEDS:
            outs = run(layers, x_of(len(layers), seed), low_latency)
            wanted.append((outs, [layer.expert_counts() for layer in layers]))
    played = make_played()
    if with_buffer:
        use_buffer(layers)
    x = x_of(len(layers), 77)
    waited = played.num_host_waits
    stream = played.driver.create_stream(0)
    with played.cuda.on(0, stream), played.gpu.capture(), PlayedGraph(played) as graph:
        outs = run(layers, x, low_latency)
    assert played.num_host_waits == waited
    assert played.cuda.emulator.reports == []
    for layer in layers:
        layer.expert_counts(reset=True)
    for seed in SEEDS:
        for each, other in zip(x, x_of(len(layers), seed), strict=True):
            each.copy_(other)
        for out in outs:
            out.fill_(torch.nan)
        graph.replay()
        for found, out in zip(outs, wanted[seed][0], strict=True):
            assert_same_bits(found, out)
        for layer, counts in zip(layers, wanted[seed][1], strict=True):
            assert torch.equal(layer.expert_counts(), counts)
    return [each.launch.kernel for each in played.driver.launches]


def assert_kernels(found: list[str], wanted: list[str]) -> None:
    assert len(found) == len(wanted)
    assert all(map(str.startswith, found, wanted)), found


def test_one_rank(make_played: Callable[..., Played]) -> None:
    kernels = check_replays(make_played, [DEEPSEEK.layer()], False, with_buffer=False)
    assert_kernels(kernels, ["quantize_1x128", *EXPERTS, *SHARED])


@BOTH
def test_one_rank_with_a_buffer(make_played: Callable[..., Played], low_latency: bool) -> None:
    check_replays(make_played, [DEEPSEEK.layer()], low_latency, with_buffer=True)


@BOTH
def test_two_ranks(make_played: Callable[..., Played], low_latency: bool) -> None:
    layers = DEEPSEEK.layers(2)
    kernels = check_replays(make_played, layers, low_latency, with_buffer=True)
    there, back = ["moe_layout"] * 2 + ["moe_dispatch"] * 2, ["moe_combine"] * 2
    if low_latency:  # shared experts between what sends and what receives
        wanted = [*there, *SHARED * 2, *["moe_dispatch"] * 2, *EXPERTS * 2, *back]
    else:
        wanted = [*there, *EXPERTS * 2, *SHARED * 2, *back]
    assert_kernels(kernels, ["quantize_1x128"] * 2 + wanted)
