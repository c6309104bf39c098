"""Float64 references: the specification of every op, straight from its formula, slow and plain.

Nothing here is shared with the kernels, their host code or the torch implementations.
"""

from pykernels.reference.gemm import dequantize_1x128, dequantize_128x128, fp8_gemm_nt
from pykernels.reference.grouped_gemm import grouped_fp8_gemm_nt, grouped_fp8_gemm_nt_masked
from pykernels.reference.merge_states import merge_states
from pykernels.reference.mla import absorb_query, mla_attention, mla_decode, project_output
from pykernels.reference.mla_cache import (
    mla_cache_read,
    mla_cache_tokens,
    mla_cache_write,
    rms_norm,
    rotate,
)
from pykernels.reference.moe import (
    moe_combine,
    moe_dispatch,
    moe_expert_rows,
    moe_fmaf,
    moe_low_latency_dispatch,
    moe_round_to_bf16,
)
from pykernels.reference.quantize import quantize_1x128, quantize_128x128, round_to_e4m3
from pykernels.reference.silu_mul_quantize import silu_mul, silu_mul_quantize_1x128

__all__ = [
    "absorb_query",
    "dequantize_1x128",
    "dequantize_128x128",
    "fp8_gemm_nt",
    "grouped_fp8_gemm_nt",
    "grouped_fp8_gemm_nt_masked",
    "merge_states",
    "mla_attention",
    "mla_cache_read",
    "mla_cache_tokens",
    "mla_cache_write",
    "mla_decode",
    "moe_combine",
    "moe_dispatch",
    "moe_expert_rows",
    "moe_fmaf",
    "moe_low_latency_dispatch",
    "moe_round_to_bf16",
    "project_output",
    "quantize_1x128",
    "quantize_128x128",
    "rms_norm",
    "rotate",
    "round_to_e4m3",
    "silu_mul",
    "silu_mul_quantize_1x128",
]
