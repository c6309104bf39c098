"""Arithmetic and small parts of the all-to-all: rounding, splitting, headers, nodes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pykernels import reference
from pykernels.moe.autograd import split_fp32
from pykernels.moe.errors import MoeTimeoutError
from pykernels.moe.exchange import fmaf, round_to_bf16
from pykernels.moe.header import Header, check_headers
from pykernels.moe.membership import ranks_of_nodes
from pykernels.moe.topology import Topology
from tests.moe.checking import same_bits

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Few significant bits, so that sums lie half-way between float32 values, or close to it.
SHORT = st.builds(
    lambda numerator, exponent: float(np.float32(numerator * 2.0**exponent)),
    st.integers(-9, 9),
    st.integers(-60, 40),
)
NEAR = st.builds(lambda value, steps: value * (1 + steps * 2.0**-23), SHORT, st.integers(-2, 2))


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(FLOATS, NEAR), st.one_of(FLOATS, SHORT), st.one_of(FLOATS, NEAR)),
        min_size=1,
        max_size=20,
    )
)
def test_fmaf_has_the_bits_of_the_reference(triples: list[tuple[float, float, float]]) -> None:
    weights, values, addends = torch.tensor(triples, dtype=torch.float32).unbind(1)
    values = values.bfloat16()
    got = fmaf(weights, values, addends)
    for i, weight in enumerate(weights.numpy()):
        one = slice(i, i + 1)
        exact = reference.moe_fmaf(weight, values[one].float().numpy(), addends[one].numpy())
        assert same_bits(got[one], torch.from_numpy(exact)) or np.isnan(exact).all()


def test_fmaf_beside_ties() -> None:
    """A product far below the last bit decides to which side a tie goes."""
    one = torch.tensor([1.0])
    for sign, ulps, size in itertools.product((1, -1), range(4), (2.0**-24, 2.0**-40, 2.0**-60)):
        addend = sign * (1 + ulps * 2.0**-23)
        weight = torch.tensor([sign * (2.0**-24 + 2.0**-47)])
        got = fmaf(weight, one.bfloat16(), torch.tensor([addend]))
        exact = reference.moe_fmaf(
            weight.numpy()[0], np.ones(1, np.float32), np.array([addend], np.float32)
        )
        assert same_bits(got, torch.from_numpy(exact))
        small = torch.tensor([size]).bfloat16()
        for weight in (torch.tensor([1 - 2.0**-24]), torch.tensor([-1 - 2.0**-23])):
            got = fmaf(weight, small, torch.tensor([addend]))
            exact = reference.moe_fmaf(
                weight.numpy()[0], small.float().numpy(), np.array([addend], np.float32)
            )
            assert same_bits(got, torch.from_numpy(exact))


def test_rounding_to_bf16() -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0))
    values = bits.int().view(torch.float32)
    assert same_bits(round_to_bf16(values), reference.moe_round_to_bf16(values.numpy()))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_three_bf16_numbers_hold_an_fp32_number(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    values = torch.where(values.abs() < 2.0**-110, 0.0, values)  # see split_fp32's callers
    high, middle, low = (part.float() for part in split_fp32(values))
    assert torch.equal((high + middle + low).nan_to_num(nan=7), values.nan_to_num(nan=7))


def test_headers_travel_as_they_are() -> None:
    header = Header(7, "dispatch of rows", capacity=12, counts=[3, 0, 2**40])
    sent = header.encode(5)
    assert sent.shape == Header.empty(5).shape
    assert Header.decode(sent) == header
    long = Header(1, "é" * 2000, failed=True)
    found = Header.decode(long.encode(0))
    assert found.failed
    assert found.text.startswith("ééé")
    assert found.text.endswith("...")


def test_the_verdict_is_the_same_on_all_ranks() -> None:
    same = {0: Header(1, "a"), 1: Header(1, "a")}
    check_headers(same, 0)
    with pytest.raises(ValueError, match="got call 1, a, on rank 0 and call 1, b, on rank 1"):
        check_headers({0: Header(1, "a"), 1: Header(1, "b")}, 1)
    with pytest.raises(RuntimeError, match="the call of rank 1 is wrong: too long"):
        check_headers({0: Header(1, "a"), 1: Header(1, "too long", failed=True)}, 0)


def test_nodes() -> None:
    assert ranks_of_nodes(["a"] * 4) == 4
    assert ranks_of_nodes(["a", "a", "b", "b"]) == 2
    assert ranks_of_nodes(["a", "b", "a", "b"]) == 1
    assert ranks_of_nodes(["a", "a", "b"]) == 1
    assert ranks_of_nodes(["a", "a", "b", "b", "a", "a"]) == 1


@pytest.mark.parametrize("masked", [frozenset(), frozenset({1}), frozenset({4, 5}), frozenset({0})])
@pytest.mark.parametrize("ranks_per_node", [1, 2, 3, 6])
def test_topology(ranks_per_node: int, masked: frozenset[int]) -> None:
    topology = Topology(6, ranks_per_node, masked)
    for source in topology.ranks:
        for node in range(topology.num_nodes):
            forwarder = topology.forwarder(source, node)
            if forwarder is None:
                assert topology.ranks_of(node) == []
                continue
            assert forwarder in topology.ranks_of(node)
            assert source in topology.sources_of(forwarder)
            if not masked and not topology.is_flat:
                assert forwarder % ranks_per_node == source % ranks_per_node
        assert topology.forwarder(source, topology.node_of(source)) == source
    for node in range(topology.num_nodes):
        sources = [s for rank in topology.ranks_of(node) for s in topology.sources_of(rank)]
        if topology.ranks_of(node):
            assert sorted(sources) == topology.ranks


def test_the_timeout_error_says_what_it_knows() -> None:
    error = MoeTimeoutError(rank=1, peer=2, phase="combine", expected=5, seen=4)
    assert str(error) == (
        "rank 1 waited for rank 2 in combine: expected call 5, seen 4; call reset() on all ranks, "
        "after mask_ranks([2]) if rank 2 is gone"
    )
    assert isinstance(error, RuntimeError)
