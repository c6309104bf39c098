"""The two hops of rows between ranks: from node to node, and within a node.

Where every rank is a node of its own, one of the hops leads nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pykernels.moe.exchange import RecordLayout
from pykernels.moe.links import Links, Transfer
from pykernels.moe.topology import Topology


class Way(NamedTuple):
    """How messages of one call travel.

    Attributes:
        rank: this one.
        topology: of the group.
        links: to the other ranks.
        tags: of the two hops.
        device: of the rows.
    """

    rank: int
    topology: Topology
    links: Links
    tags: tuple[int, int]
    device: torch.device

    @property
    def node(self) -> int:
        return self.topology.node_of(self.rank)

    def empty(self, rows: int, row_bytes: int) -> Tensor:
        return torch.empty((rows, row_bytes), dtype=torch.uint8, device=self.device)


class DispatchHops:
    """Records of tokens: to one rank of each node, then to the ranks of their experts there.

    Args:
        way: of the call.
        layout: of the records.
        rank_counts: by source rank, the tokens that go to each rank.
        node_counts: by source rank, the tokens that go to each node.
        num_local_experts: of a rank.
    """

    def __init__(
        self,
        way: Way,
        layout: RecordLayout,
        rank_counts: Mapping[int, Sequence[int]],
        node_counts: Mapping[int, Sequence[int]],
        num_local_experts: int,
    ) -> None:
        self._way = way
        self._layout = layout
        self._rank_counts = rank_counts
        self._node_counts = node_counts
        self._num_local_experts = num_local_experts
        self._sources = way.topology.sources_of(way.rank)  # that come through this rank

    def to_nodes(self, records: Tensor, to_node: Tensor) -> Transfer:
        """Starts the first hop; ``to_node``: ``[num_tokens, num_nodes]``, who goes where."""
        way = self._way
        outgoing = {}
        for node in range(way.topology.num_nodes):
            forwarder = way.topology.forwarder(way.rank, node)
            if forwarder is not None:
                outgoing[forwarder] = records[to_node[:, node]]
        incoming = {
            source: way.empty(self._node_counts[source][way.node], self._layout.bytes)
            for source in self._sources
        }
        return way.links.start(outgoing, incoming, way.tags[0])

    def to_ranks(self, first: Transfer) -> Transfer:
        """Starts the second hop with what the first has brought."""
        way = self._way
        arrived = first.wait()
        records = torch.cat([arrived[source] for source in self._sources])
        rank_of = torch.div(
            self._layout.topk_idx(records), self._num_local_experts, rounding_mode="floor"
        )
        outgoing = {
            rank: records[(rank_of == rank).any(dim=1)] for rank in way.topology.ranks_of(way.node)
        }
        incoming = {
            forwarder: way.empty(sum(counts), self._layout.bytes)
            for forwarder, counts in self._counts_by_forwarder().items()
        }
        return way.links.start(outgoing, incoming, way.tags[1])

    def arrived(self, second: Transfer) -> list[Tensor]:
        """The records from each source rank of the group, those of masked ranks without any."""
        way = self._way
        by_forwarder = second.wait()
        num_ranks = len(self._rank_counts[way.rank])
        parts = [way.empty(0, self._layout.bytes)] * num_ranks
        for forwarder, counts in self._counts_by_forwarder().items():
            split = by_forwarder[forwarder].split(counts)
            for source, part in zip(way.topology.sources_of(forwarder), split, strict=True):
                parts[source] = part
        return parts

    def _counts_by_forwarder(self) -> dict[int, list[int]]:
        """Of each rank of this node, the tokens for this rank from each of its sources."""
        way = self._way
        return {
            forwarder: [
                self._rank_counts[source][way.rank] for source in way.topology.sources_of(forwarder)
            ]
            for forwarder in way.topology.ranks_of(way.node)
        }


class CombineHops:
    """Sums of tokens' rows: to the rank through which their tokens came, then home.

    Args:
        way: of the call.
        row_bytes: of a sum.
        sent: by rank, the sums that it sends to each home rank.
    """

    def __init__(self, way: Way, row_bytes: int, sent: Mapping[int, Sequence[int]]) -> None:
        self._way = way
        self._row_bytes = row_bytes
        self._sent = sent
        self._sources = way.topology.sources_of(way.rank)

    def to_forwarders(self, sums: Sequence[Tensor]) -> Transfer:
        """Starts the first hop; ``sums``: for each home rank."""
        way = self._way
        mates = way.topology.ranks_of(way.node)
        outgoing = {
            mate: torch.cat([sums[home] for home in way.topology.sources_of(mate)])
            for mate in mates
        }
        incoming = {
            mate: way.empty(sum(self._sent[mate][home] for home in self._sources), self._row_bytes)
            for mate in mates
        }
        return way.links.start(outgoing, incoming, way.tags[0])

    def to_homes(self, first: Transfer) -> Transfer:
        """Starts the second hop with what the first has brought."""
        way = self._way
        arrived = first.wait()
        by_home: dict[int, list[Tensor]] = {home: [] for home in self._sources}
        for mate in way.topology.ranks_of(way.node):
            split = arrived[mate].split([self._sent[mate][home] for home in self._sources])
            for home, part in zip(self._sources, split, strict=True):
                by_home[home].append(part)
        outgoing = {home: torch.cat(parts) for home, parts in by_home.items()}
        incoming = {
            forwarder: way.empty(sum(self._sent[rank][way.rank] for rank in ranks), self._row_bytes)
            for forwarder, ranks in self._ranks_by_forwarder().items()
        }
        return way.links.start(outgoing, incoming, way.tags[1])

    def arrived(self, second: Transfer) -> list[Tensor | None]:
        """The sums from each rank of the group; None from masked ones."""
        way = self._way
        by_forwarder = second.wait()
        parts: list[Tensor | None] = [None] * len(self._sent[way.rank])
        for forwarder, ranks in self._ranks_by_forwarder().items():
            split = by_forwarder[forwarder].split([self._sent[rank][way.rank] for rank in ranks])
            for rank, part in zip(ranks, split, strict=True):
                parts[rank] = part
        return parts

    def _ranks_by_forwarder(self) -> dict[int, list[int]]:
        """Through whom this rank's sums come, and from which ranks, ascending."""
        topology = self._way.topology
        found = {}
        for node in range(topology.num_nodes):
            forwarder = topology.forwarder(self._way.rank, node)
            if forwarder is not None:
                found[forwarder] = topology.ranks_of(node)
        return found
