"""References of MLA decode: attention over a paged latent cache, and the definition behind it.

In multi-head latent attention each cached token is one latent vector of 512 columns and one rope
key of 64, shared by all heads. Per-head keys and values are projections of the latent. Decode folds
("absorbs") the key's projection into the query and the value's into what follows the attention, so
that the cache itself is key and value.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LATENT = 512  # columns of a cached token that are its value, and the first part of its key
_ROPE = 64
_FP8_SCALES = 528  # where the scale factors of an FP8 token end and its rope part begins
_SCALE_BLOCK = 128


def mla_decode(
    q: Tensor | tuple[Tensor, Tensor],
    kv_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the attention of each query row over its request's cached tokens, in float64.

    Args:
        q: ``[batch, seqlen_q, num_heads, 576]``, or its first 512 and last 64 columns as a pair.
        kv_cache: ``[num_pages, page_size, 1, 576]`` values, or ``[..., 656]`` bytes for FP8.
        block_table: ``[batch, max_pages]``: the page of each ``page_size`` tokens of a request.
        cache_seqlens: ``[batch]``: how many tokens a request has, those of the queries included.
        softmax_scale: by what scores are multiplied.
        causal: query token i sees ``cache_seqlens - (seqlen_q - 1 - i)`` tokens; else all.

    Returns:
        ``[batch, seqlen_q, num_heads, 512]``, and the natural logarithm of the sum of
        ``exp(score)``, ``[batch, num_heads, seqlen_q]``; 0 and -inf where a row sees no token.
    """
    query = (torch.cat(q, dim=-1) if isinstance(q, tuple) else q).double()
    batch, seqlen_q, num_heads, _ = query.shape
    out = torch.zeros(batch, seqlen_q, num_heads, _LATENT, dtype=torch.float64)
    lse = torch.full((batch, num_heads, seqlen_q), -torch.inf, dtype=torch.float64)
    for request in range(batch):
        length = int(cache_seqlens[request])
        tokens = _cached_tokens(kv_cache, block_table[request], length)
        for i in range(seqlen_q):
            visible = length - (seqlen_q - 1 - i) if causal else length
            if visible <= 0:
                continue
            keys = tokens[:visible]
            scores = softmax_scale * (query[request, i] @ keys.T)
            out[request, i] = torch.softmax(scores, dim=1) @ keys[:, :_LATENT]
            lse[request, :, i] = torch.logsumexp(scores, dim=1)
    return out, lse


def _cached_tokens(kv_cache: Tensor, pages: Tensor, length: int) -> Tensor:
    """``[length, 576]``, token by token through the table."""
    page_size = kv_cache.size(1)
    tokens = torch.empty(length, _LATENT + _ROPE, dtype=torch.float64)
    for position in range(length):
        page = int(pages[position // page_size])
        tokens[position] = _token(kv_cache[page, position % page_size, 0])
    return tokens


def _token(stored: Tensor) -> Tensor:
    """The value of one token: of the FP8 layout rounded to FP32, then to BF16, as the kernel's."""
    if stored.dtype == torch.bfloat16:
        return stored.double()
    content = stored.contiguous().view(torch.uint8)
    latent = content[:_LATENT].view(torch.float8_e4m3fn).double()
    scales = content[_LATENT:_FP8_SCALES].clone().view(torch.float32).double()
    rope = content[_FP8_SCALES:].clone().view(torch.bfloat16).double()
    product = latent * scales.repeat_interleave(_SCALE_BLOCK)
    return torch.cat([product.float().bfloat16().double(), rope])


def mla_attention(
    q_nope: Tensor,
    q_rope: Tensor,
    kv_latent: Tensor,
    k_rope: Tensor,
    w_uk: Tensor,
    w_uv: Tensor,
    *,
    softmax_scale: float,
    causal: bool = True,
) -> Tensor:
    """Return the attention by its definition, with keys and values of each head, in float64.

    Args:
        q_nope: ``[batch, seqlen_q, num_heads, 128]``, not absorbed.
        q_rope: ``[batch, seqlen_q, num_heads, 64]``, rotated.
        kv_latent: ``[batch, seqlen_kv, 512]``.
        k_rope: ``[batch, seqlen_kv, 64]``, rotated.
        w_uk: ``[num_heads, 128, 512]``: from the latent to each head's key.
        w_uv: ``[num_heads, 128, 512]``: from the latent to each head's value.
        softmax_scale: by what scores are multiplied.
        causal: the queries are the last tokens, and see none after their own.

    Returns:
        ``[batch, seqlen_q, num_heads, 128]``.

    Source: DeepSeek-V2 report, section 2.1.
    """
    latent = kv_latent.double()
    batch, seqlen_q, num_heads, _ = q_nope.shape
    seqlen_kv = latent.size(1)
    out = torch.empty(batch, seqlen_q, num_heads, w_uv.size(1), dtype=torch.float64)
    for request in range(batch):
        for head in range(num_heads):
            own_keys = latent[request] @ w_uk[head].double().T
            keys = torch.cat([own_keys, k_rope[request].double()], dim=1)
            values = latent[request] @ w_uv[head].double().T
            for i in range(seqlen_q):
                query = torch.cat([q_nope[request, i, head], q_rope[request, i, head]]).double()
                visible = seqlen_kv - (seqlen_q - 1 - i) if causal else seqlen_kv
                weights = torch.softmax(softmax_scale * (keys[:visible] @ query), dim=0)
                out[request, i, head] = weights @ values[:visible]
    return out


def absorb_query(q_nope: Tensor, w_uk: Tensor) -> Tensor:
    """Return ``q_nope[..., h, :] @ w_uk[h]``, the query against the latent, in float64.

    Args:
        q_nope: ``[..., num_heads, 128]``.
        w_uk: ``[num_heads, 128, 512]``.

    Returns:
        ``[..., num_heads, 512]``.
    """
    return torch.einsum("...hd,hdc->...hc", q_nope.double(), w_uk.double())


def project_output(out: Tensor, w_uv: Tensor) -> Tensor:
    """Return ``w_uv[h] @ out[..., h, :]``, each head's value, in float64.

    Args:
        out: ``[..., num_heads, 512]``, what the decode returns.
        w_uv: ``[num_heads, 128, 512]``.

    Returns:
        ``[..., num_heads, 128]``.
    """
    return torch.einsum("...hc,hdc->...hd", out.double(), w_uv.double())
