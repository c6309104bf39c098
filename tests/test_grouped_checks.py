"""Wrong arguments of the grouped GEMMs: a ValueError before anything is launched or written.

``can_run`` gives the same message; what passes the checks, the extension takes, in any layout.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import pykernels
from pykernels import _C, group_checks
from pykernels.native import native, strided_view
from pykernels.testing import TENSOR_CORE_FLOOR
from tests.cases import assert_same_bits, bits
from tests.grouped_cases import FORMS, Groups
from tests.wrong_arguments import Wrong, misaligned, padded, put

FP8 = torch.float8_e4m3fn
G, M, N, K = 3, 40, 136, 272
RAGGED = Groups("group_offsets", (0, 7, 7, 33), G, M, "three groups")
INDICES = Groups("m_indices", (*[0] * 7, *[2] * 26, *[-1] * 7), G, M, "three groups")
MASKED = Groups("masked_m", (7, 0, 40), G, M, "three groups")
BASES = {groups.form: groups for groups in (RAGGED, INDICES, MASKED)}

Arguments = dict[str, Any]


def arguments_of(groups: Groups) -> Arguments:
    (a, sfa), (b, sfb) = groups.operands()
    arguments = {"a": a, "sfa": sfa, "b": b, "sfb": sfb, "out": groups.output()}
    arguments |= {groups.form: groups.tensor, "out_dtype": torch.bfloat16}
    if groups.form != "m_indices":
        shape = (G, 1) if groups.is_masked else (1,)
        arguments["ready"] = torch.full(shape, M, dtype=torch.int32)
        arguments["done"] = torch.zeros(shape, dtype=torch.int32)
    return arguments


def call(function: Callable[..., Any], arguments: Arguments, *first: Any) -> Any:
    rest = dict(arguments)
    a, b = (rest.pop("a"), rest.pop("sfa")), (rest.pop("b"), rest.pop("sfb"))
    return function(*first, a, b, **rest)


def storage_of(tensor: Tensor) -> Tensor:
    """All its bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def memory(arguments: Arguments) -> list[Tensor]:
    """The bytes of all storages."""
    return [
        storage_of(tensor).clone()
        for tensor in arguments.values()
        if isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
    ]


def refuse(groups: Groups, wrong: Wrong) -> None:
    arguments = arguments_of(groups)
    arguments.update(wrong.change(arguments))
    before = memory(arguments)
    messages = []
    for options in ({}, {"out": None}):
        if options and ("out" in wrong.name or "out" in wrong.message):
            continue
        with (
            pykernels.emulate(checks=()) as report,
            pytest.raises(ValueError, match=re.escape(wrong.message)) as error,
        ):
            call(groups.op, arguments | options)
        assert report.launches == []
        messages.append(str(error.value))
        capability = call(pykernels.can_run, arguments | options, groups.op)
        assert capability == (False, messages[-1])
    with pytest.raises(ValueError, match=re.escape(wrong.message)):
        call(groups.op, arguments)  # in torch
    for now, then in zip(memory(arguments), before, strict=True):
        assert torch.equal(now, then)


def strided(tensor: Tensor, *strides: int) -> Tensor:
    """A tensor of zeros with the same shape and type and these strides."""
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, strides, strict=True))
    return torch.zeros(span, dtype=tensor.dtype).as_strided(tensor.shape, strides)


