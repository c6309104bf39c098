"""Prefill, and decode steps as replays of one CUDA graph, on a GPU."""

from __future__ import annotations

import pytest
import torch

from pykernels.nn import MlaAttention
from tests.nn.mla_models import HEADS, HIDDEN, LAYERS, Layer, expected, hidden_states, rotary

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_prefill_then_replays(layer: Layer) -> None:
    source = layer.transformers()
    attention = MlaAttention.from_float(source).cuda()
    tokens = [hidden_states(24, 0), hidden_states(12, 1)]
    wanted = [expected(source, each, layer.fp8) for each in tokens]
    rotate, cache = rotary(attention).cuda(), layer.cache(device="cuda")
    begin = 17, 5
    step = cache.append(begin)
    prompts = torch.cat([each[:length] for each, length in zip(tokens, begin, strict=True)])
    out = attention(prompts.cuda(), rotate(step.positions), step).cpu().split(begin)
    results = [list(rows) for rows in out]

    decode = cache.decode_step(HEADS)
    x = torch.zeros(2, HIDDEN).bfloat16().cuda()

    def fill(i: int) -> None:
        decode.reserve()
        for row, each in enumerate(tokens):
            x[row].copy_(each[begin[row] + i])

    def run() -> torch.Tensor:
        decode.advance()
        result: torch.Tensor = attention(x, rotate(decode.positions), decode)
        return result

    fill(0)
    for row, result in enumerate(run().cpu()):
        results[row].append(result)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for i in range(1, 7):
        fill(i)
        graph.replay()
        for row, result in enumerate(captured.cpu()):
            results[row].append(result)
    for row in range(2):
        wanted[row].check(torch.stack(results[row]), slice(0, begin[row] + 7))
    assert cache.cache_seqlens.tolist() == [24, 12]
