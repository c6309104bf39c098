"""pytest-benchmark of MLA decode: ``pytest bench/bench_mla.py [--device cuda]``.

As :mod:`.bench_gemm`: on a GPU among the baselines, on any machine the host path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import pykernels
from pykernels import _C

from . import mla_bench
from .mla_bench import MlaShape
from .problem import Options, Problem

SMALL = [
    MlaShape((96,) * 4, num_heads, fp8=fp8) for num_heads in (16, 128) for fp8 in (False, True)
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", list(mla_bench.cases()), ids=str)
def test_gpu(measure: Callable[[Problem[Any]], None], shape: MlaShape) -> None:
    measure(shape)


@pytest.fixture
def on_driver(driver: _C.RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykernels.device.cuda_stream", lambda tensor: (0, 0))


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_op_call(benchmark: Any, on_driver: None, shape: MlaShape) -> None:
    """The public function: dispatch, checks, launch."""
    benchmark(shape.prepare_op(Options(), shape.emulated_operands()).call)


def test_plan_update(benchmark: Any, on_driver: None) -> None:
    """Once a step, for all layers."""
    (shape, *_) = SMALL
    lengths = shape.emulated_operands().cache_seqlens
    plan = pykernels.mla_decode_plan(shape.batch, shape.seqlen_q, shape.num_heads)
    benchmark(lambda: pykernels.mla_update_plan(plan, lengths))
