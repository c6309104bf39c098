"""MLA decode's kernels, in the emulator or with ``--device cuda`` on a GPU, against the reference.

Poisoned caches and tables show that nothing is read which no request has; what lies between the
rows of the results shows that nothing else is written.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.testing import Pair
from tests.cases import assert_same_bits
from tests.mla_cases import (
    CASES,
    KERNEL_FLOOR,
    KERNEL_LSE,
    LATENT,
    SOFTMAX_SCALE,
    MlaCase,
    Operands,
    assert_close,
    dequantised,
    poisoned_cache,
)
from tests.target import selected

MODES = ("early", "late", "random")
FP8 = pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])

# A split request, one of a block, one without tokens; two tokens of each.
MIXED = MlaCase((300, 64, 0, 33), 5, "mixed", seqlen_q=2, page_size=16)
# One block each, so that none is split whatever the plan is.
SHORT = MlaCase((40, 60, 33, 20), 5, "short", page_size=16)


def decode(operands: Operands, options: Any = None, **named: Any) -> Pair:
    """On the target, without findings."""
    result, _ = selected().call(
        pykernels.mla_decode,
        operands.q,
        operands.kv_cache,
        operands.block_table,
        operands.cache_seqlens,
        softmax_scale=SOFTMAX_SCALE,
        causal=operands.causal,
        options=options,
        **named,
    )
    out, lse = result
    return out, lse


def assert_right(actual: Pair, operands: Operands) -> None:
    assert_close(actual, operands.exact(), KERNEL_FLOOR, KERNEL_LSE)


def assert_same(actual: Pair, expected: Pair) -> None:
    for each, wanted in zip(actual, expected, strict=True):
        assert_same_bits(each.contiguous(), wanted.contiguous())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_reference(case: MlaCase) -> None:
    operands = case.operands()
    assert_right(decode(operands, {"async_completion": "late"}), operands)


@pytest.mark.slow
@FP8
@pytest.mark.parametrize("page_size", [1, 16, 64, 256])
@pytest.mark.parametrize("seqlen_q", [1, 2, 4])
@pytest.mark.parametrize("num_heads", [1, 2, 5, 8, 16, 64, 128])
def test_every_combination(num_heads: int, seqlen_q: int, page_size: int, fp8: bool) -> None:
    """Lengths around a page and a block and of several, few parts and many, the same bits."""
    p = page_size
    lengths = (0, 1, max(p - 1, 0), p, p + 1, 63, 64, 65, 190)
    case = MlaCase(lengths, num_heads, "all", seqlen_q, p, fp8, shares_pages=num_heads % 2 == 0)
    operands = case.operands()
    number = num_heads + seqlen_q + p
    first = decode(operands, {"num_sms": 5 + number % 9, "async_completion": MODES[number % 3]})
    assert_right(first, operands)
    # By priority, completion that is always late would starve who waits for it.
    options = {"seed": number, "async_completion": "random", "schedule": "priority"}
    assert_same(decode(operands, {"num_sms": 5 + number % 9, **options}), first)


@FP8
@pytest.mark.parametrize("num_sms", [1, 2, 3, 7, 132])
def test_splits(num_sms: int, fp8: bool) -> None:
    """By the number of SMs a request is whole, cut unevenly, or a block a piece."""
    operands = dataclasses.replace(MIXED, fp8=fp8).operands()
    assert_right(decode(operands, {"num_sms": num_sms}), operands)


@FP8
@pytest.mark.parametrize("mode", MODES)
def test_same_bits_with_every_schedule(mode: str, fp8: bool) -> None:
    operands = dataclasses.replace(MIXED, fp8=fp8).operands()
    expected = decode(operands, {"num_sms": 4})
    for seed in range(3):
        options = {"num_sms": 4, "seed": seed, "async_completion": mode}
        assert_same(decode(operands, options), expected)


@pytest.mark.parametrize("num_heads", [5, 64])
def test_fp8_is_bf16_of_the_dequantised_cache(num_heads: int) -> None:
    operands = dataclasses.replace(MIXED, fp8=True, num_heads=num_heads).operands()
    wanted = dataclasses.replace(operands, kv_cache=dequantised(operands.kv_cache))
    as_e4m3 = dataclasses.replace(operands, kv_cache=operands.kv_cache.view(torch.float8_e4m3fn))
    options = {"num_sms": 4}
    expected = decode(wanted, options)
    for given in (operands, as_e4m3):
        assert_same(decode(given, options), expected)


@FP8
def test_a_wrong_row_is_noticed(fp8: bool) -> None:
    """The tolerance of the kernels sees a row of zeros, another head's row and a shifted lse."""
    operands = dataclasses.replace(SHORT, fp8=fp8).operands()
    for spoil in ("zeros", "neighbour", "lse"):
        out, lse = operands.call()  # in torch
        if spoil == "zeros":
            out[2, 0, 3] = 0
        elif spoil == "neighbour":
            out[0, 0, 1] = out[0, 0, 2].clone()
        else:
            lse[3, 0, 0] += 1e-3
        with pytest.raises(AssertionError):
            assert_right((out, lse), operands)


