"""pytest-benchmark of the FP8 GEMM: ``pytest bench/bench_gemm.py [--device cuda]``.

On a GPU each row is one shape among the baselines; on any machine the host path is measured with
the recording driver: what a call costs before the kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pykernels
from pykernels import _C
from pykernels.native import native, tensor_view
from pykernels.testing import gemm_operands

from . import gemm_bench
from .problem import Problem


@pytest.mark.gpu
@pytest.mark.parametrize("shape", list(gemm_bench.shapes()), ids=str)
def test_gpu(measure: Callable[[Problem[Any]], None], shape: gemm_bench.Shape) -> None:
    measure(shape)


def test_make_launch_and_launch(benchmark: Any, driver: _C.RecordingDriver) -> None:
    """Config, tensor maps, argument block and cuLaunchKernelEx, with the binding around them."""
    (a, sfa), (b, sfb) = gemm_operands(128, 1024, 512)
    out = torch.empty(128, 1024, dtype=torch.bfloat16)
    views = [tensor_view(tensor) for tensor in (a, sfa, b, sfb, out)]
    device = _C.CudaDevice(0, 0)
    function = native().fp8_gemm_nt
    benchmark(lambda: function(device, *views, None))


def test_op_call(
    benchmark: Any, driver: _C.RecordingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public function: dispatch, checks, allocation, launch."""
    monkeypatch.setattr("pykernels.device.cuda_stream", lambda tensor: (0, 0))
    a, b = gemm_operands(128, 1024, 512)
    benchmark(lambda: pykernels.fp8_gemm_nt(a, b))
