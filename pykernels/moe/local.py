"""All ranks in this process, rows moved by torch: a ``LocalGroup`` outside of ``emulate``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pykernels.moe import exchange
from pykernels.moe.group import BufferSizes
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.routing import Routing, route
from pykernels.moe.stats import PeerWait, WaitCounter
from pykernels.moe.transport import Batch, CombineCall, DispatchCall, Finish, Received


class LocalTransport:
    """Implements :class:`pykernels.moe.transport.Transport`; it never waits for anyone."""

    reads_values = True
    bytes = 0  # nothing is held between calls

    def __init__(self, sizes: BufferSizes) -> None:
        self._sizes = sizes
        self._masked_ranks: frozenset[int] = frozenset()
        self._ranks = range(sizes.num_ranks)
        self._num_dispatches = 0

    def dispatch(
        self, call: DispatchCall, batches: Sequence[Batch], received: Sequence[Received]
    ) -> Finish:
        sizes = self._sizes
        batches = [exchange.quantized(batch, call.scale_fmt) for batch in batches]
        routings = [self._route(rank, batch) for rank, batch in enumerate(batches)]
        totals = torch.stack([routing.expert_counts for routing in routings]).sum(0)
        capacities = [call.capacity] * sizes.num_ranks
        for shortage in exchange.shortages(call, sizes, totals.tolist(), capacities):
            raise ValueError(shortage.message)
        self._num_dispatches += 1
        layout = exchange.RecordLayout(batches[0].x.dtype, batches[0].x.size(1), sizes.num_topk)
        records = [
            layout.pack(batch, routing.topk_idx)
            for batch, routing in zip(batches, routings, strict=True)
        ]
        for routing, result in zip(routings, received, strict=True):
            result.handle.position_in_rank.copy_(routing.position_in_rank)
            result.handle.send_counts.copy_(routing.rank_counts)
            result.handle.number.fill_(self._num_dispatches)

        def finish() -> None:
            for rank, result in enumerate(received):
                parts = [
                    sent[routing.position_in_rank[:, rank] >= 0]
                    for sent, routing in zip(records, routings, strict=True)
                ]
                counts = [part.size(0) for part in parts]
                place = exchange.Place(rank, sizes)
                exchange.fill_received(result, torch.cat(parts), counts, layout, place)

        return finish

    def combine(
        self,
        call: CombineCall,
        y: Sequence[Tensor],
        handles: Sequence[DispatchHandle],
        outs: Sequence[Tensor],
    ) -> Finish:
        sent = {rank: handle.recv_counts.tolist() for rank, handle in enumerate(handles)}
        awaited = {rank: handle.send_counts.tolist() for rank, handle in enumerate(handles)}
        numbers = {rank: int(handle.number) for rank, handle in enumerate(handles)}
        exchange.check_handles(numbers, sent, awaited)
        parts: list[Sequence[Tensor]] = []  # [experts' rank][home rank]
        for rows, handle, counts in zip(y, handles, sent.values(), strict=True):
            parts.append(exchange.sum_rows(rows, handle, counts).split(counts))

        def finish() -> None:
            for home, (handle, out) in enumerate(zip(handles, outs, strict=True)):
                exchange.sum_at_home(
                    [self._part(parts, rank, home) for rank in self._ranks],
                    handle.position_in_rank,
                    out,
                )

        return finish

    def _part(self, parts: list[Sequence[Tensor]], rank: int, home: int) -> Tensor | None:
        return None if {rank, home} & self._masked_ranks else parts[rank][home]

    def _route(self, rank: int, batch: Batch) -> Routing:
        """A masked rank sends nothing."""
        idx = batch.topk_idx
        if rank in self._masked_ranks:
            idx = torch.full_like(idx, -1)
        return route(idx, self._sizes, self._masked_ranks)

    def allocating(self, call: CombineCall) -> AbstractContextManager[None]:
        return nullcontext()

    def reject(self, op: str, error: ValueError) -> bool:
        """There are no peers to tell."""
        return False

    def check(self, *, wait: bool = False) -> None:
        """Errors are raised where they occur."""

    def reset(self) -> None:
        """Nothing is under way between calls."""

    def mask_ranks(self, ranks: frozenset[int]) -> None:
        self._masked_ranks = ranks

    def wait_stats(self) -> list[list[PeerWait]]:
        """Zeros."""
        return [WaitCounter(self._sizes.num_ranks).stats() for _ in self._ranks]

    def close(self) -> None:
        """Nothing is held."""
