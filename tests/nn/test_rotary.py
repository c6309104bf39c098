"""Rotary embedding and YaRN against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from pykernels.nn import MlaConfig, RotaryEmbedding, YarnScaling
from tests.nn.mla_models import PLAIN, YARN, Layer

V3 = YARN | {"original_max_position_embeddings": 4096, "mscale_all_dim": 1.0}
ROPES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "another theta": PLAIN | {"rope_theta": 1e6},
    "V3": V3,
    "unequal mscales": YARN,
    "no mscales": {name: value for name, value in V3.items() if "mscale" not in name},
    "no scaling of the softmax": V3 | {"mscale_all_dim": 0.0},
    "attention factor": V3 | {"attention_factor": 1.25},
    "betas": V3 | {"beta_fast": 16, "beta_slow": 2},
    "not truncated": V3 | {"truncate": False},
    "no longer": V3 | {"factor": 1.0},
}


@pytest.mark.parametrize("name", ROPES)
def test_against_transformers(name: str) -> None:
    hf = Layer(name, rope=ROPES[name]).config()
    config = MlaConfig.from_hf(hf)
    positions = torch.tensor([0, 1, 2, 63, 4095, 163839])
    expected = DeepseekV3RotaryEmbedding(hf)(torch.empty(0), positions[None])
    rotary = RotaryEmbedding(theta=config.rope_theta, scaling=config.rope_scaling)
    rotary.bfloat16()  # converts nothing
    for angle, wanted in zip(rotary(positions), expected, strict=True):
        assert angle.dtype == torch.float32
        assert angle.shape == (6, 32)
        # At 163839 radians one rounding of the angle is 2^-7 of a radian.
        assert torch.allclose(angle[:5], wanted[0, :5, :32], rtol=0, atol=5e-4)
        assert torch.allclose(angle, wanted[0, :, :32], rtol=0, atol=2e-2)
    layer = DeepseekV3Attention(hf, 0)
    assert config.softmax_scale == pytest.approx(layer.scaling, rel=1e-12)


def test_null_fields_have_defaults() -> None:
    parameters = {"factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": None}
    assert YarnScaling.from_rope_parameters(parameters) == YarnScaling(40.0, 4096)


@pytest.mark.parametrize("name", ["factor", "original_max_position_embeddings"])
def test_fields_that_have_no_default(name: str) -> None:
    with pytest.raises(ValueError, match=f"rope_parameters of YaRN must have {name}, got"):
        YarnScaling.from_rope_parameters(YARN | {name: None})
