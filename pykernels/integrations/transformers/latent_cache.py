"""A ``Cache`` of ``transformers`` whose layers are those of a :class:`PagedLatentCache`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from pykernels import checks
from pykernels.nn import DecodeStep, PagedLatentCache
from pykernels.nn.mla_steps import MlaStep

_FIRST_TOKENS = 256  # for which a row of a new cache has pages


class LatentCacheLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """What ``transformers`` asks a layer of a cache for; the attention does not come by here."""

    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: LatentCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._refuse()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> NoReturn:
        self._refuse()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._cache.num_seen

    def get_max_length(self) -> int:
        return self._cache.max_seqlen

    def _refuse(self) -> NoReturn:
        raise RuntimeError(
            "a LatentCache holds latents, which MlaAttention writes: pass it to a model whose "
            "attention accelerate_model has replaced"
        )


class LatentCache(Cache):
    """For ``model(..., cache=cache)`` and ``model.generate(..., cache=cache)``.

    Rows are those of the batch. Sequences hold their own tokens, without padding. Pages are added
    when there are too few.

    Attributes:
        pages: the :class:`PagedLatentCache`.
        max_seqlen: tokens that a sequence may have.
        num_seen: tokens of a row, its padding included, as ``attention_mask`` counts them.
    """

    def __init__(
        self,
        config: Any,
        max_batch: int,
        *,
        max_seqlen: int | None = None,
        num_pages: int | None = None,
        page_size: int = 64,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        """Allocates the pages.

        Args:
            config: a ``DeepseekV3Config``.
            max_batch: rows of a batch.
            max_seqlen: tokens that a sequence may have; None for the config's
                ``max_position_embeddings``.
            num_pages: of each layer, to begin with; None for 256 tokens of each row.
            page_size: tokens in a page, a power of two from 1 to 256.
            dtype: ``bfloat16`` or ``float8_e4m3fn``.
            device: of the pages.

        Raises:
            ValueError: an argument is not as above.
        """
        self.max_seqlen = max_seqlen or config.max_position_embeddings
        if num_pages is None:
            tokens = min(_FIRST_TOKENS, self.max_seqlen)
            num_pages = max_batch * checks.ceil_div(tokens, page_size)
        self.pages = PagedLatentCache(
            config.num_hidden_layers,
            num_pages,
            max_batch=max_batch,
            max_seqlen=self.max_seqlen,
            page_size=page_size,
            dtype=dtype,
            device=device,
        )
        self.num_seen = 0
        self._num_heads = config.num_attention_heads
        self._decode: DecodeStep | None = None
        self._is_reserved = False
        super().__init__(layers=[LatentCacheLayer(self) for _ in range(config.num_hidden_layers)])

    def append(self, num_new_tokens: Sequence[int], seqlen: int) -> MlaStep:
        """The step of a forward: new tokens of each row, of ``seqlen`` with padding.

        Raises:
            ValueError: there are more rows than ``max_batch``, or a sequence would be longer than
                ``max_seqlen``; nothing has changed.
        """
        counts = list(num_new_tokens)
        if len(counts) != self.pages.max_batch:
            raise ValueError(
                f"the cache is for a batch of {self.pages.max_batch}, got one of {len(counts)}"
            )
        if all(count == 1 for count in counts) and all(self.pages.lengths) and seqlen == 1:
            self.reserve()
            return self.advance()
        self._add_pages(counts)
        step = self.pages.append(counts)
        self.num_seen += seqlen
        return step

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def reserve(self) -> None:
        """Pages for the next token of each row, ahead of a forward that is compiled or captured.

        Such a forward has one token for each row and no ``attention_mask``. Others reserve by
        themselves.

        Raises:
            ValueError: a row has no tokens yet, or a sequence would be longer than ``max_seqlen``;
                nothing has changed.
        """
        if not all(self.pages.lengths):
            raise ValueError(f"each row must have tokens, got {self.pages.lengths}")
        if self._decode is None:
            self._decode = self.pages.decode_step(self._num_heads)
        self._add_pages([1] * self.pages.max_batch)
        self._decode.reserve()
        self.num_seen += 1
        self._is_reserved = True

    @property
    def is_reserved(self) -> bool:
        """Whether :meth:`reserve` has been called for the next forward."""
        return self._is_reserved

    def advance(self) -> DecodeStep:
        """The step that has been reserved, on the device."""
        assert self._decode is not None
        self._decode.advance()
        self._is_reserved = False
        return self._decode

    def reset(self) -> None:
        """End all sequences; pages stay allocated."""
        self.pages.free(range(self.pages.max_batch))
        self.num_seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was; rows that are named twice are copied."""
        rows = beam_idx.tolist()
        if rows == list(range(self.pages.max_batch)):
            return
        needed = [self.pages.lengths[row] for row in rows]
        self._add(sum(map(self._num_pages, needed)) - self._num_used())
        self.pages.select(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._refuse("repeat rows of the batch")

    def batch_select_indices(self, indices: Tensor) -> None:
        self._refuse("select rows of the batch")

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            self._refuse("remove tokens")

    def _refuse(self, what: str) -> NoReturn:
        raise NotImplementedError(f"LatentCache does not {what}; pass a cache of your own making")

    def _num_pages(self, length: int) -> int:
        return checks.ceil_div(length, self.pages.page_size)

    def _num_used(self) -> int:
        return sum(map(self._num_pages, self.pages.lengths))

    def _add_pages(self, counts: Sequence[int]) -> None:
        lengths = [
            min(length + count, self.max_seqlen)
            for length, count in zip(self.pages.lengths, counts, strict=True)
        ]
        self._add(sum(map(self._num_pages, lengths)) - self._num_used())

    def _add(self, needed: int) -> None:
        """At least so many free pages; twice as many pages as there were, or more."""
        if needed > self.pages.num_free_pages:
            there = self.pages.layers[0].size(0)
            self.pages.grow(max(2 * there, there + needed - self.pages.num_free_pages))
