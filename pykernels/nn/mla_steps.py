"""What the layers of a model share in one step: new tokens, their slots, the plan of the decode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pykernels.mla_plan import mla_decode_plan, mla_update_plan

NO_PAGE = -1  # in the block table, where a sequence has no page
NO_SLOT = -2  # an error to mla_cache_write, where -1 leaves a token out

if TYPE_CHECKING:
    from pykernels.nn.latent_cache import PagedLatentCache


class PrefillStep(NamedTuple):
    """Prompts, or parts of them; see :meth:`pykernels.nn.PagedLatentCache.append`.

    Attributes:
        layers: those of the cache.
        positions: ``[num_tokens]``, ``int64``: of each new token in its sequence.
        slot_mapping: ``[num_tokens]``, ``int64``: where it goes.
        context_slots: ``[sum(kv_lens)]``, ``int64``: the slots of all tokens of each sequence that
            has new ones, earlier tokens first.
        query_lens: new tokens of each of these sequences.
        kv_lens: all tokens of each.
    """

    layers: list[Tensor]
    positions: Tensor
    slot_mapping: Tensor
    context_slots: Tensor
    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)


class DecodeStep:
    """The next ``seqlen_q`` tokens of each row; see ``PagedLatentCache.decode_step``.

    Before each step the host calls :meth:`reserve`. Then comes what a CUDA graph may capture and
    replay: :meth:`advance`, and all layers. Neither waits for the device. A token for which nobody
    has reserved a page has a slot that does not exist: :func:`pykernels.mla_cache_write` leaves it
    out and reports it.

    Attributes:
        layers: those of the cache.
        positions: ``[batch * seqlen_q]``, ``int64``: of each new token, row after row.
        slot_mapping: ``[batch * seqlen_q]``, ``int64``: where it goes; -1 in rows left alone.
        block_table: ``[batch, max_pages]``, ``int32``, the cache's.
        cache_seqlens: ``[batch]``, ``int32``, the cache's.
        plan: for :func:`pykernels.mla_decode`.
        num_heads: query heads of the layers.
        seqlen_q: new tokens of a row.
    """

    def __init__(
        self,
        cache: PagedLatentCache,
        num_heads: int,
        batch: int,
        seqlen_q: int,
        batch_invariant: bool,
    ) -> None:
        self.plan = mla_decode_plan(
            batch,
            seqlen_q,
            num_heads,
            batch_invariant=batch_invariant,
            max_seqlen=cache.block_table.size(1) * cache.page_size,
            device=cache.device,
        )
        self.layers = cache.layers
        self.num_heads = num_heads
        self.seqlen_q = seqlen_q
        self.block_table = cache.block_table[:batch]
        self.cache_seqlens = cache.cache_seqlens[:batch]
        self.positions = torch.zeros(batch * seqlen_q, dtype=torch.int64, device=cache.device)
        self.slot_mapping = torch.full_like(self.positions, -1)
        self._cache = cache
        self._page_size = cache.page_size
        self._counts = [0] * batch
        self._num_new_tokens = torch.zeros_like(self.cache_seqlens)
        self._token = torch.arange(seqlen_q, dtype=torch.int32, device=cache.device)

    @property
    def num_tokens(self) -> int:
        return self.positions.size(0)

    def reserve(self, active: Sequence[bool] | None = None) -> None:
        """Give the rows of this step the pages for their new tokens; outside of a CUDA graph.

        Args:
            active: which rows take part; None for those that have tokens. The others' tokens are
                not cached, and their results mean nothing.

        Raises:
            ValueError: ``active`` has not one entry for each row, or a sequence would be longer
                than ``max_seqlen``; nothing has changed.
            CacheFullError: there are not enough free pages; nothing has changed.
        """
        batch = len(self._counts)
        if active is None:
            active = [length > 0 for length in self._cache.lengths[:batch]]
        if len(active) != batch:
            raise ValueError(f"active must have an entry for each of {batch}, got {len(active)}")
        counts = [self.seqlen_q if is_active else 0 for is_active in active]
        self._cache.reserve(counts)
        if counts != self._counts:
            (new,) = sent((counts,), self.positions.device)
            self._num_new_tokens.copy_(new)
            self._counts = counts

    def advance(self) -> None:
        """Count the new tokens, find their slots and plan the decode, all on the device."""
        lengths = self.cache_seqlens
        is_new = self._token < self._num_new_tokens[:, None]
        positions = torch.where(is_new, lengths[:, None] + self._token, 0).long()
        columns, last = positions // self._page_size, self.block_table.size(1) - 1
        pages = self.block_table.gather(1, columns.clamp(max=last))
        slots = pages * self._page_size + positions % self._page_size
        slots = torch.where((pages == NO_PAGE) | (columns > last), NO_SLOT, slots)
        slots = torch.where(is_new, slots, -1)
        self.positions.copy_(positions.flatten())
        self.slot_mapping.copy_(slots.flatten())
        lengths.add_(self._num_new_tokens)
        mla_update_plan(self.plan, lengths)


MlaStep: TypeAlias = PrefillStep | DecodeStep


def sent(
    parts: Iterable[Sequence[int] | np.typing.NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, ...]:
    """Whole numbers to the device, ``int64``, in one copy that the host does not wait for."""
    arrays = [np.asarray(part, dtype=np.int64) for part in parts]
    packed = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":  # from other memory the copy would wait for the stream
        packed = packed.pin_memory()
    return tuple(packed.to(device, non_blocking=True).split([array.size for array in arrays]))
