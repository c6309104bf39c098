"""What MlaAttention loads, and the configs, checkpoints and calls that it refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from pykernels import reference
from pykernels.nn import MlaAttention, MlaConfig, check_state_dict
from tests.cases import assert_same_bits
from tests.nn.mla_models import HEADS, HIDDEN, IN_V3, LAYERS, Layer, hidden_states, rotary

BIASES = LAYERS[3]
State = dict[str, Tensor]
each_kind = pytest.mark.parametrize("layer", [IN_V3, LAYERS[2], BIASES], ids=str)


class Model(nn.Module):
    """A layer with a name."""

    def __init__(self, layer: Layer, **options: Any) -> None:
        super().__init__()
        self.self_attn = MlaAttention(MlaConfig.from_hf(layer.config()), **options)


def public_state(layer: Layer) -> State:
    """All projections in FP8 with scales, ``kv_b_proj`` too, the rest in BF16."""
    state = {}
    for name, tensor in layer.transformers().state_dict().items():
        if "proj" in name and name.endswith("weight"):
            values, scales = reference.quantize_128x128(tensor)
            state |= {name: values, f"{name}_scale_inv": scales.float()}
        else:
            state[name] = tensor.bfloat16()
    return {f"self_attn.{name}": tensor for name, tensor in state.items()}


def run(attention: MlaAttention) -> Tensor:
    cache = IN_V3.cache()
    step = cache.append([9])
    return attention(hidden_states(9), rotary(attention)(step.positions), step)


def assert_same_state(actual: nn.Module, wanted: nn.Module) -> None:
    found, expected = actual.state_dict(), wanted.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(found[name], tensor)


@each_kind
def test_bf16_checkpoints(layer: Layer) -> None:
    """As if converted from the module itself."""
    source = layer.transformers().bfloat16()
    model = Model(layer)
    check_state_dict(model.self_attn, source.state_dict())
    model.self_attn.load_state_dict(source.state_dict())
    converted = MlaAttention.from_float(source)
    assert_same_bits(run(model.self_attn), run(converted))
    for name, tensor in converted.state_dict().items():
        loaded = model.self_attn.state_dict()[name]
        assert_same_bits(loaded.to(tensor.dtype), tensor)
    again = Model(layer)
    again.self_attn.load_state_dict(model.self_attn.state_dict())
    assert_same_state(again, model)


@each_kind
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_public_format(layer: Layer, device: str) -> None:
    state = public_state(layer)
    model = Model(layer, device=device)
    check_state_dict(model, state)
    model.load_state_dict(state, assign=device == "meta")
    for name, tensor in model.self_attn.state_dict().items():
        if name == "kv_b_proj.weight":
            scales = state["self_attn.kv_b_proj.weight_scale_inv"]
            exact = reference.dequantize_128x128(state[f"self_attn.{name}"], scales)
            assert_same_bits(tensor, exact.float().bfloat16())
        elif "bias" not in name:
            assert_same_bits(tensor, state[f"self_attn.{name}"])
    out = run(model.self_attn)
    exact = run(MlaAttention.from_float(layer.transformers()))
    # FP8 on its way to kv_b_proj costs as much as any other projection in FP8 does.
    assert float((out - exact).float().norm() / exact.float().norm()) < 0.1
    assert not any(tensor.requires_grad for tensor in model.parameters())


def test_a_layer_without_memory_takes_fp32_by_assignment() -> None:
    source = IN_V3.transformers()
    model = Model(IN_V3, device="meta")
    model.self_attn.load_state_dict(source.state_dict(), assign=True)
    assert model.self_attn.q_a_layernorm.weight.dtype == torch.bfloat16
    out, exact = run(model.self_attn).float(), run(MlaAttention.from_float(source)).float()
    assert float((out - exact).norm() / exact.norm()) < 0.05


def test_conversions_leave_the_dtypes() -> None:
    attention = MlaAttention.from_float(IN_V3.transformers())
    expected = run(attention)
    assert_same_bits(run(attention.half().float().double()), expected)


def test_the_epsilon_is_that_of_the_module() -> None:
    source = IN_V3.transformers()
    source.kv_a_layernorm.variance_epsilon = source.q_a_layernorm.variance_epsilon = 1e-3
    attention = MlaAttention.from_float(source)
    assert attention.config.norm_eps == attention.q_a_layernorm.eps == 1e-3


def test_weights_are_copies_and_the_source_stays() -> None:
    source = IN_V3.transformers()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    attention = MlaAttention.from_float(source)
    expected = run(attention)
    for name, parameter in source.named_parameters():
        assert torch.equal(parameter, before[name])
        parameter.zero_()
    assert_same_bits(run(attention), expected)


@pytest.mark.parametrize("name", ["q_b_proj", "kv_b_proj"])
def test_missing_scales(name: str) -> None:
    """An error that says whose; the layer stays as it was, the parts before and behind too."""
    model, wanted = Model(IN_V3), Model(IN_V3)
    for each in model, wanted:
        each.load_state_dict(public_state(IN_V3))
    state = {
        key: torch.ones(each.shape).to(each.dtype) for key, each in wanted.state_dict().items()
    }
    weight = f"self_attn.{name}.weight"
    state[weight] = state[weight].to(torch.float8_e4m3fn)
    state.pop(f"{weight}_scale_inv", None)
    message = f"\n\t{weight} is float8_e4m3fn and needs {weight}_scale_inv"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        check_state_dict(model, state)
    with pytest.raises(RuntimeError, match=re.escape(message)) as error:
        model.load_state_dict(state)
    assert str(error.value).count("\n") == 1
    assert_same_state(model, wanted)
    state[f"{weight}_scale_inv"] = public_state(IN_V3)[f"{weight}_scale_inv"]
    model.load_state_dict(state)
    assert bool((model.self_attn.o_proj.weight.float() == 1).all())


def test_an_unloaded_layer_is_nan() -> None:
    assert bool(run(Model(IN_V3).self_attn).isnan().all())


SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "kv_lora_rank": (
        {"kv_lora_rank": 256},
        "kv_lora_rank must be 512 and qk_rope_head_dim 64, which mla_decode takes, got 256 and 64",
    ),
    "qk_rope_head_dim": (
        {"qk_rope_head_dim": 32},
        "kv_lora_rank must be 512 and qk_rope_head_dim 64, which mla_decode takes, got 512 and 32",
    ),
    "num_heads": (
        {"num_attention_heads": 129, "num_key_value_heads": 129},
        "num_heads must be from 1 to 128, got 129",
    ),
    "hidden_size": ({"hidden_size": 264}, "hidden_size must be a multiple of 16 above 0, got 264"),
    "q_lora_rank": ({"q_lora_rank": 8}, "q_lora_rank must be a multiple of 16 above 0, got 8"),
    "nope": ({"qk_nope_head_dim": 36}, "qk_nope_head_dim must be a multiple of 8 above 0, got 36"),
    "v_head_dim": ({"v_head_dim": 0}, "v_head_dim must be a multiple of 8 above 0, got 0"),
    "values": (
        {"v_head_dim": 8, "num_attention_heads": 1, "num_key_value_heads": 1},
        "num_heads * v_head_dim must be a multiple of 16 above 0, got 8",
    ),
    "groups": (
        {"num_key_value_heads": 2},
        "num_key_value_heads must be num_attention_heads = 4, got 2; heads share the cached "
        "latent, not keys and values",
    ),
    "rope": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type must be default or yarn, got 'linear'",
    ),
}


@pytest.mark.parametrize("what", SIZES)
def test_configs_that_the_kernels_do_not_take(what: str) -> None:
    changed, message = SIZES[what]
    config = IN_V3.config(**changed)
    with pytest.raises(ValueError, match=re.escape(f"MlaAttention: {message}")):
        MlaConfig.from_hf(config)
    if what != "v_head_dim":
        with pytest.raises(ValueError, match=re.escape(f"MlaAttention: {message}")):
            MlaAttention.from_float(DeepseekV3Attention(config, 0))


def test_the_sizes_of_v3() -> None:
    """And that a whole layer of it can be built without memory."""
    config = MlaConfig(hidden_size=7168, num_heads=128)
    attention = MlaAttention(config, device="meta")
    shapes = {name: tuple(tensor.shape) for name, tensor in attention.state_dict().items()}
    assert shapes == {
        "q_a_proj.weight": (1536, 7168),
        "q_a_proj.weight_scale_inv": (12, 56),
        "q_a_layernorm.weight": (1536,),
        "q_b_proj.weight": (24576, 1536),
        "q_b_proj.weight_scale_inv": (192, 12),
        "kv_a_proj_with_mqa.weight": (576, 7168),
        "kv_a_proj_with_mqa.weight_scale_inv": (5, 56),
        "kv_a_layernorm.weight": (512,),
        "kv_b_proj.weight": (32768, 512),
        "o_proj.weight": (7168, 16384),
        "o_proj.weight_scale_inv": (56, 128),
    }


Call = Callable[[MlaAttention], Any]


def call(x: Tensor, *, layer_idx: int = 0, heads: int | None = None) -> Call:
    def made(attention: MlaAttention) -> Any:
        cache = IN_V3.cache()
        attention.layer_idx = layer_idx
        step: Any = cache.append([4])
        if heads is not None:
            step = cache.decode_step(heads)
        return attention(x, rotary(attention)(step.positions), step)

    return made


CALLS: dict[str, tuple[Call, str]] = {
    "dtype": (
        call(torch.zeros(4, HIDDEN)),
        "MlaAttention (layer 0): hidden_states must be bfloat16, got torch.float32",
    ),
    "columns": (
        call(hidden_states(4)[:, :128]),
        "MlaAttention (layer 0): hidden_states must be [..., 256] with the 4 tokens of the step, "
        "got [4, 128]",
    ),
    "tokens": (call(hidden_states(5)), "the 4 tokens of the step, got [5, 256]"),
    "one dimension": (call(hidden_states(4)[0]), "the 4 tokens of the step, got [256]"),
    "layer": (
        call(hidden_states(4), layer_idx=1),
        "MlaAttention (layer 1): the cache must have its layer, got one of 1 layers",
    ),
    "heads": (
        call(hidden_states(2), heads=8),
        f"MlaAttention (layer 0): the decode step must be for its num_heads = {HEADS}, got one "
        "for 8",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_wrong_calls(what: str) -> None:
    made, message = CALLS[what]
    attention = MlaAttention.from_float(IN_V3.transformers())
    with pytest.raises(ValueError, match=re.escape(message)):
        made(attention)


def test_configs_compare_by_value() -> None:
    config = MlaConfig.from_hf(IN_V3.config())
    assert config == MlaConfig.from_hf(IN_V3.config())
    assert dataclasses.replace(config, norm_eps=1e-5) != config
