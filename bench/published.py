"""Published figures: other machines, other clocks, other ways of measuring."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .grouped_bench import GroupedShape
    from .mla_bench import MlaShape
    from .moe_bench import MoeShape


@dataclasses.dataclass(frozen=True)
class Figure:
    """One time.

    Attributes:
        library: What was measured.
        gpu: On what.
        us: Microseconds, from TFLOPS where those are published.
        source: Where it stands.
    """

    library: str
    gpu: str
    us: float
    source: str


_README = "DeepGEMM's README"
_PULL = "DeepGEMM pull request 192"
# Layout, groups, rows of each, n, k: TFLOPS on an H800.
_TFLOPS = {
    ("group_offsets", 4, 8192, 4096, 7168): 1381.0,
    ("group_offsets", 4, 8192, 7168, 2048): 1262.0,
    ("masked_m", 1, 1024, 4096, 7168): 1233.0,
    ("masked_m", 2, 512, 4096, 7168): 1040.0,
    ("masked_m", 4, 256, 4096, 7168): 932.0,
}
# Microseconds on an H100.
_MICROSECONDS = {
    ("masked_m", 16, 32, 4096, 7168): 168.0,
    ("masked_m", 16, 96, 4096, 7168): 176.0,
    ("masked_m", 16, 160, 4096, 7168): 229.0,
}
# MLA decode over BF16 pages of 64 tokens, all requests of one length: num_heads, batch, seqlen_kv,
# seqlen_q; microseconds on an H100.
_VLLM_PULL = "vLLM pull request 27363"
_MLA_MICROSECONDS = {
    (16, 128, 1024, 1): {"FlashAttention-3": 71.0, "FlashMLA": 84.0},
    (16, 128, 1024, 2): {"FlashAttention-3": 73.0, "FlashMLA": 85.0},
    (16, 128, 1024, 4): {"FlashAttention-3": 75.0, "FlashMLA": 88.0},
}
# MoE all-to-all between 8 ranks, hidden 7168, top 8: GB/s of 4096 tokens a rank, as DeepEP counts;
# microseconds of 128 tokens a rank.
_DEEPEP_README = "DeepEP's README"
_MOE_GBPS = {"dispatch": 153.0, "combine": 158.0}
_MOE_MICROSECONDS = {
    "low_latency_dispatch": {"DeepEP": ("H800", 77.0), "pplx": ("H100", 83.6)},
    "low_latency_combine": {"DeepEP": ("H800", 114.0), "pplx": ("H100", 102.3)},
}
# The best rates of FlashMLA's README on an H800.
_FLASHMLA_GBPS, _FLASHMLA_TFLOPS = 3000.0, 660.0


def figures(shape: GroupedShape) -> list[Figure]:
    """Of exactly this call; none if groups differ in their rows."""
    if shape.is_skewed:
        return []
    key = (shape.source, shape.num_groups, shape.rows[0], shape.n, shape.k)
    found = []
    if key in _TFLOPS:
        us = shape.flops / _TFLOPS[key] / 1e6
        found.append(Figure("DeepGEMM", "H800", us, f"{_README}: {_TFLOPS[key]:g} TFLOPS"))
    if key in _MICROSECONDS:
        found.append(Figure("DeepGEMM", "H100", _MICROSECONDS[key], _PULL))
    return found


def mla_figures(shape: MlaShape) -> list[Figure]:
    """Of exactly this call, and what FlashMLA's best published rates would make of it."""
    if shape.fp8:
        return []
    found = []
    if not shape.is_varied and shape.page_size == 64:
        key = (shape.num_heads, shape.batch, shape.seqlen_kv, shape.seqlen_q)
        for library, us in _MLA_MICROSECONDS.get(key, {}).items():
            found.append(Figure(library, "H100", us, _VLLM_PULL))
    memory_us = shape.num_bytes / _FLASHMLA_GBPS / 1e3
    compute_us = shape.flops / _FLASHMLA_TFLOPS / 1e6
    rate = f"{_FLASHMLA_GBPS:g} GB/s" if memory_us > compute_us else f"{_FLASHMLA_TFLOPS:g} TFLOPS"
    source = f"no row of its own: at {rate}, the best of its README"
    return [*found, Figure("FlashMLA", "H800", max(memory_us, compute_us), source)]


def moe_figures(shape: MoeShape) -> list[Figure]:
    """Of such a call between 8 GPUs, FP8 there and BF16 back, wherever ours has its ranks."""
    sizes = shape.num_ranks, shape.hidden, shape.num_topk
    if sizes != (8, 7168, 8) or shape.fp8 != shape.is_dispatch:
        return []
    if shape.num_tokens == 4096 and shape.call in _MOE_GBPS:
        rate = _MOE_GBPS[shape.call]
        us = shape.deepep_bytes / rate / 1e3
        return [Figure("DeepEP", "H800", us, f"{_DEEPEP_README}, 8 GPUs: {rate:g} GB/s")]
    if shape.num_tokens != 128:
        return []
    return [
        Figure(library, gpu, us, f"{library}'s README, 8 GPUs")
        for library, (gpu, us) in _MOE_MICROSECONDS.get(shape.call, {}).items()
    ]
