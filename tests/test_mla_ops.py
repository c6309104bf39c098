"""MLA decode in torch: the reference's values, the op in torch's checks, layouts, lengths."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pykernels
from pykernels.native import native, tensor_parts
from tests.cases import assert_same_bits
from tests.mla_cases import (
    BF16_CASES,
    CASES,
    LATENT,
    SOFTMAX_SCALE,
    MlaCase,
    Operands,
    assert_close,
    dequantised,
    poisoned_cache,
)
from tests.op_checks import CHECKS, one_thread

SMALL = MlaCase((70, 0, 1, 33), 5, "small", seqlen_q=2, page_size=16)
SMALL_FP8 = dataclasses.replace(SMALL, fp8=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_reference(case: MlaCase) -> None:
    operands = case.operands()
    assert_close(operands.call(), operands.exact())


def test_what_the_cases_reach() -> None:
    """Every size that the documents promise, and all lengths about a page."""
    assert {1, 2, 5, 8, 16, 64, 128} <= {case.num_heads for case in CASES}
    assert {case.seqlen_q for case in CASES} == {1, 2, 4}
    for fp8 in (False, True):
        assert {1, 16, 64, 256} <= {case.page_size for case in CASES if case.fp8 == fp8}


@pytest.mark.parametrize("spoil", ["zero row", "one element", "neighbour's head", "lse", "empty"])
def test_a_wrong_row_is_noticed(spoil: str) -> None:
    operands = SMALL.operands()
    out, lse = operands.call()
    if spoil == "zero row":
        out[0, 1, 2] = 0
    elif spoil == "one element":
        out[3, 0, 4, 100] *= 1.2
    elif spoil == "neighbour's head":
        out[0, 0, 1] = out[0, 0, 2].clone()
    elif spoil == "lse":
        lse[3, 2, 1] += 1e-4
    else:
        out[1, 0, 0, 5] = 1e-6
    with pytest.raises(AssertionError):
        assert_close((out, lse), operands.exact())


def test_rows_that_see_nothing() -> None:
    """Requests without tokens, and tokens of a step that the cache is too short for."""
    operands = MlaCase((0, 1, 3, 4), 2, "short", seqlen_q=4).operands()
    out, lse = operands.call()
    for request, length in enumerate((0, 1, 3, 4)):
        empty = 4 - length
        assert bool((out[request, :empty] == 0).all())
        assert bool((lse[request, :, :empty] == -torch.inf).all())
        assert bool((out[request, empty:] != 0).all())
        assert bool(lse[request, :, empty:].isfinite().all())
    seen = dataclasses.replace(operands, causal=False).call()
    assert bool(seen[1][1:].isfinite().all())
    assert bool((seen[1][0] == -torch.inf).all())


def test_one_token_of_weight_1() -> None:
    """The result is that token's latent part itself, and lse its score."""
    operands = MlaCase((1,), 3, "one token", page_size=1).operands()
    out, lse = operands.call()
    token = operands.kv_cache[int(operands.block_table[0, 0]), 0, 0]
    assert_same_bits(out, token[:LATENT].expand(1, 1, 3, LATENT))
    scores = SOFTMAX_SCALE * (operands.q[0, 0].double() @ token.double())
    torch.testing.assert_close(lse[0, :, 0].double(), scores, rtol=0, atol=1e-6)


def test_fp8_is_bf16_of_the_dequantised_cache() -> None:
    operands = SMALL_FP8.operands()
    expected = dataclasses.replace(operands, kv_cache=dequantised(operands.kv_cache)).call()
    as_e4m3 = dataclasses.replace(operands, kv_cache=operands.kv_cache.view(torch.float8_e4m3fn))
    for given in (operands, as_e4m3):
        for actual, wanted in zip(given.call(), expected, strict=True):
            assert_same_bits(actual, wanted)


# ---- layouts ----


def pair_of(q: Tensor) -> tuple[Tensor, Tensor]:
    return q[..., :LATENT].clone(), q[..., LATENT:].clone()


