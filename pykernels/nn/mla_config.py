"""The sizes of an MLA attention layer, and which of them the kernels take."""

from __future__ import annotations

import dataclasses
from typing import Any

from pykernels.mla_cache_checks import LATENT_DIM, ROPE_DIM
from pykernels.mla_checks import MAX_HEADS
from pykernels.nn.rotary import YarnScaling

_ROPE_TYPES = ("default", "yarn")


@dataclasses.dataclass(frozen=True)
class MlaConfig:
    """Sizes by the names that DeepSeek's configs have; defaults are those of DeepSeek-V3.

    Attributes:
        hidden_size: columns of the hidden states, a multiple of 16.
        num_heads: 1 to 128.
        q_lora_rank: columns of the query's latent, a multiple of 16; None for queries that are
            projected at once.
        kv_lora_rank: 512, columns of the cached latent.
        qk_nope_head_dim: columns of a head's query and key that are not rotated.
        qk_rope_head_dim: 64, columns that are.
        v_head_dim: columns of a head's value.
        attention_bias: whether ``q_a_proj``, ``kv_a_proj_with_mqa`` and ``o_proj`` have a bias.
        rope_theta: the base of the rotary frequencies.
        rope_scaling: YaRN's, which also scales the softmax, or None.
        rope_interleave: whether columns ``2i`` and ``2i + 1`` of the rope part are a pair, as in
            DeepSeek's checkpoints; else ``i`` and ``i + 32``.
        norm_eps: of the RMSNorms of both latents.

    Raises:
        ValueError: the kernels do not take such sizes.
    """

    hidden_size: int
    num_heads: int
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = LATENT_DIM
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = ROPE_DIM
    v_head_dim: int = 128
    attention_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: YarnScaling | None = None
    rope_interleave: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if (self.kv_lora_rank, self.qk_rope_head_dim) != (LATENT_DIM, ROPE_DIM):
            raise ValueError(
                f"MlaAttention: kv_lora_rank must be {LATENT_DIM} and qk_rope_head_dim {ROPE_DIM}, "
                f"which mla_decode takes, got {self.kv_lora_rank} and {self.qk_rope_head_dim}"
            )
        if not 1 <= self.num_heads <= MAX_HEADS:
            raise ValueError(
                f"MlaAttention: num_heads must be from 1 to {MAX_HEADS}, got {self.num_heads}"
            )
        self._check_multiple("hidden_size", self.hidden_size, 16)
        if self.q_lora_rank is not None:
            self._check_multiple("q_lora_rank", self.q_lora_rank, 16)
        # Strides of 16 bytes where torch multiplies parts of kv_b_proj by themselves.
        self._check_multiple("qk_nope_head_dim", self.qk_nope_head_dim, 8)
        self._check_multiple("v_head_dim", self.v_head_dim, 8)
        self._check_multiple("num_heads * v_head_dim", self.num_heads * self.v_head_dim, 16)

    def _check_multiple(self, name: str, value: int, multiple: int) -> None:
        if value < multiple or value % multiple != 0:
            raise ValueError(
                f"MlaAttention: {name} must be a multiple of {multiple} above 0, got {value}"
            )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """``qk_head_dim ** -0.5``, and with YaRN the square of its mscale for all columns."""
        factor = 1.0 if self.rope_scaling is None else self.rope_scaling.softmax_factor
        return float(self.qk_head_dim**-0.5 * factor)

    @classmethod
    def from_hf(cls, config: Any) -> MlaConfig:
        """From a ``DeepseekV3Config`` of Hugging Face ``transformers`` 5, or one like it.

        Raises:
            ValueError: the kernels do not take such sizes, or the rotary embedding is of another
                kind than ``default`` and ``yarn``.
        """
        if config.num_key_value_heads not in (None, config.num_attention_heads):
            raise ValueError(
                "MlaAttention: num_key_value_heads must be num_attention_heads = "
                f"{config.num_attention_heads}, got {config.num_key_value_heads}; heads share the "
                "cached latent, not keys and values"
            )
        rope = config.rope_parameters
        rope_type = rope.get("rope_type", "default")
        if rope_type not in _ROPE_TYPES:
            raise ValueError(
                f"MlaAttention: rope_type must be {' or '.join(_ROPE_TYPES)}, got {rope_type!r}"
            )
        return cls(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            q_lora_rank=config.q_lora_rank,
            kv_lora_rank=config.kv_lora_rank,
            qk_nope_head_dim=config.qk_nope_head_dim,
            qk_rope_head_dim=config.qk_rope_head_dim,
            v_head_dim=config.v_head_dim,
            attention_bias=config.attention_bias,
            rope_theta=rope["rope_theta"],
            rope_scaling=YarnScaling.from_rope_parameters(rope) if rope_type == "yarn" else None,
            rope_interleave=bool(config.rope_interleave),
        )  # norm_eps: its attention has the default, whatever the config's rms_norm_eps is
