"""Wrong arguments of MLA decode: a ValueError before anything is launched or written.

``can_run`` gives the same message.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.mla_decode_checks import DecodeCall, check_mla_decode
from tests.cases import assert_same_bits
from tests.mla_cases import LATENT, SOFTMAX_SCALE, MlaCase
from tests.wrong_arguments import Wrong, misaligned, padded, put

OP = pykernels.mla_decode
BF16 = MlaCase((70, 0, 33), 5, "three requests", seqlen_q=2, page_size=16)
FP8 = dataclasses.replace(BF16, fp8=True)
BATCH, TOKENS, HEADS = 3, 2, 5

Arguments = dict[str, Any]


def arguments_of(case: MlaCase = BF16) -> Arguments:
    operands = case.operands()
    out, lse = operands.poisoned_outputs()
    return {
        "q_nope": operands.q[..., :LATENT].clone(),
        "q_rope": operands.q[..., LATENT:].clone(),
        "kv_cache": operands.kv_cache,
        "block_table": operands.block_table,
        "cache_seqlens": operands.cache_seqlens,
        "softmax_scale": SOFTMAX_SCALE,
        "causal": True,
        "plan": operands.plan(),
        "batch_invariant": False,
        "out": out,
        "lse": lse,
    }


def call(function: Callable[..., Any], arguments: Arguments, *first: Any) -> Any:
    """The query and the outputs as pairs, unless ``q`` or ``pair`` stand for them."""
    rest = dict(arguments)
    q = rest.pop("q_nope"), rest.pop("q_rope")
    out = rest.pop("out"), rest.pop("lse")
    q = rest.pop("q", q)
    out = rest.pop("pair", out)
    tensors = [rest.pop(name) for name in ("kv_cache", "block_table", "cache_seqlens")]
    return function(*first, q, *tensors, out=out, **rest)


def memory(arguments: Arguments) -> list[Tensor]:
    """The bytes of all storages."""
    values = [*arguments.values()]
    values += [tensor for tensor in arguments["plan"] or () if isinstance(tensor, Tensor)]
    return [
        torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).clone()
        for value in values
        if isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout is torch.strided
    ]


def strided(tensor: Tensor, *strides: int) -> Tensor:
    """Zeros of the same shape and type with these strides."""
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, strides, strict=True))
    return torch.zeros(span, dtype=tensor.dtype).as_strided(tensor.shape, strides)


def plan_of(*sizes: int, **options: Any) -> Callable[[Arguments], Any]:
    return lambda arguments: pykernels.mla_decode_plan(*sizes, device="cpu", **options)


ABSORB = "q_nope @ w_uk of each head"
WRONG = [
    Wrong("device", put(block_table=lambda v: v["block_table"].to("meta")), "block_table on meta"),
    Wrong("device of lengths", put(cache_seqlens=lambda v: v["cache_seqlens"].to("meta")), "meta"),
    Wrong("device of the cache", put(kv_cache=lambda v: v["kv_cache"].to("meta")), "kv_cache on m"),
    Wrong("device of out", put(out=lambda v: v["out"].to("meta")), "out[0] on meta"),
    Wrong(
        "dtype of q", put(q_nope=lambda v: v["q_nope"].half()), "q_nope must be bfloat16, got float"
    ),
    Wrong("dtype of rope", put(q_rope=lambda v: v["q_rope"].float()), "q_rope must be bfloat16"),
    Wrong("dtype of the cache", put(kv_cache=lambda v: v["kv_cache"].half()), "kv_cache must be"),
    Wrong(
        "table of int64",
        put(block_table=lambda v: v["block_table"].long()),
        "block_table must be int32, got int64; convert with block_table.to(torch.int32)",
    ),
    Wrong(
        "lengths of int64",
        put(cache_seqlens=lambda v: v["cache_seqlens"].long()),
        "cache_seqlens must be int32",
    ),
    Wrong("dtype of out", put(out=lambda v: v["out"].float()), "out[0] must be bfloat16, got flo"),
    Wrong("dtype of lse", put(lse=lambda v: v["lse"].double()), "out[1] must be float32, got floa"),
    Wrong(
        "rank of q",
        put(q_nope=lambda v: v["q_nope"][0]),
        "q_nope must have 4 dimensions, got 3 (shape [2, 5, 512]); reshape it, for example with "
        ".unsqueeze(1)",
    ),
    Wrong("rank of rope", put(q_rope=lambda v: v["q_rope"][None]), "q_rope must have 4 dimensions"),
    Wrong("flat table", put(block_table=lambda v: v["block_table"][0]), "must have 2 dimensions"),
    Wrong(
        "rank of lengths",
        put(cache_seqlens=lambda v: v["cache_seqlens"][None]),
        "cache_seqlens must have 1 dimensions, got 2 (shape [1, 3]); reshape it, for example with "
        ".flatten(0, -1)",
    ),
    Wrong(
        "rank of the cache",
        put(kv_cache=lambda v: v["kv_cache"][:, :, 0]),
        "share one head of the cache; pass kv_cache.unsqueeze(2)",
    ),
    Wrong("rank of out", put(out=lambda v: v["out"][0]), "out[0] must have 4 dimensions"),
    Wrong("rank of lse", put(lse=lambda v: v["lse"][0]), "for example with .unsqueeze(2)"),
    Wrong("not absorbed", put(q_nope=lambda v: v["q_nope"][..., :128]), ABSORB),
    Wrong(
        "rope of 128",
        put(q_rope=lambda v: v["q_nope"][..., :128]),
        "must have 512 and 64 columns, got 512 and 128",
    ),
    Wrong("not absorbed, one tensor", put(q=lambda v: v["q_nope"][..., :192]), ABSORB),
    Wrong("one tensor of 640", put(q=lambda v: padded(v["q_nope"], 640)), "num_heads, 576], got"),
    Wrong("q of 3 dimensions", put(q=lambda v: v["q_nope"][0]), "q must have 4 dimensions, got 3"),
    Wrong(
        "heads of rope",
        put(q_rope=lambda v: v["q_rope"][:, :, :4]),
        "q_rope must be [batch, seqlen_q, num_heads, 64] = [3, 2, 5, 64], got [3, 2, 4, 64]",
    ),
    Wrong("batch of rope", put(q_rope=lambda v: v["q_rope"][:2]), "[3, 2, 5, 64], got [2, 2, 5"),
    Wrong(
        "129 heads",
        put(
            q=lambda v: torch.zeros(BATCH, TOKENS, 129, 576).bfloat16(),
            plan=lambda v: None,
            pair=lambda v: None,
        ),
        "num_heads must be from 1 to 128, got 129; split the heads",
    ),
    Wrong(
        "no heads",
        put(q=lambda v: torch.zeros(BATCH, TOKENS, 0, 576).bfloat16(), pair=lambda v: None),
        "num_heads must be from 1 to 128, got 0; leave the call out",
    ),
    Wrong("columns of the cache", put(kv_cache=lambda v: v["kv_cache"][..., :512]), "kv_cache"),
    Wrong(
        "two heads of the cache",
        put(kv_cache=lambda v: v["kv_cache"].expand(-1, -1, 2, -1)),
        "kv_cache",
    ),
    Wrong("page size 15", put(kv_cache=lambda v: v["kv_cache"][:, :15]), "power of two"),
    Wrong(
        "page size 512",
        put(kv_cache=lambda v: torch.zeros(2, 512, 1, 576).bfloat16()),
        "from 1 to 256",
    ),
    Wrong(
        "bytes of 576 columns",
        put(kv_cache=lambda v: torch.zeros(9, 16, 1, 576, dtype=torch.uint8)),
        "kv_cache",
    ),
    Wrong(
        "batch of the table",
        put(block_table=lambda v: v["block_table"][:2]),
        "block_table must be [batch, max_pages] with batch = 3, got [2, ",
    ),
    Wrong(
        "batch of lengths",
        put(cache_seqlens=lambda v: v["cache_seqlens"][:2]),
        "cache_seqlens must be [batch] = [3], got [2]",
    ),
    Wrong("columns of out", put(out=lambda v: v["out"][..., :128]), "out[0] must be [batch, "),
    Wrong(
        "order of lse",
        put(lse=lambda v: v["lse"].mT),
        "out[1] must be [batch, num_heads, seqlen_q] = [3, 5, 2], got [3, 2, 5]",
    ),
    Wrong(
        "columns of q apart",
        put(q_nope=lambda v: strided(v["q_nope"], 10240, 5120, 1024, 2)),
        "q_nope must be contiguous in its last dimension, got stride 2",
    ),
    Wrong(
        "head stride of q",
        put(q_nope=lambda v: strided(v["q_nope"], 5240, 2620, 516, 1)),
        "the strides of q_nope must be multiples of 16 bytes, got 5240 in dimension 1",
    ),
    Wrong(
        "head stride of rope",
        put(q_rope=lambda v: strided(v["q_rope"], 720, 360, 68, 1)),
        "the strides of q_rope must be multiples of 16 bytes, got 136 in dimension 2",
    ),
    Wrong(
        "columns of the table apart",
        put(block_table=lambda v: v["block_table"].repeat_interleave(2, dim=1)[:, ::2]),
        "block_table must have stride 1 in its last dimension",
    ),
    Wrong(
        "strided lengths",
        put(cache_seqlens=lambda v: v["cache_seqlens"].repeat_interleave(2)[::2]),
        "cache_seqlens must be contiguous, got stride 2; pass cache_seqlens.contiguous()",
    ),
    Wrong(
        "one length for all",
        put(cache_seqlens=lambda v: v["cache_seqlens"][:1].expand(BATCH)),
        "cache_seqlens must be contiguous, got stride 0",
    ),
    Wrong(
        "head stride of out",
        put(out=lambda v: padded(v["out"], 516)),
        "the strides of out[0] must be",
    ),
    Wrong(
        "rows of out overlap",
        put(out=lambda v: v["out"][:, :1].expand(v["out"].shape)),
        "elements of out[0] must not overlap",
    ),
    Wrong(
        "rows of lse overlap",
        put(lse=lambda v: v["lse"][:1].expand(v["lse"].shape)),
        "elements of out[1] must not overlap",
    ),
    Wrong("address of q", put(q_nope=lambda v: misaligned(v["q_nope"])), "data pointer of q_nope"),
    Wrong("address of rope", put(q_rope=lambda v: misaligned(v["q_rope"])), "pointer of q_rope"),
    Wrong("address of out", put(out=lambda v: misaligned(v["out"])), "data pointer of out[0]"),
    Wrong("address of the cache", put(kv_cache=lambda v: misaligned(v["kv_cache"])), "of kv_cache"),
    Wrong("out over q", put(q_nope=lambda v: v["out"]), "out[0] must not share memory with q_nope"),
    Wrong(
        "lse over lengths",
        put(cache_seqlens=lambda v: v["lse"].view(-1)[3:6].view(torch.int32)),
        "out[1] must not share memory with cache_seqlens",
    ),
    Wrong(
        "lse in out",
        put(lse=lambda v: v["out"].view(-1)[512:572].view(torch.float32).view(3, 5, 2)),
        "out[0] must not share memory with out[1]",
    ),
    Wrong(
        "lse over the plan",
        put(lse=lambda v: v["plan"].partial_lse.view(-1)[:30].view(3, 5, 2)),
        "out[1] must not share memory with plan.partial_lse",
    ),
    Wrong("scale 0", put(softmax_scale=lambda v: 0.0), "must be a finite number above 0"),
    Wrong("negative scale", put(softmax_scale=lambda v: -1), "got -1"),
    Wrong("infinite scale", put(softmax_scale=lambda v: math.inf), "got inf"),
    Wrong("scale NaN", put(softmax_scale=lambda v: math.nan), "got nan"),
    Wrong("tiny scale", put(softmax_scale=lambda v: 1e-60), "a normal one in FP32, got 1e-60"),
    Wrong("huge scale", put(softmax_scale=lambda v: 10**5000), "got an int of"),
    Wrong("scale None", put(softmax_scale=lambda v: None), "must be a number, got None"),
    Wrong("scale a bool", put(softmax_scale=lambda v: True), "must be a number, got True"),
    Wrong("scale text", put(softmax_scale=lambda v: "1"), "must be a number, got '1'"),
    Wrong("causal", put(causal=lambda v: None), "causal must be True or False, got None"),
    Wrong("causal a number", put(causal=lambda v: 1), "causal must be True or False, got 1"),
    Wrong("batch_invariant", put(batch_invariant=lambda v: 1), "must be True or False, got 1"),
    Wrong(
        "plan not invariant",
        put(batch_invariant=lambda v: True),
        "the plan was made without it; make the plan with mla_decode_plan(..., batch_invariant=Tru",
    ),
    Wrong("plan a tuple", put(plan=lambda v: tuple(v["plan"])), "plan must be an MlaPlan, as mla_"),
    Wrong(
        "plan of no tensors",
        put(plan=lambda v: v["plan"]._replace(items=[])),
        "plan.items must be a tensor, got list",
    ),
    Wrong("plan of fewer requests", put(plan=plan_of(2, TOKENS, HEADS)), "batch"),
    Wrong("plan of other tokens", put(plan=plan_of(BATCH, 1, HEADS)), "seqlen_q"),
    Wrong("plan of other heads", put(plan=plan_of(BATCH, TOKENS, 6)), "num_heads"),
    Wrong("gradient", put(q_rope=lambda v: v["q_rope"].requires_grad_()), "q_rope requires grad"),
    Wrong(
        "gradient of the cache",
        put(kv_cache=lambda v: v["kv_cache"].requires_grad_()),
        "kv_cache requires grad",
    ),
    Wrong("gradient of lse", put(lse=lambda v: v["lse"].requires_grad_()), "out[1] requires grad"),
    Wrong("sparse q", put(q=lambda v: v["q_nope"].to_sparse()), "q must be a dense tensor"),
    Wrong("sparse table", put(block_table=lambda v: v["block_table"].to_sparse()), "dense tensor"),
    Wrong("q None", put(q=lambda v: None), "q must be a tensor or a pair (q_nope, q_rope)"),
    Wrong("q of three", put(q=lambda v: (v["q_nope"],) * 3), "got a tuple of 3"),
    Wrong("q of numbers", put(q=lambda v: [1, 2]), "q must be a tensor or a pair"),
    Wrong("cache None", put(kv_cache=lambda v: None), "kv_cache must be a tensor, got NoneType"),
    Wrong("a list of lengths", put(cache_seqlens=lambda v: [1, 2, 3]), "a tensor, got list"),
    Wrong("out one tensor", put(pair=lambda v: v["out"]), "out must be a pair (out, lse)"),
    Wrong("out of numbers", put(pair=lambda v: (1, 2)), "out[0] must be a tensor, got int"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_calls_are_refused(wrong: Wrong) -> None:
    """In the emulator, in torch and by ``can_run``; with and without a plan and outputs."""
    arguments = arguments_of()
    arguments.update(wrong.change(arguments))
    before = memory(arguments)
    about_plan = "plan" in wrong.name + wrong.message
    about_out = re.search("out|lse", wrong.name + wrong.message)
    variants: list[Arguments] = [{}]
    variants += [] if about_plan else [{"plan": None}]
    variants += [] if about_out else [{"pair": None}]
    for options in variants:
        with (
            pykernels.emulate(checks=()) as report,
            pytest.raises(ValueError, match=re.escape(wrong.message)) as error,
        ):
            call(OP, arguments | options)
        assert report.launches == []
        assert call(pykernels.can_run, arguments | options, OP) == (False, str(error.value))
        with pytest.raises(ValueError, match=re.escape(wrong.message)):
            call(OP, arguments | options)  # in torch
    for now, then in zip(memory(arguments), before, strict=True):
        assert torch.equal(now, then)


WRONG_FP8 = [
    Wrong(
        "BF16 of 656 columns",
        put(kv_cache=lambda v: torch.zeros(9, 16, 1, 656).bfloat16()),
        "kv_cache",
    ),
    Wrong("bytes of e5m2", put(kv_cache=lambda v: v["kv_cache"].view(torch.float8_e5m2)), "kv_ca"),
    Wrong("signed bytes", put(kv_cache=lambda v: v["kv_cache"].view(torch.int8)), "kv_cache must"),
    Wrong("page size 12", put(kv_cache=lambda v: v["kv_cache"][:, :12]), "power of two"),
    Wrong("address", put(kv_cache=lambda v: misaligned(v["kv_cache"])), "pointer of kv_cache"),
    Wrong(
        "out in the cache",
        put(
            out=lambda v: (
                v["kv_cache"].view(-1)[: 30 * 1024].view(torch.bfloat16).view(3, 2, 5, 512)
            )
        ),
        "out[0] must not share memory with kv_cache",
    ),
]


@pytest.mark.parametrize("wrong", WRONG_FP8, ids=str)
def test_calls_with_an_fp8_cache_are_refused(wrong: Wrong) -> None:
    arguments = arguments_of(FP8)
    arguments.update(wrong.change(arguments))
    before = memory(arguments)
    with pytest.raises(ValueError, match=re.escape(wrong.message)) as error:
        call(OP, arguments)
    assert call(pykernels.can_run, arguments, OP) == (False, str(error.value))
    for now, then in zip(memory(arguments), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("case", [BF16, FP8], ids=str)
def test_the_untouched_arguments_run(case: MlaCase) -> None:
    arguments = arguments_of(case)
    assert call(pykernels.can_run, arguments, OP) == (True, "")
    call(OP, arguments)
    assert bool((arguments["out"] != 7).any())


def test_numbers_of_other_types() -> None:
    arguments = arguments_of()
    expected, _ = call(OP, arguments | {"softmax_scale": 1.0, "pair": None})
    for scale in (1, np.float32(1), np.int64(1)):
        for causal in (True, np.bool_(True)):
            options = {"softmax_scale": scale, "causal": causal, "pair": None}
            assert call(pykernels.can_run, arguments | options, OP) == (True, "")
            assert_same_bits(call(OP, arguments | options)[0], expected)


def test_a_table_that_reaches_too_far() -> None:
    """Kernels count tokens in 32 bits, to the end of a block."""
    most = 2**31 - 1 - 1024
    q = torch.empty(1, 1, 1, 576, dtype=torch.bfloat16, device="meta")
    cache = torch.empty(4, 256, 1, 576, dtype=torch.bfloat16, device="meta")
    lengths = torch.empty(1, dtype=torch.int32, device="meta")
    for pages, fits in ((most // 256, True), (most // 256 + 1, False)):
        table = torch.empty(1, pages, dtype=torch.int32, device="meta")
        decode = DecodeCall(q[..., :512], q[..., 512:], cache, table, lengths, None, 1.0, True)
        if fits:
            check_mla_decode(decode, None, real=False)
            continue
        with pytest.raises(ValueError, match=f"may reach {most} tokens at most, got max_pages"):
            check_mla_decode(decode, None, real=False)


def test_ops_check_what_the_public_function_checks() -> None:
    """Called directly, both overloads."""
    ops = torch.ops.pykernels.mla_decode
    arguments = arguments_of()
    out, lse = arguments["out"], arguments["lse"]
    names = ("q_nope", "q_rope", "kv_cache", "block_table", "cache_seqlens")
    tensors = [arguments[name] for name in names]
    plan = arguments["plan"][:5]
    other = pykernels.mla_decode_plan(BATCH, TOKENS, 6, device="cpu")[:5]
    for function, named in ((ops.default, {}), (ops.out, {"out": out, "lse": lse})):
        with pytest.raises(ValueError, match="cache_seqlens must be int32"):
            function(*tensors[:4], tensors[4].long(), *plan, 1.0, True, **named)
        with pytest.raises(ValueError, match="softmax_scale must be a finite number"):
            function(*tensors, *plan, 0.0, True, **named)
        with pytest.raises(ValueError, match="num_heads"):
            function(*tensors, *other, 1.0, True, **named)
    assert bool((out == 7).all())
    assert bool((lse == 7).all())


def test_ops_take_named_arguments() -> None:
    arguments = arguments_of()
    expected = call(OP, arguments | {"pair": None})
    plan = arguments["plan"]._asdict()
    del plan["batch_invariant"]
    names = ("q_nope", "q_rope", "kv_cache", "block_table", "cache_seqlens", "softmax_scale")
    named = {name: arguments[name] for name in names} | {"causal": True}
    result = torch.ops.pykernels.mla_decode(**named, **plan)
    for actual, wanted in zip(result, expected, strict=True):
        assert_same_bits(actual, wanted)


def test_can_run_has_the_signature_of_the_op() -> None:
    from pykernels.checks import _CALL_CHECKS

    parameters = inspect.signature(OP).parameters
    assert inspect.signature(_CALL_CHECKS[OP]).parameters == parameters
    for named in ({}, {"unknown": 1}):
        capability = pykernels.can_run(OP, **named)
        with pytest.raises(TypeError) as error:
            OP(**named)
        assert capability == (False, str(error.value))
