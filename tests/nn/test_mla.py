"""MlaAttention against transformers in FP32 and an FP8 model of plain formulas."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.nn import DecodeStep, MlaAttention, PagedLatentCache, PrefillStep
from tests.cases import assert_same_bits
from tests.nn.mla_models import (
    HEADS,
    HIDDEN,
    IN_V3,
    LAYERS,
    PLAINEST,
    Expected,
    Layer,
    expected,
    hidden_states,
    rotary,
)

LENGTHS = (24, 9)  # of two sequences
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def emulated() -> Iterator[list[str]]:
    """The names of the kernels, which have no findings."""
    names: list[str] = []
    with pykernels.emulate(async_completion="late") as report:
        yield names
    report.raise_if_findings()
    names += [name for name, _ in report.launches]


class Sequences:
    """Two, and what a layer should give for each."""

    def __init__(self, layer: Layer) -> None:
        source = layer.transformers()
        self.attention = MlaAttention.from_float(source)
        self.rotary = rotary(self.attention)
        self.tokens = [hidden_states(length, seed) for seed, length in enumerate(LENGTHS)]
        self.expected = [expected(source, tokens, layer.fp8) for tokens in self.tokens]

    def run(self, step: PrefillStep | DecodeStep, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, self.rotary(step.positions), step)
        return result

    def prefill(self, kv: PagedLatentCache, until: Sequence[int]) -> list[Tensor]:
        """From where the cache ends."""
        start = kv.lengths
        step = kv.append([end - begin for begin, end in zip(start, until, strict=False)])
        parts = [
            tokens[begin:end] for tokens, begin, end in zip(self.tokens, start, until, strict=False)
        ]
        return list(self.run(step, torch.cat(parts)).split([len(part) for part in parts]))

    def decode(self, kv: PagedLatentCache, step: DecodeStep) -> list[Tensor]:
        """The next tokens; a row of its own for each sequence."""
        start = kv.lengths
        step.reserve()
        step.advance()
        parts = [
            tokens[begin : begin + step.seqlen_q]
            for tokens, begin in zip(self.tokens, start, strict=False)
        ]
        return list(self.run(step, torch.stack(parts)))


@cache
def sequences(layer: Layer) -> Sequences:
    return Sequences(layer)


def check(wanted: Expected, actual: Tensor, begin: int = 0) -> None:
    wanted.check(actual, slice(begin, begin + len(actual)))


@each_layer
def test_prefill(layer: Layer) -> None:
    """Of a ragged batch."""
    of = sequences(layer)
    for actual, wanted in zip(of.prefill(layer.cache(), LENGTHS), of.expected, strict=True):
        check(wanted, actual)


@each_layer
def test_prefill_then_decode(layer: Layer) -> None:
    """Token by token what the whole prefill gives."""
    of, kv = sequences(layer), layer.cache()
    begin = (15, 0)  # the second sequence begins in the decode
    of.prefill(kv, begin)
    step = kv.decode_step(HEADS)
    decoded: list[list[Tensor]] = [[], []]
    for i in range(9):
        start = kv.lengths
        step.reserve([True, True])
        step.advance()
        x = torch.stack([of.tokens[row][start[row]] for row in range(2)])
        for row, out in enumerate(of.run(step, x)):
            decoded[row].append(out)
        assert start == (15 + i, i)
    for row in range(2):
        check(of.expected[row], torch.stack(decoded[row]), begin[row])


@each_layer
def test_prefill_in_parts(layer: Layer) -> None:
    """With earlier tokens in the cache of one sequence, of both, and of none."""
    of, kv = sequences(layer), layer.cache()
    parts: list[list[Tensor]] = [[], []]
    for until in ((7, 0), (7, 5), (20, 8), LENGTHS):
        for row, out in enumerate(of.prefill(kv, until)):
            parts[row].append(out)
    for row in range(2):
        check(of.expected[row], torch.cat(parts[row]))


@each_layer
@pytest.mark.parametrize("seqlen_q", [1, 3])
def test_decode_on_the_kernels(layer: Layer, seqlen_q: int) -> None:
    of, kv = sequences(layer), layer.cache()
    begin = 20, 5
    with emulated() as names:
        of.prefill(kv, begin)
        step = kv.decode_step(HEADS, seqlen_q=seqlen_q)
        results = of.decode(kv, step)
    for row in range(2):
        check(of.expected[row], results[row], begin[row])
    assert [name for name in names if name.startswith("mla_decode")] == [
        f"mla_decode_{'fp8' if layer.fp8 else 'bf16'}_n{8 if seqlen_q == 1 else 16}"
    ]
    assert names.count("mla_cache_write") == 2


def test_prefill_on_the_kernels() -> None:
    of = sequences(IN_V3)
    with emulated() as names:
        results = of.prefill(IN_V3.cache(), LENGTHS)
    for actual, wanted in zip(results, of.expected, strict=True):
        check(wanted, actual)
    assert names.count("mla_cache_read") == 1


def test_several_layers_share_a_step() -> None:
    """Each has its own part of the cache."""
    layers = [MlaAttention.from_float(IN_V3.transformers(idx)) for idx in range(2)]
    kv, rotate = IN_V3.cache(num_layers=2), rotary(layers[0])
    step = kv.append([9])
    x = hidden_states(9)
    alone = layers[0](x, rotate(step.positions), step)
    assert bool((kv.layers[1] == 0xFF).all())
    assert_same_bits(layers[1](x, rotate(step.positions), step), alone)
    assert_same_bits(kv.layers[1], kv.layers[0])


def test_rows_left_alone_change_nothing() -> None:
    """Whatever the hidden states of the other rows are, and however many rows there are."""
    of, kv = sequences(PLAINEST), PLAINEST.cache(max_batch=3)
    of.prefill(kv, (0, 8))
    step = kv.decode_step(HEADS, batch_invariant=True)
    kept = kv.layers[0].clone()
    step.reserve()
    step.advance()
    x = torch.full((3, HIDDEN), torch.nan).bfloat16()
    x[1] = of.tokens[1][8]
    out = of.run(step, x)
    check(of.expected[1], out[1:2], 8)
    changed = (kv.layers[0].view(torch.uint8) != kept.view(torch.uint8)).any(dim=3).flatten()
    assert changed.nonzero().flatten().tolist() == [int(step.slot_mapping[1])]


@pytest.mark.parametrize("emulates", [False, True])
def test_shapes_and_no_tokens(emulates: bool) -> None:
    of, kv = sequences(IN_V3), IN_V3.cache()
    with pykernels.emulate() if emulates else nullcontext():
        assert of.run(kv.append([]), torch.empty(0, HIDDEN).bfloat16()).shape == (0, HIDDEN)
        x = of.tokens[0][:8]
        flat = of.run(kv.append([4, 4]), x)
        kv.free([0, 1])
        assert_same_bits(of.run(kv.append([4, 4]), x.view(2, 4, HIDDEN)).flatten(0, 1), flat)


@pytest.mark.parametrize("layer", [IN_V3, PLAINEST], ids=str)
def test_compiled_decode(layer: Layer) -> None:
    """One graph, the same for all steps."""
    of = sequences(layer)
    counted: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        counted.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def decode(x: Tensor, step: DecodeStep) -> Tensor:
        step.advance()
        return of.run(step, x)

    compiled = torch.compile(decode, fullgraph=True, backend=backend)
    results = []
    for function in (decode, compiled):
        kv = layer.cache()
        of.prefill(kv, (12, 3))
        step = kv.decode_step(HEADS)
        for i in range(3):
            step.reserve()
            x = torch.stack([of.tokens[0][12 + i], of.tokens[1][3 + i]])
            results.append(function(x, step))
    for eager, of_graph in zip(results[:3], results[3:], strict=True):
        assert_same_bits(of_graph, eager)
    assert len(counted) == 1


SPOILT: dict[str, Any] = {
    "rope_scaling": None,  # so that the softmax's scale is not YaRN's
    "rope_interleave": False,
    "norm_eps": 0.2,
}


@pytest.mark.parametrize("spoil", [*SPOILT, "positions", "order of tokens", "zero row", "scale"])
def test_the_tolerance_notices(spoil: str) -> None:
    """What the tests above would let pass, if it did."""
    of, kv = sequences(IN_V3), IN_V3.cache()
    right = of.attention.config
    step, x = kv.append(LENGTHS), torch.cat(of.tokens)
    positions = step.positions
    if spoil in SPOILT:
        of.attention.config = dataclasses.replace(right, **{spoil: SPOILT[spoil]})
    elif spoil == "positions":
        positions = torch.where(positions < 12, positions, positions + 4)
    elif spoil == "order of tokens":
        x[[4, 5]] = x[[5, 4]]
    try:
        out = of.attention(x, of.rotary(positions), step)[: LENGTHS[0]]
    finally:
        of.attention.config = right
    if spoil == "order of tokens":
        out[[4, 5]] = out[[5, 4]]
    elif spoil == "zero row":
        out[3] = 0
    elif spoil == "scale":
        out *= 1.1
    with pytest.raises(AssertionError, match=r"FP8|roundings"):
        check(of.expected[0], out)
