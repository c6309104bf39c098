"""Models and arguments that do not fit: an error that names the module, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from pykernels import moe
from pykernels.integrations.transformers import LatentCache, accelerate_model
from tests.integrations.models import deepseek_v3, llama, token_ids

IDS = token_ids(2, 6)


def local_buffer() -> moe.Buffer:
    return moe.Buffer(
        moe.LocalGroup(2), hidden=256, num_experts=16, num_topk=4, num_max_tokens_per_rank=8
    )


WRONG: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "nothing": (lambda: nn.Sequential(nn.ReLU()), {}, "Sequential has no module to replace"),
    "a Linear alone": (lambda: nn.Linear(64, 64), {}, "Linear has no module to replace"),
    "once more": (
        lambda: accelerate_model(llama()).model,
        {},
        r"LlamaForCausalLM has no module to replace.*lm_head: makes the logits",
    ),
    "heads": (
        lambda: deepseek_v3(num_attention_heads=144, num_key_value_heads=144, num_hidden_layers=1),
        {},
        r"model\.layers\.0\.self_attn: .*num_heads must be from 1 to 128, got 144",
    ),
    "latent": (
        lambda: deepseek_v3(kv_lora_rank=256),
        {},
        r"model\.layers\.0\.self_attn: .*kv_lora_rank must be 512",
    ),
    "rope": (
        lambda: deepseek_v3(
            rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
        ),
        {},
        r"self_attn: .*rope_type must be default or yarn, got 'linear'",
    ),
    "group size": (
        lambda: deepseek_v3(moe_intermediate_size=96),
        {},
        r"model\.layers\.1\.mlp: intermediate of MoeLayer must be a multiple of 128.*got 96",
    ),
    "dense size": (
        lambda: deepseek_v3(intermediate_size=192),
        {},
        r"model\.layers\.0\.mlp: intermediate of Fp8Mlp must be a multiple of 128.*got 192",
    ),
    "activation": (
        lambda: deepseek_v3(hidden_act="gelu"),
        {},
        r"model\.layers\.0\.mlp: hidden_act must be 'silu', got 'gelu'",
    ),
    "some attention": (
        deepseek_v3,
        {"exclude": "*.1.self_attn"},
        r"model\.layers\.1\.self_attn: .*all or none.*got 2 of 3",
    ),
    "attention alone": (
        lambda: nn.ModuleList(deepseek_v3().model.layers),
        {},
        r"0\.self_attn: .*must be in a DeepseekV3Model",
    ),
    "format": (llama, {"scale_fmt": "fp16"}, "scale_fmt must be"),
    "cache": (deepseek_v3, {"cache_dtype": torch.float16}, "dtype must be bfloat16 or float8"),
    "pages": (deepseek_v3, {"page_size": 48}, "page_size must be a power of two"),
    "local buffer": (
        deepseek_v3,
        {"buffer": local_buffer()},
        r"model\.layers\.1\.mlp: the buffer of a model must be of one rank",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_model_is_unchanged(what: str) -> None:
    make, options, message = WRONG[what]
    model = make()
    modules = dict(model.named_modules())
    state = {name: (each, each.clone()) for name, each in model.state_dict(keep_vars=True).items()}
    attributes = set(vars(model))
    with pytest.raises(ValueError, match="(?s)" + message):
        accelerate_model(model, **options)
    found = dict(model.named_modules())
    assert list(found) == list(modules)
    assert all(each is modules[name] for name, each in found.items())
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is state[name][0]
        assert torch.equal(tensor.view(torch.uint8), state[name][1].view(torch.uint8))
    assert set(vars(model)) == attributes
    assert not any(each._forward_pre_hooks for each in model.modules())


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "mask of other tokens": ({"attention_mask": torch.ones(2, 5)}, r"must have shape \[2, 6\]"),
    "mask of four dimensions": ({"attention_mask": torch.ones(2, 1, 6, 6)}, r"shape \[2, 6\]"),
    "mask of zeros": ({"attention_mask": torch.zeros(2, 6)}, "must have a token in this forward"),
    "mask with a hole": (
        {"attention_mask": torch.tensor([[1, 0, 1, 1, 1, 1], [1] * 6])},
        "must have the tokens of a row side by side",
    ),
    "packed rows": (
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])},
        "position_ids must count the tokens of each row by ones",
    ),
    "another cache": ({"cache": DynamicCache()}, "got DynamicCache"),
    "attentions": ({"output_attentions": True}, "output_attentions must be False"),
    "logits of routers": ({"output_router_logits": True}, "output_router_logits must be False"),
}


@pytest.fixture(scope="module")
def model() -> Any:
    made = deepseek_v3(num_hidden_layers=1)
    accelerate_model(made)
    return made


@pytest.mark.parametrize("what", CALLS)
def test_wrong_calls(model: Any, what: str) -> None:
    options, message = CALLS[what]
    with pytest.raises(ValueError, match=message):
        model(IDS, **options)


def test_wrong_use_of_a_cache(model: Any) -> None:
    cache = LatentCache(model.config, 2, max_seqlen=8)
    with pytest.raises(ValueError, match="each row must have tokens"):
        cache.reserve()
    with pytest.raises(ValueError, match="for a batch of 2, got one of 1"):
        model(IDS[:1], cache=cache)
    model(IDS, cache=cache)
    before = cache.pages.lengths
    with pytest.raises(ValueError, match=r"must have a 1 for each token in the cache, \[6, 6\]"):
        model(IDS[:, :1], cache=cache, attention_mask=torch.tensor([[0] + [1] * 6] * 2))
    with pytest.raises(ValueError, match="at most max_seqlen = 8"):
        model(IDS[:, :3], cache=cache)
    assert (cache.pages.lengths, cache.get_seq_length()) == (before, 6)
    cache.reserve()
    with pytest.raises(ValueError, match="one token for each row"):
        model(IDS[:, :2], cache=cache)
    with pytest.raises(NotImplementedError, match="does not remove tokens"):
        cache.crop(-1)


def test_a_layer_alone(model: Any) -> None:
    with pytest.raises(RuntimeError, match="attention of layer 0 has no step"):
        model.model.layers[0].self_attn(torch.zeros(1, 1, 256), position_embeddings=None)
