"""Hopper (sm_90a) kernels for PyTorch, with an emulator that runs their PTX on any CPU."""

from pykernels import reference
from pykernels.checks import Capability, can_run
from pykernels.config import explain_config
from pykernels.device import check_errors, emulate
from pykernels.gemm import fp8_gemm_nt
from pykernels.grouped_gemm import grouped_fp8_gemm_nt, grouped_fp8_gemm_nt_masked
from pykernels.merge_states import merge_states
from pykernels.mla import mla_decode
from pykernels.mla_cache import mla_cache_read, mla_cache_write
from pykernels.mla_checks import MlaPlan
from pykernels.mla_plan import mla_decode_plan, mla_update_plan
from pykernels.quantize import quantize_1x128, quantize_128x128
from pykernels.silu_mul_quantize import silu_mul_quantize_1x128

__version__ = "0.1.0"

__all__ = [
    "Capability",
    "MlaPlan",
    "__version__",
    "can_run",
    "check_errors",
    "emulate",
    "explain_config",
    "fp8_gemm_nt",
    "grouped_fp8_gemm_nt",
    "grouped_fp8_gemm_nt_masked",
    "merge_states",
    "mla_cache_read",
    "mla_cache_write",
    "mla_decode",
    "mla_decode_plan",
    "mla_update_plan",
    "quantize_1x128",
    "quantize_128x128",
    "reference",
    "silu_mul_quantize_1x128",
]
