"""Every kernel of the FP8 GEMM with every schedule, against the reference and bit by bit."""

from __future__ import annotations

import pytest
import torch

from pykernels import reference
from pykernels.native import native, tensor_view
from pykernels.testing import TENSOR_CORE_FLOOR, Pair, assert_rows_close, gemm_operands
from tests.cases import assert_same_bits
from tests.gemm_kernels import (
    ALL,
    KERNELS,
    RICHEST,
    Scheduled,
    Sizes,
    exact,
    expected_bits,
    run,
    run_into,
    schedules,
)

DTYPES = [torch.bfloat16, torch.float32]
MODES = ("early", "late", "random")


def edges(scheduled: Scheduled) -> dict[str, Sizes]:
    """Sizes around the tile, the cluster and the ring; n in steps of 8, k in steps of 16."""
    block_m, block_n = (scheduled.config[f"block_{dim}"] for dim in "mn")
    cluster_m, cluster_n, _ = scheduled.schedule
    most_stages = 16 if scheduled.config["swap_ab"] else 8
    return {
        "least sizes": (1, 8, 16),
        "one less than a tile": (block_m - 1, block_n - 8, 112),
        "a tile": (block_m, block_n, 128),
        "one more than a tile, a k tail": (block_m + 1, block_n + 8, 144),
        "more k tiles than stages": (block_m, 8, (most_stages + 1) * 128 + 16),
        "the last cluster not full": (
            2 * block_m * cluster_m + 1,
            2 * block_n * cluster_n + 8,
            5 * 128,
        ),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheduled", ALL, ids=str)
def test_edges(scheduled: Scheduled, dtype: torch.dtype) -> None:
    for sizes in edges(scheduled).values():
        result = run(scheduled, *gemm_operands(*sizes), dtype)
        assert_rows_close(result, exact(sizes), floor=TENSOR_CORE_FLOOR)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheduled", ALL, ids=str)
def test_bits(scheduled: Scheduled, mode: str) -> None:
    """Seeds, completion orders and few SMs (persistent CTAs with several tiles) agree, and all
    kernels and cluster shapes with the same split of k."""
    sizes = (70, 200, 1168)
    expected = expected_bits(sizes, scheduled.split_k)
    for seed, clusters in ((1, 1), (2, 3)):
        num_sms = clusters * scheduled.cluster
        options = {"seed": seed, "async_completion": mode, "num_sms": num_sms}
        result = run(scheduled, *gemm_operands(*sizes), torch.float32, **options)
        assert_same_bits(result, expected)
    result = run(scheduled, *gemm_operands(*sizes), torch.bfloat16, async_completion=mode)
    assert_same_bits(result, expected.bfloat16())


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_num_sms(scheduled: Scheduled) -> None:
    sizes = (200, 136, 144)
    result = run(scheduled, *gemm_operands(*sizes), torch.float32, num_sms=scheduled.cluster)
    assert_same_bits(result, expected_bits(sizes, scheduled.split_k))
    with pytest.raises(ValueError, match=r"needs at least \d SMs, got num_sms = 0"):
        run(scheduled, *gemm_operands(*sizes), torch.float32, num_sms=0)


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


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_scales_of_any_strides(scheduled: Scheduled) -> None:
    sizes = (70, 136, 272)
    a, b = gemm_operands(*sizes)
    for name, (a_hostile, b_hostile) in hostile_scales(a, b).items():
        result = run(scheduled, a_hostile, b_hostile, torch.float32)
        assert torch.equal(result, expected_bits(sizes, scheduled.split_k)), name


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_shared_scales(scheduled: Scheduled) -> None:
    """Stride 0: one scale for all rows or all of k."""
    a, b = gemm_operands(70, 136, 272)
    expanded = (a[0], a[1][:1, :1].expand(70, 3)), (b[0], b[1][:1].expand(2, 3))
    copied = (a[0], expanded[0][1].clone()), (b[0], expanded[1][1].clone())
    result = run(scheduled, *expanded, torch.float32)
    assert_same_bits(result, run(scheduled, *copied, torch.float32))


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_neighbours_in_memory_do_not_matter(scheduled: Scheduled) -> None:
    """NaN around the values and behind the last row; nothing around the result is written."""
    sizes = (70, 136, 272)
    (q, sfa), (w, sfb) = gemm_operands(*sizes)
    a_storage = torch.full((90, 320), 0x7F, dtype=torch.uint8)
    b_storage = torch.full((150, 320), 0x7F, dtype=torch.uint8)
    a_storage[8:78, 16:288] = q.view(torch.uint8)
    b_storage[8:144, 16:288] = w.view(torch.uint8)
    a = (a_storage.view(torch.float8_e4m3fn)[8:78, 16:288], sfa)
    b = (b_storage.view(torch.float8_e4m3fn)[8:144, 16:288], sfb)
    for dtype in DTYPES:
        storage = torch.full((90, 160), 7.0, dtype=dtype)
        out = storage[8:78, 16:152]
        run_into(out, scheduled, a, b)
        assert_same_bits(out, expected_bits(sizes, scheduled.split_k).to(dtype))
        storage[8:78, 16:152] = 7.0
        assert bool((storage == 7.0).all())


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_nan_reaches_exactly_what_uses_it(scheduled: Scheduled) -> None:
    a, b = gemm_operands(70, 264, 272)
    a[0].view(torch.uint8)[3, 200] = 0x7F
    b[0].view(torch.uint8)[10, 271] = 0xFF
    a[1][7, 2] = torch.nan
    b[1][1, 0] = torch.nan  # columns 128 to 255: inside of tiles that do not divide 128
    result = run(scheduled, a, b, torch.bfloat16)
    assert torch.equal(result.isnan(), reference.fp8_gemm_nt(a, b).isnan())


@pytest.mark.parametrize("scheduled", RICHEST, ids=str)
def test_infinite_scales(scheduled: Scheduled) -> None:
    """A k tile's sum times infinity: finite nowhere else than in the reference."""
    a, b = gemm_operands(8, 8, 272)
    a[1][2, 1] = torch.inf
    result = run(scheduled, a, b, torch.float32)
    assert torch.equal(result.isfinite(), reference.fp8_gemm_nt(a, b).isfinite())


@pytest.mark.parametrize("kernel", KERNELS)
def test_foreign_schedules_are_refused(kernel: str) -> None:
    """A cluster shape that the kernel was not made for, before anything is launched."""
    device = native().EmulatedDevice()
    a, b = gemm_operands(8, 8, 16)
    out = torch.full((8, 8), 7.0)
    views = [tensor_view(tensor) for tensor in (*a, *b, out)]
    for schedule in ((2, 2, 1), (1, 1, 9), (2, 1, 2), (0, 1, 1), (1, 8, 1)):
        assert schedule not in schedules(KERNELS[kernel])
        with pytest.raises(ValueError, match=f"kernel {kernel} cannot run clusters of"):
            native().fp8_gemm_nt(device, *views, None, kernel, schedule)
    assert not device.reports
    assert bool((out == 7.0).all())


def test_strides_along_k_have_a_limit() -> None:
    """The kernels take them in bytes as 32-bit integers."""
    device = native().EmulatedDevice()
    (q, sfa), (w, sfb) = gemm_operands(8, 8, 16)
    out = torch.empty(8, 8)
    views = [tensor_view(tensor) for tensor in (q, sfa, w, sfb, out)]
    views[1] = native().TensorView(sfa.data_ptr(), (8, 1), (1, 2**30), "float32")
    with pytest.raises(ValueError, match=r"stride of sfa along k must be less than 2\^30 elements"):
        native().fp8_gemm_nt(device, *views, None)
