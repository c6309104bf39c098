"""Successors of modules: from weights in BF16, FP16 or FP32, from FP8 with scales, or empty."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import Tensor, nn

from pykernels import moe
from pykernels.integrations.transformers.attention import ModelAttention, ModelRotaryEmbedding
from pykernels.nn import Fp8Linear, Fp8Mlp, MlaConfig, MoeLayer

_IN_FP32 = re.compile(r"scale_inv$|(^|\.)gate\.(weight|e_score_correction_bias)$")


def attention(source: Any, scale_fmt: str) -> nn.Module:
    """Of a ``DeepseekV3Attention``.

    Raises:
        ValueError: the kernels do not take its sizes.
        RuntimeError: its weights are not as the modules take them.
    """
    norm_eps = source.kv_a_layernorm.variance_epsilon
    config = dataclasses.replace(MlaConfig.from_hf(source.config), norm_eps=norm_eps)
    made = ModelAttention(config, layer_idx=source.layer_idx, scale_fmt=scale_fmt, device="meta")
    return _filled(made, source)


def rotary_embedding(model: Any) -> nn.Module:
    """Of a ``DeepseekV3Model``."""
    config = MlaConfig.from_hf(model.config)
    device = model.device if model.device.type != "meta" else None
    return ModelRotaryEmbedding(theta=config.rope_theta, scaling=config.rope_scaling, device=device)


def moe_layer(
    source: Any,
    scale_fmt: str,
    buffer: moe.Buffer | None,
    low_latency_buffer: moe.Buffer | None,
) -> nn.Module:
    """Of a ``DeepseekV3MoE``; raises as :func:`attention`."""
    ranks = {}
    if buffer is not None:
        if buffer.rank is None:
            raise ValueError(
                "the buffer of a model must be of one rank, got one of a LocalGroup, whose ranks "
                "run together"
            )
        ranks = {"rank": buffer.rank, "num_ranks": buffer.sizes.num_ranks}
    made = MoeLayer.from_config(source.config, scale_fmt=scale_fmt, device="meta", **ranks)
    made.use_buffers(buffer, low_latency_buffer)
    return _filled(made, source)


def mlp(source: Any, scale_fmt: str) -> nn.Module:
    """Of a ``DeepseekV3MLP``; raises as :func:`attention`."""
    if source.config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"hidden_act must be 'silu', got {source.config.hidden_act!r}")
    made = Fp8Mlp(source.hidden_size, source.intermediate_size, scale_fmt=scale_fmt, device="meta")
    return _filled(made, source)


def linear(source: nn.Linear, scale_fmt: str) -> nn.Module:
    """Of a Linear; raises as :func:`attention`."""
    made = Fp8Linear.empty(
        source.in_features,
        source.out_features,
        bias=source.bias is not None,
        scale_fmt=scale_fmt,
        device="meta",
    )
    return _filled(made, source)


def _filled(made: nn.Module, source: nn.Module) -> nn.Module:
    """With the weights of the source, FP8 ones not copied; as yet empty if the source is."""
    state = {name: stored(name, tensor) for name, tensor in source.state_dict().items()}
    if not any(tensor.is_meta for tensor in state.values()):
        made.load_state_dict(state, assign=True)
    return made.train(source.training)


def stored(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a checkpoint in the dtype that the modules have."""
    return tensor.float() if _IN_FP32.search(name) else tensor
