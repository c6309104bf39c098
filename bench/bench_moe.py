"""pytest-benchmark of MoE dispatch and combine: ``pytest bench/bench_moe.py [--device cuda]``.

As :mod:`.bench_gemm`: on a GPU several ranks in this process, beside a copy; on any machine the
host path of two ranks. Across GPUs: ``torchrun ... -m pykernels bench moe``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from . import moe_bench
from .baselines import MoeOperands
from .moe_bench import CALLS, MoeShape
from .problem import Options, Problem

SMALL = [
    MoeShape(call, 2, 8, fp8=call == "low_latency_dispatch", hidden=256, num_experts=8, num_topk=2)
    for call in CALLS
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", list(moe_bench.cases()), ids=str)
def test_gpu(measure: Callable[[Problem[Any]], None], shape: MoeShape) -> None:
    measure(shape)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_op_call(benchmark: Any, shape: MoeShape) -> None:
    """The public function in this process without a GPU: rows are moved by torch."""
    operands = shape.emulated_operands()
    assert isinstance(operands, MoeOperands)
    benchmark(shape.prepare_op(Options(), operands).call)
