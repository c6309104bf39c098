"""``MlaAttention`` and the rotary embedding with the signatures of ``DeepseekV3Model``'s layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pykernels.nn import MlaAttention, RotaryEmbedding
from pykernels.nn.mla_steps import MlaStep


class ModelStep(NamedTuple):
    """What all layers share in one forward of the model.

    Attributes:
        step: of the cache.
        tokens: ``[num_tokens]``, ``int64``: which of the ``batch * seqlen`` tokens of the padded
            batch are tokens of the step; None for all of them.
    """

    step: MlaStep
    tokens: Tensor | None

    def packed(self, hidden_states: Tensor) -> Tensor:
        """``[batch, seqlen, hidden]`` to the step's tokens ``[num_tokens, hidden]``."""
        flat = hidden_states.flatten(0, 1)
        return flat if self.tokens is None else flat.index_select(0, self.tokens)

    def padded(self, packed: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`packed`, with the shape and dtype of ``like``; padding is 0."""
        if self.tokens is None:
            return packed.to(like.dtype).view(like.shape)
        flat = torch.zeros_like(like).flatten(0, 1)
        return flat.index_copy(0, self.tokens, packed.to(like.dtype)).view(like.shape)


class ModelAttention(MlaAttention):
    """In the place of ``DeepseekV3Attention``."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        latent_step: ModelStep | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attend with the tokens of the step.

        Args:
            hidden_states: ``[batch, seqlen, hidden_size]``, any floating type.
            position_embeddings: of the step's tokens, by :class:`ModelRotaryEmbedding`.
            latent_step: from the hook of the model.
            unused: what the step stands for: masks, positions and cache.

        Returns:
            ``[batch, seqlen, hidden_size]``, the dtype of ``hidden_states``, 0 for padding; and
            None for the weights of the attention.

        Raises:
            RuntimeError: there is no step: the layer was called by itself.
        """
        if latent_step is None:
            raise RuntimeError(
                f"the attention of layer {self.layer_idx} has no step: call the DeepseekV3Model "
                "that it is in, or model.layers[i].self_attn only before accelerate_model"
            )
        x = latent_step.packed(hidden_states).bfloat16()
        y = super().forward(x, position_embeddings, latent_step.step)
        return latent_step.padded(y, hidden_states), None


class ModelRotaryEmbedding(RotaryEmbedding):
    """In the place of ``DeepseekV3RotaryEmbedding``, of positions ``[1, num_tokens]``."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        return super().forward(position_ids[0])
