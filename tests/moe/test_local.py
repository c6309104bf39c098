"""A LocalGroup on CPU tensors, in torch, against the reference: the same bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pykernels import quantize_1x128, reference
from pykernels.moe import exchange
from tests.moe.checking import (
    HIDDEN,
    KINDS,
    buffer_of,
    capacity_of,
    check_grouped,
    check_low_latency,
    check_masked_layout,
    same_bits,
)
from tests.moe.routings import ROUTINGS, Routing, dropped, repeated, skewed, uniform

FITTING = [each for each in ROUTINGS if "repeated" not in each.what]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_dispatch_and_combine(routing: Routing, fp8: bool) -> None:
    batch = routing.batch(HIDDEN)
    check_grouped(routing, batch, buffer_of(routing), batch.fp8() if fp8 else batch.x)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "hook"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("routing", FITTING, ids=str)
def test_low_latency(routing: Routing, kind: str, split: bool) -> None:
    check_low_latency(routing, buffer_of(routing), kind, split)


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_handles(routing: Routing) -> None:
    """What a kernel or a user reads in a handle is where the tokens are."""
    batch = routing.batch(HIDDEN)
    handles = check_grouped(routing, batch, buffer_of(routing), batch.x)
    per_rank = routing.num_experts // routing.num_ranks
    experts = reference.moe_expert_rows(batch.topk_idx, num_experts=routing.num_experts)
    for rank, handle in enumerate(handles):
        local = experts[rank * per_rank : (rank + 1) * per_rank]
        row_of = {entry: row for row, entry in enumerate(e for each in local for e in each)}
        for source, home in enumerate(handles):
            tokens = sorted({entry.token for entry in row_of if entry.source == source})
            assert int(handle.recv_counts[source]) == len(tokens)
            positions = torch.full((home.num_tokens,), -1, dtype=torch.int32)
            positions[tokens] = torch.arange(len(tokens), dtype=torch.int32)
            assert torch.equal(home.position_in_rank[:, rank], positions)
            for i, token in enumerate(tokens):
                entries = sorted(
                    (int(batch.topk_idx[source][token, entry.k]), entry.k, row)
                    for entry, row in row_of.items()
                    if (entry.source, entry.token) == (source, token)
                )
                rows = [row for _, _, row in entries]
                ks = [k for _, k, _ in entries]
                padding = [-1] * (routing.num_topk - len(rows))
                assert handle.rows[source, i].tolist() == rows + padding
                assert handle.row_topk[source, i, : len(ks)].tolist() == ks
                weights = batch.topk_weights[source][token, ks]
                assert torch.equal(handle.row_weights[source, i, : len(ks)], weights)


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    num_ranks = draw(st.sampled_from([1, 2, 3, 4, 8]))
    num_experts = num_ranks * draw(st.integers(1, 4))
    choose = draw(st.sampled_from([uniform, skewed, repeated, dropped]))
    most = 6 if choose is repeated else min(6, num_experts)
    num_max = draw(st.integers(1, 6))
    return Routing(
        "drawn",
        tuple(draw(st.integers(0, num_max)) for _ in range(num_ranks)),
        num_experts,
        draw(st.integers(1, most)),
        num_max,
        choose,
    )


@settings(max_examples=40, deadline=None)
@given(routing=routings(), seed=st.integers(0, 1000), masked=st.integers(-4, 7))
def test_any_routing(routing: Routing, seed: int, masked: int) -> None:
    batch = routing.batch(HIDDEN, seed)
    buffer = buffer_of(routing)
    masks = [masked] if 0 <= masked < routing.num_ranks and routing.num_ranks > 1 else []
    buffer.mask_ranks(masks)
    assert buffer.masked_ranks == masks
    check_grouped(routing, batch, buffer, batch.x, masks)


def test_results_do_not_depend_on_what_was_sent_before() -> None:
    routing = Routing("uniform", (8, 8, 8, 8), 8, 3, 8)
    buffer = buffer_of(routing)
    for seed in range(5):
        batch = routing.batch(HIDDEN, seed)
        check_grouped(routing, batch, buffer, batch.x)


def test_two_batches_under_way() -> None:
    """Both sent before either is received, and the senders' tensors overwritten in between."""
    routing = Routing("uniform", (8, 6), 8, 3, 8)
    buffer = buffer_of(routing)
    batches = [routing.batch(HIDDEN, seed) for seed in range(2)]
    started = []
    for batch in batches:
        x = [each.clone() for each in batch.x]
        started.append(
            buffer.low_latency_dispatch(
                x, batch.topk_idx, batch.topk_weights, fp8=False, return_recv_hook=True
            )
        )
        for each in x:
            each.fill_(torch.nan)
    for batch, (recv_x, masked_m, _, hook) in reversed(list(zip(batches, started, strict=True))):
        hook()
        hook()  # does nothing
        expected = reference.moe_low_latency_dispatch(batch.x, batch.topk_idx, num_experts=8)
        for rank, (experts, counts) in enumerate(expected):
            assert torch.equal(masked_m[rank], counts)
            for e, rows in enumerate(experts):
                assert isinstance(rows, Tensor)
                assert same_bits(recv_x[rank][e, : rows.size(0)], rows)


