"""pytest-benchmark of the grouped FP8 GEMMs: ``pytest bench/bench_grouped.py [--device cuda]``.

As :mod:`.bench_gemm`: on a GPU among the baselines, on any machine the host path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pykernels import _C
from pykernels.native import native, strided_view

from . import grouped_bench
from .grouped_bench import SOURCES, GroupedShape
from .problem import Options, Problem

SMALL = (32, 0, 96, 128)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", list(grouped_bench.cases()), ids=str)
def test_gpu(measure: Callable[[Problem[Any]], None], shape: GroupedShape) -> None:
    measure(shape)


@pytest.mark.parametrize("source", SOURCES)
def test_make_launch_and_launch(benchmark: Any, driver: _C.RecordingDriver, source: str) -> None:
    """Config, tensor maps, argument block and cuLaunchKernelEx, with the binding around them."""
    operands = GroupedShape(SMALL, 1024, 512, source).emulated_operands()
    tensors = (*operands[:5], operands.groups.values)
    views = [strided_view(tensor) for tensor in tensors]
    device = _C.CudaDevice(0, 0)
    function = native().grouped_fp8_gemm_nt
    benchmark(lambda: function(device, *views, source))


@pytest.mark.parametrize("source", SOURCES)
def test_op_call(
    benchmark: Any, driver: _C.RecordingDriver, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """The public function: dispatch, checks, launch."""
    monkeypatch.setattr("pykernels.device.cuda_stream", lambda tensor: (0, 0))
    problem = GroupedShape(SMALL, 1024, 512, source)
    benchmark(problem.prepare_op(Options(), problem.emulated_operands()).call)
