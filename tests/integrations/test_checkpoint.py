"""Checkpoints in the public FP8 format, and models that transformers has in FP8."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

from pykernels.integrations.transformers import accelerate_model, load_checkpoint
from tests.integrations.models import config, deepseek_v3, logits, token_ids
from tests.nn.moe_models import error, public_state

IDS = token_ids(1, 5)
LAYERS = {"num_hidden_layers": 2}
ATTENTION, MOE = "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.experts.3.up_proj"
State = dict[str, Tensor]


@functools.cache
def plain() -> Any:
    return deepseek_v3(**LAYERS)


@functools.cache
def wanted() -> Tensor:
    model = deepseek_v3(**LAYERS)
    accelerate_model(model)
    return logits(model, IDS)


def public(fp8: bool) -> State:
    """The names of each expert; layers in FP8 or in BF16."""
    state = dict(plain().state_dict())
    for idx, layer in enumerate(plain().model.layers):
        prefix = f"model.layers.{idx}."
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]
        for part in ("self_attn", "mlp"):
            found = public_state(layer.get_submodule(part), fp8=fp8)
            state |= {f"{prefix}{part}.{name}": tensor for name, tensor in found.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = layer.get_submodule(name).weight
    return state


def without_memory() -> DeepseekV3ForCausalLM:
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config(**LAYERS)).eval().requires_grad_(False)
    accelerate_model(model)
    return model


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_into_a_model_without_memory(fp8: bool) -> None:
    model = without_memory()
    load_checkpoint(model, public(fp8))
    assert not any(each.is_meta for each in (*model.parameters(), *model.buffers()))
    found = logits(model, IDS)
    if fp8:  # kv_b_proj too, which is dequantised
        assert 0 < error(found, wanted()) < 0.1
    else:
        assert torch.equal(found, wanted())
    assert model.generate(IDS, max_new_tokens=2).shape == (1, 7)


def test_into_a_model_with_weights() -> None:
    model = deepseek_v3(**LAYERS)
    accelerate_model(model)
    for tensor in model.state_dict().values():
        tensor.view(torch.uint8).zero_()
    load_checkpoint(model, public(False))
    assert torch.equal(logits(model, IDS), wanted())


def in_fp8_of_transformers() -> DeepseekV3ForCausalLM:
    """As ``from_pretrained`` has a model in the public format on a GPU."""
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config(**LAYERS)).eval()
    options = FineGrainedFP8Config(weight_block_size=(128, 128))
    replace_with_fp8_linear(model, ["lm_head"], options, pre_quantized=True)
    state = public(True)
    for name in ("gate_up_proj", "down_proj"):
        parts = ("gate_proj", "up_proj") if name == "gate_up_proj" else (name,)
        for end in ("", "_scale_inv"):
            stacks = [
                torch.cat(
                    [
                        state.pop(f"model.layers.1.mlp.experts.{i}.{part}.weight{end}").view(
                            torch.uint8
                        )
                        for part in parts
                    ]
                )
                for i in range(16)
            ]
            dtype = torch.float32 if end else torch.float8_e4m3fn
            state[f"model.layers.1.mlp.experts.{name}{end}"] = torch.stack(stacks).view(dtype)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def test_a_model_of_transformers_in_fp8() -> None:
    model = in_fp8_of_transformers()
    accelerate_model(model)
    loaded = without_memory()
    load_checkpoint(loaded, public(True))
    for name, tensor in loaded.state_dict().items():
        found = model.state_dict()[name]
        assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8)), name


def drop_scales(state: State, module: str) -> str:
    del state[f"{module}.weight_scale_inv"]
    return rf"{module}.*scale_inv"


def wrong_shape(state: State, module: str) -> str:
    state[f"{module}.weight"] = state[f"{module}.weight"][:8]
    return rf"{module}.* must have shape"


def drop_all(state: State, module: str) -> str:
    del state[f"{module}.weight"], state[f"{module}.weight_scale_inv"]
    return rf"Missing key.*{module}\.weight"


def drop_a_norm(state: State, module: str) -> str:
    del state["model.norm.weight"]
    return r"Missing key.*model\.norm\.weight"


def unknown(state: State, module: str) -> str:
    state[f"{module}.other"] = torch.zeros(1)
    return rf"Unexpected key.*{module}\.other"


@pytest.mark.parametrize("module", [ATTENTION, MOE])
@pytest.mark.parametrize("change", [drop_scales, wrong_shape, drop_all, drop_a_norm, unknown])
def test_a_wrong_checkpoint_changes_nothing(change: Any, module: str) -> None:
    model = without_memory()
    load_checkpoint(model, public(False))
    before = {name: (each, each.clone()) for name, each in model.state_dict(keep_vars=True).items()}
    state = public(True)
    with pytest.raises(RuntimeError, match="(?s)" + change(state, module)):
        load_checkpoint(model, state)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0], name
        assert torch.equal(tensor.view(torch.uint8), before[name][1].view(torch.uint8)), name


def test_fp8_without_scales() -> None:
    """A Linear of torch with a weight in FP8: nobody knows the scales."""
    model = deepseek_v3(**LAYERS)
    linear = model.model.layers[1].self_attn.q_a_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    modules = dict(model.named_modules())
    with pytest.raises(
        ValueError, match=r"(?s)layers\.1\.self_attn: .*q_a_proj\.weight is float8_e4m3fn and needs"
    ):
        accelerate_model(model)
    assert all(each is modules[name] for name, each in model.named_modules())
