"""SwiGLU fused with the cast: torch implementation and kernel against the reference."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pykernels
from pykernels import reference
from pykernels.native import native
from pykernels.testing import FP32_FLOOR, row_errors
from tests.cases import assert_same_bits, ceil_div
from tests.target import selected
from tests.test_cuda_path import Cuda

Pair = tuple[Tensor, Tensor]
FP8 = torch.float8_e4m3fn
OP = pykernels.silu_mul_quantize_1x128
KERNEL = "silu_mul_quantize_1x128"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
FORMATS = pytest.mark.parametrize("scale_fmt", ["fp32", "ue8m0"])
MODES = ("early", "late", "random")


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows, columns of each half, and what they exercise."""

    t: int
    i: int
    what: str

    def __str__(self) -> str:
        return f"{self.t}x{self.i}-{self.what.replace(' ', '_')}"


CASES = [
    Case(1, 1, "one element"),
    Case(1, 16, "one chunk"),
    Case(2, 8, "the halves aligned, half a chunk"),
    Case(3, 17, "an odd start of the second half"),
    Case(5, 20, "a start at 8 bytes of BF16"),
    Case(33, 127, "a block less one"),
    Case(7, 128, "one block"),
    Case(9, 129, "a block and one"),
    Case(40, 272, "ragged, aligned"),
    Case(130, 640, "several steps of a warp"),
]


