"""Nodes of a group, and over which rank a token goes to another node: once, whoever it is for."""

from __future__ import annotations


class Topology:
    """Ranks with the same ``rank // ranks_per_node`` share a node.

    With one rank a node, or one node, every message goes straight to its rank.
    """

    def __init__(self, num_ranks: int, ranks_per_node: int, masked_ranks: frozenset[int]) -> None:
        self.is_flat = ranks_per_node in (1, num_ranks)
        self._per_node = 1 if self.is_flat else ranks_per_node
        self._masked_ranks = masked_ranks
        self.num_nodes = num_ranks // self._per_node
        self.ranks = [rank for rank in range(num_ranks) if rank not in masked_ranks]

    @property
    def ranks_per_node(self) -> int:
        return self._per_node

    def node_of(self, rank: int) -> int:
        return rank // self._per_node

    def ranks_of(self, node: int) -> list[int]:
        """Those that are not masked, ascending."""
        return [rank for rank in self.ranks if self.node_of(rank) == node]

    def forwarder(self, source: int, node: int) -> int | None:
        """The rank of a node through which tokens of ``source`` reach it, and results leave it.

        The source itself in its own node; elsewhere the rank of the same index or, where that is
        masked, the next one; None if the whole node is.
        """
        first = node * self._per_node
        index = source % self._per_node
        for step in range(self._per_node):
            rank = first + (index + step) % self._per_node
            if rank not in self._masked_ranks:
                return rank
        return None

    def sources_of(self, forwarder: int) -> list[int]:
        """The ranks whose tokens come into this rank's node through it, ascending."""
        node = self.node_of(forwarder)
        return [rank for rank in self.ranks if self.forwarder(rank, node) == forwarder]
