"""A decode step on the CUDA path without a GPU: captured once, replayed for every step.

A recording driver runs what it gets in the emulator; CPU tensors stand in for CUDA tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.nn import CacheFullError, DecodeStep, MlaAttention
from tests.cases import assert_same_bits
from tests.nn.mla_models import HEADS, HIDDEN, IN_V3, PLAINEST, Layer, hidden_states, rotary
from tests.nn.played_graph import PlayedGraph
from tests.recording import Cuda

WAITS = ("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize")
BEGIN = (14, 3)  # tokens of two sequences that are there before
STEPS = 4  # over the border of a page of 16
each_layer = pytest.mark.parametrize("layer", [IN_V3, PLAINEST], ids=str)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Decoder:
    """Two layers, two sequences and an empty row; hidden states that stay where they are."""

    def __init__(self, layer: Layer, **options: Any) -> None:
        self.layers = [MlaAttention.from_float(layer.transformers(idx)) for idx in range(2)]
        self.rotary = rotary(self.layers[0])
        self.cache = layer.cache(num_layers=2, max_batch=3, **options)
        self.tokens = [hidden_states(length + STEPS, length) for length in BEGIN]
        self.x = torch.zeros(3, HIDDEN).bfloat16()
        prompt = self.cache.append(BEGIN)
        parts = [tokens[:length] for tokens, length in zip(self.tokens, BEGIN, strict=True)]
        embeddings = self.rotary(prompt.positions)
        x = torch.cat(parts)
        for attention in self.layers:
            x = x + attention(x, embeddings, prompt)
        self.step: DecodeStep = self.cache.decode_step(HEADS)

    def reserve(self, i: int) -> None:
        """What the host does before step i."""
        self.step.reserve()
        for row, tokens in enumerate(self.tokens):
            self.x[row] = tokens[BEGIN[row] + i]

    def decode(self) -> Tensor:
        """What a graph captures."""
        self.step.advance()
        embeddings = self.rotary(self.step.positions)
        x = self.x
        for attention in self.layers:
            x = x + attention(x, embeddings, self.step)
        return x


def described(launches: list[Any]) -> list[str]:
    """Kernel, grid, cluster, shared memory."""
    return [repr(recorded.launch) for recorded in launches]


@each_layer
def test_one_graph_for_all_steps(cuda: Cuda, layer: Layer) -> None:
    """Replays give what eager steps give, by the same launches; the host waits for nothing."""
    eager = Decoder(layer)
    expected = []
    for i in range(STEPS):
        eager.reserve(i)
        expected.append(eager.decode())

    decoder = Decoder(layer)
    waits = [cuda.driver.calls.get(name, 0) for name in WAITS]
    decoder.reserve(0)
    with PlayedGraph() as graph:
        out = decoder.decode()
    assert_same_bits(out, expected[0])
    assert graph.names.count("pykernels.mla_update_plan.default") == 1
    assert graph.names.count("pykernels.mla_decode.default") == 2
    replayed = []
    for i in range(1, STEPS):
        decoder.reserve(i)
        before = len(cuda.driver.launches)
        graph.replay()
        replayed.append(described(cuda.driver.launches[before:]))
        assert_same_bits(out, expected[i])
    assert [cuda.driver.calls.get(name, 0) for name in WAITS] == waits
    assert len(replayed[0]) > 10
    assert replayed[0] == replayed[1] == replayed[2]
    findings = [report["findings"] for _, report in cuda.emulator.reports]
    assert findings == [[]] * len(findings)
    assert decoder.cache.cache_seqlens.tolist() == [BEGIN[0] + STEPS, BEGIN[1] + STEPS, 0]


@each_layer
def test_the_driver_captures_the_whole_step(cuda: Cuda, layer: Layer) -> None:
    """Nothing runs at once, and a replay runs it all."""
    decoder = Decoder(layer)
    decoder.reserve(0)
    stream = cuda.driver.create_stream(0)
    before = len(cuda.driver.launches)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream), PlayedGraph():  # which keeps the memory
        decoder.decode()
        cuda.driver.end_capture()
        captured, num_run = cuda.driver.launches[before:], len(cuda.emulator.reports)
        cuda.driver.replay()
    assert len(captured) > 10
    assert all(recorded.captured and recorded.stream == stream for recorded in captured)
    assert not any(cuda.driver.calls.get(name, 0) for name in WAITS)
    assert cuda.driver.violations == []
    assert len(cuda.emulator.reports) - num_run == len(captured)


def test_a_full_cache_is_told_before_the_step(cuda: Cuda) -> None:
    decoder = Decoder(PLAINEST, num_pages=sum(BEGIN) + 3)
    decoder.cache.append([0, 0, 2])
    lengths, pages = decoder.cache.cache_seqlens.clone(), decoder.cache.block_table.clone()
    with pytest.raises(CacheFullError, match="1 free pages of 1 tokens, and this step needs 3"):
        decoder.step.reserve()
    assert torch.equal(decoder.cache.cache_seqlens, lengths)
    assert torch.equal(decoder.cache.block_table, pages)
    decoder.cache.free([1])
    decoder.step.reserve()
    pykernels.check_errors()


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "value": lambda x: float(x.sum()),
    "item": lambda x: x[0].item(),
    "list": lambda x: x.tolist(),
    "mask": lambda x: x[x > 1],
    "from the host": lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
    "condition": lambda x: x if x.sum() > 1 else -x,
    "to the host": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_is_noticed(what: str) -> None:
    with pytest.raises(AssertionError, match="waits"), PlayedGraph():
        WAITING[what](torch.ones(3))
