"""Real processes over gloo, flat and with nodes, against the reference: the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pykernels import reference
from tests.moe import gloo_calls
from tests.moe.checking import HIDDEN, buffer_of, capacity_of, same_bits
from tests.moe.gloo import run_ranks
from tests.moe.routings import ROUTINGS, Routing

# Ranks, and how many of them share a node by the test's word; None: all, as the host name says.
GROUPS = [(2, None), (2, 1), (4, None), (4, 2), (8, None), (8, 4), (8, 2)]
WITH_NODES = pytest.mark.parametrize(("num_ranks", "ranks_per_node"), GROUPS)
UNIFORM = Routing("uniform", (8, 5, 8, 8), 8, 3, 8)


def routings_of(num_ranks: int) -> list[Routing]:
    return [routing for routing in ROUTINGS if routing.num_ranks == num_ranks]


@WITH_NODES
def test_dispatch_and_combine(num_ranks: int, ranks_per_node: int | None) -> None:
    options = {"ranks_per_node": ranks_per_node}
    check_all_grouped(
        num_ranks, run_ranks(num_ranks, gloo_calls.all_grouped, routings_of(num_ranks), options)
    )


@pytest.mark.parametrize(("num_ranks", "ranks_per_node"), [(4, None), (4, 2)])
def test_dispatch_and_combine_by_all_to_all(num_ranks: int, ranks_per_node: int | None) -> None:
    options = {"ranks_per_node": ranks_per_node}
    calls = gloo_calls.all_grouped_as_on_gpus
    check_all_grouped(num_ranks, run_ranks(num_ranks, calls, routings_of(num_ranks), options))


def check_all_grouped(num_ranks: int, ranks: list[Any]) -> None:
    routings = routings_of(num_ranks)
    for seed, routing in enumerate(routings):
        batch = routing.batch(HIDDEN, seed)
        for fp8 in (False, True):
            results = [answers[2 * seed + fp8] for answers in ranks]
            x: Any = batch.fp8() if fp8 else batch.x
            expected = reference.moe_dispatch(x, batch.topk_idx, num_experts=routing.num_experts)
            for (values, scales, offsets, _, _), (rows, wanted) in zip(
                results, expected, strict=True
            ):
                pair = rows if isinstance(rows, tuple) else (rows, rows)
                assert same_bits(values, pair[0]), str(routing)
                assert same_bits(scales, pair[1]), str(routing)
                assert torch.equal(offsets, wanted)
            exact = reference.moe_combine(
                [result[3] for result in results],
                batch.topk_idx,
                batch.topk_weights,
                num_experts=routing.num_experts,
            )
            for result, wanted in zip(results, exact, strict=True):
                assert same_bits(result[4], wanted), str(routing)


@WITH_NODES
def test_low_latency(num_ranks: int, ranks_per_node: int | None) -> None:
    """Two batches under way at once."""
    routings = [each for each in routings_of(num_ranks) if "repeated" not in each.what]
    options = {"ranks_per_node": ranks_per_node}
    ranks = run_ranks(num_ranks, gloo_calls.all_low_latency, routings, options)
    for i, (routing, _split) in enumerate((each, s) for each in routings for s in (False, True)):
        for second in (0, 1):
            batch = routing.batch(HIDDEN, i // 2 + second)
            expected = reference.moe_low_latency_dispatch(
                batch.fp8(), batch.topk_idx, num_experts=routing.num_experts
            )
            results = [answers[i][second] for answers in ranks]
            for result, (experts, counts) in zip(results, expected, strict=True):
                assert torch.equal(result[2], counts)
                for values, scales, rows in zip(result[0], result[1], experts, strict=True):
                    assert isinstance(rows, tuple)
                    assert same_bits(values, rows[0])
                    assert same_bits(scales, rows[1])
            exact = reference.moe_combine(
                [result[3] for result in results],
                batch.topk_idx,
                batch.topk_weights,
                num_experts=routing.num_experts,
            )
            for result, wanted in zip(results, exact, strict=True):
                assert same_bits(result[4], wanted)


EXPECTED_ERRORS = {
    "dtype": "ValueError: x must be bfloat16, got float32",
    "hidden": "ValueError: x must have the buffer's hidden of 144 columns, got 64",
    "too_many_tokens": "ValueError: x must have at most num_max_tokens_per_rank = 8 rows, got 9",
    "index": "ValueError: topk_idx must be from 0 to 7, or -1 for a dropped entry, got 8",
    "capacity": "ValueError: capacity must be at least ",
    "handle": "ValueError: handle must be the DispatchHandle that a dispatch has returned",
}
FOR_ALL = {
    "fp8_on_one_rank": "ValueError: all ranks must make the same call, got call ",
    "scale_fmt_on_one_rank": "ValueError: all ranks must make the same call, got call ",
    "another_call": "ValueError: all ranks must make the same call, got call ",
    "another_handle": "ValueError: all ranks must pass handles of the same dispatch",
    "as_many_tokens": "ValueError: all ranks must pass handles of the same dispatch",
}


@pytest.mark.parametrize("ranks_per_node", [None, 2])
def test_wrong_calls_are_errors_on_all_ranks(ranks_per_node: int | None) -> None:
    """And no rank hangs; the buffer refuses work until it is reset, and then works."""
    ranks = run_ranks(4, gloo_calls.wrong_calls, UNIFORM, ranks_per_node)
    names = EXPECTED_ERRORS.keys() | FOR_ALL.keys()
    for rank, found in enumerate(ranks):
        assert found.keys() == names
        for name, (first, second, after_reset) in found.items():
            if name in FOR_ALL:
                expected = FOR_ALL[name]
            elif rank == 1:
                expected = EXPECTED_ERRORS[name]
            else:
                expected = "RuntimeError: the call of rank 1 is wrong: "
                assert EXPECTED_ERRORS[name].removeprefix("ValueError: ") in first
            assert first.startswith(expected), (rank, name, first)
            assert second.startswith("RuntimeError: the buffer refuses work since an earlier call")
            assert after_reset == ""


def test_buffers_that_are_not_alike() -> None:
    """An error on all ranks, and the group goes on."""
    ranks = run_ranks(4, gloo_calls.different_buffers)
    own = [
        "ValueError: hidden must be the same on all ranks, got 64 on rank 0 and 128 on rank 1",
        "ValueError: hidden must be a multiple of 8 (16 bytes of BF16), got 12",
        "ValueError: timeout must be above 0",
        "ValueError: device must be a CUDA device or the CPU, got 'meta'",
        "ValueError: ranks_per_node must divide the 4 ranks of the group, got 3",
    ]
    for rank, found in enumerate(ranks):
        assert found[0] == own[0]
        for error, expected in zip(found[1:5], own[1:], strict=True):
            if rank == 1:
                assert error.startswith(expected)
            else:
                message = expected.removeprefix("ValueError: ")
                assert error.startswith(f"RuntimeError: rank 1 cannot make the buffer: {message}")
        assert found[5] == ""
        assert found[6].startswith("ValueError: group must be a pykernels.moe.LocalGroup, a torch.")


@pytest.mark.parametrize(
    ("ranks_per_node", "left_out"), [(4, [2]), (2, [2]), (2, [0, 3]), (2, [1])]
)
def test_masked_ranks(ranks_per_node: int, left_out: list[int]) -> None:
    """They stay away, one that would pass on the tokens of others among them."""
    batch = UNIFORM.batch(HIDDEN)
    answers = run_ranks(4, gloo_calls.masked, UNIFORM, ranks_per_node, left_out)
    for masked_ranks, part in ((left_out, 1), ([], 2)):
        mask: dict[str, Any] = {"num_experts": 8, "masked_ranks": masked_ranks}
        expected = reference.moe_dispatch(batch.x, batch.topk_idx, **mask)
        exact = reference.moe_combine(
            [rows for rows, _ in expected if not isinstance(rows, tuple)],
            batch.topk_idx,
            batch.topk_weights,
            **mask,
        )
        for rank in set(range(4)) - set(masked_ranks):
            results = answers[rank][part]
            rows, offsets = expected[rank]
            for first in range(0, len(results), 3):
                assert not isinstance(rows, tuple)
                assert same_bits(results[first], rows)
                assert torch.equal(results[first + 1], offsets)
                assert same_bits(results[first + 2], exact[rank])
    for rank, (errors, results, _) in enumerate(answers):
        assert errors[0].startswith("ValueError: a rank must not mask itself")
        if rank not in left_out:
            assert len(results) == 6
            assert f"RuntimeError: ranks {left_out} are no longer masked" in errors[1]


def test_a_killed_rank() -> None:
    """The others get an error in time, leave it out, and work on."""
    answers = run_ranks(4, gloo_calls.one_rank_dies, UNIFORM, timeout=60)
    assert answers[1] is None
    batch = UNIFORM.batch(HIDDEN)
    received = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=8, masked_ranks=[1])
    exact = reference.moe_combine(
        [rows for rows, _ in received if not isinstance(rows, tuple)],
        batch.topk_idx,
        batch.topk_weights,
        num_experts=8,
        masked_ranks=[1],
    )
    for rank in (0, 2, 3):
        fields, again, out = answers[rank]
        assert fields[0] == rank
        assert fields[1] in {0, 1, 2, 3} - {rank}
        assert fields[2:] == ["dispatch", 3, 2]
        assert again.startswith("RuntimeError: the buffer refuses work since an earlier call")
        assert same_bits(out, exact[rank])


@pytest.mark.parametrize("alone", [0, 3])
def test_a_reset_alone(alone: int) -> None:
    answers = run_ranks(4, gloo_calls.one_rank_resets_alone, UNIFORM, alone)
    error, refused, _ = answers[alone]
    missing = "rank 0 has" if alone != 0 else "ranks [1, 2, 3] have"
    assert error == (
        f"RuntimeError: rank {alone} could not connect to all of the ranks [0, 1, 2, 3]: "
        f"{missing} not come within 7 s; all of them must call together"
    )
    assert refused.startswith("RuntimeError: the buffer refuses work since an earlier call failed")
    assert [answer[-1] for answer in answers] == [""] * 4


def test_an_interrupted_rank() -> None:
    """It refuses work, and its reset frees the other one, which need not wait for the timeout."""
    routing = Routing("uniform", (6, 4), 8, 3, 6)
    first, second = run_ranks(2, gloo_calls.one_rank_is_interrupted, routing)
    assert first[0].startswith("RuntimeError: the buffer refuses work since an earlier call failed")
    assert "KeyboardInterrupt" in first[0]
    assert second[0].startswith("MoeTimeoutError: rank 1 waited for rank 0")
    for _, seconds, after_reset in (first, second):
        assert seconds < 10
        assert after_reset == ""


def test_a_fork() -> None:
    """It has no connections of its own, and those of its parent stay whole."""
    routing = Routing("uniform", (6, 4), 8, 3, 6)
    for *errors, closing, after in run_ranks(2, gloo_calls.in_a_fork, routing):
        assert len(errors) == 3
        for error in errors:
            assert error.startswith("RuntimeError: the buffer must be used in the process that mad")
        assert (closing, after) == ("", "")


def test_without_a_group() -> None:
    """Calls go on, over connections of their own; nobody can be found for new ones."""
    routing = Routing("uniform", (6, 4), 8, 3, 6)
    for call, reset in run_ranks(2, gloo_calls.without_a_group, routing):
        assert call == ""
        assert reset.startswith("RuntimeError: rank ")
        assert "torch.distributed is no longer initialised" in reset


def test_a_slow_rank() -> None:
    for rank, (waits, errors) in enumerate(run_ranks(3, gloo_calls.one_rank_is_slow)):
        assert [wait.peer for wait in waits] == [0, 1, 2]
        assert waits[rank].waits == 0
        if rank != 2:
            assert waits[2].seconds > 0.3
            assert waits[2].seconds > 10 * waits[1 - rank].seconds
            assert waits[2].waits >= 3
        assert errors[0].startswith(f"MoeTimeoutError: rank {rank} waited for rank ")
        assert errors[1].startswith("RuntimeError: the buffer refuses work")


@pytest.mark.parametrize("routing", routings_of(8), ids=str)
def test_a_token_crosses_once_to_each_node(routing: Routing) -> None:
    """No byte more than the rows of distinct (token, node) pairs, and of sums (token, rank)."""
    answers = run_ranks(8, gloo_calls.bytes_to_other_nodes, routing, 4)
    batch = routing.batch(HIDDEN)
    per_rank = routing.num_experts // 8
    for rank, sent in enumerate(answers):
        token_bytes = 2 * HIDDEN + 8 * routing.num_topk
        nodes = [{e // per_rank // 4 for e in row} for row in batch.topk_idx[rank].tolist()]
        assert sent[0] == token_bytes * sum(len(each - {rank // 4}) for each in nodes)
    pairs = [
        (source // 4, {e // per_rank for e in row})
        for source, idx in enumerate(batch.topk_idx)
        for row in idx.tolist()
    ]
    sums = sum(len([r for r in ranks if r // 4 != node]) for node, ranks in pairs)
    assert sum(sent[1] for sent in answers) == 2 * HIDDEN * sums


def test_subgroups_and_several_buffers() -> None:
    routing = Routing("uniform", (6, 4), 8, 3, 6)
    answers = run_ranks(4, gloo_calls.in_subgroups, routing)
    for rank, results in enumerate(answers):
        for seed, (rows, out) in enumerate(results):
            batch = routing.batch(HIDDEN, 2 * (rank % 2) + seed)
            received = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=8)
            y = [each for each, _ in received if not isinstance(each, tuple)]
            exact = reference.moe_combine(y, batch.topk_idx, batch.topk_weights, num_experts=8)
            assert same_bits(rows, y[rank // 2])
            assert same_bits(out, exact[rank // 2])


def test_many_calls_on_one_buffer() -> None:
    routing = Routing("uniform", (6, 4), 8, 3, 6)
    assert run_ranks(2, gloo_calls.many_calls, routing, 500) == [True, True]


def test_gradients_are_those_of_a_local_group() -> None:
    routing, hidden = Routing("uniform", (6, 5, 0, 6), 8, 6, 6), 8
    found = run_ranks(4, gloo_calls.gradients, routing, hidden)
    batch = routing.batch(hidden)
    x = [each.requires_grad_() for each in batch.x]
    weights = [each.requires_grad_() for each in batch.topk_weights]
    buffer = buffer_of(routing, hidden)
    recv_x, _, handles = buffer.dispatch(x, batch.topk_idx, weights, capacity=capacity_of(routing))
    outs = buffer.combine([2 * rows for rows in recv_x], handles)
    losses = [(out.float() * gloo_calls.factors(out, rank)).sum() for rank, out in enumerate(outs)]
    torch.stack(losses).sum().backward()
    for rank, gradients in enumerate(found):
        for gradient, wanted in zip(gradients, (x[rank].grad, weights[rank].grad), strict=True):
            assert wanted is not None
            assert same_bits(gradient, wanted)