def column_major(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


def groups_of(arguments: Arguments) -> Tensor:
    found: Tensor = next(arguments[form] for form in FORMS if form in arguments)
    return found


def put_groups(change: Callable[[Tensor], Any]) -> Callable[[Arguments], Any]:
    return lambda v: {next(form for form in FORMS if form in v): change(groups_of(v))}


# Of all three forms: "{rows}" is "m" or "num_groups, max_m", "{form}" the tensor's name.
WRONG_OF_ALL = [
    Wrong("device of b", put(b=lambda v: v["b"].to("meta")), "got a[0] on cpu and b[0] on meta"),
    Wrong("device of groups", put_groups(lambda t: t.to("meta")), "on cpu and {form} on meta"),
    Wrong("device of out", put(out=lambda v: v["out"].to("meta")), "out on meta"),
    Wrong("dtype of a", put(a=lambda v: v["a"].bfloat16()), "a[0] must be float8_e4m3fn, got bf"),
    Wrong("e5m2", put(b=lambda v: v["b"].to(torch.float8_e5m2)), "b[0] must be float8_e4m3fn"),
    Wrong("dtype of sfa", put(sfa=lambda v: v["sfa"].half()), "a[1] must be float32, got float16"),
    Wrong("dtype of sfb", put(sfb=lambda v: v["sfb"].double()), "b[1] must be float32"),
    Wrong("groups of int64", put_groups(lambda t: t.long()), "{form} must be int32, got int64"),
    Wrong("groups of floats", put_groups(lambda t: t.float()), "{form} must be int32, got float32"),
    Wrong("dtype of out", put(out=lambda v: v["out"].half()), "out must be bfloat16 or float32"),
    Wrong(
        "out_dtype", put(out=lambda v: None, out_dtype=lambda v: torch.half), "out_dtype must be"
    ),
    Wrong("out against out_dtype", put(out_dtype=lambda v: torch.float32), "out is torch.bfloat16"),
    Wrong("out_dtype None", put(out_dtype=lambda v: None), "bfloat16 or float32, got None"),
    Wrong("one weight", put(b=lambda v: v["b"][0]), "b[0] must have 3 dimensions, got 2"),
    Wrong("a vector", put(b=lambda v: v["b"][0, 0]), "b[0] must have 3 dimensions, got 1"),
    Wrong("rank of sfb", put(sfb=lambda v: v["sfb"][0]), "b[1] must have 3 dimensions, got 2"),
    Wrong("rank of groups", put_groups(lambda t: t[None]), "{form} must have 1 dimension"),
    Wrong("groups a number", put_groups(lambda t: t[0]), "{form} must have 1 dimension"),
    Wrong("k of b", put(b=lambda v: v["b"][..., :256]), "must have the same k, got"),
    Wrong("n", put(b=lambda v: v["b"][:, :132]), "n (rows of b) must be a multiple of 8, got 132"),
    Wrong(
        "k",
        put(a=lambda v: v["a"][..., :264], b=lambda v: v["b"][..., :264]),
        "k (columns of a and b) must be a multiple of 16, got 264",
    ),
    Wrong(
        "k of sfa", put(sfa=lambda v: v["sfa"][..., :2]), "a[1] must be [{rows}, ceil(k / 128)] = "
    ),
    Wrong(
        "sfa of more rows",
        put(sfa=lambda v: v["sfa"].repeat(2, *[1] * (v["sfa"].dim() - 1))),
        "a[1] must be [{rows}, ceil(k / 128)] = ",
    ),
    Wrong(
        "rows of sfb",
        put(sfb=lambda v: v["sfb"][:, :1]),
        "b[1] must be [num_groups, ceil(n / 128), ceil(k / 128)] = [3, 2, 3], got [3, 1, 3]",
    ),
    Wrong("groups of sfb", put(sfb=lambda v: v["sfb"][:2]), "= [3, 2, 3], got [2, 2, 3]"),
    Wrong("transposed sfb", put(sfb=lambda v: v["sfb"].mT), "= [3, 2, 3], got [3, 3, 2]"),
    Wrong("short groups", put_groups(lambda t: t[:-1]), "{form} must be ["),
    Wrong("long groups", put_groups(lambda t: torch.cat([t, t[-1:]])), "{form} must be ["),
    Wrong("no groups", put_groups(lambda t: t[:0]), "{form} must be ["),
    Wrong(
        "strided groups",
        put_groups(lambda t: t.repeat_interleave(2)[::2]),
        "{form} must be contiguous, got stride 2; pass {form}.contiguous()",
    ),
    Wrong(
        "expanded groups",
        put_groups(lambda t: t[:1].expand(t.shape)),
        "{form} must be contiguous, got stride 0",
    ),
    Wrong("n of out", put(out=lambda v: v["out"][..., :128]), "out must be [{rows}, n] = "),
    Wrong("rows of out", put(out=lambda v: v["out"][:-1]), "out must be [{rows}, n] = "),
    Wrong(
        "column-major a",
        put(a=lambda v: column_major(v["a"])),
        "a[0] must be row-major (stride 1 in its last dimension), got strides (1, 40)",
    ),
    Wrong("column-major b", put(b=lambda v: column_major(v["b"])), "b[0] must be row-major"),
    Wrong("column-major out", put(out=lambda v: column_major(v["out"])), "with torch.empty"),
    Wrong(
        "row stride of a",
        put(a=lambda v: padded(v["a"], 280)),
        "the row stride of a[0] must be a multiple of 16 bytes, got 280",
    ),
    Wrong(
        "row stride of b",
        put(b=lambda v: padded(v["b"], 280)),
        "the row stride of b[0] must be a multiple of 16 bytes, got 280",
    ),
    Wrong("row stride of out", put(out=lambda v: padded(v["out"], 140)), "16 bytes, got 280"),
    Wrong(
        "group stride of b",
        put(b=lambda v: strided(v["b"], N * K + 8, K, 1)),
        "the group stride of b[0] must be a multiple of 16 bytes, got 37000",
    ),
    Wrong(
        "overlapping rows of b",
        put(b=lambda v: v["b"][:, :1].expand(G, N, K)),
        "rows of b[0] must not overlap: its row stride must be at least 272, got 0",
    ),
    Wrong(
        "overlapping rows of a",
        put(a=lambda v: v["a"][..., :1, :].expand(v["a"].shape)),
        "rows of a[0] must not overlap",
    ),
    Wrong(
        "overlapping rows of out",
        put(out=lambda v: v["out"][..., :1, :].expand(v["out"].shape)),
        "rows of out must not overlap",
    ),
    Wrong("address of a", put(a=lambda v: misaligned(v["a"])), "the data pointer of a[0] must be"),
    Wrong("address of b", put(b=lambda v: misaligned(v["b"])), "the data pointer of b[0] must be"),
    Wrong("address of out", put(out=lambda v: misaligned(v["out"])), "(2 past one)"),
    Wrong(
        "out over sfb",
        put(sfb=lambda v: v["out"].flatten()[:36].view(torch.float32).view(G, 2, 3)),
        "out must not share memory with b[1]",
    ),
    Wrong(
        "out over the groups",
        put_groups(lambda t: t),  # replaced below, where the output is known
        "out must not share memory with {form}",
    ),
    Wrong("num_sms", put(num_sms=lambda v: 0), "num_sms must be at least 1"),
    Wrong("huge num_sms", put(num_sms=lambda v: 2**70), "num_sms must be at most 2147483647"),
    Wrong("num_sms no integer", put(num_sms=lambda v: 1.5), "num_sms must be an integer"),
    Wrong("num_sms a bool", put(num_sms=lambda v: True), "num_sms must be an integer, or None"),
    Wrong("expected_m", put(expected_m=lambda v: -1), "expected_m must be at least 0, got -1"),
    Wrong("huge expected_m", put(expected_m=lambda v: 2**31), "must be at most 2147483647, got 21"),
    Wrong("expected_m no integer", put(expected_m=lambda v: 2.0), "expected_m must be an integer"),
    Wrong("expected_m a bool", put(expected_m=lambda v: True), "must be an integer, got True"),
    Wrong("expected_m text", put(expected_m=lambda v: "4"), "must be an integer, got '4'"),
    Wrong("scope", put(counter_scope=lambda v: "cta"), "must be 'gpu' or 'system', got 'cta'"),
    Wrong("scope None", put(counter_scope=lambda v: None), "must be 'gpu' or 'system', got None"),
    Wrong("scope a list", put(counter_scope=lambda v: ["gpu"]), "or 'system', got ['gpu']"),
    Wrong("no time", put(ready_timeout=lambda v: 0), "ready_timeout must be above 0 and at most"),
    Wrong("negative time", put(ready_timeout=lambda v: -1.0), "above 0 and at most 86400 seconds"),
    Wrong("endless time", put(ready_timeout=lambda v: math.inf), "86400 seconds, got inf"),
    Wrong("time NaN", put(ready_timeout=lambda v: math.nan), "86400 seconds, got nan"),
    Wrong("huge time", put(ready_timeout=lambda v: 10**5000), "86400 seconds, got an int of"),
    Wrong("time None", put(ready_timeout=lambda v: None), "must be a number of seconds, got None"),
    Wrong("time a bool", put(ready_timeout=lambda v: True), "a number of seconds, got True"),
    Wrong("time text", put(ready_timeout=lambda v: "1"), "a number of seconds, got '1'"),
    Wrong("sparse sfa", put(sfa=lambda v: v["sfa"].to_sparse()), "a[1] must be a dense tensor"),
    Wrong("sparse groups", put_groups(lambda t: t.to_sparse()), "{form} must be a dense tensor"),
    Wrong(
        "gradient of sfa",
        put(sfa=lambda v: v["sfa"].clone().requires_grad_()),
        "a[1] requires grad; call it under torch.no_grad() or pass a[1].detach()",
    ),
    Wrong("gradient of out", put(out=lambda v: v["out"].clone().requires_grad_()), "out requires"),
    Wrong("a no tensor", put(a=lambda v: None), "a must be a pair (values, scales) of tensors"),
    Wrong("b's scales no tensor", put(sfb=lambda v: 1.0), "b must be a pair (values, scales)"),
    Wrong("out no tensor", put(out=lambda v: 3), "out must be a tensor, got int"),
    Wrong("groups a list", put_groups(lambda t: t.tolist()), "{form} must be a tensor, got list"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", WRONG_OF_ALL, ids=str)
def test_calls_are_refused(wrong: Wrong, form: str) -> None:
    groups = BASES[form]
    rows = "num_groups, max_m" if groups.is_masked else "m"
    message = wrong.message.replace("{rows}", rows).replace("{form}", form)
    change = wrong.change
    if wrong.name == "out over the groups":
        length = len(groups.values)
        change = put(**{form: lambda v: v["out"].view(-1)[8 : 8 + 2 * length].view(torch.int32)})
    refuse(groups, Wrong(wrong.name, change, message))


WRONG_OF_COUNTERS = [
    Wrong("device of ready", put(ready=lambda v: v["ready"].to("meta")), "ready on meta"),
    Wrong("device of done", put(done=lambda v: v["done"].to("meta")), "done on meta"),
    Wrong("ready of int64", put(ready=lambda v: v["ready"].long()), "ready must be int32, got"),
    Wrong(
        "done unsigned",
        put(done=lambda v: v["done"].view(torch.uint32)),
        "done must be int32, got uint32",
    ),
    Wrong("ready no tensor", put(ready=lambda v: 128), "ready must be a tensor, got int"),
    Wrong("done no tensor", put(done=lambda v: [0]), "done must be a tensor, got list"),
    Wrong("more ready counters", put(ready=lambda v: v["ready"].repeat_interleave(2, -1)), "ready"),
    Wrong("fewer done counters", put(done=lambda v: v["done"][..., :0]), "done must be "),
    Wrong("rank of ready", put(ready=lambda v: v["ready"][None]), "ready must be "),
    Wrong("rank of done", put(done=lambda v: v["done"].flatten()[0]), "done must be "),
    Wrong("done over ready", put(done=lambda v: v["ready"]), "done must not share memory with r"),
    Wrong(
        "done over groups",
        put(done=lambda v: groups_of(v)[: v["done"].numel()].view(v["done"].shape)),
        "done must not share memory with",
    ),
    Wrong(
        "out over ready",
        put(
            ready=lambda v: (
                v["out"].view(-1)[: 2 * v["ready"].numel()].view(torch.int32).view(v["ready"].shape)
            )
        ),
        "out must not share memory with ready",
    ),
    Wrong(
        "out over done",
        put(
            done=lambda v: (
                v["out"].view(-1)[-2 * v["done"].numel() :].view(torch.int32).view(v["done"].shape)
            )
        ),
        "out must not share memory with done",
    ),
    Wrong(
        "done over a",
        put(
            done=lambda v: (
                v["a"].view(-1)[-4 * v["done"].numel() :].view(torch.int32).view(v["done"].shape)
            )
        ),
        "done must not share memory with a[0]",
    ),
]


@pytest.mark.parametrize("groups", [RAGGED, MASKED], ids=lambda groups: groups.form)
@pytest.mark.parametrize("wrong", WRONG_OF_COUNTERS, ids=str)
def test_counters_are_refused(wrong: Wrong, groups: Groups) -> None:
    refuse(groups, wrong)


@pytest.mark.parametrize("name", ["ready", "done"])
def test_counters_are_contiguous_and_of_every_128_rows(name: str) -> None:
    """A counter more or less than ``ceil(m / 128)``, and strided ones."""
    groups = Groups("group_offsets", (0, 129), 1, 129, "two counters")
    a, b = groups.operands()
    for counters, message in (
        (torch.zeros(1, dtype=torch.int32), f"{name} must be [ceil(m / 128)] = [2], got [1]"),
        (torch.zeros(3, dtype=torch.int32), "= [2], got [3]"),
        (torch.zeros(4, dtype=torch.int32)[::2], f"{name} must be contiguous, got strides (2,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            groups.call(a, b, **{name: counters})
    masked = Groups("masked_m", (129, 0), 2, 129, "two counters a group")
    a, b = masked.operands()
    for counters, message in (
        (torch.zeros(4, dtype=torch.int32), "[num_groups, ceil(max_m / 128)] = [2, 2], got [4]"),
        (torch.zeros(2, 1, dtype=torch.int32), "= [2, 2], got [2, 1]"),
        (torch.zeros(2, 2, dtype=torch.int32).T, "must be contiguous, got strides (1, 2)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            masked.call(a, b, **{name: counters})


@pytest.mark.parametrize("name", ["ready", "done"])
def test_counters_do_not_go_with_indices(name: str) -> None:
    counters = torch.zeros(1, dtype=torch.int32)
    message = f"{name} counters go with group_offsets and masked_m, not m_indices"
    refuse(INDICES, Wrong(name, lambda v: {name: counters}, message))


WRONG_RAGGED = [
    Wrong(
        "neither",
        put(group_offsets=lambda v: None),
        "exactly one of group_offsets and m_indices, got neither",
    ),
    Wrong("both", put(m_indices=lambda v: INDICES.tensor), "got group_offsets and m_indices"),
    Wrong("rank of a", put(a=lambda v: v["a"][None]), "a[0] must have 2 dimensions, got 3"),
    Wrong("rank of sfa", put(sfa=lambda v: v["sfa"][0]), "a[1] must have 2 dimensions, got 1"),
    Wrong("rank of out", put(out=lambda v: v["out"][None]), "out must have 2 dimensions, got 3"),
    Wrong("m of sfa", put(sfa=lambda v: v["sfa"][:39]), "= [40, 3], got [39, 3]"),
    Wrong(
        "an offset too few",
        put(group_offsets=lambda v: v["group_offsets"][1:]),
        "group_offsets must be [num_groups + 1] = [4], got [3]",
    ),
    Wrong("out over a", put(a=lambda v: v["out"].view(FP8)[..., :K]), "out must not share memory"),
]


@pytest.mark.parametrize("wrong", WRONG_RAGGED, ids=str)
def test_ragged_calls_are_refused(wrong: Wrong) -> None:
    refuse(RAGGED, wrong)


def test_neither_groups_nor_indices_positionally() -> None:
    a, b = RAGGED.operands()
    message = "pass exactly one of group_offsets and m_indices, got "
    for options, got in (
        ({}, "neither"),
        ({"group_offsets": RAGGED.tensor, "m_indices": INDICES.tensor}, "group_offsets and m_ind"),
    ):
        with pytest.raises(ValueError, match=message + got):
            pykernels.grouped_fp8_gemm_nt(a, b, **options)
        op = torch.ops.pykernels.grouped_fp8_gemm_nt
        with pytest.raises(ValueError, match=message + got):
            op(*a, *b, **options)
        with pytest.raises(ValueError, match=message + got):
            op.out(*a, *b, **options, out=RAGGED.output())


WRONG_MASKED = [
    Wrong("rank of a", put(a=lambda v: v["a"][0]), "a[0] must have 3 dimensions, got 2"),
    Wrong("rank of sfa", put(sfa=lambda v: v["sfa"][0]), "a[1] must have 3 dimensions, got 2"),
    Wrong("rank of out", put(out=lambda v: v["out"][0]), "out must have 3 dimensions, got 2"),
    Wrong(
        "num_groups of a",
        put(a=lambda v: v["a"][:2]),
        "a[0] and b[0] must have the same num_groups, got [2, 40, 272] and [3, 136, 272]",
    ),
    Wrong(
        "max_m of sfa",
        put(sfa=lambda v: v["sfa"][:, :39]),
        "[num_groups, max_m, ceil(k / 128)] = [3, 40, 3], got [3, 39, 3]",
    ),
    Wrong("no masked_m", put(masked_m=lambda v: None), "masked_m must be a tensor, got NoneType"),
    Wrong(
        "group stride of a",
        put(a=lambda v: strided(v["a"], M * K + 16, K, 1)),
        "group stride of a[0] must be a multiple of its row stride, got strides (10896, 272, 1)",
    ),
    Wrong(
        "group stride of out",
        put(out=lambda v: strided(v["out"], M * N + 8, N, 1)),
        "the group stride of out must be a multiple of its row stride, got strides (5448, 136, 1)",
    ),
    Wrong(
        "bytes between groups of a",
        put(a=lambda v: strided(v["a"], M * K + 8, K, 1)),
        "the group stride of a[0] must be a multiple of 16 bytes, got 10888",
    ),
    Wrong(
        "bytes between groups of out",
        put(out=lambda v: strided(v["out"], M * N + 4, N, 1)),
        "the group stride of out must be a multiple of 16 bytes, got 10888",
    ),
    Wrong(
        "interleaved groups of a",
        put(a=lambda v: v["a"].transpose(0, 1).contiguous().transpose(0, 1)),
        "the group stride of a[0] must be a multiple of its row stride, got strides (272, 816, 1)",
    ),
    Wrong(
        "interleaved groups of out",
        put(out=lambda v: v["out"].transpose(0, 1).contiguous().transpose(0, 1)),
        "the group stride of out must be a multiple of its row stride",
    ),
    Wrong(
        "expanded out",
        put(out=lambda v: v["out"][:1].expand(G, M, N)),
        "groups of out must not overlap, got strides (0, 136, 1)",
    ),
    Wrong(
        "out a row further",
        put(out=lambda v: strided(v["out"], N, N, 1)),
        "groups of out must not overlap, got strides (136, 136, 1)",
    ),
    Wrong(
        "out a row too near",
        put(out=lambda v: strided(v["out"], (M - 1) * N, N, 1)),
        "groups of out must not overlap",
    ),
    Wrong(
        "out over a",
        put(a=lambda v: v["out"].view(FP8)[..., :K]),
        "out must not share memory with a[0]",
    ),
    Wrong(
        "out over the last group of sfa",
        put(sfa=lambda v: over_last_rows(v["out"], v["sfa"])),
        "out must not share memory with a[1]",
    ),
]


def over_last_rows(out: Tensor, scales: Tensor) -> Tensor:
    """Scales of which only the last one lies in the last bytes of ``out``."""
    storage = torch.zeros(out.numel() // 2 + scales.numel() - 1, dtype=torch.float32)
    out.set_(storage.view(out.dtype).untyped_storage(), 0, out.shape, out.stride())
    out.fill_(7.0)
    return storage.as_strided(scales.shape, scales.stride(), out.numel() // 2 - 1)


@pytest.mark.parametrize("wrong", WRONG_MASKED, ids=str)
def test_masked_calls_are_refused(wrong: Wrong) -> None:
    refuse(MASKED, wrong)


@pytest.mark.parametrize("form", FORMS)
def test_options_are_integers_and_seconds_of_any_kind(form: str) -> None:
    groups = BASES[form]
    arguments = arguments_of(groups)
    expected = call(groups.op, arguments).clone()
    for kind in (np.int16, np.int64, int):
        options = {"num_sms": kind(5), "expected_m": kind(7), "ready_timeout": np.float64(3)}
        assert call(pykernels.can_run, arguments | options, groups.op)
        assert_same_bits(call(groups.op, arguments | options), expected)
    assert call(pykernels.can_run, arguments | {"ready_timeout": 2}, groups.op)


@pytest.mark.parametrize("op", [RAGGED.op, MASKED.op], ids=lambda op: op.__name__)
@pytest.mark.parametrize("options", [{}, {"unknown": 1}, {"a": 1, "b": 2, "out_type": 3}], ids=str)
def test_can_run_names_the_op_that_lacks_arguments(op: Any, options: Any) -> None:
    capability = pykernels.can_run(op, **options)
    with pytest.raises(TypeError) as error:
        op(**options)
    assert capability == (False, str(error.value))
    assert capability.reason.startswith(f"{op.__name__}() ")


@pytest.mark.parametrize("op", [RAGGED.op, MASKED.op], ids=lambda op: op.__name__)
def test_can_run_has_the_signature_of_the_op(op: Any) -> None:
    from pykernels.checks import _CALL_CHECKS

    assert inspect.signature(_CALL_CHECKS[op]) == inspect.signature(op)


# ---- limits of what kernels can count ----

LIMIT = 2**31 - 1 - 1024


def meta_arguments(
    form: str, groups: int, rows: int, n: int, k: int, rows_apart: int | None = None
) -> tuple[Any, ...]:
    """What both sides check, without memory."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    leading = (groups, rows) if form == "masked_m" else (rows,)
    a = empty(*leading, k, dtype=FP8)
    out = empty(*leading, n, dtype=torch.float32)
    if rows_apart is not None:
        a = a.as_strided(a.shape, (rows_apart * k, k, 1))
    sfa = empty(*leading, -(-k // 128), dtype=torch.float32)
    b = empty(groups, n, k, dtype=FP8)
    sfb = empty(groups, -(-n // 128), -(-k // 128), dtype=torch.float32)
    length = {"group_offsets": groups + 1, "m_indices": rows, "masked_m": groups}[form]
    return a, sfa, b, sfb, out, empty(length, dtype=torch.int32)


@pytest.mark.parametrize(
    ("form", "sizes", "message"),
    [
        ("group_offsets", (2, LIMIT, 8, 16), None),
        ("group_offsets", (2, LIMIT + 1, 8, 16), f"m must be at most {LIMIT}, got {LIMIT + 1}"),
        ("m_indices", (2, LIMIT, 8, 16), None),
        ("m_indices", (2, LIMIT + 1, 8, 16), "m must be at most"),
        ("group_offsets", (LIMIT, 5, 8, 16), None),
        ("group_offsets", (LIMIT + 1, 5, 8, 16), "num_groups must be at most"),
        ("group_offsets", (1, 5, LIMIT - 7, 16), None),
        ("group_offsets", (1, 5, LIMIT + 1, 16), "n must be at most"),
        ("group_offsets", (1, 5, 8, LIMIT - 15), None),
        ("group_offsets", (1, 5, 8, LIMIT + 1), "k must be at most"),
        ("masked_m", (2**16, 2**15 - 1, 8, 16), None),
        ("masked_m", (2**16, 2**15, 8, 16), "num_groups * max_m must be at most"),
        ("masked_m", (2**16, 2**15, 8, 0), "num_groups * max_m must be at most"),
        ("masked_m", (9, 5, 8, 16, (LIMIT - 5) // 8), None),
        ("masked_m", (9, 5, 8, 16, LIMIT // 8 + 1), f"rows of a[0] must be at most {LIMIT}, got "),
    ],
    ids=str,
)
def test_both_sides_know_the_limits(form: str, sizes: Any, message: str | None) -> None:
    a, sfa, b, sfb, out, values = meta_arguments(form, *sizes)

    def check() -> None:
        groups = group_checks.Groups(form, values)
        group_checks.check_grouped_gemm(
            a, sfa, b, sfb, groups, out, out.dtype, num_sms=1, real=False
        )

    def launch() -> None:
        views = []
        for index, tensor in enumerate((a, sfa, b, sfb, out, values)):
            view = strided_view(tensor)
            address = (index + 1) << 56
            views.append(_C.TensorView(address, view.sizes, view.strides, view.dtype))
        device = native().EmulatedDevice(num_sms=1)
        native().make_grouped_fp8_gemm_nt_launch(device, *views, form, num_sms=1)

    for side in (check, launch):
        if message is None:
            side()
        else:
            with pytest.raises(ValueError, match=re.escape(message) if side is check else "must"):
                side()


# ---- layouts ----


def laid_out(tensor: Tensor, strides: tuple[int, ...], junk: int = 0x7F) -> Tensor:
    """The same values with other strides, NaN between them; of elements that overlap the last."""
    places = torch.zeros(tensor.shape, dtype=torch.int64)
    for dim, step in enumerate(strides):
        along = torch.arange(tensor.size(dim)) * step
        places += along.view(-1, *[1] * (tensor.dim() - 1 - dim))
    span = int(places.max()) + 1 if places.numel() else 0
    storage = torch.full(((span + 16) * tensor.element_size(),), junk, dtype=torch.uint8)
    as_integers = bits(tensor)
    storage.view(as_integers.dtype)[places.flatten()] = as_integers.flatten()
    return storage.view(tensor.dtype).as_strided(tensor.shape, strides)


@st.composite
def steps(draw: st.DrawFn, rows: int, columns: int, unit: int) -> tuple[int, int]:
    """Row and group stride: mostly some that are right, sometimes any."""
    row = columns + draw(st.sampled_from([0, unit, 2 * unit, 0, unit // 2, -columns]))
    group = row * (rows + draw(st.sampled_from([0, 1, 3, 0, -1, -rows])))
    group += draw(st.sampled_from([0, 0, 0, 0, unit, unit // 2]))
    return max(row, 0), max(group, 0)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Groups, dict[str, tuple[int, ...]], torch.dtype]:
    """Groups, the strides of all tensors, and the type of the output."""
    form = draw(st.sampled_from(FORMS))
    num_groups = draw(st.integers(1, 4))
    m = draw(st.sampled_from([1, 2, 5, 40]))
    n, k = draw(st.sampled_from([8, 136])), draw(st.sampled_from([0, 16, 144]))
    if form == "m_indices":
        values = draw(st.lists(st.integers(-1, num_groups - 1), min_size=m, max_size=m))
    elif form == "masked_m":
        values = draw(st.lists(st.integers(0, m), min_size=num_groups, max_size=num_groups))
    else:
        size = num_groups + 1
        values = sorted(draw(st.lists(st.integers(0, m), min_size=size, max_size=size)))
    groups = Groups(form, tuple(values), num_groups, m, "drawn", n=n, k=k)
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32]))
    strides: dict[str, tuple[int, ...]] = {}
    unit = 16 // dtype.itemsize
    for name, rows, columns, aligned in (("a", m, k, 16), ("b", n, k, 16), ("out", m, n, unit)):
        row, group = draw(steps(rows, columns, aligned))
        strides[name] = (group, row, 1) if groups.is_masked or name == "b" else (row, 1)
    blocks = -(-k // 128)
    for name, rows in (("sfa", m), ("sfb", -(-n // 128))):
        column, row = draw(
            st.sampled_from([(1, blocks), (rows, 1), (2, 7), (1, 0), (0, 0), (5, 1)])
        )
        group = draw(st.sampled_from([rows * blocks, 0, 1, 300]))
        strides[name] = (group, row, column) if groups.is_masked or name == "sfb" else (row, column)
    return groups, strides, dtype


KERNELS = [info.name for info in native().registered_kernels() if "grouped" in info.family]


@settings(max_examples=150, deadline=None)
@given(layouts(), st.sampled_from(KERNELS))
def test_what_passes_the_checks_runs(drawn: Any, kernel: str) -> None:
    """In the emulator, by the kernel chosen and by any other, with NaN wherever nothing is to be
    read; nothing else is written."""
    groups, strides, dtype = drawn
    (a, sfa), (b, sfb) = groups.operands()
    a, sfa = laid_out(a, strides["a"]), laid_out(sfa, strides["sfa"], 0xFF)
    b, sfb = laid_out(b, strides["b"]), laid_out(sfb, strides["sfb"], 0xFF)
    out = laid_out(groups.output(dtype), strides["out"])
    arguments = {groups.form: groups.tensor, "out": out}
    capability = pykernels.can_run(groups.op, (a, sfa), (b, sfb), **arguments)
    event(capability.reason.split(" must")[0] if not capability else "runs")
    if not capability:
        with pytest.raises(ValueError, match=re.escape(capability.reason)):
            groups.op((a, sfa), (b, sfb), **arguments)
        return
    before = storage_of(out).clone()
    gaps = torch.ones(before.numel() // dtype.itemsize, dtype=torch.bool)
    gaps.as_strided(out.shape, out.stride())[groups.group_of_row >= 0] = False
    gaps = gaps.repeat_interleave(dtype.itemsize)
    with pykernels.emulate() as report:
        groups.op((a, sfa), (b, sfb), **arguments)
    report.raise_if_findings()
    assert len(report.launches) == 1
    groups.assert_right(out, (a, sfa), (b, sfb), floor=TENSOR_CORE_FLOOR)
    assert torch.equal(storage_of(out)[gaps], before[gaps])
    storage_of(out).copy_(before)
    tensors = a, sfa, b, sfb, out, groups.tensor
    views = [strided_view(tensor) for tensor in tensors]
    native().grouped_fp8_gemm_nt(native().EmulatedDevice(), *views, groups.form, kernel=kernel)
    groups.assert_right(out, (a, sfa), (b, sfb), floor=TENSOR_CORE_FLOOR)
    assert torch.equal(storage_of(out)[gaps], before[gaps])


ODD = 1_000_003  # a stride that nothing uses


@pytest.mark.parametrize("form", FORMS)
def test_unused_strides_do_not_matter(form: str) -> None:
    """Of one row, one group, one block of scales; and the lengths of one of group tensors."""
    values = {"group_offsets": (0, 1), "m_indices": (0,), "masked_m": (1,)}[form]
    groups = Groups(form, values, 1, 1, "one row", n=8, k=16)
    a, b = groups.operands()
    expected = groups.call(a, b)

    def odd(tensor: Tensor) -> Tensor:
        strides = [
            ODD if size == 1 else step
            for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)

    tensor = odd(groups.tensor)
    out = odd(groups.output())
    with pykernels.emulate() as report:
        groups.call((odd(a[0]), odd(a[1])), (odd(b[0]), odd(b[1])), out=out, **{form: tensor})
    report.raise_if_findings()
    assert_same_bits(out, expected)


LAYOUTS: dict[str, Callable[[Arguments], Any]] = {
    "one weight for all groups": put(b=lambda v: v["b"][:1].expand(G, N, K)),
    "one set of scales for all": put(sfb=lambda v: v["sfb"][:1].expand(G, 2, 3)),
    "a weight every second one": put(b=lambda v: strided(v["b"], 2 * N * K, K, 1)),
    "groups of b 16 bytes apart": put(b=lambda v: strided(v["b"], 16, K, 1)),
    "padded rows of b": put(b=lambda v: padded(v["b"], 288)),
    "one group's rows for all": put(a=lambda v: v["a"][:1].expand(G, M, K)),
    "groups of a a row apart": put(a=lambda v: strided(v["a"], K, K, 1)),
    "padded rows of a": put(a=lambda v: padded(v["a"], 288)),
    "room behind each group": put(
        a=lambda v: strided(v["a"], 64 * K, K, 1), out=lambda v: strided(v["out"], 43 * N, N, 1)
    ),
    "column-major scales": put(
        sfa=lambda v: column_major(v["sfa"]), sfb=lambda v: column_major(v["sfb"])
    ),
    "one factor for all": put(sfa=lambda v: torch.ones(1, 1, 1).expand(G, M, 3)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_run(name: str) -> None:
    arguments = arguments_of(MASKED)
    arguments |= LAYOUTS[name](arguments) | {"ready": None, "done": None}
    arguments["out"].fill_(7.0)
    assert call(pykernels.can_run, arguments, MASKED.op) == (True, "")
    a, b = (arguments["a"], arguments["sfa"]), (arguments["b"], arguments["sfb"])
    for emulated in (False, True):
        arguments["out"].fill_(7.0)
        if emulated:
            with pykernels.emulate() as report:
                call(MASKED.op, arguments)
            report.raise_if_findings()
        else:
            call(MASKED.op, arguments)
        MASKED.assert_right(arguments["out"], a, b, floor=TENSOR_CORE_FLOOR)


@pytest.mark.parametrize("masked", [False, True])
def test_results_may_alternate_with_inputs_in_one_buffer(masked: bool) -> None:
    """Rows of a, its scales and the output side by side: nothing is shared."""
    groups = MASKED if masked else RAGGED
    (a, sfa), b = groups.operands()
    packed = torch.empty(*groups.rows, 560, dtype=torch.uint8)
    out = packed[..., :272].view(torch.bfloat16)
    values, scales = packed[..., 272:544].view(FP8), packed[..., 544:556].view(torch.float32)
    values.copy_(a)
    scales.copy_(sfa)
    out.fill_(7.0)
    groups.call((values, scales), b, out=out)
    assert_same_bits(out.contiguous(), groups.call((a, sfa), b, out=groups.output()))
    wider = packed[..., 16:288].view(torch.bfloat16)
    with pytest.raises(ValueError, match=r"out must not share memory with a\[0\]"):
        groups.call((values, scales), b, out=wider)


def test_a_lone_row_of_each_group() -> None:
    """max_m = 1: rows of the output may be as near as they are wide, those of a nearer."""
    groups = Groups("masked_m", (1, 0, 1), G, 1, "lone rows")
    a, b = groups.operands()
    for a_step, out_step, message in (
        (K, N, None),
        (16, 144, None),
        (0, N, None),
        (K + 8, N, "the group stride of a[0] must be a multiple of 16 bytes"),
        (K, N - 8, "groups of out must not overlap"),
        (K, 0, "groups of out must not overlap"),
    ):
        values = strided(a[0], a_step, ODD, 1)
        out = strided(groups.output(), out_step, ODD, 1).fill_(7.0)
        if message is not None:
            with pytest.raises(ValueError, match=re.escape(message)):
                groups.call((values, a[1]), b, out=out)
            continue
        values.view(torch.uint8).fill_(0x38)
        with pykernels.emulate() as report:
            groups.call((values, a[1]), b, out=out)
        report.raise_if_findings()
        groups.assert_right(out, (values, a[1]), b, floor=TENSOR_CORE_FLOOR)


def test_gradients_are_refused_only_where_they_are_recorded() -> None:
    for groups in BASES.values():
        a, b = groups.operands()
        b[1].requires_grad_()
        with pytest.raises(ValueError, match=rf"^{groups.op.__name__} is not differentiable and b"):
            groups.call(a, b)
        with torch.no_grad():
            groups.call(a, b)


def test_ops_check_what_the_public_functions_check() -> None:
    """Called directly, both overloads of both ops."""
    for groups, name in itertools.product((RAGGED, MASKED), ("default", "out")):
        (a, sfa), (b, sfb) = groups.operands()
        op = getattr(getattr(torch.ops.pykernels, groups.op.__name__), name)
        options = {} if name == "default" else {"out": groups.output()}
        with pytest.raises(ValueError, match=r"a\[1\] must be float32"):
            op(a, sfa.half(), b, sfb, groups.tensor, **options)
        with pytest.raises(ValueError, match="expected_m must be at least 0"):
            op(a, sfa, b, sfb, groups.tensor, expected_m=-1, **options)
        if options:
            with pytest.raises(ValueError, match="counter_scope must be"):
                op(a, sfa, b, sfb, groups.tensor, counter_scope="cta", **options)
            assert_same_bits(bits(options["out"]), bits(groups.output()))
