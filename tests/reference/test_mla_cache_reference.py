"""The reference of the MLA cache against transformers' DeepSeek-V3 and that of the cast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from pykernels import reference
from tests.cases import assert_same_bits

HALVES = torch.cat([torch.arange(0, 64, 2), torch.arange(1, 64, 2)])  # first columns, then second


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_against_transformers() -> None:
    norm = deepseek.DeepseekV3RMSNorm(512, eps=1e-4)
    with torch.no_grad():
        norm.weight.copy_(random(512, seed=1))
        x = random(7, 512) * torch.logspace(-4, 2, 7)[:, None]
        expected = norm(x)
        actual = reference.rms_norm(x, norm.weight, 1e-4)
    torch.testing.assert_close(actual.float(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_against_transformers(interleaved: bool) -> None:
    """Theirs takes interleaved columns apart first, and leaves them so; ours keeps their places."""
    apply: Any = (
        deepseek.apply_rotary_pos_emb_interleave if interleaved else deepseek.apply_rotary_pos_emb
    )
    x, angles = random(5, 64), random(5, 32, seed=1) * 4
    cos, sin = (function(angles) for function in (torch.cos, torch.sin))
    both = [torch.cat([each, each], dim=1)[None] for each in (cos, sin)]
    _, expected = apply(x[None, None], x[None, None], *both)
    actual = reference.rotate(x, cos, sin, interleaved=interleaved)
    if interleaved:
        actual = actual[:, HALVES]
    torch.testing.assert_close(actual.float(), expected[0, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
def test_what_is_read_is_what_was_written(dtype: torch.dtype) -> None:
    columns = 576 if dtype == torch.bfloat16 else 656
    cache = torch.zeros(2, 4, 1, columns, dtype=dtype)
    tokens = random(3, 576).bfloat16()
    slots = torch.tensor([6, -1, 1])
    written = reference.mla_cache_write(tokens[:, :512], tokens[:, 512:], cache, slots)
    assert not bool(cache.view(torch.uint8).any())
    latent, rope = reference.mla_cache_read(written, slots)
    expected = tokens[:, :512].double()
    if dtype == torch.uint8:
        pair = reference.quantize_1x128(tokens[:, :512])
        expected = reference.dequantize_1x128(*pair).double()
    expected[1] = 0
    assert_same_bits(latent, expected)
    assert_same_bits(rope[::2], tokens[::2, 512:].double())
    others = [slot for slot in range(8) if slot not in (1, 6)]
    assert not bool(written.view(torch.uint8).flatten(0, 2)[others].any())
