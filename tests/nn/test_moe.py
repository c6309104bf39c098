"""MoeLayer on one rank against Hugging Face's layer and a model in FP8 of plain torch ops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.nn import Fp8Mlp, Gate, MoeLayer
from tests.cases import assert_same_bits
from tests.nn.moe_models import (
    DEEPSEEK,
    MODELS,
    NO_SHARED,
    ONE_EXPERT,
    POWERS_OF_TWO,
    Model,
    assert_as_fp8,
    cast_and_back,
    error,
    mlp_in_fp8,
)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (4, 7)], ids=str)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_forward(model: Model, shape: tuple[int, ...]) -> None:
    x = model.x(*shape)
    assert_as_fp8(model.layer()(x), model, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_types(dtype: torch.dtype) -> None:
    x = DEEPSEEK.x(9).to(dtype)
    assert_as_fp8(DEEPSEEK.layer()(x), DEEPSEEK, x)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_on_the_emulator(model: Model) -> None:
    x = model.x(5)
    layer = model.layer()
    with pykernels.emulate() as report:
        found = layer(x)
    report.raise_if_findings()
    assert_as_fp8(found, model, x, emulated=True)
    names = [name for name, _ in report.launches]
    experts = ["grouped_fp8_gemm_nt", "silu_mul_quantize_1x128", "grouped_fp8_gemm_nt"]
    shared = ["fp8_gemm_nt", "silu_mul_quantize_1x128", "fp8_gemm_nt"]
    wanted = ["quantize_1x128", *experts, *shared * bool(model.num_shared_experts)]
    assert len(names) == len(wanted)
    assert all(name.startswith(each) for name, each in zip(names, wanted, strict=True))


def test_no_tokens_on_the_emulator() -> None:
    layer = DEEPSEEK.layer()
    with pykernels.emulate() as report:
        assert layer(DEEPSEEK.x(0)).shape == (0, DEEPSEEK.hidden)
    report.raise_if_findings()


def test_a_token_does_not_see_the_others() -> None:
    """Not their number, and no NaN in them."""
    layer = DEEPSEEK.layer()
    x = DEEPSEEK.x(6)
    wanted = layer(x)
    x[2, 3] = torch.nan
    found = layer(x)
    assert bool(found[2].isnan().all())
    others = [0, 1, 3, 4, 5]
    assert_same_bits(found[others], wanted[others])
    assert_same_bits(layer(x[4:5]), wanted[4:5])


def test_power_of_two_scales() -> None:
    """Of the weights; test_forward sees those of activations."""
    layer = POWERS_OF_TWO.layer()
    for scales in (layer.experts.gate_up_proj_scale_inv, layer.experts.down_proj_scale_inv):
        assert bool((scales.log2() == scales.log2().round()).all())


@pytest.mark.parametrize("model", [DEEPSEEK, NO_SHARED], ids=str)
def test_compile(model: Model) -> None:
    layer, compiled_layer = model.layer(), model.layer()
    compiled: Any = torch.compile(compiled_layer, fullgraph=True, backend="aot_eager")
    for num_tokens in (1, 3, 6):
        assert_same_bits(compiled(model.x(num_tokens)), layer(model.x(num_tokens)))
    assert torch.equal(compiled_layer.expert_counts(), layer.expert_counts())


def counts_of(model: Model, x: Tensor) -> Tensor:
    idx, _ = model.routing(x)
    return torch.bincount(idx.flatten(), minlength=model.num_experts)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_expert_counts(model: Model) -> None:
    layer = model.layer()
    x, other = model.x(7), model.x(4, seed=1)
    assert layer.expert_counts().tolist() == [0] * model.num_experts
    layer(x)
    layer(other)
    wanted = counts_of(model, x) + counts_of(model, other)
    assert torch.equal(layer.expert_counts(reset=True), wanted)
    assert layer.expert_counts().tolist() == [0] * model.num_experts
    layer(other)
    assert torch.equal(layer.expert_counts(), counts_of(model, other))
    assert not any("counts" in name for name in layer.state_dict())


def test_all_tokens_go_to_one_expert() -> None:
    """What the model of that name is for."""
    assert counts_of(ONE_EXPERT, ONE_EXPERT.x(5)).tolist() == [0] * 9 + [5] + [0] * 6


def test_mlp() -> None:
    shared = DEEPSEEK.make().shared_experts
    mlp = Fp8Mlp.from_float(shared)
    x = DEEPSEEK.x(2, 5)
    weights = shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight
    wanted = mlp_in_fp8(cast_and_back(x.flatten(0, 1), 1), weights, torch.bfloat16)
    assert error(mlp(x), wanted.view(x.shape)) < 5e-3
    assert error(mlp(x), shared(x.float())) < 0.08


# ---- bad input ----


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"moe_intermediate_size": 192}, {}, "intermediate of MoeLayer must be a multiple of 128"),
        ({"hidden_size": 264}, {}, "hidden of MoeLayer must be a multiple of 16, got 264"),
        ({"hidden_act": "gelu"}, {}, "hidden_act of MoeLayer must be 'silu', got 'gelu'"),
        ({"n_group": 5}, {}, "num_experts of Gate must be a multiple of n_group = 5, got 16"),
        ({}, {"num_ranks": 3}, "num_experts of MoeLayer must be a multiple of num_ranks = 3"),
        ({}, {"num_ranks": 4, "rank": 4}, "rank of MoeLayer must be at most 3, got 4"),
        ({}, {"scale_fmt": "fp16"}, "scale_fmt must be 'fp32' or 'ue8m0', got 'fp16'"),
    ],
)
def test_wrong_sizes(sizes: dict[str, Any], options: dict[str, Any], message: str) -> None:
    config = DEEPSEEK.config
    for name, value in sizes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        MoeLayer.from_config(config, **options)


def test_a_gate_of_another_hidden() -> None:
    with pytest.raises(
        ValueError, match="the gate of MoeLayer must take hidden = 256 columns, got 128"
    ):
        MoeLayer(256, 128, Gate(128, 4, 2))


def test_tokens_of_another_hidden() -> None:
    with pytest.raises(ValueError, match=r"x must have hidden = 256 columns, got shape \[3, 128\]"):
        DEEPSEEK.layer()(torch.zeros(3, 128).bfloat16())


def test_a_tensor_that_requires_grad() -> None:
    x = DEEPSEEK.x(2).requires_grad_()
    with torch.enable_grad(), pytest.raises(ValueError, match="x requires grad"):
        DEEPSEEK.layer()(x)
