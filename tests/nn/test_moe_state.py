"""State dicts of MoeLayer: its own form, those of checkpoints, and what is wrong with some."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pykernels.nn import Fp8Mlp, MoeLayer
from tests.cases import assert_same_bits
from tests.nn.moe_models import DEEPSEEK, NO_SHARED, ODD, Model, public_state

State = dict[str, Tensor]
MODELS = pytest.mark.parametrize("model", [DEEPSEEK, ODD, NO_SHARED], ids=str)
RANKS = pytest.mark.parametrize(("rank", "num_ranks"), [(0, 1), (0, 4), (3, 4)])
FORMS = pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
FIVE = "experts.5.gate_proj.weight"


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def empty(model: Model, **options: Any) -> MoeLayer:
    return MoeLayer.from_config(model.config, **options)


def states(fp8: bool, model: Model = DEEPSEEK) -> State:
    return public_state(model.make(), fp8=fp8)


def assert_same(layer: nn.Module, wanted: State) -> None:
    found = layer.state_dict()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert_same_bits(found[name], tensor)


def copied(layer: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def test_own_names() -> None:
    assert set(DEEPSEEK.layer().state_dict()) == {
        "gate.weight",
        "gate.e_score_correction_bias",
        "experts.gate_up_proj",
        "experts.gate_up_proj_scale_inv",
        "experts.down_proj",
        "experts.down_proj_scale_inv",
        *(
            f"shared_experts.{linear}.{name}"
            for linear in ("gate_up_proj", "down_proj")
            for name in ("weight", "weight_scale_inv")
        ),
    }


@RANKS
@MODELS
def test_own_form(model: Model, rank: int, num_ranks: int) -> None:
    layer = model.layer(rank=rank, num_ranks=num_ranks)
    other = empty(model, rank=rank, num_ranks=num_ranks)
    other.load_state_dict(copied(layer))
    assert_same(other, layer.state_dict())


@FORMS
@RANKS
@MODELS
def test_checkpoints(model: Model, rank: int, num_ranks: int, fp8: bool) -> None:
    """By each expert's names: each rank takes its own, and the bits of from_float."""
    layer = empty(model, rank=rank, num_ranks=num_ranks)
    state = states(fp8, model)
    kept = dict(state)
    layer.load_state_dict(state)
    assert state == kept  # the caller's
    assert_same(layer, model.layer(rank=rank, num_ranks=num_ranks).state_dict())


@FORMS
def test_inside_a_model(fp8: bool) -> None:
    """With names ahead of the layer's, and a module beside it."""
    model = nn.Sequential(nn.Linear(2, 2), empty(DEEPSEEK, rank=1, num_ranks=2))
    state = {f"1.{name}": tensor for name, tensor in states(fp8).items()}
    model.load_state_dict(state | {f"0.{n}": t for n, t in model[0].state_dict().items()})
    assert_same(model[1], DEEPSEEK.layer(rank=1, num_ranks=2).state_dict())


def test_stacks_of_all_experts_in_fp8() -> None:
    whole = DEEPSEEK.layer()
    part = empty(DEEPSEEK, rank=2, num_ranks=4)
    part.load_state_dict(whole.state_dict())
    assert_same(part, DEEPSEEK.layer(rank=2, num_ranks=4).state_dict())


def test_scales_of_another_type() -> None:
    """Powers of two that are stored as such."""
    layer = empty(DEEPSEEK)
    state = states(True)
    for name in [name for name in state if name.endswith("scale_inv")]:
        state[name] = state[name].log2().ceil().exp2().to(torch.float8_e8m0fnu)
    layer.load_state_dict(state)
    wanted = state["experts.3.down_proj.weight_scale_inv"].float()
    assert_same_bits(layer.experts.down_proj_scale_inv[3], wanted)


@FORMS
def test_parts_of_a_checkpoint(fp8: bool) -> None:
    """Its files one after another, each without what the others have."""
    layer = empty(DEEPSEEK, rank=1, num_ranks=2)
    parts: list[State] = [{}, {}, {}]
    for name, tensor in states(fp8).items():
        index = sum(map(ord, name.removesuffix("_scale_inv"))) % 3
        parts[index][name] = tensor
    for part in parts:
        missing = layer.load_state_dict(part, strict=False).missing_keys
        assert missing
    assert_same(layer, DEEPSEEK.layer(rank=1, num_ranks=2).state_dict())


def test_a_layer_in_bf16() -> None:
    layer = MoeLayer.from_float(copy.deepcopy(DEEPSEEK.make()).bfloat16())
    bias = DEEPSEEK.make().gate.e_score_correction_bias
    wanted = copied(DEEPSEEK.layer())
    wanted["gate.e_score_correction_bias"] = bias.bfloat16().float()
    assert_same(layer, wanted)


@FORMS
def test_a_layer_without_memory(fp8: bool) -> None:
    """``assign=True`` gives it the state dict's."""
    layer = empty(DEEPSEEK, device="meta")
    copied_layer = copy.deepcopy(layer)
    for each in (layer, copied_layer):
        each.load_state_dict(states(fp8), assign=True)
        assert_same(each, DEEPSEEK.layer().state_dict())
        assert_same_bits(each(DEEPSEEK.x(3)), DEEPSEEK.layer()(DEEPSEEK.x(3)))
        assert int(each.expert_counts().sum()) == 3 * DEEPSEEK.num_topk


