"""Rotary position embedding, with YaRN's scaling to longer contexts as DeepSeek uses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pykernels.nn.checkpoint import keeping_dtype


class YarnScaling(NamedTuple):
    """YaRN (arXiv 2309.00071), by the names of a Hugging Face config's ``rope_parameters``.

    Frequencies that turn ``beta_fast`` times and more within
    ``original_max_position_embeddings`` tokens stay, those that turn ``beta_slow`` times and fewer
    are divided by ``factor``, and between the two there is a ramp.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True

    @classmethod
    def from_rope_parameters(cls, parameters: Mapping[str, Any]) -> YarnScaling:
        """From a Hugging Face config's; what is None there, or not there, has its default.

        Raises:
            ValueError: there is no factor, or no original length.
        """
        given = {name: parameters[name] for name in cls._fields if parameters.get(name) is not None}
        for name in ("factor", "original_max_position_embeddings"):
            if name not in given:
                raise ValueError(
                    f"rope_parameters of YaRN must have {name}, got {dict(parameters)}"
                )
        return cls(**given)

    @property
    def embedding_factor(self) -> float:
        """By what cosines and sines are multiplied; 1 with the mscales of DeepSeek-V3."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    @property
    def softmax_factor(self) -> float:
        """By what the softmax's scale is multiplied."""
        return self._mscale(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _mscale(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self, head_dim: int, theta: float) -> Tensor:
        """``[head_dim / 2]``, radians a token, ``float32``."""
        low, high = (
            self._turning(turns, head_dim, theta) for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low or 0.001  # no division by zero
        ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        plain = plain_frequencies(head_dim, theta)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def _turning(self, turns: float, head_dim: int, theta: float) -> float:
        """Which pair of columns, as a real number, turns so often within the original length."""
        tokens_per_radian = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(tokens_per_radian) / (2 * math.log(theta))


def plain_frequencies(head_dim: int, theta: float) -> Tensor:
    """``[head_dim / 2]``, radians a token, ``float32``."""
    even = torch.arange(0, head_dim, 2, dtype=torch.float32)
    return 1.0 / theta ** (even / head_dim)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of positions: once per step, for all layers.

    Stays in FP32 whatever the model is converted to.
    """

    inv_freq: Tensor

    def __init__(
        self,
        head_dim: int = 64,
        *,
        theta: float = 10000.0,
        scaling: YarnScaling | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Makes one for a head's rotated columns.

        Args:
            head_dim: how many columns are rotated, ``qk_rope_head_dim``.
            theta: the base of the frequencies, ``rope_theta``.
            scaling: YaRN's, or None.
            device: of the frequencies.
        """
        super().__init__()
        frequencies = (
            plain_frequencies(head_dim, theta)
            if scaling is None
            else scaling.frequencies(head_dim, theta)
        )
        self.factor = 1.0 if scaling is None else scaling.embedding_factor
        self.register_buffer("inv_freq", frequencies.to(device), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``[num_tokens]`` to cosines and sines ``[num_tokens, head_dim / 2]``, ``float32``."""
        angles = positions[:, None].float() * self.inv_freq
        return angles.cos() * self.factor, angles.sin() * self.factor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        super()._apply(keeping_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self
