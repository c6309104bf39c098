"""A paged cache of the latents of multi-head latent attention, for all layers of a model.

The pages are the device's, which page is whose the host decides: it knows how many tokens each step
adds, and never reads a tensor back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pykernels import checks
from pykernels.mla_cache_checks import BF16_TOKEN_COLUMNS, FP8_TOKEN_BYTES, PAGE_SIZES
from pykernels.nn.mla_steps import NO_PAGE, DecodeStep, PrefillStep, sent

_DTYPES = {
    torch.bfloat16: (torch.bfloat16, BF16_TOKEN_COLUMNS),
    torch.float8_e4m3fn: (torch.uint8, FP8_TOKEN_BYTES),
}


def check_format(page_size: int, dtype: torch.dtype) -> None:
    """Of a cache's pages.

    Raises:
        ValueError: the kernels do not take such pages.
    """
    if page_size not in PAGE_SIZES:
        raise ValueError(f"page_size must be a power of two from 1 to 256, got {page_size}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be bfloat16 or float8_e4m3fn, got {dtype}")


def empty_layer(
    num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device | str | None
) -> Tensor:
    """``[num_pages, page_size, 1, columns]``, not initialised: the pages of one layer."""
    stored, columns = _DTYPES[dtype]
    return torch.empty(num_pages, page_size, 1, columns, dtype=stored, device=device)


class CacheFullError(RuntimeError):
    """There are not enough free pages for the tokens of a step. Nothing has changed."""


class PagedLatentCache:
    """The latents of up to ``max_batch`` sequences, in pages, for each layer.

    A sequence has a row: its place in the batch, in the block table and in the lengths. New tokens
    come by :meth:`append` (prompts: a different number for each row) or by a :meth:`decode_step`
    (the same few for each). :meth:`free` and :meth:`reorder` end and move sequences.

    A token occupies ``num_layers`` times 1152 bytes in ``bfloat16`` or 656 in ``float8_e4m3fn``.
    Calls belong on one stream, the one that the layers run on.

    Attributes:
        layers: of each layer ``[num_pages, page_size, 1, 576]``, ``bfloat16``, or ``[..., 656]``,
            ``uint8``: what :func:`pykernels.mla_decode` takes.
        block_table: ``[max_batch, max_pages]``, ``int32``: the pages of each row, then -1.
        cache_seqlens: ``[max_batch]``, ``int32``: the tokens of each row.
        page_size: tokens in a page.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        *,
        max_batch: int,
        max_seqlen: int,
        page_size: int = 64,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        """Allocates all pages.

        Args:
            num_layers: layers of the model.
            num_pages: pages of each layer; a page has the same number in all of them.
            max_batch: sequences at a time.
            max_seqlen: tokens that a sequence may have.
            page_size: a power of two from 1 to 256.
            dtype: ``bfloat16`` or ``float8_e4m3fn``.
            device: of the tensors.

        Raises:
            ValueError: an argument is not as above.
        """
        sizes = {"num_layers": num_layers, "num_pages": num_pages}
        for name, size in (sizes | {"max_batch": max_batch, "max_seqlen": max_seqlen}).items():
            checks.check_integer(name, size, 1, checks.MAX_SIZE)
        check_format(page_size, dtype)
        self.layers = [empty_layer(num_pages, page_size, dtype, device) for _ in range(num_layers)]
        self.page_size = page_size
        max_pages = checks.ceil_div(max_seqlen, page_size)
        self.cache_seqlens = torch.zeros(max_batch, dtype=torch.int32, device=device)
        table = max_batch, max_pages
        self.block_table = torch.full(table, NO_PAGE, dtype=torch.int32, device=device)
        self._max_seqlen = max_seqlen
        self._lengths = [0] * max_batch
        self._pages: list[list[int]] = [[] for _ in range(max_batch)]
        self._free_pages = list(range(num_pages))[::-1]

    @property
    def device(self) -> torch.device:
        return self.block_table.device

    @property
    def max_batch(self) -> int:
        return len(self._lengths)

    @property
    def num_free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The tokens of each row as the host knows them, those reserved for a step included."""
        return tuple(self._lengths)

    def append(self, num_new_tokens: Sequence[int]) -> PrefillStep:
        """Make room for new tokens, in any number for each row; the layers then write them.

        Args:
            num_new_tokens: of rows 0, 1, ...; 0 for a row that this step leaves alone. A row
                without tokens begins a sequence, one with tokens goes on.

        Returns:
            The step, for the layers of this model. Its tokens are those of row 0, then those of
            row 1, and so on.

        Raises:
            ValueError: there are more rows than ``max_batch``, a number is negative, or a sequence
                would be longer than ``max_seqlen``; nothing has changed.
            CacheFullError: there are not enough free pages; nothing has changed.
        """
        counts = list(num_new_tokens)
        before = self._lengths[: len(counts)]
        self.reserve(counts)
        rows = [row for row, count in enumerate(counts) if count > 0]
        positions = [np.arange(before[row], self._lengths[row]) for row in rows]
        context = [self._slots(row) for row in rows]
        slots = [of_row[before[row] :] for row, of_row in zip(rows, context, strict=True)]
        indices = map(_joined, (positions, slots, context))
        lengths, position, slot, context_slot = sent(
            (self._lengths[: len(counts)], *indices), self.device
        )
        self.cache_seqlens[: len(counts)].copy_(lengths)
        num_new = tuple(counts[row] for row in rows)
        num_all = tuple(self._lengths[row] for row in rows)
        return PrefillStep(self.layers, position, slot, context_slot, num_new, num_all)

    def decode_step(
        self,
        num_heads: int,
        *,
        batch: int | None = None,
        seqlen_q: int = 1,
        batch_invariant: bool = False,
    ) -> DecodeStep:
        """Allocate what decoding needs besides the pages: once, for any number of steps.

        Args:
            num_heads: query heads of the layers, 1 to 128.
            batch: rows 0 to ``batch - 1`` take part; None for all.
            seqlen_q: new tokens of each row in a step.
            batch_invariant: as :func:`pykernels.mla_decode_plan` has it.

        Raises:
            ValueError: an argument is not as above.
        """
        batch = self.max_batch if batch is None else batch
        checks.check_integer("batch", batch, 1, self.max_batch)
        return DecodeStep(self, num_heads, batch, seqlen_q, batch_invariant)

    def reserve(self, num_new_tokens: Sequence[int]) -> None:
        """Give rows the pages for so many new tokens each; steps call it.

        Only the block table on the device is changed, and only where there are new pages.

        Raises:
            ValueError, CacheFullError: as :meth:`append` says.
        """
        counts = list(num_new_tokens)
        if len(counts) > self.max_batch:
            raise ValueError(f"a step has at most max_batch = {self.max_batch}, got {len(counts)}")
        needed = [self._num_missing_pages(row, count) for row, count in enumerate(counts)]
        if sum(needed) > self.num_free_pages:
            raise CacheFullError(
                f"the cache has {self.num_free_pages} free pages of {self.page_size} tokens, and "
                f"this step needs {sum(needed)}; free sequences, or make it with more num_pages"
            )
        entries = []
        for row, (count, missing) in enumerate(zip(counts, needed, strict=True)):
            self._lengths[row] += count
            for _ in range(missing):
                page = self._free_pages.pop()
                entries.append((row * self.block_table.size(1) + len(self._pages[row]), page))
                self._pages[row].append(page)
        if entries:
            places, pages = sent(tuple(zip(*entries, strict=True)), self.device)
            self.block_table.view(-1).index_copy_(0, places, pages.int())

    def free(self, rows: Iterable[int]) -> None:
        """End the sequences of these rows: their pages are free, and the rows have no tokens.

        Raises:
            ValueError: a row is not from 0 to ``max_batch - 1``, or named twice; nothing has
                changed.
        """
        ended = self._check_rows(rows)
        for row in ended:
            self._empty(row)
        if ended:
            (index,) = sent((ended,), self.device)
            self.cache_seqlens.index_fill_(0, index, 0)
            self.block_table.index_fill_(0, index, NO_PAGE)

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes what ``rows[i]`` was; sequences that are not named end.

        Pages stay where they are; the table and the lengths are moved.

        Raises:
            ValueError: as :meth:`free` says.
        """
        order = self._check_rows(rows)
        unnamed = [row for row in range(self.max_batch) if row not in set(order)]
        for row in unnamed:
            self._empty(row)
        order += unnamed  # which are without tokens
        self._pages = [self._pages[row] for row in order]
        self._lengths = [self._lengths[row] for row in order]
        index, lengths = sent((order, self._lengths), self.device)
        self.block_table.copy_(self.block_table.index_select(0, index))
        self.block_table[len(rows) :].fill_(NO_PAGE)
        self.cache_seqlens.copy_(lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what ``rows[i]`` was, as :meth:`reorder`; a row may be named repeatedly.

        The first that names a row gets its pages, each other one a copy of them.

        Raises:
            ValueError: a row is not from 0 to ``max_batch - 1``, or there are more than
                ``max_batch``; nothing has changed.
            CacheFullError: there are not enough free pages for the copies; nothing has changed.
        """
        named = list(rows)
        if len(named) > self.max_batch:
            raise ValueError(f"there are max_batch = {self.max_batch} rows, got {len(named)}")
        distinct = self._check_rows(dict.fromkeys(named))
        copies = list(named)
        for row in distinct:
            copies.remove(row)
        needed = sum(len(self._pages[row]) for row in copies)
        ended = [row for row in range(self.max_batch) if row not in distinct]
        free = self.num_free_pages + sum(len(self._pages[row]) for row in ended)
        if needed > free:
            raise CacheFullError(
                f"the cache has {free} free pages of {self.page_size} tokens, and copies of rows "
                f"need {needed}; free sequences, or make it with more num_pages"
            )
        self.reorder(distinct)
        sources = {row: place for place, row in enumerate(distinct)}
        places = {row: [place] for row, place in sources.items()}
        for place, row in enumerate(copies, len(distinct)):
            self._copy_row(sources[row], place)
            places[row].append(place)
        self.reorder([places[row].pop(0) for row in named])

    def grow(self, num_pages: int) -> None:
        """Have so many pages in all; those there are keep their numbers and their tokens.

        Each layer moves to other memory: CUDA graphs that were captured before are no longer valid.

        Raises:
            ValueError: there are more pages already.
        """
        before = self.layers[0].size(0)
        checks.check_integer("num_pages", num_pages, before, checks.MAX_SIZE)
        for idx, layer in enumerate(self.layers):
            self.layers[idx] = layer.new_empty(num_pages, *layer.shape[1:])
            self.layers[idx][:before].copy_(layer)
        self._free_pages = [*range(num_pages - 1, before - 1, -1), *self._free_pages]

    def _num_missing_pages(self, row: int, count: int) -> int:
        checks.check_integer(f"new tokens of row {row}", count, 0, checks.MAX_SIZE)
        length = self._lengths[row] + count
        if length > self._max_seqlen:
            raise ValueError(
                f"a sequence has at most max_seqlen = {self._max_seqlen} tokens, and row {row} "
                f"would have {length}"
            )
        return checks.ceil_div(length, self.page_size) - len(self._pages[row])

    def _slots(self, row: int) -> NDArray[np.int64]:
        """Of all tokens of a row."""
        first = np.array(self._pages[row], dtype=np.int64)[:, None] * self.page_size
        return (first + np.arange(self.page_size)).reshape(-1)[: self._lengths[row]]

    def _copy_row(self, source: int, target: int) -> None:
        """Into a row without tokens; there are enough free pages."""
        counts = [0] * target + [self._lengths[source]]
        self.reserve(counts)
        pages, copies = sent((self._pages[source], self._pages[target]), self.device)
        for layer in self.layers:
            layer.index_copy_(0, copies, layer.index_select(0, pages))
        self.cache_seqlens[target].copy_(self.cache_seqlens[source])

    def _empty(self, row: int) -> None:
        self._free_pages += self._pages[row][::-1]
        self._pages[row] = []
        self._lengths[row] = 0

    def _check_rows(self, rows: Iterable[int]) -> list[int]:
        checked = list(rows)
        for row in checked:
            checks.check_integer("a row", row, 0, self.max_batch - 1)
        if len(set(checked)) != len(checked):
            raise ValueError(f"rows must differ from one another, got {checked}")
        return checked


def _joined(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
