"""The grouped ops in torch: opcheck, schemas, fake tensors, torch.compile, results on the CPU."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pykernels
from pykernels.testing import FP32_FLOOR, TENSOR_CORE_FLOOR, Pair
from tests.cases import assert_same_bits
from tests.grouped_cases import EVERY_FORM, FORMS, UNTOUCHED, Groups
from tests.op_checks import CHECKS, Recorder, one_thread

FP8 = torch.float8_e4m3fn
DTYPES = [torch.bfloat16, torch.float32]
BY_FORM = dict(zip(FORMS, EVERY_FORM, strict=True))


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    """Tests share functions; no code that another one has compiled counts against its limit."""
    yield
    torch._dynamo.reset()


def overloads(groups: Groups) -> Any:
    return getattr(torch.ops.pykernels, groups.op.__name__)


def positional(groups: Groups) -> tuple[Any, ...]:
    """What the ops take first."""
    (a, sfa), (b, sfb) = groups.operands()
    values = (groups.tensor,) if groups.form != "m_indices" else (None, groups.tensor)
    if groups.form == "group_offsets":
        values = (*values, None)
    return a, sfa, b, sfb, *values


def counters(groups: Groups, value: int) -> Tensor:
    blocks = -(-groups.m // 128)
    shape = (groups.num_groups, blocks) if groups.is_masked else (blocks,)
    return torch.full(shape, value, dtype=torch.int32)


FULL = {
    "group_offsets": Groups("group_offsets", (0, 10, 10, 65), 3, 65, "full"),
    "m_indices": Groups("m_indices", (*[2] * 30, *[0] * 35), 3, 65, "full"),
    "masked_m": Groups("masked_m", (33, 33), 2, 33, "full"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form: str, dtype: torch.dtype) -> None:
    groups = FULL[form]  # rows of no group are of any value
    ops, arguments = overloads(groups), positional(groups)
    torch.library.opcheck(ops.default, (*arguments, dtype, 4, 7), test_utils=CHECKS)
    out = {"out": groups.output(dtype)}
    torch.library.opcheck(ops.out, (*arguments, None, 5), out, test_utils=CHECKS)
    if form != "m_indices":
        options = (*arguments, 3, None, counters(groups, 128), "system", 2.0)
        torch.library.opcheck(ops.out, options, out, test_utils=CHECKS)
        out["done"] = counters(groups, 0)
        torch.library.opcheck(ops.out, options, out, test_utils=CHECKS)


def test_schemas() -> None:
    """Additive only: what these say, later versions accept."""
    operands = "Tensor a, Tensor sfa, Tensor b, Tensor sfb"
    options = "int? num_sms=None, int? expected_m=None"
    for name, groups in (
        ("grouped_fp8_gemm_nt", "Tensor? group_offsets=None, Tensor? m_indices=None"),
        ("grouped_fp8_gemm_nt_masked", "Tensor masked_m"),
    ):
        ops = getattr(torch.ops.pykernels, name)
        assert str(ops.default._schema) == (
            f"pykernels::{name}({operands}, {groups}, ScalarType out_dtype=15, {options}) -> Tensor"
        )
        assert str(ops.out._schema) == (
            f"pykernels::{name}.out({operands}, {groups}, {options}, Tensor? ready=None, "
            'str counter_scope="gpu", float ready_timeout=10., *, Tensor(a!) out, '
            "Tensor(b!)? done=None) -> ()"
        )
        assert ops.overloads() == ["default", "out"]


@pytest.mark.parametrize("form", FORMS)
def test_the_public_function_passes_every_option(form: str) -> None:
    """Of both overloads, on the way through the op: a mode sees the calls."""
    groups = BY_FORM[form]
    a, b = groups.operands()
    given: dict[str, Any] = {"group_offsets": None, "m_indices": None}
    given = (given if not groups.is_masked else {}) | {form: groups.tensor}
    plain = {"num_sms": None, "expected_m": None}
    usual = plain | {"ready": None, "counter_scope": "gpu", "ready_timeout": 10.0}
    for dtype, num_sms, expected_m in itertools.product(DTYPES, (None, 3), (None, 5)):
        options = {"num_sms": num_sms, "expected_m": expected_m}
        for output in (None, groups.output(dtype)):
            with Recorder() as recorder:
                groups.call(a, b, **given, **options, out=output, out_dtype=dtype)
            (call,) = recorder.calls
            if output is None:
                assert_call(call, given | options | {"out_dtype": dtype})
            else:
                assert_call(call, given | usual | options | {"out": output, "done": None})
    if form == "m_indices":
        return
    overlap = {"ready": counters(groups, 128), "done": counters(groups, 0)}
    timing = {"counter_scope": "system", "ready_timeout": 3}
    for name, output in itertools.product(overlap, (None, groups.output())):
        with Recorder() as recorder:
            result = groups.call(a, b, **{name: overlap[name]}, **timing, out=output)
        call = recorder.calls[-1]
        expected = given | usual | timing | {"done": None} | {name: overlap[name], "out": result}
        assert_call(call, expected)
        assert output is None or result is output


def assert_call(call: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same tensors and the same options."""
    assert call.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor) and name in FORMS:
            assert torch.equal(call[name], value)
        else:
            assert call[name] is value or call[name] == value, name


