"""The references of MLA decode: absorbed against the definition, and both against transformers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.cache_utils import DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

import pykernels
from pykernels import reference
from pykernels.testing import row_errors
from tests.mla_cases import CASES, SOFTMAX_SCALE, MlaCase

NOPE, ROPE, LATENT, VALUE = 128, 64, 512, 128


def projections(num_heads: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_heads, NOPE, LATENT)
    w_uk, w_uv = (torch.randn(shape, generator=generator) * LATENT**-0.5 for _ in range(2))
    return w_uk, w_uv


def paged(tokens: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    """``[batch, length, 576]`` as pages in reverse order, and the table."""
    batch, length, _ = tokens.shape
    pages_each = -(-length // page_size)
    padded = tokens.new_full((batch, pages_each * page_size, tokens.size(2)), torch.nan)
    padded[:, :length] = tokens
    pages = padded.view(batch * pages_each, page_size, 1, -1).flip(0)
    table = torch.arange(batch * pages_each, dtype=torch.int32).flip(0).view(batch, -1)
    return pages, table


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("seqlen_q", [1, 3])
def test_absorbed_is_the_definition(seqlen_q: int, causal: bool) -> None:
    """In float64 throughout, so to float64's precision."""
    batch, num_heads, length = 2, 3, 11
    generator = torch.Generator().manual_seed(seqlen_q)
    rows = (batch, seqlen_q, num_heads)
    q_nope = torch.randn(*rows, NOPE, generator=generator, dtype=torch.float64)
    q_rope = torch.randn(*rows, ROPE, generator=generator, dtype=torch.float64)
    tokens = torch.randn(batch, length, LATENT + ROPE, generator=generator).bfloat16()
    w_uk, w_uv = projections(num_heads, seqlen_q)
    expected = reference.mla_attention(
        q_nope,
        q_rope,
        tokens[..., :LATENT],
        tokens[..., LATENT:],
        w_uk,
        w_uv,
        softmax_scale=SOFTMAX_SCALE,
        causal=causal,
    )
    cache, table = paged(tokens, 4)
    lengths = torch.full((batch,), length, dtype=torch.int32)
    out, _ = reference.mla_decode(
        (reference.absorb_query(q_nope, w_uk), q_rope),
        cache,
        table,
        lengths,
        softmax_scale=SOFTMAX_SCALE,
        causal=causal,
    )
    torch.testing.assert_close(reference.project_output(out, w_uv), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", [case for case in CASES if sum(case.lengths) < 300], ids=str)
def test_element_by_element(case: MlaCase) -> None:
    """Sums of exponentials without a maximum, over the tokens that the table leads to."""
    operands = case.operands()
    out, lse = operands.exact()
    assert out.dtype == torch.float64
    request = len(case.lengths) - 1
    length, i, head = case.lengths[request], case.seqlen_q - 1, case.num_heads - 1
    query = operands.q[request, i, head].double()
    total, value = 0.0, torch.zeros(LATENT, dtype=torch.float64)
    for position in range(length):
        page = int(operands.block_table[request, position // case.page_size])
        token = cached_value(operands.kv_cache[page, position % case.page_size, 0])
        weight = math.exp(SOFTMAX_SCALE * float(query @ token))
        total += weight
        value += weight * token[:LATENT]
    if length == 0:
        assert not bool(out[request, i, head].any())
        assert float(lse[request, head, i]) == -math.inf
        return
    torch.testing.assert_close(out[request, i, head], value / total, rtol=1e-11, atol=1e-12)
    assert float(lse[request, head, i]) == pytest.approx(math.log(total), rel=1e-12, abs=1e-12)


def cached_value(stored: Tensor) -> Tensor:
    """Of FP8 by torch's FP32 product, which rounds once."""
    if stored.dtype == torch.bfloat16:
        return stored.double()
    values, scales, rope = stored.clone().split([512, 16, 128])
    q = values.view(torch.float8_e4m3fn).float().view(4, 128)
    latent = (q * scales.clone().view(torch.float32)[:, None]).bfloat16().flatten()
    return torch.cat([latent, rope.clone().view(torch.bfloat16)]).double()


# ---- against transformers ----


class Layer:
    """An attention layer of transformers with random weights, and its projections."""

    def __init__(self, num_heads: int, q_lora_rank: int | None) -> None:
        self.config = DeepseekV3Config(
            hidden_size=256,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads,
            num_hidden_layers=1,
            q_lora_rank=q_lora_rank,
            kv_lora_rank=LATENT,
            qk_rope_head_dim=ROPE,
            qk_nope_head_dim=NOPE,
            v_head_dim=VALUE,
            max_position_embeddings=256,
        )
        self.config._attn_implementation = "eager"
        torch.manual_seed(num_heads)
        self.module = DeepseekV3Attention(self.config, layer_idx=0).eval()
        self.rotary = DeepseekV3RotaryEmbedding(self.config)
        weight = self.module.kv_b_proj.weight.detach().view(num_heads, NOPE + VALUE, LATENT)
        self.w_uk, self.w_uv = weight[:, :NOPE], weight[:, NOPE:]

    def forward(self, hidden: Tensor, num_cached: int, cache: DynamicCache) -> Tensor:
        """The module's own output for tokens behind those cached, with its causal mask."""
        seqlen = hidden.size(1)
        position = num_cached + torch.arange(seqlen)
        embeddings = self.rotary(hidden, position[None])
        masked = torch.arange(num_cached + seqlen) > position[:, None]
        mask = torch.zeros(1, 1, *masked.shape).masked_fill(masked, torch.finfo(torch.float32).min)
        result: Tensor = self.module(hidden, embeddings, mask, cache)[0]
        return result

    def queries(self, hidden: Tensor, num_cached: int) -> tuple[Tensor, Tensor]:
        """The layer's, not absorbed, rotated as the module rotates them."""
        module, (batch, seqlen) = self.module, hidden.shape[:2]
        if module.q_proj is not None:
            q = module.q_proj(hidden)
        else:
            q = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(hidden)))
        q_nope, q_rope = q.view(batch, seqlen, -1, NOPE + ROPE).split([NOPE, ROPE], dim=-1)
        cos, sin = self.rotary(hidden, num_cached + torch.arange(seqlen)[None])
        # Pairs of neighbouring columns are turned; the module leaves the first of all pairs ahead
        # of the second ones, in queries and keys alike.
        first, second = q_rope[..., ::2], q_rope[..., 1::2]
        cos, sin = (each[:, :, None, : ROPE // 2] for each in (cos, sin))
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return q_nope, rotated


@pytest.mark.parametrize(("num_heads", "q_lora_rank"), [(4, None), (5, 96)])
@pytest.mark.parametrize("seqlen_q", [1, 2])
@torch.no_grad()
def test_against_transformers(num_heads: int, q_lora_rank: int | None, seqlen_q: int) -> None:
    """Prefill, then a step: the module's output from its own cache through our decode.

    Its float32 queries and cached vectors are rounded to BF16 once, for us and for what decides
    how much that may cost; without the rounding the references agree to float32's precision.
    """
    layer = Layer(num_heads, q_lora_rank)
    generator = torch.Generator().manual_seed(seqlen_q)
    batch, num_cached = 2, 37
    hidden = torch.randn(batch, num_cached + seqlen_q, 256, generator=generator)
    cache = DynamicCache()
    layer.forward(hidden[:, :num_cached], 0, cache)
    expected = layer.forward(hidden[:, num_cached:], num_cached, cache)

    q_nope, q_rope = layer.queries(hidden[:, num_cached:], num_cached)
    cached = cache.layers[0]
    kv_latent, k_rope = cached.keys[:, 0], cached.values[:, 0]
    assert kv_latent.shape == (batch, num_cached + seqlen_q, LATENT)
    assert k_rope.shape == (batch, num_cached + seqlen_q, ROPE)
    scale = layer.module.scaling

    attended = reference.mla_attention(
        q_nope, q_rope, kv_latent, k_rope, layer.w_uk, layer.w_uv, softmax_scale=scale
    )
    exact = output_of(layer, attended)
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-6)

    q = torch.cat([reference.absorb_query(q_nope, layer.w_uk), q_rope], dim=-1).bfloat16()
    kv_cache, table = paged(torch.cat([kv_latent, k_rope], dim=-1).bfloat16(), 16)
    lengths = torch.full((batch,), num_cached + seqlen_q, dtype=torch.int32)
    rounded, _ = reference.mla_decode(q, kv_cache, table, lengths, softmax_scale=scale)
    out, _ = pykernels.mla_decode(q, kv_cache, table, lengths, softmax_scale=scale)
    assert out.dtype == torch.bfloat16
    ours = output_of(layer, reference.project_output(out, layer.w_uv))
    best = output_of(layer, reference.project_output(rounded.bfloat16(), layer.w_uv))
    errors = row_errors(ours.flatten(0, 1), expected.flatten(0, 1))
    allowed = 1.5 * row_errors(best.flatten(0, 1), expected.flatten(0, 1)) + 1e-5
    assert bool((errors <= allowed).all())
    assert float(errors.max()) < 2.0**-7  # a few roundings to BF16


def output_of(layer: Layer, attended: Tensor) -> Tensor:
    """Through the layer's output projection."""
    result: Tensor = layer.module.o_proj(attended.flatten(2).float())
    return result