def test_mlp_of_checkpoints() -> None:
    shared = DEEPSEEK.make().shared_experts
    wanted = Fp8Mlp.from_float(shared).state_dict()
    prefix = "shared_experts."
    for fp8 in (False, True):
        mlp = Fp8Mlp(256, 128)
        given = {n.removeprefix(prefix): t for n, t in states(fp8).items() if n.startswith(prefix)}
        mlp.load_state_dict(given)
        assert_same(mlp, wanted)


# ---- bad input ----


def drop(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, tensor: Tensor) -> Callable[[State], None]:
    return lambda state: state.update({name: tensor})


FP8 = "weight is FP8, so weight_scale_inv must hold"
BLOCKS = "a float32 scale for each 128x128 block"
WRONG: dict[str, tuple[bool, Callable[[State], None], str]] = {
    "no scales": (
        True,
        drop(f"{FIVE}_scale_inv"),
        f"experts.5.gate_proj: {FP8} {BLOCKS}, [1, 2], got no scales",
    ),
    "no scales of shared experts": (
        True,
        drop("shared_experts.down_proj.weight_scale_inv"),
        f"shared_experts.down_proj: {FP8} {BLOCKS}, [2, 1], got no scales",
    ),
    "other scales": (
        True,
        put(f"{FIVE}_scale_inv", torch.ones(2, 1)),
        f"experts.5.gate_proj: {FP8} {BLOCKS}, [1, 2], got [2, 1]",
    ),
    "integers for scales": (
        True,
        put(f"{FIVE}_scale_inv", torch.ones(1, 2, dtype=torch.int32)),
        f"experts.5.gate_proj: {FP8} {BLOCKS}, [1, 2], got torch.int32",
    ),
    "scales without FP8": (
        False,
        put(f"{FIVE}_scale_inv", torch.ones(1, 2)),
        "experts.5.gate_proj: weight must be float8_e4m3fn, as it has scales, got torch.bfloat16",
    ),
    "another shape": (
        False,
        put(FIVE, torch.zeros(128, 128).bfloat16()),
        "experts.5.gate_proj: weight must have shape [128, 256], got [128, 128]",
    ),
    "another type": (
        False,
        put(FIVE, torch.zeros(128, 256, dtype=torch.int8)),
        "experts.5.gate_proj: weight must be float8_e4m3fn, bfloat16, float16 or float32, got "
        "torch.int8",
    ),
    "another gate": (
        False,
        put("gate.weight", torch.zeros(8, 256)),
        "gate.weight must have shape [16, 256], got [8, 256]",
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("prefix", ["", "layers.3.mlp."])
def test_wrong_state(what: str, prefix: str) -> None:
    """One error, and nothing is changed: not the gate either, nor the other experts."""
    fp8, break_it, message = WRONG[what]
    state = states(fp8)
    break_it(state)
    layer = empty(DEEPSEEK)
    model: nn.Module = layer
    if prefix:
        model = nn.ModuleDict({"layers": nn.ModuleList([nn.Module() for _ in range(4)])})
        model["layers"][3].mlp = layer
    before = copied(layer)
    with pytest.raises(RuntimeError, match=re.escape(message)) as raised:
        model.load_state_dict({prefix + name: tensor for name, tensor in state.items()})
    assert len(str(raised.value).splitlines()) == 2
    assert f"\t{prefix}" in str(raised.value)
    assert_same(layer, before)


def test_a_stack_without_scales() -> None:
    state = copied(DEEPSEEK.layer())
    del state["experts.down_proj_scale_inv"]
    layer = empty(DEEPSEEK)
    before = copied(layer)
    with pytest.raises(RuntimeError, match=r"\texperts: down_proj is FP8, so down_proj_scale_inv"):
        layer.load_state_dict(state)
    assert_same(layer, before)


def test_a_stack_of_other_experts() -> None:
    layer = empty(DEEPSEEK, num_ranks=2)
    state = copied(DEEPSEEK.layer(num_ranks=4))
    with pytest.raises(RuntimeError, match=r"must have shape \[8, 256, 256\], got \[4, 256, 256\]"):
        layer.load_state_dict(state)


def test_missing_and_unexpected_names() -> None:
    state = states(False)
    del state[FIVE]
    state["experts.16.up_proj.weight"] = state["shared_experts.bias"] = torch.zeros(1)
    found = empty(DEEPSEEK).load_state_dict(state, strict=False)
    assert found.missing_keys == [FIVE]
    assert found.unexpected_keys == ["experts.16.up_proj.weight", "shared_experts.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        empty(DEEPSEEK).load_state_dict(state)


def test_other_ranks_weights_do_not_matter() -> None:
    state = states(True)
    del state[f"{FIVE}_scale_inv"]
    layer = empty(DEEPSEEK, rank=3, num_ranks=4)
    layer.load_state_dict(state)
    assert_same(layer, DEEPSEEK.layer(rank=3, num_ranks=4).state_dict())
