"""pytest-benchmark of the casts to FP8: ``pytest bench/bench_cast.py [--device cuda]``.

As :mod:`.bench_gemm`: on a GPU among the baselines, on any machine the host path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pykernels import _C

from . import cast_bench
from .candidates import rank
from .cast_bench import CastShape, QuantizeShape, SiluMulShape
from .problem import Options, Problem

SMALL: list[CastShape] = [
    QuantizeShape(128, 512),
    QuantizeShape(128, 512, block_rows=128),
    SiluMulShape(128, 512),
    SiluMulShape(128, 512, capacity=1024),
    SiluMulShape(32, 512, capacity=128, num_groups=4),
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", list(cast_bench.shapes()), ids=str)
def test_gpu(measure: Callable[[Problem[Any]], None], shape: CastShape) -> None:
    measure(shape)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_make_launch_and_launch(
    benchmark: Any, driver: _C.RecordingDriver, shape: CastShape
) -> None:
    """Views, argument block and cuLaunchKernelEx, with the binding around them."""
    operands = shape.emulated_operands()
    device = _C.CudaDevice(0, 0)
    (candidate,) = rank(shape, Options(device="H200"))
    benchmark(lambda: shape.launch(device, candidate, Options(), operands))


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_op_call(
    benchmark: Any, driver: _C.RecordingDriver, monkeypatch: pytest.MonkeyPatch, shape: CastShape
) -> None:
    """The public function: dispatch, checks, launch."""
    monkeypatch.setattr("pykernels.device.cuda_stream", lambda tensor: (0, 0))
    benchmark(shape.prepare_op(Options(), shape.emulated_operands()).call)