# ---- layouts ----


@FP8
def test_layouts(fp8: bool) -> None:
    """A pair in two layouts, one layer of a cache of several, and outputs with gaps."""
    case = dataclasses.replace(MIXED, fp8=fp8)
    operands = case.operands()
    batch, seqlen_q, num_heads, _ = operands.q.shape
    options = {"num_sms": 4}
    expected = decode(operands, options)

    nope = torch.full((batch, num_heads + 1, seqlen_q, LATENT + 8), torch.nan).bfloat16()
    nope = nope[:, :num_heads, :, :LATENT].transpose(1, 2).copy_(operands.q[..., :LATENT])
    rope = operands.q[..., LATENT:].contiguous()
    num_pages, page_size = operands.kv_cache.shape[:2]
    layers = poisoned_cache(3 * num_pages, page_size, fp8).unflatten(0, (num_pages, 3))
    layers[:, 1] = operands.kv_cache
    storage = torch.full((seqlen_q, batch, num_heads + 1, LATENT + 16), 7.0).bfloat16()
    out = storage[:, :, :num_heads, 8 : 8 + LATENT].transpose(0, 1)
    lse_storage = torch.full((batch, seqlen_q, 2 * num_heads), 7.0)
    lse = lse_storage[..., ::2].transpose(1, 2)
    given = dataclasses.replace(operands, q=(nope, rope), kv_cache=layers[:, 1])
    decode(given, options, out=(out, lse))
    assert_same((out, lse), expected)
    assert bool((storage[:, :, num_heads] == 7).all())
    assert bool((storage[..., :8] == 7).all())
    assert bool((storage[..., 8 + LATENT :] == 7).all())
    assert bool((lse_storage[..., 1::2] == 7).all())


def test_unused_strides_do_not_matter() -> None:
    """Of one request, token and head, and of one page."""
    operands = MlaCase((9,), 1, "one of each", page_size=16).operands()
    expected = decode(operands)

    def odd(tensor: Tensor) -> Tensor:
        strides = [
            1_000_003 if size == 1 else step
            for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)

    given = dataclasses.replace(
        operands, q=odd(operands.q), block_table=odd(operands.block_table[:, :1])
    )
    out, lse = operands.poisoned_outputs()
    assert_same(decode(given, out=(odd(out), odd(lse))), expected)


# ---- the plan ----


def planned(operands: Operands, options: dict[str, Any], **named: Any) -> Pair:
    """With a plan made and updated in the emulator, for more requests than there are."""
    batch, seqlen_q, num_heads, _ = operands.q.shape
    with pykernels.emulate(**options) as report:
        plan = pykernels.mla_decode_plan(
            batch + 2, seqlen_q, num_heads, max_seqlen=512, device="cpu", **named
        )
        pykernels.mla_update_plan(plan, operands.cache_seqlens)
        first = operands.call(plan=plan)
        second = operands.call(plan=plan)  # another layer
    report.raise_if_findings()
    assert_same(first, second)
    return first


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_plan_for_several_calls(batch_invariant: bool) -> None:
    operands = MIXED.operands()
    assert_right(planned(operands, {"num_sms": 4}, batch_invariant=batch_invariant), operands)


@FP8
@pytest.mark.parametrize("num_heads", [5, 128])
def test_batch_invariant(num_heads: int, fp8: bool) -> None:
    """A request's bits alone, among others in any order, and on any number of SMs."""
    case = dataclasses.replace(MIXED, num_heads=num_heads, fp8=fp8)
    operands = case.operands()
    together = decode(operands, {"num_sms": 3}, batch_invariant=True)
    assert_right(together, operands)
    order = (3, 0, 2, 1)
    other = decode(operands.requests(*order), {"num_sms": 8}, batch_invariant=True)
    for place, request in enumerate(order):
        alone = decode(operands.requests(request), {"num_sms": 5}, batch_invariant=True)
        for kind in (0, 1):
            assert_same_bits(alone[kind][0], together[kind][request])
            assert_same_bits(other[kind][place], together[kind][request])


# ---- values that only the device knows ----


def put_at(*place: int, value: int) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        copy[place] = value
        return copy

    return change


WRONG_VALUES: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "negative length": (
        "cache_seqlens",
        put_at(1, value=-1),
        "cache_seqlens of request 1 must be from 0 to 96, what its row of block_table reaches, got "
        "-1; out and lse of this request are NaN",
    ),
    "least length": ("cache_seqlens", put_at(1, value=-(2**31)), "got -2147483648; out and lse"),
    "length past the table": ("cache_seqlens", put_at(1, value=97), "from 0 to 96, what its row"),
    "greatest length": ("cache_seqlens", put_at(1, value=2**31 - 1), "got 2147483647; out and"),
    "negative page": (
        "block_table",
        put_at(1, 2, value=-1),
        "block_table of request 1 must name pages from 0 to 14, got -1; out and lse of this "
        "request are NaN",
    ),
    "no such page": ("block_table", put_at(1, 0, value=15), "must name pages from 0 to 14, got 15"),
    "far page": ("block_table", put_at(1, 3, value=2**31 - 1), "from 0 to 14, got 2147483647"),
}


