"""Small models of transformers with random weights, and DeepSeek-V3's in FP8 by plain torch ops."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from tests.nn.mla_models import YARN, Fp8Reference
from tests.nn.moe_models import cast_and_back, layer_in_fp8, mlp_in_fp8

VOCAB = 512


def config(**changed: Any) -> DeepseekV3Config:
    options: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.0,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "max_position_embeddings": 640,
        "rope_parameters": YARN,
        "bos_token_id": None,
        "eos_token_id": None,
        "experts_implementation": "eager",
    }
    return DeepseekV3Config(**(options | changed))


def deepseek_v3(dtype: torch.dtype = torch.bfloat16, **changed: Any) -> DeepseekV3ForCausalLM:
    """Weights are values of BF16; the router is FP32, as ``from_pretrained`` has it."""
    model = DeepseekV3ForCausalLM(config(**changed)).eval().requires_grad_(False)
    randomise(model)
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, deepseek.DeepseekV3TopkRouter):
            module.float()
    return model


def randomise(model: nn.Module) -> None:
    """Each part of the model matters to the logits, and its weights are not alike."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            values = 1 + values / 8
        elif "embed_tokens" not in name:
            values /= parameter.size(-1) ** 0.5
        if name.endswith(("o_proj.weight", "down_proj", "down_proj.weight")):
            values /= 2  # so that an expert chosen otherwise, for a rounding, is not all there is
        elif "q_b_proj" in name:
            values *= 2
        parameter.copy_(values.bfloat16())
    for name, buffer in model.named_buffers():
        if "e_score_correction_bias" in name:
            buffer.copy_(0.4 * torch.randn(buffer.shape, generator=generator))


def llama(**changed: Any) -> LlamaForCausalLM:
    options: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    model = LlamaForCausalLM(LlamaConfig(**(options | changed))).eval().requires_grad_(False)
    randomise(model)
    return model


def token_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


class ReferenceAttention(nn.Module):
    """By the formulas, in FP8, of whole sequences."""

    def __init__(self, layer: Any, fp8_cache: bool) -> None:
        super().__init__()
        self.in_fp8 = Fp8Reference(copy.deepcopy(layer).float(), fp8_cache, rounds=True)

    def forward(self, hidden_states: Tensor, **unused: Any) -> tuple[Tensor, None]:
        rows = [self.in_fp8(x.bfloat16()) for x in hidden_states]
        return torch.stack(rows).to(hidden_states.dtype), None


class ReferenceFeedForward(nn.Module):
    """A dense MLP, or experts, by the formulas in FP8."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, deepseek.DeepseekV3MoE):
            return layer_in_fp8(self.layer, x).to(x.dtype)
        weights = [getattr(self.layer, f"{name}_proj").weight for name in ("gate", "up", "down")]
        rows = cast_and_back(x.flatten(0, -2), 1)
        return mlp_in_fp8(rows, weights, x.dtype).view(x.shape)


def in_fp8(model: DeepseekV3ForCausalLM, fp8_cache: bool = False) -> DeepseekV3ForCausalLM:
    """A copy of the model that quantises as the modules do."""
    made = copy.deepcopy(model)
    for layer in made.model.layers:
        layer.self_attn = ReferenceAttention(layer.self_attn, fp8_cache)
        layer.mlp = ReferenceFeedForward(layer.mlp)
    return made


def logits(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    """``[batch, seqlen, vocab]``, teacher-forced."""
    found: Tensor = model(ids, **options).logits
    return found.double()


@functools.cache
def expected(fp8_cache: bool = False) -> tuple[DeepseekV3ForCausalLM, DeepseekV3ForCausalLM]:
    """The usual model in FP32, and the same in FP8."""
    model = deepseek_v3()
    return copy.deepcopy(model).float(), in_fp8(model, fp8_cache)
