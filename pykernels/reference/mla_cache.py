"""Reference of the cache of multi-head latent attention: what is written, and what is read back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pykernels.reference.quantize import quantize_1x128


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` of each row, in float64."""
    y = torch.zeros(x.shape, dtype=torch.float64)
    for r, row in enumerate(x.double().tolist()):
        root = math.sqrt(sum(value * value for value in row) / len(row) + eps)
        for c, value in enumerate(row):
            y[r, c] = value / root * float(weight[c])
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Each pair of columns as a complex number, times that of its angle, in float64."""
    half = x.size(1) // 2
    y = torch.zeros(x.shape, dtype=torch.float64)
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        numbers = torch.complex(x[:, first].double(), x[:, second].double())
        turned = numbers * torch.complex(cos[:, i].double(), sin[:, i].double())
        y[:, first], y[:, second] = turned.real, turned.imag
    return y


def mla_cache_tokens(
    kv_latent: Tensor,
    k_rope: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rope_interleaved: bool = True,
) -> tuple[Tensor, Tensor]:
    """The latent and the rope parts that :func:`mla_cache_write` stores, before any rounding."""
    latent, rope = kv_latent.double(), k_rope.double()
    if norm_weight is not None:
        latent = rms_norm(kv_latent, norm_weight, norm_eps)
    if cos is not None and sin is not None:
        rope = rotate(k_rope, cos, sin, interleaved=rope_interleaved)
    return latent, rope


def mla_cache_write(
    kv_latent: Tensor,
    k_rope: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    *,
    norm_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    rope_interleaved: bool = True,
) -> Tensor:
    """Specification of :func:`pykernels.mla_cache_write`: the cache afterwards, a copy."""
    latent, rope = mla_cache_tokens(
        kv_latent,
        k_rope,
        norm_weight=norm_weight,
        norm_eps=norm_eps,
        cos=cos,
        sin=sin,
        rope_interleaved=rope_interleaved,
    )
    result = kv_cache.clone()
    tokens = result.view(torch.uint8).flatten(0, 2)  # bytes, by slot
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            rope_bytes = rope[token].bfloat16().view(torch.uint8)
            if kv_cache.dtype == torch.bfloat16:
                latent_bytes = latent[token].bfloat16().view(torch.uint8)
            else:
                q, scales = quantize_1x128(latent[token].float()[None])
                latent_bytes = torch.cat([q[0].view(torch.uint8), scales[0].view(torch.uint8)])
            tokens[slot] = torch.cat([latent_bytes, rope_bytes])
    return result


def mla_cache_read(kv_cache: Tensor, slot_mapping: Tensor) -> tuple[Tensor, Tensor]:
    """Specification of :func:`pykernels.mla_cache_read`: both parts before they are rounded."""
    latent = torch.zeros(len(slot_mapping), 512, dtype=torch.float64)
    rope = torch.zeros(len(slot_mapping), 64, dtype=torch.float64)
    page_size = kv_cache.size(1)
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        stored = kv_cache[slot // page_size, slot % page_size, 0]
        if kv_cache.dtype == torch.bfloat16:
            latent[token], rope[token] = stored[:512].double(), stored[512:].double()
            continue
        codes = stored.view(torch.uint8).contiguous()
        q = codes[:512].view(torch.float8_e4m3fn).double()
        scales = codes[512:528].view(torch.float32).double()
        for block in range(4):
            columns = slice(block * 128, (block + 1) * 128)
            latent[token, columns] = q[columns] * scales[block]
        rope[token] = codes[528:].view(torch.bfloat16).double()
    return latent, rope
