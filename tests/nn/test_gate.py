"""Gate against Hugging Face's router, and by its own words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels.nn import Gate
from pykernels.nn.gate import best
from tests.nn.moe_models import DEEPSEEK, MODELS, Model


def gate_of(model: Model) -> Gate:
    return model.layer().gate


@pytest.mark.parametrize("num_tokens", [0, 1, 50])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_as_hugging_face_routes(model: Model, num_tokens: int) -> None:
    x = model.x(num_tokens)
    topk_idx, topk_weights = gate_of(model)(x)
    idx, weights = model.routing(x)
    assert topk_idx.dtype == torch.int64
    assert topk_weights.dtype == torch.float32
    assert topk_idx.is_contiguous()
    order, wanted_order = topk_idx.argsort(1), idx.argsort(1)
    assert torch.equal(topk_idx.gather(1, order), idx.gather(1, wanted_order))
    found, wanted = topk_weights.gather(1, order), weights.gather(1, wanted_order)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_groups_are_left_out() -> None:
    """The best expert of all stands in a group whose second one is poor."""
    gate = Gate(8, 4, 2, n_group=2, topk_group=1)
    gate.weight[0], gate.weight[1], gate.weight[2:] = 3.0, -30.0, 2.0
    topk_idx, _ = gate(torch.full((1, 8), 0.1))
    assert topk_idx.tolist() == [[2, 3]]


def test_the_bias_counts_for_the_choice_only() -> None:
    gate = Gate(8, 4, 1, norm_topk_prob=False, routed_scaling_factor=2.0)
    gate.e_score_correction_bias[2] = 5.0
    topk_idx, topk_weights = gate(torch.ones(1, 8))
    assert (topk_idx.tolist(), topk_weights.tolist()) == ([[2]], [[1.0]])


@pytest.mark.parametrize("groups", [{}, {"n_group": 4, "topk_group": 2}], ids=["one", "four"])
def test_ties_go_to_the_lowest_index(groups: dict[str, int]) -> None:
    """On more tokens than one, since sorts of other sizes take other ways."""
    gate = Gate(8, 64, 8, **groups)
    for num_tokens in (1, 40):
        topk_idx, topk_weights = gate(torch.zeros(num_tokens, 8))
        assert topk_idx.tolist() == [list(range(8))] * num_tokens
        assert torch.equal(topk_weights, torch.full((num_tokens, 8), 0.125))


def test_nan_stays_in_its_token() -> None:
    gate = gate_of(DEEPSEEK)
    x = DEEPSEEK.x(3)
    wanted = gate(x)
    x[1, 5] = torch.nan
    topk_idx, topk_weights = gate(x)
    assert topk_idx[1].tolist() == [0, 1, 2, 3]
    assert bool(topk_weights[1].isnan().all())
    for found, other in zip((topk_idx, topk_weights), wanted, strict=True):
        assert torch.equal(found[[0, 2]], other[[0, 2]])


def test_nan_is_the_best() -> None:
    scores = torch.tensor([[1.0, torch.nan, torch.inf, 1.0, torch.nan, -torch.inf]])
    assert best(scores, 6).tolist() == [[1, 4, 2, 0, 3, 5]]


def test_softmax() -> None:
    gate = Gate(8, 6, 2, scoring_func="softmax", norm_topk_prob=False)
    assert gate.e_score_correction_bias is None
    gate.weight.copy_(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    wanted = (x @ gate.weight.T).softmax(1).topk(2)
    topk_idx, topk_weights = gate(x)
    assert torch.equal(topk_idx, wanted.indices)
    torch.testing.assert_close(topk_weights, wanted.values)


@pytest.mark.parametrize("model", [DEEPSEEK, MODELS[1]], ids=str)
def test_compile(model: Model) -> None:
    gate = gate_of(model)
    compiled: Any = torch.compile(gate, fullgraph=True, backend="aot_eager")
    for num_tokens in (3, 5):
        found: tuple[Tensor, Tensor] = compiled(model.x(num_tokens))
        for each, wanted in zip(found, gate(model.x(num_tokens)), strict=True):
            assert torch.equal(each, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_group": 3}, "num_experts of Gate must be a multiple of n_group = 3, got 16"),
        (
            {"n_group": 16, "topk_group": 8},
            "a group of Gate must have at least 2 experts, got 16 experts",
        ),
        ({"n_group": 4, "topk_group": 5}, "topk_group of Gate must be at most 4, got 5"),
        (
            {"n_group": 4, "topk_group": 1, "num_topk": 5},
            "num_topk of Gate must be at most 4, got 5",
        ),
        ({"num_topk": 17}, "num_topk of Gate must be at most 16, got 17"),
        ({"num_topk": 0}, "num_topk of Gate must be at least 1, got 0"),
        (
            {"scoring_func": "relu"},
            "scoring_func of Gate must be 'sigmoid' or 'softmax', got 'relu'",
        ),
        (
            {"scoring_func": "softmax", "n_group": 4, "topk_group": 2},
            "n_group of Gate must be 1 with",
        ),
        ({"num_experts": 64, "num_topk": 33}, "num_topk of Gate must be at most 32, got 33"),
    ],
)
def test_wrong_sizes(options: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"hidden": 8, "num_experts": 16, "num_topk": 2} | options
    with pytest.raises(ValueError, match=message):
        Gate(**sizes)