@FP8
@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values(name: str, fp8: bool) -> None:
    """The request's rows are NaN, the others are right, and nothing outside the cache is read."""
    what, change, message = WRONG_VALUES[name]
    operands = dataclasses.replace(SHORT, fp8=fp8).operands()
    right = operands.exact()
    given = dataclasses.replace(operands, **{what: change(getattr(operands, what))})
    out, lse = operands.poisoned_outputs()
    with (
        pykernels.emulate(num_sms=4) as report,
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        given.call(out=(out, lse))
    report.raise_if_findings()
    assert bool(out[1].isnan().all())
    assert bool(lse[1].isnan().all())
    others = [0, 2, 3]
    exact = right[0][others], right[1][others]
    assert_close((out[others], lse[others]), exact, KERNEL_FLOOR, KERNEL_LSE)


@FP8
@pytest.mark.parametrize("place", range(4))
def test_a_wrong_page_of_a_whole_block(place: int, fp8: bool) -> None:
    """Each CTA of a cluster loads a half of the tokens; the rows of both are NaN."""
    operands = MlaCase((128, 40), 128, "pairs", page_size=16, fp8=fp8).operands()
    right = operands.exact()
    table = put_at(0, place, value=-1)(operands.block_table)
    out, lse = operands.poisoned_outputs()
    with (
        pykernels.emulate(num_sms=2) as report,
        pytest.raises(ValueError, match=re.escape("block_table of request 0 must name pages")),
    ):
        dataclasses.replace(operands, block_table=table).call(out=(out, lse))
    report.raise_if_findings()
    assert bool(out[0].isnan().all())
    assert bool(lse[0].isnan().all())
    exact = right[0][1:], right[1][1:]
    assert_close((out[1:], lse[1:]), exact, KERNEL_FLOOR, KERNEL_LSE)


@pytest.mark.parametrize("length", [59, 61, 0, 96])
def test_a_stale_plan(length: int) -> None:
    """The lengths have changed since the update; the request's pages are those it had."""
    operands = SHORT.operands()
    right = operands.exact()
    changed = operands.cache_seqlens.clone()
    changed[1] = length
    out, lse = operands.poisoned_outputs()
    message = (
        f"the plan was updated for cache_seqlens of 60 in request 1, got {length}; call "
        "mla_update_plan whenever the lengths change; out and lse of this request are NaN"
    )
    with pykernels.emulate(num_sms=4) as report:
        plan = operands.plan()
        with pytest.raises(ValueError, match=re.escape(message)):
            dataclasses.replace(operands, cache_seqlens=changed).call(plan=plan, out=(out, lse))
    report.raise_if_findings()
    assert bool(out[1].isnan().all())
    assert bool(lse[1].isnan().all())
    others = [0, 2, 3]
    exact = right[0][others], right[1][others]
    assert_close((out[others], lse[others]), exact, KERNEL_FLOOR, KERNEL_LSE)


@FP8
def test_nan_in_a_query_stays_there(fp8: bool) -> None:
    """Its row alone: neither the heads beside it nor other tokens and requests."""
    operands = dataclasses.replace(MIXED, fp8=fp8).operands()
    options = {"num_sms": 4}
    expected = decode(operands, options)
    spoilt = operands.q.clone()
    spoilt[0, 1, 2, 100] = torch.nan
    out, lse = decode(dataclasses.replace(operands, q=spoilt), options)
    assert bool(out[0, 1, 2].isnan().all())
    assert bool(lse[0, 2, 1].isnan())
    out[0, 1, 2], lse[0, 2, 1] = expected[0][0, 1, 2], expected[1][0, 2, 1]
    assert_same((out, lse), expected)


@FP8
def test_one_sm(fp8: bool) -> None:
    """No clusters there, so the tiles of 128 heads go without."""
    operands = dataclasses.replace(SHORT, num_heads=128, fp8=fp8).operands()
    assert_right(decode(operands, {"num_sms": 1}), operands)


@pytest.mark.parametrize("num_heads", [5, 64])
def test_scores_beyond_exponentials_are_never_lost(num_heads: int) -> None:
    """A row that sees tokens is right or NaN, and not a row of zeros."""
    operands = dataclasses.replace(SHORT, num_heads=num_heads).operands()
    operands = dataclasses.replace(operands, q=(operands.q.float() * 1e10).bfloat16())
    out, lse = decode(operands, {"num_sms": 2})
    lost = (out == 0).all(dim=-1) | (lse == -torch.inf).transpose(1, 2)
    assert not bool(lost.any())