def heads_first(q: Tensor) -> Tensor:
    return q.transpose(1, 2).contiguous().transpose(1, 2)


def apart(q: Tensor) -> Tensor:
    """NaN between heads, tokens and requests."""
    batch, seqlen_q, num_heads, columns = q.shape
    wide = torch.full((batch, seqlen_q + 1, num_heads + 2, columns + 16), torch.nan).bfloat16()
    return wide[:, :seqlen_q, 1 : num_heads + 1, 8 : columns + 8].copy_(q)


QUERIES: dict[str, Callable[[Tensor], Any]] = {
    "a pair": pair_of,
    "a list": lambda q: list(pair_of(q)),
    "heads first": heads_first,
    "apart": apart,
    "a pair in two layouts": lambda q: (heads_first(q[..., :LATENT]), apart(q[..., LATENT:])),
}


@pytest.mark.parametrize("case", [SMALL, SMALL_FP8], ids=str)
@pytest.mark.parametrize("name", QUERIES)
def test_layouts_of_the_query(name: str, case: MlaCase) -> None:
    operands = case.operands()
    expected = operands.call()
    given = dataclasses.replace(operands, q=QUERIES[name](operands.q))
    for actual, wanted in zip(given.call(), expected, strict=True):
        assert_same_bits(actual, wanted)


def test_unused_strides_do_not_matter() -> None:
    """Of one request, token and head, and of one page and one length."""
    operands = MlaCase((1,), 1, "one of each", page_size=1).operands()
    expected = operands.call()

    def odd(tensor: Tensor) -> Tensor:
        strides = [
            1_000_003 if size == 1 else step
            for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)

    given = dataclasses.replace(
        operands,
        q=odd(operands.q),
        block_table=odd(operands.block_table[:, :1]),
        cache_seqlens=odd(operands.cache_seqlens),
    )
    pair = operands.poisoned_outputs()
    given.call(out=(odd(pair[0]), odd(pair[1])))
    for actual, wanted in zip(given.call(), expected, strict=True):
        assert_same_bits(actual, wanted)


def test_one_query_for_all() -> None:
    """Inputs may overlap themselves."""
    operands = SMALL.operands()
    q = operands.q[:1, :, :1].expand_as(operands.q)
    result = dataclasses.replace(operands, q=q).call()
    expected = dataclasses.replace(operands, q=q.contiguous()).call()
    assert_same_bits(result[0], expected[0])


