"""Which token goes where, and the bytes that this takes over each link: least, and counted.

``python -m bench.moe_links 4 128`` counts DeepSeek-V3's calls with as many tokens a rank, 8 ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels.native import native

if TYPE_CHECKING:
    from .moe_bench import MoeShape

_FLAG_BYTES, _COUNT_BYTES = 8, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Routing:
    """The same on all ranks and in all sets of operands.

    Attributes:
        topk_idx: ``[num_ranks, num_tokens, num_topk]``, ``int64``.
        topk_weights: The same, FP32, in 0 to 1.
        tokens: ``[num_ranks, num_ranks]``: tokens from a rank (row) that a rank has experts of.
        entries: The same of choices: rows.
    """

    topk_idx: Tensor
    topk_weights: Tensor
    tokens: Tensor
    entries: Tensor

    @staticmethod
    @functools.lru_cache(maxsize=16)
    def of(num_ranks: int, num_tokens: int, num_experts: int, num_topk: int) -> Routing:
        """Distinct experts, all equally likely."""
        generator = torch.Generator().manual_seed(num_tokens)
        shape = num_ranks, num_tokens
        topk_idx = torch.rand(*shape, num_experts, generator=generator).topk(num_topk).indices
        weights = torch.rand(*shape, num_topk, generator=generator)
        goes = topk_idx // (num_experts // num_ranks)
        entries = torch.nn.functional.one_hot(goes, num_ranks).sum(2)
        return Routing(topk_idx, weights, (entries > 0).sum(1), entries.sum(1))

    @property
    def capacity(self) -> int:
        """Rows of the rank that receives most."""
        return int(self.entries.sum(0).max())


@dataclasses.dataclass(frozen=True)
class Links:
    """Bytes that ranks write into the windows of others: sums over all links, and extremes.

    Attributes:
        shape: That was emulated.
        counted: What the emulator has counted, by (from, to).
        payload: Values and scale factors, each token once a link: the least.
        read: What ranks read from windows of others.
    """

    shape: MoeShape
    counted: dict[tuple[int, int], int]
    payload: dict[tuple[int, int], int]
    read: int

    def row(self) -> dict[str, Any]:
        """For JSON, with the overhead by its parts."""
        payload, counted = sum(self.payload.values()), sum(self.counted.values())
        parts = overhead(self.shape)
        ratios = [self.counted[link] / self.payload[link] for link in self.payload_links()]
        return {
            "shape": str(self.shape),
            "num_links": len(self.counted),
            "payload_bytes": payload,
            "counted_bytes": counted,
            "read_bytes": self.read,
            "overhead_bytes": parts,
            "unexplained_bytes": counted - payload - sum(parts.values()),
            "ratio": counted / payload if payload else None,
            "worst_link_ratio": max(ratios) if ratios else None,
        }

    def payload_links(self) -> list[tuple[int, int]]:
        return [link for link, num_bytes in self.payload.items() if num_bytes > 0]


def overhead(shape: MoeShape) -> dict[str, int]:
    """Bytes beside the payload that the protocol writes over all links, by what they are."""
    memory, routing = native().moe_memory(), shape.routing()
    num_ranks = shape.num_ranks
    sent = routing.tokens if shape.is_dispatch else routing.tokens.T
    tokens = int(sent.sum() - sent.diagonal().sum())
    entries = int(routing.entries.sum() - routing.entries.diagonal().sum())
    counts = _COUNT_BYTES * (shape.num_experts // num_ranks) if shape.is_dispatch else 0
    parts = {"flags": _FLAG_BYTES * tokens}
    if shape.is_dispatch:
        parts["entries"] = memory["entry_bytes"] * entries + memory["header_bytes"] * tokens
    parts["mails"] = num_ranks * (num_ranks - 1) * (memory["mail_bytes"] + counts)
    return parts


def count(shape: MoeShape) -> Links:
    """Emulates one call and counts what crosses the links.

    Raises:
        EmulationError: the call cannot go on.
    """
    links = [(a, b) for a in range(shape.num_ranks) for b in range(shape.num_ranks) if a != b]
    counted, read = dict.fromkeys(links, 0), 0
    for _, report in shape.reports():
        for source, target in links:
            traffic = report.traffic.get((source, f"window of rank {target}"))
            if traffic is not None:
                counted[source, target] += traffic.bytes_written
                read += traffic.bytes_read
    tokens = shape.routing().tokens
    sent = tokens if shape.is_dispatch else tokens.T
    payload = {link: shape.payload_bytes * int(sent[link]) for link in links}
    return Links(shape, counted, payload, read)


def main(num_tokens: Sequence[str]) -> int:
    """Prints a line of JSON for each number of tokens and call."""
    from .moe_bench import CALLS, MoeShape

    for tokens in map(int, num_tokens):
        for call in CALLS:
            shape = MoeShape(call, num_tokens=tokens, fp8=call == "low_latency_dispatch")
            print(json.dumps(count(shape).row()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