def make_x(t: int, i: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Gates around zero, up values whose rows differ in magnitude; NaN in the rows' padding."""
    generator = torch.Generator().manual_seed(seed + 1000003 * t + i)
    magnitude = torch.exp(torch.rand(t, 1, generator=generator) * 4 - 2)
    gate = torch.randn(t, i, generator=generator) * 3
    up = torch.randn(t, i, generator=generator) * magnitude
    x = torch.full((t, ceil_div(2 * i, 16) * 16), torch.nan, dtype=dtype)[:, : 2 * i]
    return x.copy_(torch.cat([gate, up], dim=1))


def poisoned_outputs(*leading: int, i: int) -> Pair:
    q = torch.full((*leading, ceil_div(i, 16) * 16), 0x55, dtype=torch.uint8)[..., :i]
    return q.view(FP8), torch.full((*leading, ceil_div(i, 128)), 7.0)


def assert_close(actual: Pair, x: Tensor, scale_fmt: str = "fp32") -> None:
    """Rows within 1.5 times what the cast alone costs; scales a few units in the last place.

    The exponent carries the rounding of its product, so the bound of y grows with the gate.
    """
    y = reference.silu_mul(x)
    exact_q, exact_scales = reference.silu_mul_quantize_1x128(x)
    gates = torch.nn.functional.pad(x[:, : y.size(1)].float().abs(), (0, -y.size(1) % 128))
    slack = (12 + 2 * gates.view(x.size(0), -1, 128).amax(dim=2)).double() * 2**-24
    if scale_fmt == "fp32":
        assert bool(((actual[1] - exact_scales).abs() <= slack * exact_scales).all())
        best = exact_q, exact_scales
    else:
        low, high = (
            torch.exp2(torch.ceil(torch.log2(exact_scales.double() * (1 + sign * slack))))
            for sign in (-1, 1)
        )
        assert bool(((actual[1] == low) | (actual[1] == high)).all())
        best = reference.silu_mul_quantize_1x128(x, scale_fmt=scale_fmt)
    errors = row_errors(reference.dequantize_1x128(*actual), y)
    allowed = 1.5 * row_errors(reference.dequantize_1x128(*best), y) + FP32_FLOOR
    assert bool((errors <= allowed).all()), (errors - allowed).max()


def emulated(*arguments: Any, options: Any = None, **named: Any) -> Pair:
    """Runs the kernel, with ``--device cuda`` on the GPU, and demands no findings."""
    result, launched = selected().call(OP, *arguments, options=options, **named)
    assert launched in ([KERNEL], None)
    pair: Pair = result
    return pair


@DTYPES
@FORMATS
def test_torch_implementation(dtype: torch.dtype, scale_fmt: str) -> None:
    for case in CASES:
        x = make_x(case.t, case.i, dtype)
        assert_close(OP(x, scale_fmt=scale_fmt), x, scale_fmt)


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(dtype: torch.dtype, case: Case) -> None:
    x = make_x(case.t, case.i, dtype)
    assert_close(emulated(x), x)


@DTYPES
def test_kernel_with_powers_of_two(dtype: torch.dtype) -> None:
    x = make_x(40, 272, dtype, seed=1)
    assert_close(emulated(x, scale_fmt="ue8m0"), x, "ue8m0")


def test_a_wrong_row_is_noticed() -> None:
    x = make_x(40, 272, torch.bfloat16)
    for change in ("gate for up", "a row of zeros", "a scale"):
        q, scales = OP(x)
        if change == "gate for up":
            q, scales = OP(torch.cat([x[:, 272:], x[:, :272]], dim=1))
        elif change == "a row of zeros":
            q[3] = torch.zeros(272).to(FP8)
        else:
            scales[5, 1] *= 1 + 4e-6
        with pytest.raises(AssertionError):
            assert_close((q, scales), x)


def test_the_cast_is_that_of_quantize_1x128() -> None:
    """With gates so large that silu is the identity, y is an exact product: same bits."""
    generator = torch.Generator().manual_seed(3)
    up = torch.randn(64, 400, generator=generator) * torch.logspace(-30, 30, 64)[:, None]
    x = torch.cat([torch.full((64, 400), 64.0), up], dim=1)
    for scale_fmt in ("fp32", "ue8m0"):
        expected = pykernels.quantize_1x128(up * 64, scale_fmt=scale_fmt)
        for result in (OP(x, scale_fmt=scale_fmt), emulated(x, scale_fmt=scale_fmt)):
            assert_same_bits(result[1], expected[1])
            assert_same_bits(result[0], expected[0])


def compute(x: Tensor, in_torch: bool, **named: Any) -> Pair:
    return OP(x, **named) if in_torch else emulated(x, **named)


IN_TORCH = pytest.mark.parametrize("in_torch", [False, True], ids=["kernel", "torch"])


@IN_TORCH
def test_special_values(in_torch: bool) -> None:
    """Each row has one special value in its second block; the first block stays what it is."""
    infinity, big = torch.inf, 3e38
    pairs = [  # gate, up, what becomes of the second block: a scale, or None for a plain one
        (torch.nan, 1.0, torch.nan),
        (1.0, torch.nan, torch.nan),
        (infinity, 1.0, torch.nan),
        (1.0, -infinity, torch.nan),
        (-infinity, 1.0, torch.nan),  # -infinity / infinity
        (infinity, 0.0, torch.nan),
        (big, big, torch.nan),  # y overflows
        (-1e4, 3.0, None),  # -0
        (-0.0, 5.0, None),
        (big, 1e-30, big * 1e-30 / 448),
    ]
    x = make_x(len(pairs), 272, torch.float32)
    plain = compute(x, in_torch)
    for row, (gate, up, _) in enumerate(pairs):
        x[row, 130], x[row, 272 + 130] = gate, up
    q, scales = compute(x, in_torch)
    codes = q.view(torch.uint8)
    assert_same_bits(scales[:, ::2], plain[1][:, ::2])
    assert_same_bits(codes[:, :128], plain[0].view(torch.uint8)[:, :128])
    for row, (_, _, scale) in enumerate(pairs):
        if scale is None:
            assert int(codes[row, 130]) == 0x80
            assert bool(scales[row, 1].isfinite())
        elif scale != scale:
            assert bool(scales[row, 1].isnan())
            assert bool((codes[row, 128:256] == 0x7F).all())
        else:
            assert float(scales[row, 1]) == pytest.approx(scale, rel=1e-6)


@IN_TORCH
def test_blocks_of_zeros(in_torch: bool) -> None:
    """Also where every gate is so low that silu is zero."""
    for gate, up, code in ((0.0, 1.0, 0x00), (1.0, -0.0, 0x80), (-200.0, 1.0, 0x80)):
        x = torch.cat([torch.full((2, 128), gate), torch.full((2, 128), up)], dim=1)
        q, scales = compute(x, in_torch)
        assert bool((scales == 1).all())
        assert bool((q.view(torch.uint8) == code).all())


@dataclasses.dataclass(frozen=True)
class Groups:
    """The rows of groups, named in one way, and which rows those are."""

    named: dict[str, Tensor]
    rows: Tensor  # a flag each


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def groupings(num_groups: int, max_m: int, seed: int = 0) -> dict[str, Groups]:
    """For rows [num_groups * max_m], or [num_groups, max_m] with masked_m."""
    generator = torch.Generator().manual_seed(seed)
    t = num_groups * max_m
    indices = torch.randint(-1, 4, (t,), generator=generator, dtype=torch.int32)
    masked = torch.randint(0, max_m + 1, (num_groups,), generator=generator, dtype=torch.int32)
    masked[:2] = int32(0, max_m)
    row = torch.arange(t)
    return {
        "group_offsets": Groups(
            {"group_offsets": int32(t // 8, t // 4, t // 4, t - t // 3)},
            (row >= t // 8) & (row < t - t // 3),
        ),
        "m_indices": Groups({"m_indices": indices}, indices >= 0),
        "masked_m": Groups({"masked_m": masked}, torch.arange(max_m) < masked[:, None]),
    }


SOURCES = pytest.mark.parametrize("source", ["group_offsets", "m_indices", "masked_m"])


def assert_groups(
    x: Tensor, groups: Groups, full: Pair, call: Callable[..., Pair], **named: Any
) -> None:
    """Rows of groups as in ``full``; others neither read, whatever they hold, nor written."""
    i = x.size(-1) // 2
    pitch = ceil_div(2 * i, 16) * 16
    spoilt = torch.full((*x.shape[:-1], pitch), torch.nan, dtype=x.dtype)[..., : 2 * i].copy_(x)
    spoilt[~groups.rows] = torch.nan
    q, scales = poisoned_outputs(*x.shape[:-1], i=i)
    result = call(spoilt, **groups.named, **named, out=(q, scales))
    assert result[0] is q
    assert result[1] is scales
    codes, expected = q.view(torch.uint8), full[0].view(torch.uint8).reshape(q.shape)
    assert_same_bits(scales[groups.rows], full[1].reshape(scales.shape)[groups.rows])
    assert_same_bits(codes[groups.rows], expected[groups.rows])
    assert bool((codes[~groups.rows] == 0x55).all())
    assert bool((scales[~groups.rows] == 7).all())


@SOURCES
@DTYPES
@pytest.mark.parametrize(("num_groups", "max_m", "i"), [(5, 8, 272), (2, 1, 24), (7, 3, 133)])
@IN_TORCH
def test_groups(
    source: str, dtype: torch.dtype, num_groups: int, max_m: int, i: int, in_torch: bool
) -> None:
    """A row's bits are those of the call without groups."""
    x = make_x(num_groups * max_m, i, dtype)
    full = compute(x, in_torch)
    groups = groupings(num_groups, max_m)[source]
    if source == "masked_m":
        x = x.unflatten(0, (num_groups, max_m))
    assert_groups(x, groups, full, OP if in_torch else emulated)


@SOURCES
def test_more_groups_and_rows_than_a_list_holds(source: str) -> None:
    """On one SM, so that CTAs list several chunks; most groups are empty."""
    num_groups, max_m, i = 1300, 2, 24
    x = make_x(num_groups * max_m, i, torch.bfloat16)
    groups = groupings(num_groups, max_m)[source]
    if source == "masked_m":
        masked = torch.zeros(num_groups, dtype=torch.int32)
        masked[::37], masked[600:640], masked[-1] = 1, 2, 2
        groups = Groups({"masked_m": masked}, torch.arange(max_m) < masked[:, None])
    full = emulated(x, options={"checks": ()})
    if source == "masked_m":
        x = x.unflatten(0, (num_groups, max_m))
    assert_groups(x, groups, full, emulated, options={"num_sms": 1})


def test_groups_without_rows() -> None:
    x = make_x(12, 40, torch.bfloat16)
    nothing = [
        (x, {"group_offsets": int32(5, 5)}),
        (x, {"group_offsets": int32(0)}),
        (x, {"m_indices": torch.full((12,), -1, dtype=torch.int32)}),
        (x.unflatten(0, (3, 4)), {"masked_m": int32(0, 0, 0)}),
    ]
    for rows, named in nothing:
        for in_torch in (False, True):
            q, scales = poisoned_outputs(*rows.shape[:-1], i=40)
            if in_torch:
                OP(rows, **named, out=(q, scales))
            else:
                with pykernels.emulate() as report:
                    OP(rows, **named, out=(q, scales))
                report.raise_if_findings()
            assert bool((q.view(torch.uint8) == 0x55).all())
            assert bool((scales == 7).all())


@pytest.mark.parametrize("mode", MODES)
def test_same_bits_with_every_schedule(mode: str) -> None:
    x = make_x(42, 272, torch.bfloat16)
    full = emulated(x)
    for source, groups in groupings(6, 7).items():
        rows = x.unflatten(0, (6, 7)) if source == "masked_m" else x
        for seed in range(3):
            options = {"seed": seed, "async_completion": mode, "num_sms": seed + 1}
            assert_groups(rows, groups, full, emulated, options=options)


@IN_TORCH
def test_strides(in_torch: bool) -> None:
    """Rows apart, scales column-major and with gaps; what lies between stays untouched."""
    t, i = 20, 200
    wide = torch.full((t, 480), torch.nan)
    x = wide[:, 16 : 16 + 2 * i].copy_(make_x(t, i, torch.float32))
    expected = compute(x.clone(), in_torch)
    q_storage = torch.full((t, 256), 0x55, dtype=torch.uint8)
    scale_storage = torch.full((2, t * 2 + 1), 7.0)
    out = q_storage[:, 16 : 16 + i].view(FP8), scale_storage[:, : 2 * t : 2].T
    result = compute(x, in_torch, out=out)
    assert_same_bits(result[0], expected[0])
    assert_same_bits(result[1], expected[1])
    assert bool((q_storage[:, :16] == 0x55).all())
    assert bool((q_storage[:, 16 + i :] == 0x55).all())
    assert bool((scale_storage[:, 1::2] == 7.0).all())


@IN_TORCH
def test_strides_of_groups(in_torch: bool) -> None:
    """Groups apart, then x row by row in turns; scales with groups innermost."""
    i, masked = 40, int32(4, 2, 0)
    x = make_x(12, i, torch.bfloat16)
    rows = torch.arange(4) < masked[:, None]
    full = compute(x, in_torch)
    apart = torch.full((3, 6, 2 * i + 16), torch.nan, dtype=torch.bfloat16)[:, :4, : 2 * i]
    in_turns = torch.empty(4, 3, 2 * i, dtype=torch.bfloat16).transpose(0, 1)
    for layout in (apart, in_turns):
        layout.copy_(x.view(3, 4, 2 * i))
        q = torch.full((3, 5, 48), 0x55, dtype=torch.uint8)[:, :4, :i].view(FP8)
        scales = torch.full((1, 4, 3), 7.0).permute(2, 1, 0)
        compute(layout, in_torch, masked_m=masked, out=(q, scales))
        assert_same_bits(q.view(torch.uint8)[rows], full[0].view(torch.uint8).view(3, 4, i)[rows])
        assert_same_bits(scales[rows], full[1].view(3, 4, 1)[rows])
        assert bool((q.view(torch.uint8)[~rows] == 0x55).all())
        assert bool((scales[~rows] == 7).all())


@pytest.mark.parametrize(("t", "i"), [(0, 128), (5, 0), (0, 0)])
def test_empty(t: int, i: int) -> None:
    x = torch.empty(t, 2 * i)
    for named in ({}, {"m_indices": torch.zeros(t, dtype=torch.int32)}):
        with pykernels.emulate() as report:
            q, scales = OP(x, **named)
        assert not report.launches
        for result in ((q, scales), OP(x, **named)):
            assert result[0].shape == (t, i)
            assert result[1].shape == (t, ceil_div(i, 128))
    q, scales = OP(torch.empty(0, t, 2 * i), masked_m=int32())
    assert (q.shape, scales.shape) == ((0, t, i), (0, t, ceil_div(i, 128)))


def test_allocated_rows_start_at_multiples_of_16_bytes() -> None:
    q, _ = OP(make_x(5, 37, torch.bfloat16))
    assert q.stride() == (48, 1)
    q, scales = OP(torch.ones(3, 4, 80)[..., :74], masked_m=int32(4, 4, 4))
    assert q.stride() == (4 * 48, 48, 1)
    assert scales.shape == (3, 4, 1)


# ---- what is moved ----


def moved(x: Tensor, num_rows: int, groups: Tensor | None, **named: Any) -> None:
    """At most 1.05 times the least, both as threads ask for it and by sectors of memory."""
    i = x.size(-1) // 2
    least_read = num_rows * 2 * i * x.element_size()
    least_read += 0 if groups is None else groups.numel() * 4
    least_written = num_rows * (i + 4 * ceil_div(i, 128))
    with pykernels.emulate(checks=()) as report:
        OP(x, **named)
    counters = report.counters
    least = least_read + least_written
    asked = counters.global_bytes_read + counters.global_bytes_written
    sectors = counters.global_footprint_bytes_read + counters.global_footprint_bytes_written
    print(f"{asked / least:.4f} asked, {sectors / least:.4f} in sectors")
    assert counters.global_bytes_written == least_written
    assert asked <= 1.05 * least
    assert sectors <= 1.05 * least


@pytest.mark.parametrize(("t", "i"), [(48, 2048), (300, 256), (1, 18432), (64, 2000)])
def test_bytes_without_groups(t: int, i: int) -> None:
    moved(torch.zeros(t, 2 * i, dtype=torch.bfloat16), t, None)


@pytest.mark.parametrize("per_group", [3, 8, 64])
def test_bytes_of_a_mask(per_group: int) -> None:
    """Room for 256 rows in each of 32 groups, most of it unused."""
    masked = torch.full((32,), per_group, dtype=torch.int32)
    masked[::2] = max(per_group - 2, 0)
    masked[1::2] += 2
    x = torch.zeros(32, 256, 4096 if per_group < 64 else 512, dtype=torch.bfloat16)
    moved(x, int(masked.sum()), masked, masked_m=masked)


def test_bytes_of_offsets() -> None:
    """Room for 8192 rows, 100 of them in groups: only their first and last offset are read."""
    x = torch.zeros(8192, 4096, dtype=torch.bfloat16)
    offsets = torch.arange(17, dtype=torch.int32) * 6 + 4
    moved(x, 96, offsets, group_offsets=offsets)


@pytest.mark.parametrize("per_group", [1, 5, 100])
def test_bytes_of_indices(per_group: int) -> None:
    """64 groups padded to 128 rows."""
    indices = torch.full((64, 128), -1, dtype=torch.int32)
    indices[:, :per_group] = torch.arange(64, dtype=torch.int32)[:, None]
    x = torch.zeros(8192, 4096 if per_group < 100 else 256, dtype=torch.bfloat16)
    moved(x, 64 * per_group, indices, m_indices=indices.flatten())


def test_an_sm_holds_two_ctas() -> None:
    device = native().EmulatedDevice(num_sms=132)
    assert device.max_active_clusters(KERNEL, (1, 1, 1)) == 2 * 132


# ---- wrong arguments ----


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One spoilt call and what the message must say."""

    name: str
    named: dict[str, Any]
    message: str

    def __str__(self) -> str:
        return self.name


ROWS, HALF = 12, 136
WRONG = [
    Wrong("two ways", {"group_offsets": int32(0, 1), "m_indices": int32(0)}, "pass at most one of"),
    Wrong("odd columns", {"x": torch.ones(ROWS, 24)[:, :17]}, "must be a multiple of 2, got 17"),
    Wrong("x no tensor", {"x": [1.0]}, "x must be a tensor, got list"),
    Wrong("offsets no tensor", {"group_offsets": [0]}, "group_offsets must be a tensor, got list"),
    Wrong("rank of x", {"x": torch.ones(2, ROWS, 16)}, "x must have 2 dimensions, got 3"),
    Wrong("rank with a mask", {"masked_m": int32(1)}, "x must have 3 dimensions, got 2"),
    Wrong("rank of indices", {"m_indices": int32(0)[None]}, "m_indices must have 1 dimensions"),
    Wrong("dtype of x", {"x": torch.ones(ROWS, 16).double()}, "x must be bfloat16 or float16"),
    Wrong("dtype of offsets", {"group_offsets": torch.tensor([0, 1])}, "must be int32, got int64"),
    Wrong("device", {"group_offsets": int32(0, 1).to("meta")}, "group_offsets on meta"),
    Wrong("length of indices", {"m_indices": int32(0, 1)}, "m_indices must be [t] = [12], got [2]"),
    Wrong(
        "length of a mask",
        {"x": torch.ones(2, ROWS, 16), "masked_m": int32(1, 2, 3)},
        "masked_m must be [num_groups] = [2], got [3]",
    ),
    Wrong("no offsets", {"group_offsets": int32()}, "group_offsets must be [num_groups + 1]"),
    Wrong(
        "stride of indices",
        {"m_indices": torch.zeros(2 * ROWS, dtype=torch.int32)[::2]},
        "m_indices must be contiguous, got stride 2",
    ),
    Wrong("row stride", {"x": torch.ones(ROWS, 18)[:, :16]}, "multiple of 16 bytes, got 72"),
    Wrong(
        "group stride",
        {"x": torch.ones(101).as_strided((2, 3, 16), (49, 16, 1)), "masked_m": int32(1, 1)},
        "the group stride of x must be a multiple of 16 bytes, got 196",
    ),
    Wrong(
        "groups overlap",
        {
            "x": torch.ones(2, 3, 32),
            "masked_m": int32(1, 1),
            "out": (torch.zeros(1, 3, 16).to(FP8).expand(2, 3, 16), torch.zeros(2, 3, 1)),
        },
        "groups of out[0] must not overlap",
    ),
    Wrong("scale_fmt", {"scale_fmt": "e8m0"}, "'fp32' or 'ue8m0', got 'e8m0'"),
    Wrong("gradient", {"x": torch.ones(ROWS, 16, requires_grad=True)}, "x requires grad"),
    Wrong("address", {"x": torch.ones(ROWS * 16 + 1)[1:].view(ROWS, 16)}, "(4 past one)"),
    Wrong("out no pair", {"out": torch.ones(1)}, "out must be a pair"),
    Wrong(
        "shape of q",
        {"out": (torch.zeros(ROWS, 120).to(FP8), torch.zeros(ROWS, 2))},
        "out[0] must be [t, i] = [12, 136], got [12, 120]",
    ),
    Wrong(
        "shape of scales",
        {"out": (torch.zeros(ROWS, 144).to(FP8)[:, :HALF], torch.zeros(ROWS, 1))},
        "out[1] must be [t, ceil(i / 128)] = [12, 2], got [12, 1]",
    ),
    Wrong(
        "scales overlap",
        {"out": (torch.zeros(ROWS, 144).to(FP8)[:, :HALF], torch.zeros(1, 2).expand(ROWS, 2))},
        "elements of out[1] must not overlap",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_refuses(wrong: Wrong) -> None:
    named = {"x": make_x(ROWS, HALF, torch.float32)} | wrong.named
    x = named.pop("x")
    with pytest.raises(ValueError, match=re.escape(wrong.message)) as error:
        OP(x, **named)
    assert pykernels.can_run(OP, x, **named) == (False, str(error.value))


def test_outputs_may_not_share_memory() -> None:
    x = torch.ones(3, 4, 64)
    masked = int32(1, 1, 1)
    over_x = x.view(torch.uint8)[..., :32].view(FP8)
    with pytest.raises(ValueError, match=r"out\[0\] must not share memory with x"):
        OP(x, masked_m=masked, out=(over_x, torch.empty(3, 4, 1)))
    q = torch.zeros(3, 4, 32).to(FP8)
    for scales in (x[..., :1], q.view(torch.float32)[..., :1]):
        with pytest.raises(ValueError, match=r"must not share memory with"):
            OP(x, masked_m=masked, out=(q, scales))
    over_groups = masked.view(torch.float32)[:, None, None]
    with pytest.raises(ValueError, match=r"out\[1\] must not share memory with masked_m"):
        OP(x[:, :1], masked_m=masked, out=(q[:, :1], over_groups))


def test_packed_rows_of_groups_share_no_memory() -> None:
    """Values and scales side by side, group after group."""
    packed = torch.zeros(3, 4, 160, dtype=torch.uint8)
    x = torch.randn(3, 4, 2 * 144)
    masked = int32(4, 4, 4)
    q, scales = packed[..., :144].view(FP8), packed[..., 144:152].view(torch.float32)
    OP(x, masked_m=masked, out=(q, scales))
    expected = OP(x, masked_m=masked)
    assert_same_bits(q, expected[0])
    assert_same_bits(scales, expected[1])


def test_can_run() -> None:
    x = torch.ones(ROWS, 16)
    assert pykernels.can_run(OP, x) == (True, "")
    assert pykernels.can_run(OP, x, group_offsets=int32(0, ROWS))
    assert pykernels.can_run(OP, x[None], masked_m=int32(ROWS), scale_fmt="ue8m0")
    capability = pykernels.can_run(OP, x, group_offsets=int32(0, ROWS + 1))
    assert not capability
    assert "got 0 to 13" in capability.reason


# ---- wrong values on the device ----


@dataclasses.dataclass(frozen=True)
class WrongGroups:
    """Groups with a wrong value, the rows that are still computed, and both messages."""

    name: str
    named: dict[str, Tensor]
    computed: Tensor
    in_torch: str
    by_kernel: str

    def __str__(self) -> str:
        return self.name


NONE = torch.zeros(ROWS, dtype=torch.bool)
OFFSETS = "group_offsets must start at 0 or above, not end before that, and end at t = 12 or below"
WRONG_GROUPS = [
    WrongGroups(
        "offset below 0", {"group_offsets": int32(-1, 3, 4)}, NONE, f"{OFFSETS}, got -1 to 4",
        "group_offsets of group 0 must be at least 0, got -1",
    ),
    WrongGroups(
        "offsets past the end", {"group_offsets": int32(0, 3, 13)}, NONE, f"{OFFSETS}, got 0 to 13",
        "group_offsets of group 1 end at 13, must be at most 12",
    ),
    WrongGroups(
        "offsets backwards", {"group_offsets": int32(7, 9, 5)}, NONE, f"{OFFSETS}, got 7 to 5",
        "group_offsets of group 1 end at 5, must be at least 7",
    ),
    WrongGroups(
        "index", {"m_indices": int32(0, 0, 0, -2, 1, 1, 1, 1, 1, 1, 1, 1)},
        torch.arange(ROWS) != 3, "m_indices of row 3 must be at least -1, got -2",
        "m_indices of row 3 must be at least -1, got -2",
    ),
    WrongGroups(
        "mask above max_m", {"masked_m": int32(2, 5, 6)},
        torch.tensor([[True, True, False, False], [False] * 4, [False] * 4]),
        "masked_m of group 1 must be from 0 to 4, got 5",
        "masked_m of group 1 must be from 0 to 4, got 5",
    ),
    WrongGroups(
        "mask below 0", {"masked_m": int32(2, 4, -1)},
        torch.tensor([[True, True, False, False], [True] * 4, [False] * 4]),
        "masked_m of group 2 must be from 0 to 4, got -1",
        "masked_m of group 2 must be from 0 to 4, got -1",
    ),
]  # fmt: skip


def rows_and_outputs(named: dict[str, Tensor]) -> tuple[Tensor, Pair]:
    x = make_x(ROWS, HALF, torch.bfloat16)
    if "masked_m" in named:
        return x.view(3, 4, 2 * HALF), poisoned_outputs(3, 4, i=HALF)
    return x, poisoned_outputs(ROWS, i=HALF)


def assert_only(computed: Tensor, out: Pair, x: Tensor) -> None:
    full = emulated(x.reshape(ROWS, 2 * HALF))
    codes = out[0].view(torch.uint8)
    assert_same_bits(out[1][computed], full[1].view(out[1].shape)[computed])
    assert_same_bits(codes[computed], full[0].view(torch.uint8).reshape(codes.shape)[computed])
    assert bool((codes[~computed] == 0x55).all())
    assert bool((out[1][~computed] == 7).all())


@pytest.mark.parametrize("wrong", WRONG_GROUPS, ids=str)
def test_wrong_groups(wrong: WrongGroups) -> None:
    """In torch nothing is written; the kernel leaves out the rows concerned."""
    x, out = rows_and_outputs(wrong.named)
    with pytest.raises(ValueError, match=re.escape(wrong.in_torch)):
        OP(x, **wrong.named, out=out)
    assert_only(torch.zeros_like(wrong.computed), out, x)
    for seed in range(3):
        x, out = rows_and_outputs(wrong.named)
        with (
            pykernels.emulate(seed=seed, async_completion=MODES[seed]) as report,
            pytest.raises(ValueError, match=re.escape(wrong.by_kernel)),
        ):
            OP(x, **wrong.named, out=out)
        report.raise_if_findings()
        assert_only(wrong.computed, out, x)


def test_many_wrong_values_make_one_record() -> None:
    """Several in one warp, in several warps, and in a later chunk; the first of a CTA counts."""
    num_groups = 1300
    x = torch.ones(num_groups, 1, 32)
    for first in (0, 3, 40, 600):
        masked = torch.where(torch.arange(num_groups) < first, 1, 9).int()
        with (
            pykernels.emulate(num_sms=1) as report,
            pytest.raises(ValueError, match=f"masked_m of group {first} must be from 0 to 1"),
        ):
            OP(x, masked_m=masked)
        report.raise_if_findings()
    indices = torch.full((num_groups,), -2, dtype=torch.int32)
    with pykernels.emulate() as report, pytest.raises(ValueError, match=r"m_indices of row \d+ "):
        OP(x[:, 0], m_indices=indices)
    report.raise_if_findings()


# ---- the CUDA path, by a recording driver ----


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    cuda = Cuda(num_devices=2)
    monkeypatch.setattr("pykernels.device.cuda_stream", cuda.stream_of)
    yield cuda
    cuda.driver.close()


def test_capture_and_replay_with_other_groups(cuda: Cuda) -> None:
    """The groups are read when the graph runs, not when it is captured."""
    x = make_x(ROWS, HALF, torch.bfloat16)
    offsets, out = int32(0, 0, 0), poisoned_outputs(ROWS, i=HALF)
    stream = cuda.driver.create_stream(0)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        OP(x, group_offsets=offsets, out=out)
    cuda.driver.end_capture()
    assert cuda.last.captured
    assert cuda.last.launch.programmatic_dependent
    row = torch.arange(ROWS)
    for begin, end in ((2, 5), (5, 9)):
        out[1].fill_(7)
        out[0].view(torch.uint8).fill_(0x55)
        offsets.copy_(int32(begin, end, end))
        cuda.driver.replay()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pykernels.device.cuda_stream", lambda tensor: None)
            assert_only((row >= begin) & (row < end), out, x)


@pytest.mark.parametrize("wrong", WRONG_GROUPS, ids=str)
def test_check_errors_raises_what_a_kernel_found(cuda: Cuda, wrong: WrongGroups) -> None:
    x, out = rows_and_outputs(wrong.named)
    OP(x, **wrong.named, out=out)
    with pytest.raises(ValueError, match=re.escape(wrong.by_kernel)):
        pykernels.check_errors()
    pykernels.check_errors()


# ---- torch ----


def test_schemas() -> None:
    ops = torch.ops.pykernels.silu_mul_quantize_1x128
    inputs = "Tensor x, Tensor? group_offsets, Tensor? m_indices, Tensor? masked_m, str scale_fmt"
    name = "pykernels::silu_mul_quantize_1x128"
    assert str(ops.default._schema) == f"{name}({inputs}) -> (Tensor, Tensor)"
    assert str(ops.out._schema) == (
        f"{name}.out({inputs}, *, Tensor(a!) q, Tensor(b!) scales) -> ()"
    )


@pytest.mark.parametrize("source", [None, "group_offsets", "m_indices", "masked_m"])
def test_opcheck(source: str | None) -> None:
    """All rows in groups: two runs give the same, as others hold what was there."""
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    x = make_x(ROWS, 144, torch.bfloat16).unflatten(0, (3, 4) if source == "masked_m" else (ROWS,))
    every = {
        "group_offsets": int32(0, 5, ROWS),
        "m_indices": torch.zeros(ROWS, dtype=torch.int32),
        "masked_m": int32(4, 4, 4),
    }
    arguments = (x, *(tensor if name == source else None for name, tensor in every.items()))
    ops = torch.ops.pykernels.silu_mul_quantize_1x128
    torch.library.opcheck(ops.default, (*arguments, "ue8m0"), test_utils=("test_schema", *checks))
    q, scales = poisoned_outputs(*x.shape[:-1], i=144)
    outputs = {"q": q, "scales": scales}
    torch.library.opcheck(ops.out, (*arguments, "fp32"), outputs, test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def layer(x: Tensor, masked: Tensor) -> Tensor:
        q, scales = OP(x, masked_m=masked)
        return q.float()[..., :128] * scales[..., :1]

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for max_m in (3, 5):
        x = torch.randn(2, max_m, 2 * 144)
        masked = int32(max_m, max_m)
        assert_same_bits(compiled(x, masked), layer(x, masked))


def run_on(device: str) -> list[Any]:
    x = torch.empty_strided((8, 80), (96, 1), device=device, dtype=torch.bfloat16)
    indices = torch.zeros(8, dtype=torch.int32, device=device)
    masked = torch.zeros(2, dtype=torch.int32, device=device)
    results = [*OP(x), *OP(x, m_indices=indices), *OP(x.unflatten(0, (2, 4)), masked_m=masked)]
    return [(result.shape, result.stride(), result.dtype) for result in results]


def test_fake_and_meta_tensors() -> None:
    real = run_on("cpu")
    assert run_on("meta") == real
    with FakeTensorMode():
        assert run_on("cpu") == real
    with FakeTensorMode(), pytest.raises(ValueError, match="multiple of 2, got 17"):
        OP(torch.empty(3, 20)[:, :17])


def test_explain_config() -> None:
    (only,) = pykernels.explain_config(OP, m=5, i=2048, device="H20")
    assert only.kernel == KERNEL
    assert pykernels.explain_config(OP, m=0, i=2048) == []
    with pytest.raises(ValueError, match="sizes must be m, i, got m, k"):
        pykernels.explain_config(OP, m=5, k=5)
