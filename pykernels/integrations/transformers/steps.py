"""What runs ahead of ``DeepseekV3Model.forward``: the batch as a step of the latent cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from pykernels.checks import ceil_div
from pykernels.integrations.transformers.attention import ModelStep
from pykernels.integrations.transformers.latent_cache import LatentCache
from pykernels.nn import PrefillStep
from pykernels.nn.latent_cache import empty_layer

_NAMES = (  # positional arguments of DeepseekV3Model.forward
    "input_ids",
    "attention_mask",
    "position_ids",
    "cache",
    "inputs_embeds",
    "use_cache",
)
_NOT_COMPUTED = ("output_attentions", "output_router_logits")


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """Of the latents that a model keeps; see :class:`LatentCache`."""

    dtype: torch.dtype = torch.bfloat16
    page_size: int = 64

    def make(self, model: Any, batch: int, max_seqlen: int = 0) -> LatentCache:
        """For a batch of the model, at least so long as its config has it."""
        return LatentCache(
            model.config,
            batch,
            max_seqlen=max(max_seqlen, model.config.max_position_embeddings),
            page_size=self.page_size,
            dtype=self.dtype,
            device=model.device,
        )


class Batch:
    """The tokens of one forward, ``batch * seqlen`` of them with their padding."""

    def __init__(self, tokens: Tensor, cache: LatentCache | None) -> None:
        self.batch, self.seqlen = tokens.shape[:2]
        self.device = tokens.device
        self.num_seen = 0 if cache is None else cache.num_seen
        self.lengths = (0,) * self.batch if cache is None else cache.pages.lengths
        self.counts = [self.seqlen] * self.batch
        self.tokens: Tensor | None = None

    def read_mask(self, mask: Tensor, position_ids: Tensor | None) -> None:
        """Which are tokens; waits for the device.

        Raises:
            ValueError: the mask is not ``[batch, num_seen + seqlen]``, is not that of the tokens in
                the cache, or has zeros between the tokens of a row while there are no positions.
        """
        wanted = [self.batch, self.num_seen + self.seqlen]
        if list(mask.shape) != wanted:
            raise ValueError(
                f"attention_mask must have shape {wanted}, a column for each token of a row, its "
                f"padding and those in the cache included, got {list(mask.shape)}"
            )
        on_host = mask.detach().cpu().bool()
        is_token, before = on_host[:, self.num_seen :], on_host[:, : self.num_seen].sum(1).tolist()
        if tuple(before) != tuple(self.lengths[: self.batch]):
            raise ValueError(
                f"attention_mask must have a 1 for each token in the cache, {list(self.lengths)} "
                f"of the rows, got {before}"
            )
        begins = on_host.int().diff(dim=1, prepend=torch.zeros(self.batch, 1)) == 1
        if position_ids is None and bool((begins.sum(1) > 1).any()):
            raise ValueError(
                "attention_mask must have the tokens of a row side by side where there are no "
                "position_ids, got zeros between ones"
            )
        self.counts = is_token.sum(1).tolist()
        if not any(self.counts):
            raise ValueError("attention_mask must have a token in this forward, got zeros alone")
        if not bool(is_token.all()):
            self.tokens = is_token.flatten().nonzero()[:, 0].to(self.device)

    def check_positions(self, position_ids: Tensor) -> None:
        """A row's tokens follow one another: a latent's place in its sequence is its position.

        Raises:
            ValueError: they do not, as where several sequences are packed into a row.
        """
        positions = position_ids.detach().cpu().expand(self.batch, -1).flatten()
        row = torch.arange(self.batch).repeat_interleave(self.seqlen)
        if self.tokens is not None:
            positions, row = (each[self.tokens.cpu()] for each in (positions, row))
        if bool(((positions.diff() != 1) & (row.diff() == 0)).any()):
            raise ValueError(
                "position_ids must count the tokens of each row by ones, got others; sequences "
                "that are packed into one row are not supported"
            )

    def without_cache(self, options: CacheOptions, num_layers: int) -> PrefillStep:
        """A step whose latents nobody keeps: all layers write over the same pages."""
        lengths = tuple(count for count in self.counts if count)
        total, page_size = sum(lengths), options.page_size
        pages = empty_layer(ceil_div(total, page_size), page_size, options.dtype, self.device)
        slots = torch.arange(total, device=self.device)
        return PrefillStep(
            [pages] * num_layers, self._positions(lengths), slots, slots, lengths, lengths
        )

    def _positions(self, lengths: Sequence[int]) -> Tensor:
        if self.tokens is None:
            return torch.arange(self.seqlen, device=self.device).repeat(self.batch)
        return torch.cat([torch.arange(length) for length in lengths]).to(self.device)


def prepare(options: CacheOptions, model: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A forward pre-hook: the arguments, and among them the step, its positions and the cache.

    Raises:
        ValueError: outputs are asked for that the kernels do not have, or the mask, the positions
            or the cache are not such that the layers can be right; nothing has changed.
    """
    arguments = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
    for name in _NOT_COMPUTED:
        if arguments.get(name, getattr(model.config, name, False)):
            raise ValueError(f"{name} must be False in an accelerated model, got True")
    tokens = arguments.get("input_ids")
    if tokens is None:
        tokens = arguments["inputs_embeds"]
    cache = _cache(options, model, arguments, tokens.size(0))
    step = _step(options, model, cache, tokens, arguments)
    arguments["latent_step"] = step
    arguments["position_ids"] = step.step.positions[None]  # for the rotary embedding
    arguments["cache"] = cache
    # transformers passes masks of 4 dimensions on as they are, and makes none; nobody reads it.
    arguments["attention_mask"] = torch.empty(1, 1, 1, 1, device=tokens.device)
    return (), arguments