def test_special_values_in_sums() -> None:
    """Infinities, NaN (always 0x7FFF), signed zeros, subnormals and overflow."""
    values = [torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 2.0**-133, 3e38, 1.0]
    y = torch.tensor(values).bfloat16()
    routing = Routing("special", (8, 8), 4, 3, 8, repeated)
    batch = routing.batch(8)
    buffer = buffer_of(routing, hidden=8)
    capacity = capacity_of(routing)
    _, _, handles = buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights, capacity=capacity)
    generator = torch.Generator().manual_seed(0)
    rows = [y[torch.randint(8, (capacity, 8), generator=generator)] for _ in range(2)]
    outs = buffer.combine(rows, handles)
    exact = reference.moe_combine(rows, batch.topk_idx, batch.topk_weights, num_experts=4)
    for out, wanted in zip(outs, exact, strict=True):
        assert same_bits(out, wanted)
    assert any(out.isnan().any() for out in outs)


def test_out_and_strides() -> None:
    routing = Routing("uniform", (8, 6), 8, 3, 8)
    batch = routing.batch(HIDDEN)
    buffer = buffer_of(routing)
    wide = [torch.zeros(each.size(0), HIDDEN + 8, dtype=torch.bfloat16) for each in batch.x]
    for storage, x in zip(wide, batch.x, strict=True):
        storage[:, :HIDDEN] = x
    scales_by_column = [(q, scales.T.contiguous().T) for q, scales in batch.fp8()]
    check_grouped(routing, batch, buffer, scales_by_column)
    x = [storage[:, :HIDDEN] for storage in wide]
    handles = check_grouped(routing, batch, buffer, x)
    y = [torch.ones(capacity_of(routing), HIDDEN, dtype=torch.bfloat16)] * 2
    expected = buffer.combine(y, handles)
    out = [storage[:, :HIDDEN] for storage in wide]
    results = buffer.combine(y, handles, out=out)
    for result, given_out, wanted, storage in zip(results, out, expected, wide, strict=True):
        assert result is given_out
        assert torch.equal(result, wanted)
        assert not storage[:, HIDDEN:].any()


def test_rows_behind_the_last_are_not_written() -> None:
    """Capacity may be exactly what arrives."""
    routing = Routing("uniform", (8, 6), 8, 3, 8)
    batch = routing.batch(HIDDEN)
    expected = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=8)
    most = max(int(offsets[-1]) for _, offsets in expected)
    recv_x, _, _ = buffer_of(routing).dispatch(
        batch.x, batch.topk_idx, batch.topk_weights, capacity=most
    )
    assert recv_x[0].shape == (most, HIDDEN)


def test_a_rank_masked_after_the_dispatch() -> None:
    """Tokens lack what its experts would give, and its own get nothing."""
    routing = Routing("uniform", (2, 2), 2, 2, 2)
    batch = routing.batch(8)
    buffer = buffer_of(routing, hidden=8)
    _, _, handles = buffer.dispatch(batch.x, batch.topk_idx, batch.topk_weights)
    y = [torch.full((4, 8), 2.0).bfloat16(), torch.full((4, 8), 16.0).bfloat16()]
    buffer.mask_ranks([1])
    outs = buffer.combine(y, handles)
    expert_0 = torch.where(batch.topk_idx[0] == 0, batch.topk_weights[0], 0).sum(1, keepdim=True)
    assert same_bits(outs[0], (2 * expert_0).bfloat16().expand(2, 8))
    assert not outs[1].any()


def test_quantisation_is_that_of_the_op() -> None:
    routing = dataclasses.replace(ROUTINGS[4])
    batch = routing.batch(HIDDEN)
    sent: list[Any] = [quantize_1x128(each, scale_fmt="ue8m0") for each in batch.x]
    check_masked_layout(routing, batch, buffer_of(routing), batch.x, sent, scale_fmt="ue8m0")


def test_a_reset_that_fails_forgets_what_was_sent() -> None:
    """The memory that the hook would read may be anybody's by then."""
    routing = next(each for each in ROUTINGS if each.num_ranks == 2)
    batch = routing.batch(HIDDEN)
    with buffer_of(routing) as buffer:
        *_, hook = buffer.low_latency_dispatch(
            batch.x, batch.topk_idx, batch.topk_weights, return_recv_hook=True
        )

        def fail() -> None:
            with pytest.raises(RuntimeError, match="has been called since"):
                hook()
            raise RuntimeError("the others have not come")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(buffer._transport(), "reset", fail)
            with pytest.raises(RuntimeError, match="the others have not come"):
                buffer.reset()
        with pytest.raises(RuntimeError, match="has been called since"):
            hook()
        buffer.reset()
        with pytest.raises(RuntimeError, match="has been called since"):
            hook()


@pytest.mark.parametrize("call", ["dispatch", "combine", "hook", "reset"])
def test_an_interrupted_call(call: str) -> None:
    """Whoever catches the KeyboardInterrupt has ranks that are out of step."""
    routing = next(each for each in ROUTINGS if each.num_ranks == 2)
    batch = routing.batch(HIDDEN)
    sent = batch.x, batch.topk_idx, batch.topk_weights

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with buffer_of(routing) as buffer, pytest.MonkeyPatch.context() as patch:
        recv_x, _, handles = buffer.dispatch(*sent, capacity=capacity_of(routing))
        calls = {
            "dispatch": lambda: buffer.dispatch(*sent),
            "combine": lambda: buffer.combine(recv_x, handles),
            "hook": buffer.low_latency_dispatch(*sent, return_recv_hook=True)[3],
            "reset": buffer.reset,
        }
        if call == "hook":
            patch.setattr(exchange, "fill_received", interrupt)
        else:
            patch.setattr(buffer._transport(), call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
        patch.undo()
        with pytest.raises(RuntimeError, match="earlier call failed: KeyboardInterrupt; call rese"):
            buffer.check()
        buffer.reset()
        buffer.dispatch(*sent, capacity=capacity_of(routing))
