"""The choice of a kernel: explain_config, and the GPUs that the cost model knows."""

from __future__ import annotations

import pytest
import torch

import pykernels
from pykernels.native import kernel_metadata

KERNELS = [kernel for kernel in kernel_metadata() if kernel["family"] == "fp8_gemm_nt"]


def test_explain_config() -> None:
    candidates = pykernels.explain_config(pykernels.fp8_gemm_nt, m=4096, n=7168, k=2048)
    assert {candidate.kernel for candidate in candidates} == {kernel["name"] for kernel in KERNELS}
    costs = [candidate.cost["total_us"] for candidate in candidates]
    assert costs == sorted(costs)
    few = pykernels.explain_config(pykernels.fp8_gemm_nt, m=64, n=64, k=64, num_sms=1)
    assert all(set(candidate.schedule.values()) == {1} for candidate in few)
    (only,) = pykernels.explain_config(pykernels.quantize_1x128, m=5, k=5)
    assert only.kernel == "quantize_1x128"
    for sizes in ({"m": 1, "n": 8}, {"m": 1, "n": 8, "k": 16, "batch": 2}):
        with pytest.raises(ValueError, match="sizes must be m, n, k and may be num_sms, got m, n"):
            pykernels.explain_config(pykernels.fp8_gemm_nt, **sizes)
    with pytest.raises(ValueError, match="m must be at least 0, got -1"):
        pykernels.explain_config(pykernels.fp8_gemm_nt, m=-1, n=8, k=16)
    with pytest.raises(ValueError, match=r"op must be fp8_gemm_nt, .* got relu"):
        pykernels.explain_config(torch.relu, m=1)
    with pytest.raises(ValueError, match=r"device must be a CUDA device or None, got cpu; .*H20"):
        pykernels.explain_config(pykernels.fp8_gemm_nt, device="cpu", m=1, n=8, k=16)
