"""Attention layers of transformers with random weights, and the same in FP8 by plain formulas.

The reference model quantises as :class:`pykernels.nn.MlaAttention` does and computes all else in
float64, with keys and values of each head. Where the layer rounds to BF16, it can round too. What
that alone changes, FP8 values that fall to the other side among it, is the tolerance.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from pykernels import reference
from pykernels.nn import MlaAttention, PagedLatentCache, RotaryEmbedding
from pykernels.testing import row_errors

HIDDEN, HEADS, NOPE, VALUE = 256, 4, 32, 48
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """What differs between layers, and the format of the cache."""

    what: str
    q_lora_rank: int | None = 128
    bias: bool = False
    rope: Any = dataclasses.field(default_factory=lambda: PLAIN, hash=False)
    interleave: bool = True
    fp8: bool = False
    page_size: int = 16

    def __str__(self) -> str:
        return self.what.replace(" ", "_")

    def config(self, **changed: Any) -> Any:
        options = {
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "q_lora_rank": self.q_lora_rank,
            "qk_nope_head_dim": NOPE,
            "v_head_dim": VALUE,
            "attention_bias": self.bias,
            "rope_parameters": dict(self.rope),
            "rope_interleave": self.interleave,
            "max_position_embeddings": 640,
        }
        config = DeepseekV3Config(**(options | changed))
        config._attn_implementation = "eager"
        return config

    def transformers(self, layer_idx: int = 0) -> Any:
        """In FP32. Scores differ by several; norms, biases and blocks of weights matter."""
        torch.manual_seed(3)
        layer = DeepseekV3Attention(self.config(), layer_idx).eval().requires_grad_(False)
        q = layer.q_proj if self.q_lora_rank is None else layer.q_b_proj
        q.weight *= 3
        for name, parameter in layer.named_parameters():
            if "layernorm" in name:  # values of BF16, so that they alone cost nothing
                parameter.copy_((torch.rand_like(parameter) + 0.5).bfloat16())
            elif name.endswith("weight"):
                rows, columns = (torch.arange(size) // 128 for size in parameter.shape)
                parameter *= 1 + (2 * rows[:, None] + 3 * columns) % 5 / 8
            else:
                parameter.copy_((torch.randn_like(parameter) / 8).bfloat16())
        return layer

    def cache(self, num_layers: int = 1, **options: Any) -> PagedLatentCache:
        """Poisoned: what nobody has written is NaN."""
        sizes = {"max_batch": 2, "max_seqlen": 64, "page_size": self.page_size}
        sizes["num_pages"] = 192 // self.page_size
        dtype = torch.float8_e4m3fn if self.fp8 else torch.bfloat16
        cache = PagedLatentCache(num_layers, **(sizes | options), dtype=dtype)
        for layer in cache.layers:
            layer.view(torch.uint8).fill_(0xFF)
        return cache


LAYERS = [
    Layer("as in V3", rope=YARN, fp8=True),
    Layer("BF16 cache", rope=YARN),
    Layer("queries at once", q_lora_rank=None, page_size=1),
    Layer("biases", bias=True, page_size=64),
    Layer("halves are pairs", interleave=False, fp8=True),
]
IN_V3, PLAINEST = LAYERS[0], LAYERS[2]


def rotary(attention: MlaAttention) -> RotaryEmbedding:
    return RotaryEmbedding(theta=attention.config.rope_theta, scaling=attention.config.rope_scaling)


def hidden_states(num_tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, HIDDEN, generator=generator).bfloat16()


def exact_attention(layer: Any, x: Tensor) -> Tensor:
    """By transformers in FP32, of one whole sequence ``[num_tokens, hidden]``."""
    num_tokens = x.size(0)
    embeddings = DeepseekV3RotaryEmbedding(layer.config)(x.float(), torch.arange(num_tokens)[None])
    mask = torch.full((1, 1, num_tokens, num_tokens), -torch.inf).triu(1)
    out: Tensor = layer(x.float()[None], embeddings, mask)[0][0]
    return out


class Fp8Reference:
    """The FP8 model of a layer of transformers, of one whole sequence."""

    def __init__(self, layer: Any, fp8_cache: bool, rounds: bool) -> None:
        """``rounds``: to BF16 where the modules do; FP8 is rounded to either way."""
        self.layer, self.config = layer, layer.config
        self.fp8_cache, self.rounds = fp8_cache, rounds

    def __call__(self, x: Tensor) -> Tensor:
        config, layer = self.config, self.layer
        num_heads, nope = config.num_attention_heads, config.qk_nope_head_dim
        embeddings = DeepseekV3RotaryEmbedding(config)(x.float(), torch.arange(x.size(0))[None])
        cos, sin = (angle[0, :, :32] for angle in embeddings)
        if config.q_lora_rank is None:
            q = self._linear(layer.q_proj, x)
        else:
            q = self._linear(
                layer.q_b_proj, self._norm(layer.q_a_layernorm, self._linear(layer.q_a_proj, x))
            )
        q_nope, q_rope = q.unflatten(1, (num_heads, -1)).split((nope, 64), dim=-1)
        interleaved = config.rope_interleave
        q_rope = torch.stack(
            [reference.rotate(q_rope[:, head], cos, sin, interleaved=interleaved)
             for head in range(num_heads)], dim=1
        )  # fmt: skip
        latent, k_rope = self._linear(layer.kv_a_proj_with_mqa, x).split((512, 64), dim=-1)
        latent = self._norm(layer.kv_a_layernorm, latent, self.fp8_cache)
        k_rope = self._rounded(reference.rotate(k_rope, cos, sin, interleaved=interleaved))
        w_kv = self._rounded(layer.kv_b_proj.weight).unflatten(0, (num_heads, -1))
        heads = reference.mla_attention(
            q_nope[None],
            self._rounded(q_rope)[None],
            latent[None],
            k_rope[None],
            w_kv[:, :nope],
            w_kv[:, nope:],
            softmax_scale=layer.scaling,
        )
        return self._linear(layer.o_proj, self._rounded(heads[0].flatten(1)))

    def _linear(self, linear: nn.Linear, x: Tensor) -> Tensor:
        weight = reference.quantize_128x128(linear.weight)
        y = self._rounded(reference.fp8_gemm_nt(reference.quantize_1x128(x.float()), weight))
        return y if linear.bias is None else self._rounded(y + linear.bias.double())

    def _norm(self, norm: Any, x: Tensor, fp8: bool = False) -> Tensor:
        y = reference.rms_norm(x, norm.weight, norm.variance_epsilon)
        if fp8:  # the values are BF16 products of the two
            return reference.dequantize_1x128(*reference.quantize_1x128(y.float())).bfloat16()
        return self._rounded(y)

    def _rounded(self, x: Tensor) -> Tensor:
        return x.bfloat16().double() if self.rounds else x.double()


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a layer should give for one sequence."""

    exact: Tensor  # by transformers in FP32
    reference: Tensor  # in FP8
    unrounded: Tensor  # in FP8, without roundings to BF16

    def check(self, actual: Tensor, rows: slice = slice(None)) -> None:
        """As near to the reference as roundings bring it, and as near to FP32 as FP8 is."""
        assert actual.dtype == torch.bfloat16
        in_fp8 = self.reference[rows]
        worst, allowed = (
            float(row_errors(*pair).max())
            for pair in ((actual, in_fp8), (self.unrounded, self.reference))
        )
        assert worst <= 1.25 * allowed, f"a row is off by {worst}, roundings cost {allowed}"
        apart, rounding = error(actual, in_fp8), error(self.unrounded, self.reference)
        assert apart <= 1.25 * rounding, f"{apart} from the FP8 model, roundings cost {rounding}"
        by_us, by_fp8 = (error(each, self.exact[rows]) for each in (actual, in_fp8))
        assert by_us <= 1.1 * by_fp8, f"{by_us} from FP32, FP8 alone is {by_fp8}"


def error(actual: Tensor, exact: Tensor) -> float:
    """Relative L2."""
    return float((actual.double() - exact.double()).norm() / exact.double().norm())


def expected(layer: Any, x: Tensor, fp8_cache: bool) -> Expected:
    rounded, unrounded = (Fp8Reference(layer, fp8_cache, rounds)(x) for rounds in (True, False))
    return Expected(exact_attention(layer, x).double(), rounded, unrounded)