# ---- results of the CPU ----

EMPTY = [
    Groups("group_offsets", (0, 0, 0), 2, 0, "no rows"),
    Groups("group_offsets", (2, 2, 2), 2, 6, "no rows of groups"),
    Groups("group_offsets", (1, 3, 5), 2, 6, "no k", k=0),
    Groups("group_offsets", (1, 3, 5), 2, 6, "no n", n=0),
    Groups("group_offsets", (3,), 0, 6, "no groups"),
    Groups("m_indices", (), 2, 0, "no rows"),
    Groups("m_indices", (-1,) * 6, 2, 6, "no rows of groups"),
    Groups("m_indices", (-1, 1, 1, 0, -1, 0), 2, 6, "no k", k=0),
    Groups("m_indices", (-1, 1, 1, 0, -1, 0), 2, 6, "no n", n=0),
    Groups("m_indices", (-1,) * 6, 0, 6, "no groups"),
    Groups("masked_m", (0, 0), 2, 0, "no room"),
    Groups("masked_m", (0, 0), 2, 6, "no rows of groups"),
    Groups("masked_m", (4, 0), 2, 6, "no k", k=0),
    Groups("masked_m", (4, 0), 2, 6, "no n", n=0),
    Groups("masked_m", (), 0, 6, "no groups"),
]
# One row or all rows of a group, many k blocks, a group of several counters.
EDGES = [
    Groups("group_offsets", (0, 1), 1, 1, "one row", n=8, k=16),
    Groups("group_offsets", (0, 0, 130, 130, 131), 4, 131, "empty groups", n=264, k=528),
    Groups("m_indices", (2, 1, 0, 2, 1, 0), 3, 6, "descending", n=8, k=128),
    Groups("masked_m", (130, 0, 1), 3, 130, "one group full", n=8, k=144),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", EVERY_FORM + EDGES, ids=str)
def test_torch_against_the_reference(groups: Groups, dtype: torch.dtype) -> None:
    a, b = groups.operands()
    out = groups.output(dtype)
    assert groups.call(a, b, out=out) is out
    groups.assert_right(out, a, b, floor=FP32_FLOOR)
    allocated = groups.call(a, b, out_dtype=dtype)
    assert allocated.is_contiguous()
    belongs = groups.group_of_row >= 0
    assert_same_bits(allocated[belongs], out[belongs])


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("groups", EMPTY, ids=str)
def test_empty_sizes(groups: Groups, emulated: bool) -> None:
    """Also with counters. Only k = 0 has anything to do: zeros in the rows of groups."""
    for dtype, with_done in itertools.product(DTYPES, (False, True)):
        if with_done and groups.form == "m_indices":
            continue
        a, b = groups.operands()
        out, done = groups.output(dtype), counters(groups, 3) if with_done else None
        if emulated:
            with pykernels.emulate() as report:
                groups.call(a, b, out=out, done=done)
                allocated = groups.call(a, b, out_dtype=dtype)
            report.raise_if_findings()
            runs = out.numel() > 0 and groups.num_groups > 0
            assert len(report.launches) == (2 if runs else 0)
        else:
            groups.call(a, b, out=out, done=done)
            allocated = groups.call(a, b, out_dtype=dtype)
        assert (allocated.shape, allocated.dtype) == (out.shape, dtype)
        belongs = groups.group_of_row >= 0
        assert not bool(out[belongs].any())
        assert not bool(allocated[belongs].any())
        assert bool((out[~belongs] == UNTOUCHED).all())
        if done is not None:
            rows = belongs.sum(-1, keepdim=True).expand(done.shape)
            assert torch.equal(done, 3 + rows * groups.n // 8)


@pytest.mark.parametrize("emulated", [False, True])
def test_many_groups(emulated: bool) -> None:
    """More than a warp reads at once, a third of them empty; with 256 the last one counts."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(-2, 4, (256,), generator=generator).clamp(min=0)
    counts[-1] = 5
    offsets = (0, *counts.cumsum(0).tolist())
    order = torch.randperm(offsets[-1], generator=generator)
    indices = torch.arange(256).repeat_interleave(counts)[order]
    for groups in (
        Groups("group_offsets", offsets, 256, offsets[-1] + 3, "many", n=8, k=16),
        Groups("m_indices", tuple(indices.tolist()), 256, offsets[-1], "many", n=8, k=16),
        Groups("masked_m", tuple(counts.tolist()), 256, 6, "many", n=8, k=16),
    ):
        a, b = groups.operands()
        out = groups.output(torch.float32)
        if emulated:
            with pykernels.emulate() as report:
                groups.call(a, b, out=out)
            report.raise_if_findings()
        else:
            groups.call(a, b, out=out)
        groups.assert_right(out, a, b, floor=TENSOR_CORE_FLOOR if emulated else FP32_FLOOR)


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_neighbours_do_not_influence(form: str, emulated: bool) -> None:
    """NaN in rows of no group, in the rows and weights of every other group, and in the output."""
    groups = BY_FORM[form]
    a, b = groups.operands()

    def call(a: Pair, b: Pair, out: Tensor) -> Tensor:
        if not emulated:
            return groups.call(a, b, out=out)
        with pykernels.emulate() as report:
            groups.call(a, b, out=out)
        report.raise_if_findings()
        return out

    expected = call(a, b, groups.output())
    for group in range(groups.num_groups):
        mine = groups.group_of_row == group
        others = torch.arange(groups.num_groups) != group
        a_nan, b_nan = [tuple(t.clone() for t in pair) for pair in (a, b)]
        for values, scales, rows in ((*a_nan, ~mine), (*b_nan, others)):
            values.view(torch.uint8)[rows] = 0x7F
            scales[rows] = torch.nan
        out = torch.full_like(expected, torch.nan)
        out[groups.group_of_row < 0] = UNTOUCHED
        call(a_nan, b_nan, out)
        assert_same_bits(out[mine], expected[mine])
        assert bool((out[groups.group_of_row < 0] == UNTOUCHED).all())


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_a_row_depend_on_nothing_else(dtype: torch.dtype, emulated: bool) -> None:
    """The same rows in all three forms, in other places, and each group alone."""
    num_groups, m, n, k = 3, 150, 136, 400
    counts = (130, 0, 20)
    offsets = Groups("group_offsets", (0, 130, 130, 150), num_groups, m, "all", n=n, k=k)
    a, b = offsets.operands()

    def call(groups: Groups, a: Pair, b: Pair) -> Tensor:
        if not emulated:
            return groups.call(a, b, out_dtype=dtype)
        with pykernels.emulate(checks=()):
            return groups.call(a, b, out_dtype=dtype)

    expected = call(offsets, a, b)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(3))
    of_row = offsets.group_of_row[order]
    indices = Groups("m_indices", tuple(of_row.tolist()), num_groups, m, "shuffled", n=n, k=k)
    shuffled = call(indices, (a[0][order], a[1][order]), b)
    assert_same_bits(shuffled, expected[order])
    masked = Groups("masked_m", counts, num_groups, 130, "masked", n=n, k=k)
    room, scales = torch.zeros(3, 130, k, dtype=FP8), torch.ones(3, 130, a[1].size(1))
    for group, rows in ((0, slice(0, 130)), (2, slice(130, 150))):
        room[group, : counts[group]], scales[group, : counts[group]] = a[0][rows], a[1][rows]
    result = call(masked, (room, scales), b)
    assert_same_bits(torch.cat([result[0], result[2, :20]]), expected)
    for row in (0, 77, 129, 140):
        group = int(offsets.group_of_row[row])
        lone = Groups("group_offsets", (0, 1), 1, 1, "lone", n=n, k=k)
        one = slice(row, row + 1)
        weight = b[0][group, None], b[1][group, None]
        assert_same_bits(call(lone, (a[0][one], a[1][one]), weight), expected[one])


WRONG_VALUES = [
    (
        Groups("group_offsets", (0, 9, 5, 12), 3, 12, "a group ends before its start"),
        "group_offsets of group 1 end at 5, must be at least 9: offsets may not decrease",
    ),
    (
        Groups("group_offsets", (0, 4, 8, 13), 3, 12, "the last group too long"),
        "group_offsets of group 2 end at 13, must be at most 12: offsets may not pass the last row",
    ),
    (
        Groups("group_offsets", (0, 14, 8, 12), 3, 12, "the first group too long"),
        "group_offsets of group 0 end at 14, must be at most 12",
    ),
    (
        Groups("group_offsets", (-1, 4, 8, 12), 3, 12, "a negative start"),
        "group_offsets of group 0 must be at least 0, got -1",
    ),
    (
        Groups("group_offsets", (0, -2, 8, 12), 3, 12, "a negative end"),
        "group_offsets of group 0 must be at least 0, got -2",
    ),
    (
        Groups("group_offsets", (0, 4, -2, 12), 3, 12, "a later negative end"),
        "group_offsets of group 1 end at -2, must be at least 4: offsets may not decrease",
    ),
    (
        Groups("m_indices", (0, 0, 1, 3), 3, 4, "a group too high"),
        "m_indices of row 3 must be from -1 to 2, got 3",
    ),
    (
        Groups("m_indices", (0, 0, -2, 1), 3, 4, "below -1"),
        "m_indices of row 2 must be from -1 to 2, got -2",
    ),
    (
        Groups("masked_m", (4, 5, 0), 3, 4, "too many rows"),
        "masked_m of group 1 must be from 0 to 4, got 5",
    ),
    (
        Groups("masked_m", (4, 0, -1), 3, 4, "fewer than none"),
        "masked_m of group 2 must be from 0 to 4, got -1",
    ),
]


@pytest.mark.parametrize(
    ("groups", "message"), WRONG_VALUES, ids=[str(groups) for groups, _ in WRONG_VALUES]
)
def test_wrong_values_raise_before_anything_is_written(groups: Groups, message: str) -> None:
    """In torch. In the emulator the same words, and the rows of right groups are written."""
    a, b = groups.operands()
    out = groups.output()
    options: dict[str, Any] = {}
    if groups.form != "m_indices":
        options = {"ready": counters(groups, 128), "done": counters(groups, 0)}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        groups.call(a, b, out=out, **options)
    assert bool((out == UNTOUCHED).all())
    assert not options or not bool(options["done"].any())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"), pykernels.emulate():
        groups.call(a, b, out=out)


def test_what_wrong_values_leave_untouched() -> None:
    """In the emulator: the rows of the group in question, not those of the others."""
    right = Groups("group_offsets", (0, 4, 4, 12), 3, 12, "right")
    wrong = Groups("group_offsets", (0, 4, 2, 12), 3, 12, "wrong")
    a, b = right.operands()
    out = right.output()
    with pykernels.emulate(), pytest.raises(ValueError, match="group 1 end at 2"):
        wrong.call(a, b, out=out)
    assert_same_bits(out[:2], emulated(right, a, b)[:2])
    counts = Groups("masked_m", (4, 5, 3), 3, 4, "wrong")
    a, b = counts.operands()
    out = counts.output()
    with pykernels.emulate(), pytest.raises(ValueError, match="group 1 must be from 0 to 4"):
        counts.call(a, b, out=out)
    expected = emulated(Groups("masked_m", (4, 0, 3), 3, 4, "right"), a, b)
    assert_same_bits(out, expected)


def emulated(groups: Groups, a: Pair, b: Pair) -> Tensor:
    with pykernels.emulate(checks=()):
        return groups.call(a, b, out=groups.output())


# ---- counters ----


@pytest.mark.parametrize("emulate", [False, True])
def test_done_counts_what_is_stored(emulate: bool) -> None:
    """An eighth of the columns for each row of a group, added to what is there."""
    ragged = Groups("group_offsets", (5, 100, 100, 300), 3, 310, "ragged", n=136, k=144)
    masked = Groups("masked_m", (130, 0, 128), 3, 140, "masked", n=136, k=144)
    expected = {
        ragged: torch.tensor([123, 128, 44]),
        masked: torch.tensor([[128, 2], [0, 0], [128, 0]]),
    }
    for groups, rows in expected.items():
        a, b = groups.operands()
        done = counters(groups, 1)
        for calls in (1, 2):
            if emulate:
                with pykernels.emulate() as report:
                    groups.call(a, b, done=done, ready=counters(groups, 128))
                report.raise_if_findings()
            else:
                groups.call(a, b, done=done, ready=counters(groups, 128))
            assert torch.equal(done, (1 + calls * rows * 136 // 8).int())


@pytest.mark.parametrize("scope", ["gpu", "system"])
def test_rows_that_are_not_ready_on_the_cpu(scope: str) -> None:
    """Rows of no group need not be; nothing is written where others are missing."""
    groups = Groups("group_offsets", (5, 100, 100, 250), 3, 310, "ragged", n=8, k=16)
    a, b = groups.operands()
    enough = torch.tensor([123, 122, 0], dtype=torch.int32)
    out = groups.output(torch.float32)
    groups.call(a, b, out=out, ready=enough, counter_scope=scope)
    groups.assert_right(out, a, b, floor=FP32_FLOOR)
    for index in (0, 1):
        few, done = enough.clone(), counters(groups, 0)
        few[index] -= 1
        out = groups.output()
        message = rf"ready\[{index}\] are not there: {few[index]} of {enough[index]}; on the"
        with pytest.raises(RuntimeError, match=message):
            groups.call(a, b, out=out, ready=few, done=done, counter_scope=scope)
        assert bool((out == UNTOUCHED).all())
        assert not done.any()


def test_rows_that_never_come_in_the_emulator() -> None:
    """Nothing fills them during an emulated call, so that it is not made."""
    groups = Groups("masked_m", (3, 140), 2, 140, "masked", n=8, k=16)
    a, b = groups.operands()
    ready = torch.tensor([[3, 0], [128, 11]], dtype=torch.int32)
    with (
        pytest.raises(RuntimeError, match=r"the rows of ready\[1, 1\] are not there: 11 of 12"),
        pykernels.emulate(),
    ):
        groups.call(a, b, ready=ready, ready_timeout=1e-5)
    ready[1, 1] = 12
    out = groups.output(torch.float32)
    with pykernels.emulate() as report:
        groups.call(a, b, out=out, ready=ready, ready_timeout=1e-5)
    report.raise_if_findings()
    groups.assert_right(out, a, b, floor=TENSOR_CORE_FLOOR)


# ---- torch.compile, fake and meta tensors ----


def expert(groups: Groups, weight: Pair) -> Callable[[Tensor, Tensor], Tensor]:
    """A layer of experts of which some rows belong to none."""

    def forward(x: Tensor, values: Tensor) -> Tensor:
        q, scales = pykernels.quantize_1x128(x.flatten(0, -2))
        rows = q.view(x.shape), scales.view(*x.shape[:-1], -1)
        out = torch.zeros(*x.shape[:-1], weight[0].size(1), dtype=torch.float32)
        groups.op(rows, weight, **{groups.form: values}, out=out, expected_m=3)
        product = groups.op(rows, weight, **{groups.form: values}, num_sms=7)
        belongs = (out != 0).any(-1, keepdim=True)
        return torch.where(belongs, out + product * 2, out)

    return forward


def inputs(groups: Groups, extra: int) -> tuple[Tensor, Tensor]:
    """The case's own groups, and the same in a larger tensor."""
    rows = (*groups.rows[:-1], groups.rows[-1] + extra)
    values = groups.tensor
    if groups.form == "m_indices":
        values = torch.cat([values, torch.full((extra,), 2, dtype=torch.int32)])
    return torch.randn(*rows, groups.k, generator=torch.Generator().manual_seed(extra)), values


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("form", FORMS)
def test_compile(form: str, backend: str, dynamic: bool) -> None:
    groups = BY_FORM[form]
    forward = expert(groups, groups.operands()[1])
    compiled = torch.compile(forward, fullgraph=True, dynamic=dynamic, backend=backend)
    for extra in (0, 9):
        assert_same_bits(compiled(*inputs(groups, extra)), forward(*inputs(groups, extra)))


@pytest.mark.parametrize("form", FORMS)
@one_thread
def test_inductor(form: str) -> None:
    groups = BY_FORM[form]
    forward = expert(groups, groups.operands()[1])
    compiled = torch.compile(forward, fullgraph=True, backend="inductor")
    assert_same_bits(compiled(*inputs(groups, 0)), forward(*inputs(groups, 0)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("form", ["group_offsets", "masked_m"])
@one_thread
def test_compiled_calls_write_output_and_counters(form: str, backend: str) -> None:
    """Into tensors that the caller holds, in the order of the calls; also where out is new."""
    groups = BY_FORM[form]
    a, b = groups.operands()

    def forward(out: Tensor, ready: Tensor, done: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        before = done.clone()
        options = {"ready": ready, "done": done, groups.form: values, "ready_timeout": 2.5}
        groups.op(a, b, out=out, **options)
        between = done - before
        new = groups.op(a, b, out_dtype=torch.float32, **options)
        return between, new

    compiled = torch.compile(forward, fullgraph=True, dynamic=True, backend=backend)
    out, done = groups.output(torch.float32), counters(groups, 5)
    between, new = compiled(out, counters(groups, 128), done, groups.tensor)
    expected, counted = groups.output(torch.float32), counters(groups, 0)
    groups.call(a, b, out=expected, done=counted)
    assert bool(counted.any())
    assert_same_bits(out, expected)
    assert torch.equal(between, counted)
    assert torch.equal(done, 5 + 2 * counted)
    belongs = groups.group_of_row >= 0
    assert_same_bits(new[belongs], expected[belongs])


def run_on(device: str) -> list[Tensor]:
    """Outputs of both ops, allocated and given, of rows that are not contiguous."""
    results = []
    for form, rows in (("group_offsets", (20,)), ("m_indices", (20,)), ("masked_m", (3, 20))):
        masked = form == "masked_m"
        op = pykernels.grouped_fp8_gemm_nt_masked if masked else pykernels.grouped_fp8_gemm_nt
        a = torch.zeros(*rows, 288, device=device).to(FP8)[..., :272]
        b = torch.zeros(3, 136, 272, device=device).to(FP8)
        sfa, sfb = torch.ones(*rows, 3, device=device), torch.ones(3, 2, 3, device=device)
        length = {"group_offsets": 4, "m_indices": 20, "masked_m": 3}[form]
        values = {form: torch.zeros(length, dtype=torch.int32, device=device)}
        for dtype in DTYPES:
            results.append(op((a, sfa), (b, sfb), **values, out_dtype=dtype))
            out = torch.empty(*rows, 136, dtype=dtype, device=device)
            results.append(op((a, sfa), (b, sfb), **values, out=out, expected_m=2))
        if form != "m_indices":
            done = torch.zeros((3, 1) if masked else (1,), dtype=torch.int32, device=device)
            results.append(op((a, sfa), (b, sfb), **values, done=done, ready=done + 128))
    return results


def describe(tensors: list[Tensor]) -> list[Any]:
    return [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors]


def test_fake_and_meta_tensors_have_the_shapes_of_real_ones() -> None:
    real = describe(run_on("cpu"))
    assert len(real) == 14
    assert describe(run_on("meta")) == real
    with FakeTensorMode():
        assert describe(run_on("cpu")) == real


@pytest.mark.parametrize("form", FORMS)
def test_fake_tensors_are_checked_too(form: str) -> None:
    groups = BY_FORM[form]
    with FakeTensorMode(allow_non_fake_inputs=True):
        a, (b, sfb) = groups.operands()
        with pytest.raises(ValueError, match=f"{form} must be int32, got int64"):
            groups.call(a, (b, sfb), **{form: groups.tensor.long()})
        for options in ({}, {"out": groups.output()}):
            with pytest.raises(ValueError, match="must be a multiple of 8, got 132"):
                groups.call(a, (b[:, :132], sfb), **options)
