"""Rows over torch.distributed: gloo on CPUs, NCCL on GPUs, for groups that span nodes.

A call first exchanges headers with all ranks, for which the host waits; then rows make two hops.
To another node a token goes once, to the rank of its source's index there, which passes it on to
the ranks of its experts. Results go back the same way, each rank's own: the home rank adds ranks in
ascending order, so nothing can be added on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch
from torch import Tensor

from pykernels.moe import exchange
from pykernels.moe.choice import Settings
from pykernels.moe.errors import MoeTimeoutError
from pykernels.moe.group import LocalGroup
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.header import Header, check_headers
from pykernels.moe.hops import CombineHops, DispatchHops, Way
from pykernels.moe.links import Links, PeerLostError
from pykernels.moe.routing import route
from pykernels.moe.stats import PeerWait
from pykernels.moe.topology import Topology
from pykernels.moe.transport import Batch, CombineCall, DispatchCall, Finish, Received

_HEADER_TAG = 0
_TAGS = 2**30  # of hops; those of calls so far apart are the same


class CollectiveTransport:
    """Implements :class:`pykernels.moe.transport.Transport` for one rank."""

    reads_values = True
    bytes = 0  # nothing is held between calls

    def __init__(self, settings: Settings) -> None:
        assert not isinstance(settings.group, LocalGroup)
        self._sizes = settings.sizes
        self._rank = settings.rank
        self._per_node = settings.ranks_per_node
        self._device = settings.device
        self._call = 0
        self._seen = [0] * settings.sizes.num_ranks  # the last call that each peer has made
        self.mask_ranks(frozenset())
        self._links = Links(settings.group, settings.name, settings.timeout, settings.device)
        self._links.connect(self._topology.ranks)

    def dispatch(
        self, call: DispatchCall, batches: Sequence[Batch], received: Sequence[Received]
    ) -> Finish:
        (batch,), (result,) = batches, received
        sizes, topology = self._sizes, self._topology
        batch = exchange.quantized(batch, call.scale_fmt)
        routing = route(batch.topk_idx, sizes, self._masked_ranks)
        named = routing.position_in_rank >= 0
        to_node = named.unflatten(1, (-1, topology.ranks_per_node)).any(dim=2)
        counts = (routing.rank_counts, to_node.sum(0), routing.expert_counts)
        sent = torch.cat(counts).tolist()
        text = f"{call.op} of {batch.x.dtype} rows of {batch.x.size(1)}"
        if call.scale_fmt is not None:
            text += f", cast with {call.scale_fmt} scales"
        headers = self._exchange_headers(call.op, text, sent, call.capacity)
        self._check_room(call, headers)

        result.handle.position_in_rank.copy_(routing.position_in_rank)
        result.handle.send_counts.copy_(routing.rank_counts)
        result.handle.number.fill_(self._call)
        layout = exchange.RecordLayout(batch.x.dtype, batch.x.size(1), sizes.num_topk)
        num_ranks, num_nodes = sizes.num_ranks, topology.num_nodes
        hops = DispatchHops(
            self._way(),
            layout,
            {rank: header.counts[:num_ranks] for rank, header in headers.items()},
            {
                rank: header.counts[num_ranks : num_ranks + num_nodes]
                for rank, header in headers.items()
            },
            sizes.num_local_experts,
        )
        with self._timing(call.op):
            first = hops.to_nodes(layout.pack(batch, routing.topk_idx), to_node)
        op, number = call.op, self._call

        def finish() -> None:
            with self._timing(op, number):
                parts = hops.arrived(hops.to_ranks(first))
            place = exchange.Place(self._rank, sizes)
            recv_counts = [part.size(0) for part in parts]
            exchange.fill_received(result, torch.cat(parts), recv_counts, layout, place)

        return finish

    def combine(
        self,
        call: CombineCall,
        y: Sequence[Tensor],
        handles: Sequence[DispatchHandle],
        outs: Sequence[Tensor],
    ) -> Finish:
        (rows,), (handle,), (out,) = y, handles, outs
        num_ranks = self._sizes.num_ranks
        left_in = torch.tensor(
            [rank not in self._masked_ranks for rank in range(num_ranks)], device="cpu"
        )
        recv_counts: list[int] = handle.recv_counts.tolist()
        sent = (handle.recv_counts.cpu() * left_in).tolist()
        awaited = (handle.send_counts.cpu() * left_in).tolist()
        text = f"{call.op} of {rows.dtype} rows of {rows.size(1 + handle.masked)}"
        counts = [*sent, *awaited, int(handle.number)]
        headers = self._exchange_headers(call.op, text, counts)
        sent_by = {rank: header.counts[:num_ranks] for rank, header in headers.items()}
        awaited_by = {rank: header.counts[num_ranks:] for rank, header in headers.items()}
        numbers = {rank: header.counts[2 * num_ranks] for rank, header in headers.items()}
        exchange.check_handles(numbers, sent_by, awaited_by)

        sums = exchange.sum_rows(rows, handle, recv_counts)
        by_home = sums.view(torch.uint8).split(recv_counts)
        row_bytes = sums.size(1) * sums.itemsize
        hops = CombineHops(self._way(), row_bytes, sent_by)
        op, number = call.op, self._call
        with self._timing(op):
            first = hops.to_forwarders(by_home)
            # Without nodes the first hop leads nowhere: what counts starts now.
            second = hops.to_homes(first) if self._topology.is_flat else None

        def finish() -> None:
            with self._timing(op, number):
                parts = hops.arrived(second or hops.to_homes(first))
            arrived = [None if part is None else part.view(torch.bfloat16) for part in parts]
            exchange.sum_at_home(arrived, handle.position_in_rank, out)

        return finish

    def allocating(self, call: CombineCall) -> AbstractContextManager[None]:
        return nullcontext()

    def reject(self, op: str, error: ValueError) -> bool:
        """The peers learn of it in this call's headers; those that do not come, do not."""
        with suppress(ValueError, RuntimeError):  # the caller gets the error of its own arguments
            self._exchange_headers(op, f"{op}: {error}", failed=True)
        return True

    def check(self, *, wait: bool = False) -> None:
        """Errors are raised where they occur, but for ranks that wait to be taken in again."""
        missing = set(self._topology.ranks) - set(self._links.members)
        if missing:
            raise RuntimeError(
                f"ranks {sorted(missing)} are no longer masked, but were when the ranks last "
                "connected; call reset() on all ranks"
            )

    def reset(self) -> None:
        """New connections between the ranks that are not masked."""
        self._call = 0
        self._seen = [0] * self._sizes.num_ranks
        self._links.connect(self._topology.ranks)

    def mask_ranks(self, ranks: frozenset[int]) -> None:
        self._masked_ranks = ranks
        self._topology = Topology(self._sizes.num_ranks, self._per_node, ranks)

    def wait_stats(self) -> list[list[PeerWait]]:
        """The host's waits for headers and, on CPUs, rows of each peer."""
        return [self._links.waits.stats()]

    def close(self) -> None:
        self._links.close()

    def _way(self) -> Way:
        tag = 1 + 2 * self._call % _TAGS
        return Way(self._rank, self._topology, self._links, (tag, tag + 1), self._device)

    def _exchange_headers(
        self,
        op: str,
        text: str,
        counts: Sequence[int] = (),
        capacity: int = 0,
        *,
        failed: bool = False,
    ) -> dict[int, Header]:
        """Of all ranks that are not masked, ascending; raises the verdict that all come to."""
        self._call += 1
        if not failed and self._masked_ranks:
            text += f", masked ranks {sorted(self._masked_ranks)}"
        own = Header(self._call, text, failed, capacity, counts)
        sizes = self._sizes
        num_counts = sizes.num_ranks + self._topology.num_nodes + sizes.num_experts
        message = own.encode(num_counts)
        peers = [rank for rank in self._topology.ranks if rank != self._rank]
        incoming = {peer: Header.empty(num_counts) for peer in peers}
        with self._timing(op):
            outgoing = dict.fromkeys(peers, message)
            self._links.start(outgoing, incoming, _HEADER_TAG, of_rows=False).wait()
        headers = {peer: Header.decode(tensor) for peer, tensor in incoming.items()}
        for peer, header in headers.items():
            self._seen[peer] = header.call
        headers[self._rank] = own
        headers = dict(sorted(headers.items()))
        check_headers(headers, self._rank)
        return headers

    def _check_room(self, call: DispatchCall, headers: dict[int, Header]) -> None:
        """All ranks find every rank that has too little room."""
        sizes = self._sizes
        counts = [0] * sizes.num_experts
        capacities = [0] * sizes.num_ranks
        for rank, header in headers.items():
            capacities[rank] = header.capacity
            for expert, count in enumerate(header.counts[-sizes.num_experts :]):
                counts[expert] += count
        found = exchange.shortages(call, sizes, counts, capacities)
        for shortage in found:
            if shortage.rank == self._rank:
                raise ValueError(shortage.message)
        for shortage in found:
            raise RuntimeError(f"the call of rank {shortage.rank} is wrong: {shortage.message}")

    @contextmanager
    def _timing(self, phase: str, call: int | None = None) -> Iterator[None]:
        """A peer that is lost inside is an error that says who waited for what."""
        try:
            yield
        except PeerLostError as error:
            raise MoeTimeoutError(
                rank=self._rank,
                peer=error.peer,
                phase=phase,
                expected=self._call if call is None else call,
                seen=self._seen[error.peer],
                detail=error.detail,
            ) from error
