"""Packing, expanding and summing rows, in torch: what does not depend on how they travel.

The sums have the bits of the reference (and of the kernels) on every device.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pykernels.group_checks import COUNTER_ROWS
from pykernels.moe.group import BufferSizes, num_scales
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.routing import Arrangement, arrange
from pykernels.moe.transport import Batch, DispatchCall, Received
from pykernels.quantize import quantize_1x128

_BF16_NAN = 0x7FFF  # what cvt.rn.bf16.f32 makes of every NaN


class Place(NamedTuple):
    """A rank among the others."""

    rank: int
    sizes: BufferSizes


class RecordLayout:
    """A token on its way: its row, its scale factors, its experts and weights, as bytes."""

    def __init__(self, dtype: torch.dtype, hidden: int, num_topk: int) -> None:
        self.dtype = dtype
        is_fp8 = dtype == torch.float8_e4m3fn
        self.num_scales = num_scales(hidden) if is_fp8 else 0
        sizes = (hidden * dtype.itemsize, 4 * self.num_scales, 4 * num_topk, 4 * num_topk)
        self._ends = list(itertools.accumulate(sizes))

    @property
    def bytes(self) -> int:
        return int(self._ends[-1])

    def pack(self, batch: Batch, topk_idx: Tensor) -> Tensor:
        """``[num_tokens, bytes]``, ``uint8``; ``topk_idx`` stands in place of the batch's."""
        parts = [batch.x, topk_idx.int(), batch.topk_weights]
        if batch.scales is not None:
            parts.insert(1, batch.scales)
        return torch.cat([_as_bytes(_in_rows(part)) for part in parts], dim=1)

    def topk_idx(self, records: Tensor) -> Tensor:
        """``[num_tokens, num_topk]``, ``int32``."""
        idx = _in_rows(records[:, self._ends[1] : self._ends[2]])
        return idx.view(torch.int32)

    def unpack(self, records: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """x, scales, ``topk_idx`` as ``int64``, ``topk_weights``."""
        x, scales, idx, weights = (
            _in_rows(records[:, begin:end])
            for begin, end in zip([0, *self._ends[:-1]], self._ends, strict=True)
        )
        return (
            x.view(self.dtype),
            scales.view(torch.float32) if self.num_scales else None,
            idx.view(torch.int32).long(),
            weights.view(torch.float32),
        )


class Shortage(NamedTuple):
    """A rank that would receive more rows than there is room for."""

    rank: int
    message: str


def shortages(
    call: DispatchCall, sizes: BufferSizes, expert_counts: list[int], capacities: list[int]
) -> list[Shortage]:
    """The ranks whose room does not suffice, given the rows of each expert and their capacity."""
    found = []
    for rank, capacity in enumerate(capacities):
        first = rank * sizes.num_local_experts
        counts = expert_counts[first : first + sizes.num_local_experts]
        if call.masked and max(counts) > capacity:
            expert = first + counts.index(max(counts))
            message = (
                f"expert {expert} must receive at most num_ranks * num_max_tokens_per_rank = "
                f"{capacity} rows, got {max(counts)}; tokens must not name it twice"
            )
            found.append(Shortage(rank, message))
        if not call.masked and sum(counts) > capacity:
            message = (
                f"capacity must be at least {sum(counts)}, the rows that rank {rank} receives, got "
                f"{capacity}; pass it, or None for the worst case of distinct experts"
            )
            found.append(Shortage(rank, message))
    return found


def check_handles(
    numbers: Mapping[int, int],
    sent: Mapping[int, Sequence[int]],
    awaited: Mapping[int, Sequence[int]],
) -> None:
    """What each rank sends to each other in a combine is what that one waits for.

    Args:
        numbers: by rank, of its handle's dispatch.
        sent: by rank, its tokens' numbers for all ranks.
        awaited: by rank, those that it waits for from all ranks.

    Raises:
        ValueError: the ranks' handles are not of one dispatch.
    """
    first, *others = numbers
    for rank in others:
        if numbers[rank] != numbers[first]:
            raise ValueError(
                f"all ranks must pass handles of the same dispatch, got that of call "
                f"{numbers[first]} on rank {first} and of call {numbers[rank]} on rank {rank}"
            )
    for rank, counts in sent.items():
        for home, of_home in awaited.items():
            if counts[home] != of_home[rank]:
                raise ValueError(
                    "all ranks must pass handles of the same dispatch, got one with "
                    f"{counts[home]} tokens of rank {home} on rank {rank}, but with "
                    f"{of_home[rank]} tokens for rank {rank} on rank {home}"
                )


def quantized(batch: Batch, scale_fmt: str | None) -> Batch:
    """The batch with its rows cast as the send casts them."""
    if scale_fmt is None:
        return batch
    q, scales = quantize_1x128(batch.x, scale_fmt=scale_fmt)
    return batch._replace(x=q, scales=scales)


def fill_received(
    received: Received, records: Tensor, recv_counts: list[int], layout: RecordLayout, place: Place
) -> None:
    """Writes all results of a dispatch but ``position_in_rank``.

    Args:
        received: what is written; the rows of all experts fit into it.
        records: ``[sum(recv_counts), layout.bytes]``, by source rank, then token.
        recv_counts: tokens from each rank.
        layout: of the records.
        place: the receiving rank.
    """
    handle = received.handle
    x, scales, topk_idx, topk_weights = layout.unpack(records)
    arrangement = arrange(topk_idx, topk_weights, place.rank, place.sizes, masked=handle.masked)
    token, entry = (arrangement.rows >= 0).nonzero(as_tuple=True)
    rows = arrangement.rows[token, entry]
    hidden = x.size(1)
    _as_bytes(received.x).view(-1, hidden * x.itemsize)[rows] = _as_bytes(x)[token]
    if scales is not None and received.scales is not None:
        received.scales.view(-1, scales.size(1))[rows] = scales[token]
    _fill_counts(received, arrangement)
    handle.recv_counts.copy_(torch.tensor(recv_counts, device="cpu"))
    tables = (handle.rows, handle.row_weights, handle.row_topk)
    found = (arrangement.rows, arrangement.weights, arrangement.topk)
    for table, values in zip(tables, found, strict=True):
        for source, part in enumerate(values.split(recv_counts)):
            table[source, : part.size(0)] = part


def _fill_counts(received: Received, arrangement: Arrangement) -> None:
    if received.counters is not None:  # all rows are there
        received.counters[0] = COUNTER_ROWS
        received.counters[1] = 0
    if received.handle.masked:
        received.counts.copy_(arrangement.counts)
    else:
        received.counts[0] = 0
        received.counts[1:] = arrangement.counts.cumsum(0)


def sum_rows(y: Tensor, handle: DispatchHandle, recv_counts: list[int]) -> Tensor:
    """What travels home: ``[sum(recv_counts), hidden]``, BF16, by source rank, then token.

    ``acc = fmaf(weight, y[row], acc)`` from +0 over a token's rows, rounded to BF16. Rows that no
    token has are not read.
    """
    rows, weights = (
        torch.cat([table[source, :count] for source, count in enumerate(recv_counts)])
        for table in (handle.rows, handle.row_weights)
    )
    rows = rows.long()
    total = torch.zeros((rows.size(0), y.size(-1)), dtype=torch.float32, device=y.device)
    for entry in range(rows.size(1)):
        tokens = (rows[:, entry] >= 0).nonzero().squeeze(1)
        row = rows[tokens, entry]
        values = y[row // handle.capacity, row % handle.capacity] if handle.masked else y[row]
        total[tokens] = fmaf(weights[tokens, entry, None], values, total[tokens])
    return round_to_bf16(total)


def sum_at_home(parts: Sequence[Tensor | None], position_in_rank: Tensor, out: Tensor) -> None:
    """The FP32 sum from +0 of what came from each rank, in ascending order; None: not awaited."""
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for rank, part in enumerate(parts):
        if part is not None:
            tokens = (position_in_rank[:, rank] >= 0).nonzero().squeeze(1)
            total[tokens] += part.float()
    # A tensor made in inference mode may only be written there.
    with torch.inference_mode(torch.is_inference_mode_enabled() or out.is_inference()):
        out.copy_(round_to_bf16(total))


def fmaf(weights: Tensor, values: Tensor, addends: Tensor) -> Tensor:
    """``weights * values + addends`` in FP32, rounded once; ``values`` are BF16.

    The product has 24 + 8 significant bits and is exact in float64. The sum is rounded to odd
    there: if it is inexact, to the neighbour whose last bit is 1. From 53 bits, that rounds on to
    24 as the exact sum does (Boldo and Melquiond, 2008).
    """
    product = weights.double() * values.double()
    addend = addends.double()
    total = product + addend
    # The exact error of the sum (Knuth's TwoSum).
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    is_even_and_inexact = (error != 0) & total.isfinite() & (bits & 1 == 0)
    away_from_zero = (error > 0) == (total > 0)
    bits = torch.where(is_even_and_inexact, bits + torch.where(away_from_zero, 1, -1), bits)
    return bits.view(torch.float64).float()


def round_to_bf16(values: Tensor) -> Tensor:
    """To nearest even, and every NaN to 0x7FFF; torch's own NaN differs between its kernels."""
    rounded = values.bfloat16()
    rounded.view(torch.int16)[values.isnan()] = _BF16_NAN
    return rounded


def _in_rows(tensor: Tensor) -> Tensor:
    """A copy with the strides of its shape, which tensors of few elements may be without."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)