def _step(
    options: CacheOptions,
    model: Any,
    cache: LatentCache | None,
    tokens: Tensor,
    arguments: dict[str, Any],
) -> ModelStep:
    mask, position_ids = arguments.get("attention_mask"), arguments.get("position_ids")
    if cache is not None and cache.is_reserved:
        if tokens.size(1) != 1 or mask is not None:
            raise ValueError(
                "after LatentCache.reserve() a forward must have one token for each row and no "
                f"attention_mask, got {tokens.size(1)} tokens"
            )
        return ModelStep(cache.advance(), None)
    batch = Batch(tokens, cache)
    if mask is not None or position_ids is not None:
        _read(batch, mask, position_ids)
    if cache is None:
        return ModelStep(batch.without_cache(options, len(model.layers)), batch.tokens)
    return ModelStep(cache.append(batch.counts, batch.seqlen), batch.tokens)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read(batch: Batch, mask: Tensor | None, position_ids: Tensor | None) -> None:
    if mask is not None:
        batch.read_mask(mask, position_ids)
    if position_ids is not None and batch.seqlen > 1:
        batch.check_positions(position_ids)


def _cache(
    options: CacheOptions, model: Any, arguments: dict[str, Any], batch: int
) -> LatentCache | None:
    cache = arguments.get("cache", arguments.pop("past_key_values", None))
    if cache is None:
        use_cache = arguments.get("use_cache")
        use_cache = model.config.use_cache if use_cache is None else use_cache
        return options.make(model, batch) if use_cache else None
    check_cache(cache)
    found: LatentCache = cache
    return found


def prepare_cache(
    model: Any,
    options: CacheOptions,
    generation_config: Any,
    model_kwargs: dict[str, Any],
    generation_mode: Any,
    batch_size: int,
    max_cache_length: int,
) -> None:
    """In the place of a model's ``_prepare_cache_for_generation``: makes a :class:`LatentCache`."""
    type(model)._prepare_cache_for_generation(
        model, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    )
    cache = model_kwargs.get("cache")
    is_default = type(cache) is DynamicCache and not cache.offloading
    if is_default and not getattr(cache, "_is_user_defined", False):
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        model_kwargs["cache"] = options.make(model, batch_size * copies, max_cache_length + 1)
    elif cache is not None:
        check_cache(cache)


def check_cache(cache: object) -> None:
    """Raises a ValueError for a cache of keys and values."""
    if not isinstance(cache, LatentCache):
        raise ValueError(
            "cache must be a pykernels.integrations.transformers.LatentCache, or None for a new "
            f"one, got {type(cache).__name__}"
        )