@pytest.mark.parametrize("case", [SMALL, SMALL_FP8], ids=str)
def test_layouts_of_the_cache_and_the_table(case: MlaCase) -> None:
    """One layer among several, as wide a table as need be, one row for all requests."""
    operands = case.operands()
    expected = operands.call()
    num_pages, page_size = operands.kv_cache.shape[:2]
    layers = poisoned_cache(3 * num_pages, page_size, case.fp8).unflatten(0, (num_pages, 3))
    layers[:, 1] = operands.kv_cache
    needed = -(-max(case.lengths) // case.page_size)
    given = dataclasses.replace(
        operands, kv_cache=layers[:, 1], block_table=operands.block_table[:, :needed]
    )
    for actual, wanted in zip(given.call(), expected, strict=True):
        assert_same_bits(actual, wanted)
    same = dataclasses.replace(
        operands,
        block_table=operands.block_table[:1].expand(4, -1),
        cache_seqlens=operands.cache_seqlens[:1].repeat(4),
    )
    assert_close(same.call(), same.exact())


@pytest.mark.parametrize("case", [SMALL, SMALL_FP8], ids=str)
def test_out(case: MlaCase) -> None:
    operands = case.operands()
    expected = operands.call()
    pair = operands.poisoned_outputs()
    returned = operands.call(out=pair)
    assert returned[0] is pair[0]
    assert returned[1] is pair[1]
    for actual, wanted in zip(pair, expected, strict=True):
        assert_same_bits(actual, wanted)


def test_strides_of_out() -> None:
    """Only the rows are written."""
    operands = SMALL.operands()
    expected = operands.call()
    batch, seqlen_q, num_heads, _ = operands.q.shape
    storage = torch.full((seqlen_q, batch, num_heads + 1, LATENT + 16), 7.0).bfloat16()
    out = storage[:, :, :num_heads, 8 : 8 + LATENT].transpose(0, 1)
    lse_storage = torch.full((batch, seqlen_q, 2 * num_heads), 7.0)
    lse = lse_storage[..., ::2].transpose(1, 2)
    operands.call(out=(out, lse))
    assert_same_bits(out.contiguous(), expected[0])
    assert_same_bits(lse.contiguous(), expected[1])
    assert bool((storage[:, :, num_heads] == 7).all())
    assert bool((storage[..., :8] == 7).all())
    assert bool((storage[..., 8 + LATENT :] == 7).all())
    assert bool((lse_storage[..., 1::2] == 7).all())


# ---- the plan ----


def test_a_plan_gives_the_same() -> None:
    """Also one for more requests than the call has, and an invariant one by either name."""
    operands = SMALL.operands()
    expected = operands.call()
    larger = pykernels.mla_decode_plan(9, 2, 5, device="cpu")
    pykernels.mla_update_plan(larger, operands.cache_seqlens)
    invariant = operands.plan(batch_invariant=True)
    calls: list[dict[str, Any]] = [
        {"plan": operands.plan()},
        {"plan": larger},
        {"plan": invariant},
        {"plan": invariant, "batch_invariant": True},
        {"batch_invariant": True},
    ]
    for named in calls:
        for actual, wanted in zip(operands.call(**named), expected, strict=True):
            assert_same_bits(actual, wanted)


def test_no_plan_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = SMALL.operands()
    plan = operands.plan()
    monkeypatch.setattr("pykernels.device.is_capturing", lambda tensor: True)
    with pytest.raises(RuntimeError, match="allocates one, which a CUDA graph cannot capture"):
        operands.call()
    capability = pykernels.can_run(
        pykernels.mla_decode,
        operands.q,
        operands.kv_cache,
        operands.block_table,
        operands.cache_seqlens,
        softmax_scale=1.0,
    )
    assert "a CUDA graph cannot capture" in capability.reason
    operands.call(plan=plan)


# ---- values that only the device knows; in torch at hand ----


def spoilt(operands: Operands, **changes: Callable[[Tensor], Any]) -> Operands:
    copies = {name: getattr(operands, name).clone() for name in changes}
    for name, change in changes.items():
        change(copies[name])
    return dataclasses.replace(operands, **copies)


def put_at(*place: int, value: int) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor[place] = value

    return change


WRONG_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("negative length", {"cache_seqlens": put_at(1, value=-1)}, "of request 1 must be from 0 to"),
    (
        "length past the table",
        {"cache_seqlens": put_at(3, value=7 * 16 + 1)},
        "cache_seqlens of request 3 must be from 0 to 112, what its row of block_table reaches, "
        "got 113",
    ),
    (
        "negative page",
        {"block_table": put_at(0, 4, value=-1)},
        "block_table of request 0 must name pages from 0 to 11, got -1",
    ),
    ("no such page", {"block_table": put_at(3, 0, value=12)}, "from 0 to 11, got 12"),
]


@pytest.mark.parametrize(("changes", "message"), [each[1:] for each in WRONG_VALUES])
def test_wrong_values(changes: dict[str, Any], message: str) -> None:
    operands = spoilt(SMALL.operands(), **changes)
    pair = operands.poisoned_outputs()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        operands.call(out=pair)
    assert all(bool((tensor == 7).all()) for tensor in pair)
    capability = pykernels.can_run(
        pykernels.mla_decode,
        operands.q,
        operands.kv_cache,
        operands.block_table,
        operands.cache_seqlens,
        softmax_scale=SOFTMAX_SCALE,
    )
    assert capability == (False, str(error.value))


