"""FlashAttention-3's decode with a latent query, where the package is installed."""

from __future__ import annotations

from torch import Tensor

from . import Baseline, MlaOperands, Prepared, Unavailable
from .returned import Returned

_HEAD_DIM_V, _ROPE_DIM = 512, 64


def baseline() -> Baseline[MlaOperands]:
    """The rope part is its q and k, the latent part its qv and v."""
    return Baseline("FlashAttention-3", "as ours; its plan outside of the timed part", _prepare)


def _prepare(operands: MlaOperands) -> Prepared:
    if operands.is_fp8:
        raise Unavailable("BF16 only")
    try:
        import flash_attn_interface
    except ImportError as error:
        raise Unavailable("not installed") from error
    q, cache, table, lengths, *_ = operands
    batch, seqlen_q, num_heads, _ = q.shape
    try:
        plan = flash_attn_interface.get_scheduler_metadata(
            *(batch, seqlen_q, max(operands.lengths), num_heads, 1, _ROPE_DIM, lengths, q.dtype),
            headdim_v=_HEAD_DIM_V,
            page_size=cache.size(1),
            causal=True,
        )
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error

    def decode() -> tuple[Tensor, Tensor]:
        out, lse, *_ = flash_attn_interface.flash_attn_with_kvcache(
            q[..., _HEAD_DIM_V:],
            cache[..., _HEAD_DIM_V:],
            cache[..., :_HEAD_DIM_V],
            qv=q[..., :_HEAD_DIM_V],
            cache_seqlens=lengths,
            page_table=table,
            softmax_scale=operands.softmax_scale,
            causal=True,
            scheduler_metadata=plan,
            return_softmax_lse=True,
        )
        return out, lse

    return Returned(decode).prepared(operands)
