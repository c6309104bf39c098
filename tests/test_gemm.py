"""The FP8 GEMM: torch implementation and every kernel, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import reference
from pykernels.native import kernel_metadata, native
from pykernels.testing import FP32_FLOOR, TENSOR_CORE_FLOOR, Pair, assert_rows_close, gemm_operands
from tests.cases import GemmCase, assert_same_bits
from tests.target import selected

KERNELS = [kernel["name"] for kernel in kernel_metadata() if kernel["family"] == "fp8_gemm_nt"]
DTYPES = [torch.bfloat16, torch.float32]
MODES = ("early", "late", "random")

# Edges of 64- and 128-row tiles, clusters of two, rings of 4 to 8 stages, and the k tail.
CASES = [
    GemmCase(1, 8, 16, "least sizes"),
    GemmCase(63, 64, 128, "one tile less one row"),
    GemmCase(64, 72, 144, "a k tail of 16 and an n tail of 8"),
    GemmCase(65, 128, 112, "one row into the next tile, less than one k tile"),
    GemmCase(129, 136, 256, "one past a tile of 128 both ways"),
    GemmCase(40, 8, 1168, "nine k tiles and a tail: more than any ring has stages"),
    GemmCase(257, 264, 272, "several tiles, the last cluster not full"),
]


def emulated(
    a: Pair, b: Pair, kernel: str, dtype: torch.dtype, num_sms: int | None = None, **options: Any
) -> Tensor:
    """Runs one named kernel, with ``--device cuda`` on the GPU, and demands no findings."""
    out = torch.full((a[0].size(0), b[0].size(0)), torch.nan, dtype=dtype)
    launch(a, b, out, kernel, num_sms, **options)
    return out


def launch(
    a: Pair, b: Pair, out: Tensor, kernel: str, num_sms: int | None = None, **options: Any
) -> None:
    function = native().fp8_gemm_nt
    launched = selected().launch(function, [*a, *b, out], num_sms, kernel, **options)
    assert launched in ([kernel], None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_implementation(case: GemmCase, dtype: torch.dtype) -> None:
    a, b = gemm_operands(case.m, case.n, case.k)
    result = pykernels.fp8_gemm_nt(a, b, out_dtype=dtype)
    assert_rows_close(result, reference.fp8_gemm_nt(a, b), floor=FP32_FLOOR)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(kernel: str, case: GemmCase, dtype: torch.dtype) -> None:
    a, b = gemm_operands(case.m, case.n, case.k)
    result = emulated(a, b, kernel, dtype)
    assert_rows_close(result, reference.fp8_gemm_nt(a, b), floor=TENSOR_CORE_FLOOR)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_the_schedule(kernel: str, mode: str) -> None:
    """Seeds, completion orders and few SMs (persistent CTAs with several tiles) agree."""
    a, b = gemm_operands(200, 200, 272)
    expected = emulated(a, b, KERNELS[0], torch.bfloat16, checks=())
    for seed, num_sms in ((1, 2), (2, 4), (3, 132)):
        options = {"seed": seed, "async_completion": mode, "num_sms": num_sms}
        assert_same_bits(emulated(a, b, kernel, torch.bfloat16, **options), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_num_sms(kernel: str) -> None:
    a, b = gemm_operands(200, 136, 144)
    expected = emulated(a, b, kernel, torch.float32)
    assert_same_bits(emulated(a, b, kernel, torch.float32, num_sms=2), expected)


def hostile_scales(a: Pair, b: Pair) -> dict[str, tuple[Pair, Pair]]:
    """The same product with scale tensors as no one would lay them out."""
    (q, sfa), (w, sfb) = a, b
    rows, blocks = sfa.shape

    column_major = sfa.T.contiguous().T
    padded = torch.full((rows + 9, blocks + 3), torch.nan)[:rows, :blocks].copy_(sfa)
    strided = torch.full((rows * 3, blocks * 5 + 1), torch.nan)[::3, 1::5].copy_(sfa)
    last = torch.full((rows * blocks + 1,), torch.nan)[1:].view(rows, blocks).copy_(sfa)
    sfb_column_major = sfb.T.contiguous().T
    sfb_strided = torch.full((sfb.size(0) * 2, blocks * 3), torch.nan)[::2, ::3].copy_(sfb)
    return {
        "column-major": ((q, column_major), (w, sfb_column_major)),
        "NaN in padding": ((q, padded), (w, sfb)),
        "odd strides": ((q, strided), (w, sfb_strided)),
        "off by 4 bytes, ending with the allocation": ((q, last), (w, sfb)),
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_scales_of_any_strides(kernel: str) -> None:
    a, b = gemm_operands(70, 136, 272)
    expected = emulated(a, b, kernel, torch.float32)
    for name, (a_hostile, b_hostile) in hostile_scales(a, b).items():
        result = emulated(a_hostile, b_hostile, kernel, torch.float32)
        assert torch.equal(result, expected), name


@pytest.mark.parametrize("kernel", KERNELS)
def test_shared_scales(kernel: str) -> None:
    """Stride 0: one scale for all rows or all of k."""
    a, b = gemm_operands(70, 136, 272)
    expanded = (a[0], a[1][:1, :1].expand(70, 3)), (b[0], b[1][:1].expand(2, 3))
    copied = (a[0], expanded[0][1].clone()), (b[0], expanded[1][1].clone())
    result = emulated(*expanded, kernel, torch.float32)
    assert_same_bits(result, emulated(*copied, kernel, torch.float32))


@pytest.mark.parametrize("kernel", KERNELS)
def test_neighbours_in_memory_do_not_matter(kernel: str) -> None:
    """NaN around the values and behind the last row; nothing around the result is written."""
    (q, sfa), (w, sfb) = gemm_operands(70, 136, 272)
    a_storage = torch.full((90, 320), 0x7F, dtype=torch.uint8)
    b_storage = torch.full((150, 320), 0x7F, dtype=torch.uint8)
    a_storage[8:78, 16:288] = q.view(torch.uint8)
    b_storage[8:144, 16:288] = w.view(torch.uint8)
    a = (a_storage.view(torch.float8_e4m3fn)[8:78, 16:288], sfa)
    b = (b_storage.view(torch.float8_e4m3fn)[8:144, 16:288], sfb)
    for dtype in DTYPES:
        expected = emulated((q, sfa), (w, sfb), kernel, dtype)
        storage = torch.full((90, 160), 7.0, dtype=dtype)
        out = storage[8:78, 16:152]
        launch(a, b, out, kernel)
        assert_same_bits(out, expected)
        storage[8:78, 16:152] = 7.0
        assert bool((storage == 7.0).all())


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_reaches_exactly_what_uses_it(kernel: str) -> None:
    a, b = gemm_operands(70, 136, 272)
    a[0].view(torch.uint8)[3, 200] = 0x7F
    b[0].view(torch.uint8)[10, 271] = 0xFF
    a[1][7, 2] = torch.nan
    b[1][1, 0] = torch.nan
    result = emulated(a, b, kernel, torch.bfloat16)
    assert torch.equal(result.isnan(), reference.fp8_gemm_nt(a, b).isnan())


@pytest.mark.parametrize("kernel", KERNELS)
def test_infinite_scales(kernel: str) -> None:
    """A k tile's sum times infinity: finite nowhere else than in the reference."""
    a, b = gemm_operands(8, 8, 272)
    a[1][2, 1] = torch.inf
    result = emulated(a, b, kernel, torch.float32)
    assert torch.equal(result.isfinite(), reference.fp8_gemm_nt(a, b).isfinite())


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
    assert_same_bits(result, emulated(a, b, best.kernel, torch.bfloat16))


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