def test_a_stale_plan() -> None:
    operands = SMALL.operands()
    plan = operands.plan()
    operands = spoilt(operands, cache_seqlens=put_at(3, value=34))
    message = (
        "the plan was updated for cache_seqlens of 33 in request 3, got 34; call mla_update_plan "
        "whenever the lengths change"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        operands.call(plan=plan)
    pykernels.mla_update_plan(plan, operands.cache_seqlens)
    operands = spoilt(operands, kv_cache=lambda cache: cache.nan_to_num_(0))
    operands.call(plan=plan)


@pytest.mark.parametrize("length", [0, 5])
def test_a_plan_that_was_updated_for_fewer_requests(length: int) -> None:
    """As on the GPU, of a request without tokens too."""
    operands = dataclasses.replace(SMALL, lengths=(40, length)).operands()
    plan = operands.plan()
    pykernels.mla_update_plan(plan, operands.cache_seqlens[:1])
    message = (
        "the plan was not updated for request 1; call mla_update_plan with the cache_seqlens of "
        "the whole batch"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        operands.call(plan=plan)
    with pykernels.emulate(), pytest.raises(ValueError, match=re.escape(message)):
        operands.call(plan=plan)


def test_pages_past_the_end_do_not_matter() -> None:
    """A cache without pages serves requests without tokens."""
    operands = MlaCase((0, 0), 3, "no tokens").operands()
    nothing = dataclasses.replace(
        operands, kv_cache=operands.kv_cache[:0], block_table=operands.block_table[:, :0]
    )
    for given in (operands, nothing):
        out, lse = given.call()
        assert not bool(out.any())
        assert bool((lse == -torch.inf).all())


@pytest.mark.parametrize("seqlen_q", [0, 2])
@pytest.mark.parametrize("batch", [0, 3])
def test_empty(batch: int, seqlen_q: int) -> None:
    if batch and seqlen_q:
        return
    operands = MlaCase((5,) * 3, 4, "some", seqlen_q=2).operands()
    given = Operands(
        operands.q[:batch, :seqlen_q],
        operands.kv_cache,
        operands.block_table[:batch],
        operands.cache_seqlens[:batch],
    )
    plan = operands.plan()
    with pykernels.emulate() as report:
        emulated = given.call(plan=plan)
    assert not report.launches
    for out, lse in (given.call(), given.call(plan=operands.plan()), emulated):
        assert out.shape == (batch, seqlen_q, 4, LATENT)
        assert lse.shape == (batch, 4, seqlen_q)
    given.call(out=given.poisoned_outputs())


# ---- the op ----


def op_arguments(case: MlaCase) -> tuple[Any, ...]:
    operands = case.operands()
    cache = operands.kv_cache.nan_to_num(0) if not case.fp8 else operands.kv_cache
    tensors = (*pair_of(operands.q), cache, operands.block_table, operands.cache_seqlens)
    return (*tensors, *operands.plan()[:5], SOFTMAX_SCALE, True)


@pytest.mark.parametrize("case", [SMALL, SMALL_FP8], ids=str)
def test_opcheck(case: MlaCase) -> None:
    ops = torch.ops.pykernels.mla_decode
    arguments = op_arguments(case)
    all_checks = ("test_schema", *CHECKS)
    torch.library.opcheck(ops.default, arguments, test_utils=all_checks)
    out, lse = case.operands().poisoned_outputs()
    torch.library.opcheck(ops.out, arguments, {"out": out, "lse": lse}, test_utils=all_checks)


@pytest.mark.parametrize("case", [SMALL, SMALL_FP8], ids=str)
def test_what_the_extension_gets(case: MlaCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of the tensors in the order that it takes them; a query of one tensor as two views."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        native(), "mla_decode", lambda *arguments: asked.append(arguments), raising=False
    )
    operands = case.operands()
    plan, (out, lse) = operands.plan(), operands.poisoned_outputs()
    with pykernels.emulate():
        dataclasses.replace(operands, causal=False).call(plan=plan, out=(out, lse))
        operands.call(plan=plan)
    device, *views, scale, causal = asked[0]
    assert isinstance(device, native().EmulatedDevice)
    tensors = (
        operands.q[..., :LATENT],
        operands.q[..., LATENT:],
        operands.kv_cache.view(torch.float8_e4m3fn) if case.fp8 else operands.kv_cache,
        operands.block_table,
        operands.cache_seqlens,
        *plan[:5],
        out,
        lse,
    )
    assert views == [tensor_parts(tensor) for tensor in tensors]
    assert (scale, causal) == (SOFTMAX_SCALE, False)
    assert asked[1][-1] is True


def test_schemas() -> None:
    ops = torch.ops.pykernels.mla_decode
    inputs = (
        "Tensor q_nope, Tensor q_rope, Tensor kv_cache, Tensor block_table, Tensor cache_seqlens, "
        "Tensor items, Tensor part_offsets, Tensor requests, Tensor(a!) partial_out, "
        "Tensor(b!) partial_lse, float softmax_scale, bool causal"
    )
    assert str(ops.default._schema) == f"pykernels::mla_decode({inputs}) -> (Tensor, Tensor)"
    assert str(ops.out._schema) == (
        f"pykernels::mla_decode.out({inputs}, *, Tensor(c!) out, Tensor(d!) lse) -> ()"
    )


def test_fake_and_meta_tensors() -> None:
    operands = SMALL.operands()
    with FakeTensorMode() as mode:
        fake = dataclasses.replace(
            operands,
            **{
                name: mode.from_tensor(getattr(operands, name))
                for name in ("q", "kv_cache", "block_table", "cache_seqlens")
            },
        )
        plan = pykernels.mla_decode_plan(4, 2, 5, device="cpu")
        out, lse = fake.call(plan=plan)
        unplanned = fake.call()
    assert (out.shape, out.dtype) == ((4, 2, 5, LATENT), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((4, 5, 2), torch.float32)
    meta = dataclasses.replace(
        operands,
        **{
            name: getattr(operands, name).to("meta")
            for name in ("q", "kv_cache", "block_table", "cache_seqlens")
        },
    )
    for other in (unplanned, meta.call()):
        assert [tensor.shape for tensor in other] == [out.shape, lse.shape]
    with pytest.raises(ValueError, match="cache_seqlens must be int32"), mode:
        dataclasses.replace(fake, cache_seqlens=fake.cache_seqlens.long()).call(plan=plan)


@one_thread
@pytest.mark.parametrize("with_out", [False, True])
def test_compile(with_out: bool) -> None:
    """One node of the graph, after the update of the plan."""
    operands = SMALL.operands()
    plan = operands.plan()

    def step(q: Tensor, *out: Tensor) -> Any:
        pair = (out[0], out[1]) if out else None
        return pykernels.mla_decode(
            q * 1,
            operands.kv_cache,
            operands.block_table,
            operands.cache_seqlens,
            softmax_scale=SOFTMAX_SCALE,
            plan=plan,
            out=pair,
        )

    expected = operands.call()
    compiled = torch.compile(step, fullgraph=True)
    out = operands.poisoned_outputs() if with_out else ()
    for actual, wanted in zip(compiled(operands.q, *out), expected, strict=True):
        assert_same_bits(actual, wanted)


def test_gradients_are_refused_only_where_they_are_recorded() -> None:
    operands = SMALL.operands()
    given = dataclasses.replace(operands, q=operands.q.clone().requires_grad_())
    with pytest.raises(ValueError, match="mla_decode is not differentiable and q_nope requires"):
        given.call()
    with torch.no_grad():
        assert_same_bits(given.call()[0], operands.call()[0])


@pytest.mark.parametrize("case", BF16_CASES[:3], ids=str)
def test_a_request_does_not_depend_on_the_others(case: MlaCase) -> None:
    operands = case.operands()
    together = operands.call()
    for request in range(len(case.lengths)):
        alone = operands.requests(request).call()
        assert_same_bits(alone[0][0], together[0][request])
        assert_same_bits(alone[1][0], together[1][request])
