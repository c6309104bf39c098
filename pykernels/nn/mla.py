"""Multi-head latent attention for inference: FP8 projections, a paged latent cache, our decode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from pykernels.mla import mla_decode
from pykernels.mla_cache import mla_cache_read, mla_cache_write, rotated
from pykernels.mla_cache_checks import Angles
from pykernels.nn.checkpoint import (
    FP8,
    SCALES,
    CheckedModule,
    dequantized,
    keeping_dtype,
    module_problems,
    weight_problems,
)
from pykernels.nn.linear import Fp8Linear
from pykernels.nn.mla_config import MlaConfig
from pykernels.nn.mla_steps import DecodeStep, MlaStep, PrefillStep
from pykernels.quantize import quantize_1x128

BF16 = torch.bfloat16
FP8_PROJECTIONS = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
NORMS = ("q_a_layernorm", "kv_a_layernorm")


class LatentProjection(CheckedModule):
    """``kv_b_proj``: keys and values of each head from the latent, in BF16.

    Prefill multiplies latents by the whole weight, decode queries and results by each head's part
    of it. Both use this one weight: the parts are views, nothing is stored twice. It is BF16
    because decode would have to cast queries of each head to FP8, and multiplies matrices of too
    few rows to gain by it: ``2 * num_heads * (qk_nope_head_dim + v_head_dim) * 512`` bytes, 34 MB a
    layer of DeepSeek-V3, where FP8 would be 17 MB.

    ``load_state_dict`` takes what :class:`Fp8Linear` takes; FP8 is dequantised.
    """

    weight: Tensor

    def __init__(self, config: MlaConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.key_dim = config.qk_nope_head_dim
        self.head_dim = config.qk_nope_head_dim + config.v_head_dim
        shape = self.num_heads * self.head_dim, config.kv_lora_rank
        self.register_buffer("weight", torch.full(shape, torch.nan, dtype=BF16, device=device))

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """``[n, 512]`` to keys ``[n, heads, qk_nope_head_dim]`` and values ``[.., v_head_dim]``."""
        heads = functional.linear(latent, self.weight).unflatten(1, (self.num_heads, -1))
        return heads[..., : self.key_dim], heads[..., self.key_dim :]

    def absorb(self, q_nope: Tensor) -> Tensor:
        """Queries ``[n, heads, qk_nope_head_dim]`` against the latent: ``[n, heads, 512]``."""
        w_uk = self.weight.unflatten(0, (self.num_heads, -1))[:, : self.key_dim]
        return torch.bmm(q_nope.transpose(0, 1), w_uk).transpose(0, 1)

    def values(self, out: Tensor) -> Tensor:
        """Attended latents ``[n, heads, 512]`` to values ``[n, heads, v_head_dim]``."""
        w_uv = self.weight.unflatten(0, (self.num_heads, -1))[:, self.key_dim :]
        return torch.bmm(out.transpose(0, 1), w_uv.mT).transpose(0, 1)

    def checkpoint_problems(self, state_dict: Mapping[str, Any], prefix: str) -> list[str]:
        """As that of :class:`Fp8Linear`."""
        rows, columns = self.weight.shape
        return weight_problems(state_dict, prefix, (rows, columns))

    def converted(self, state_dict: dict[str, Any], prefix: str) -> dict[str, Any]:
        """With the weight in BF16."""
        weight = state_dict.get(f"{prefix}weight")
        if weight is None:
            return state_dict
        if weight.dtype == FP8:
            weight = dequantized(weight, state_dict[f"{prefix}{SCALES}"])
        state_dict = state_dict | {f"{prefix}weight": weight.to(BF16)}
        state_dict.pop(f"{prefix}{SCALES}", None)
        return state_dict


class MlaAttention(nn.Module):
    """The attention of DeepSeek-V2, V3 and R1, over a :class:`PagedLatentCache`.

    Projections are :class:`Fp8Linear`, but for ``kv_b_proj``; all else is BF16 with FP32 sums.
    Names are those of the public checkpoints, which ``load_state_dict`` takes in FP8 and BF16; of a
    layer of which a part is refused, nothing is loaded.

    *Prefill* writes the new tokens' latents into the cache, reads those of their whole sequences
    back, projects them to keys and values of each head, and attends by torch's
    ``scaled_dot_product_attention``, sequence by sequence. So it sees what a decode would see: with
    an FP8 cache, latents in FP8. *Decode* folds ``kv_b_proj`` into the queries and attends to the
    latents themselves by :func:`pykernels.mla_decode`. What a decode launches depends on the sizes
    alone: it can be captured into a CUDA graph, and compiled as one graph.

    Inference only. Conversions such as ``half`` leave the dtypes.
    """

    def __init__(
        self,
        config: MlaConfig,
        *,
        layer_idx: int = 0,
        scale_fmt: str = "fp32",
        device: torch.device | str | None = None,
    ) -> None:
        """A layer to load a checkpoint into. Until then its results are NaN.

        Args:
            config: its sizes.
            layer_idx: which layer of the cache is its own.
            scale_fmt: how weights that are not FP8 are cast, as :class:`Fp8Linear` has it.
            device: of its tensors; ``"meta"`` for none as yet, to be loaded with ``assign=True``.
        """
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx

        def linear(in_features: int, out_features: int, bias: bool = False) -> Fp8Linear:
            return Fp8Linear.empty(
                in_features, out_features, bias=bias, scale_fmt=scale_fmt, device=device
            )

        hidden, latent, bias = config.hidden_size, config.kv_lora_rank, config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = linear(hidden, config.num_heads * config.qk_head_dim)
        else:
            self.q_a_proj = linear(hidden, config.q_lora_rank, bias)
            self.q_a_layernorm = _rms_norm(config.q_lora_rank, config.norm_eps, device)
            self.q_b_proj = linear(config.q_lora_rank, config.num_heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = linear(hidden, latent + config.qk_rope_head_dim, bias)
        self.kv_a_layernorm = _rms_norm(latent, config.norm_eps, device)
        self.kv_b_proj = LatentProjection(config, device)
        self.o_proj = linear(config.num_heads * config.v_head_dim, hidden, bias)

    @classmethod
    def from_float(cls, attention: nn.Module, *, scale_fmt: str = "fp32") -> MlaAttention:
        """Casts a ``DeepseekV3Attention`` of Hugging Face ``transformers``.

        Args:
            attention: the layer, in ``bfloat16``, ``float16`` or ``float32``; stays as it is, and
                shares its biases.
            scale_fmt: as :meth:`Fp8Linear.from_float` has it.

        Raises:
            ValueError: the kernels do not take its sizes.
        """
        source: Any = attention
        norm_eps = source.kv_a_layernorm.variance_epsilon
        config = dataclasses.replace(MlaConfig.from_hf(source.config), norm_eps=norm_eps)
        made = cls(config, layer_idx=source.layer_idx, scale_fmt=scale_fmt, device="meta")
        for name in FP8_PROJECTIONS:
            if hasattr(made, name):
                linear = getattr(source, name)
                setattr(made, name, Fp8Linear.from_float(linear, scale_fmt=scale_fmt))
        for name in (*NORMS, "kv_b_proj"):
            if hasattr(made, name):
                state = getattr(source, name).state_dict()
                state = {key: tensor.to(BF16, copy=True) for key, tensor in state.items()}
                getattr(made, name).load_state_dict(state, assign=True)
        return made

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], step: MlaStep
    ) -> Tensor:
        """Attend with new tokens, and cache them.

        Args:
            hidden_states: ``[..., hidden_size]``, ``bfloat16``: the tokens of the step, in its
                order. Leading dimensions are as one likes: ``[batch, seqlen_q]`` of a decode.
            position_embeddings: what :class:`RotaryEmbedding` gives for ``step.positions``:
                cosines and sines ``[num_tokens, 32]``, ``float32``.
            step: what the cache's ``append`` returned, or a :class:`DecodeStep` that has been
                reserved and advanced.

        Returns:
            ``[..., hidden_size]``, ``bfloat16``: of the same tokens in the same order.

        Raises:
            ValueError: a tensor is not as above, or the step is one for other sizes; nothing has
                been cached.
        """
        self._check(hidden_states, step)
        x = hidden_states.flatten(0, -2)
        q_nope, q_rope = self._project(x, position_embeddings, step)
        if isinstance(step, DecodeStep):
            heads = self._decode(q_nope, q_rope, step)
        else:
            heads = self._prefill(q_nope, q_rope, step)
        result: Tensor = self.o_proj(heads.flatten(1))
        return result.view(hidden_states.shape)

    def _project(
        self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], step: MlaStep
    ) -> tuple[Tensor, Tensor]:
        """Caches the latents; the queries ``[num_tokens, num_heads, ...]``, rotated."""
        config = self.config
        activations = quantize_1x128(x)  # once, for both projections

        def projected(linear: Fp8Linear) -> Tensor:
            return linear.finish(linear.multiply(activations, BF16), x)

        latent, rope = projected(self.kv_a_proj_with_mqa).split(
            (config.kv_lora_rank, config.qk_rope_head_dim), dim=-1
        )
        cos, sin = position_embeddings
        mla_cache_write(
            latent,
            rope,
            step.layers[self.layer_idx],
            step.slot_mapping,
            norm_weight=self.kv_a_layernorm.weight,
            norm_eps=config.norm_eps,
            cos=cos,
            sin=sin,
            rope_interleaved=config.rope_interleave,
        )
        if config.q_lora_rank is None:
            q = projected(self.q_proj)
        else:
            q = self.q_b_proj(self.q_a_layernorm(projected(self.q_a_proj)))
        q_nope, q_rope = q.unflatten(1, (config.num_heads, -1)).split(
            (config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1
        )
        angles = Angles(cos[:, None], sin[:, None], config.rope_interleave)
        return q_nope, rotated(q_rope.float(), angles).to(BF16)

    def _decode(self, q_nope: Tensor, q_rope: Tensor, step: DecodeStep) -> Tensor:
        shape = -1, step.seqlen_q
        out, _ = mla_decode(
            (self.kv_b_proj.absorb(q_nope).unflatten(0, shape), q_rope.unflatten(0, shape)),
            step.layers[self.layer_idx],
            step.block_table,
            step.cache_seqlens,
            softmax_scale=self.config.softmax_scale,
            plan=step.plan,
        )
        return self.kv_b_proj.values(out.flatten(0, 1))

    def _prefill(self, q_nope: Tensor, q_rope: Tensor, step: PrefillStep) -> Tensor:
        """One sequence after the other: keys and values of all heads exist for one at a time."""
        latent, k_rope = mla_cache_read(step.layers[self.layer_idx], step.context_slots)
        heads = q_nope.new_empty(*q_nope.shape[:2], self.config.v_head_dim)
        queries = torch.cat([q_nope, q_rope], dim=-1)
        for out, query, of_latent, of_rope in zip(
            heads.split(step.query_lens),
            queries.split(step.query_lens),
            latent.split(step.kv_lens),
            k_rope.split(step.kv_lens),
            strict=True,
        ):
            k_nope, value = self.kv_b_proj(of_latent)
            rope_of_heads = of_rope[:, None].expand(-1, self.config.num_heads, -1)
            key = torch.cat([k_nope, rope_of_heads], dim=-1)
            out.copy_(self._attend(query, key, value))
        return heads

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal: the queries are the last tokens; ``[num_tokens, num_heads, head_dim]`` all."""
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        is_whole = query.size(0) == key.size(0)
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if is_whole else causal_lower_right(query.size(0), key.size(0)),
            is_causal=is_whole,
            scale=self.config.softmax_scale,
        )
        return out[0].transpose(0, 1)

    def _check(self, hidden_states: Tensor, step: MlaStep) -> None:
        shape = tuple(hidden_states.shape)
        num_tokens = hidden_states.numel() // self.config.hidden_size
        if hidden_states.dtype != BF16:
            self._refuse(f"hidden_states must be bfloat16, got {hidden_states.dtype}")
        if shape[-1:] != (self.config.hidden_size,) or num_tokens != step.num_tokens:
            self._refuse(
                f"hidden_states must be [..., {self.config.hidden_size}] with the "
                f"{step.num_tokens} tokens of the step, got {list(shape)}"
            )
        if not 0 <= self.layer_idx < len(step.layers):
            self._refuse(f"the cache must have its layer, got one of {len(step.layers)} layers")
        if isinstance(step, DecodeStep) and step.num_heads != self.config.num_heads:
            self._refuse(
                f"the decode step must be for its num_heads = {self.config.num_heads}, got one for "
                f"{step.num_heads}"
            )

    def _refuse(self, problem: str) -> NoReturn:
        raise ValueError(f"MlaAttention (layer {self.layer_idx}): {problem}")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Comes before those of the parts, which load from this dict; it is torch's own copy."""
        *_, error_msgs = arguments
        if problems := module_problems(self, state_dict, prefix):
            error_msgs += problems
            for name in [name for name in state_dict if name.startswith(prefix)]:
                del state_dict[name]
            state_dict |= self.state_dict(prefix=prefix)  # so all parts stay as they are
        for name in NORMS:  # of which assignment would take any dtype
            if (weight := state_dict.get(f"{prefix}{name}.weight")) is not None:
                state_dict[f"{prefix}{name}.weight"] = weight.to(BF16)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MlaAttention:
        """Conversions move all to the device, and leave the dtypes."""
        super()._apply(keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self


def _rms_norm(size: int, eps: float, device: torch.device | str | None) -> nn.RMSNorm:
    return nn.RMSNorm(size, eps=eps, device=device, dtype=BF16).requires_grad_(False)
