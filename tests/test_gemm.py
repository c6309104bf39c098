"""The FP8 GEMM as an op: torch implementation, the emulator behind it, batch invariance."""

from __future__ import annotations

import pytest
import torch

import pykernels
from pykernels import reference
from pykernels.testing import FP32_FLOOR, assert_rows_close, gemm_operands
from tests.cases import GemmCase, assert_same_bits
from tests.gemm_kernels import Scheduled, run
from tests.target import selected

DTYPES = [torch.bfloat16, torch.float32]

# Edges of blocks and the k tail.
CASES = [
    GemmCase(1, 8, 16, "least sizes"),
    GemmCase(63, 64, 128, "one tile less one row"),
    GemmCase(64, 72, 144, "a k tail of 16 and an n tail of 8"),
    GemmCase(65, 128, 112, "one row into the next tile, less than one k tile"),
    GemmCase(129, 136, 256, "one past a tile of 128 both ways"),
    GemmCase(40, 8, 1168, "nine k tiles and a tail: more than any ring has stages"),
    GemmCase(257, 264, 272, "several tiles, the last cluster not full"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_implementation(case: GemmCase, dtype: torch.dtype) -> None:
    a, b = gemm_operands(case.m, case.n, case.k)
    result = pykernels.fp8_gemm_nt(a, b, out_dtype=dtype)
    assert_rows_close(result, reference.fp8_gemm_nt(a, b), floor=FP32_FLOOR)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 8, 16), (4, 0, 16), (4, 8, 0), (0, 0, 0)])
def test_empty(m: int, n: int, k: int) -> None:
    """Nothing is launched; k = 0 gives zeros, also in out."""
    a, b = gemm_operands(m, n, k)
    out = torch.full((m, n), torch.nan)
    with pykernels.emulate() as report:
        results = [pykernels.fp8_gemm_nt(a, b), pykernels.fp8_gemm_nt(a, b, out=out)]
    assert not report.launches
    for result in results:
        assert result.shape == (m, n)
        assert bool((result == 0).all())


def test_op_in_the_emulator_takes_the_cheapest_kernel() -> None:
    a, b = gemm_operands(70, 136, 272)
    best = pykernels.explain_config(pykernels.fp8_gemm_nt, m=70, n=136, k=272)[0]
    out = torch.empty(70, 136, dtype=torch.bfloat16)
    with pykernels.emulate() as report:
        result = pykernels.fp8_gemm_nt(a, b, out=out)
        with pykernels.emulate(num_sms=2) as inner:
            pykernels.fp8_gemm_nt(a, b, num_sms=1)
    report.raise_if_findings()
    inner.raise_if_findings()
    assert result is out
    assert [name for name, _ in report.launches] == [best.kernel]
    assert len(inner.launches) == 1
    assert report.counters.wgmma > 0
    scheduled = Scheduled(best.kernel, tuple(best.schedule.values()))
    assert_same_bits(result, run(scheduled, a, b, torch.bfloat16))


@pytest.mark.parametrize(("n", "k"), [(264, 1040), (2112, 2048)])
def test_batch_invariant(n: int, k: int) -> None:
    """A row's bits do not depend on m: rows 0 to m - 1 of 512 alone, through the public op."""
    a, b = gemm_operands(512, n, k)
    options = {"checks": ()}
    op = pykernels.fp8_gemm_nt
    whole, _ = selected().call(op, a, b, options=options, batch_invariant=True)
    for m in (1, 7, 64, 200):
        rows = a[0][:m], a[1][:m]
        part, _ = selected().call(op, rows, b, options=options, batch_invariant=True)
        assert_same_bits(part, whole[:m])


def test_few_rows_are_split_unless_batch_invariant() -> None:
    sizes = {"m": 1, "n": 2112, "k": 7168}
    best = pykernels.explain_config(pykernels.fp8_gemm_nt, **sizes)[0]
    assert best.schedule["split_k"] > 1
    kept = pykernels.explain_config(pykernels.fp8_gemm_nt, **sizes, batch_invariant=True)
    assert {candidate.schedule["split_k"] for candidate in kept} == {1}


def test_emulate_holds_for_its_own_thread() -> None:
    import threading

    a, b = gemm_operands(8, 8, 16)
    with pykernels.emulate() as report:
        thread = threading.Thread(target=pykernels.fp8_gemm_nt, args=(a, b))
        thread.start()
        thread.join()
    assert not report.launches
    with pytest.raises(TypeError):
        pykernels.emulate(sms=3).__enter__()
    with pytest.raises(ValueError, match="num_sms must be at least 1, got 0"):
        pykernels.emulate(num_sms=0).__enter__()
