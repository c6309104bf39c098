"""What other libraries' main loops issue, and the most that one of ours may.

The figures stand in ``peers.json``, counted by the definitions of :mod:`pykernels.bench.listing`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

_FILE = Path(__file__).with_name("peers.json")
SAME_OPERATION = "fp8 1x128 by 128x128"  # the scales of fp8_gemm_nt
GROUPED_OPERATION = "fp8 grouped"
_MIN_BOUNDED_BLOCK_N = 64
_WARPGROUP_ROWS = 64
_ONE_SHAPE = re.compile(r"(\d+) MMA (\d+)x(\d+)")
_FP8_MACS_PER_CLOCK = 4096  # of an SM


@dataclasses.dataclass(frozen=True)
class Peer:
    """A published kernel; the tile and cluster are None where it has no single tile."""

    name: str
    operation: str
    threads: int
    registers: int
    setmaxnreg: str | None
    spills: str  # stores/loads, "-" if unknown
    main_loop: int
    matrix: str
    other_per_matrix: float
    issue_share: float
    copies: int  # of the main loop
    block_m: int | None = None
    block_n: int | None = None
    cluster: int | None = None

    @property
    def exact_issue_share(self) -> float:
        """The share that ``issue_share`` rounds, for a peer of the same operation."""
        shape = _ONE_SHAPE.fullmatch(self.matrix)
        if shape is None:
            raise ValueError(f"{self.name} has no single shape: {self.matrix}")
        count, m, n = map(int, shape.groups())
        return self.main_loop * _FP8_MACS_PER_CLOCK / (count * m * n * 32)


@functools.cache
def peers() -> tuple[Peer, ...]:
    """All of the file, in its order."""
    return tuple(Peer(**row) for row in json.loads(_FILE.read_text())["peers"])


def source() -> str:
    """How the figures were made."""
    text: str = json.loads(_FILE.read_text())["source"]
    return text


def bound(config: Mapping[str, int]) -> Peer | None:
    """The peer whose issue share bounds a kernel's: None for a kernel that is only reported.

    Of the peers of the same operation: those of the same ``block_m`` (any, if none has it); of
    these the largest ``block_n`` that is at most the kernel's; of these the same ``block_m`` and
    cluster size, if there is one; of these the lowest share. A swapped kernel counts by what a
    warpgroup multiplies: 64 rows by ``block_m`` columns.

    Args:
        config: ``block_m``, ``block_n``, ``cluster`` and ``swap_ab`` of the kernel.
    """
    rows, columns = config["block_m"], config["block_n"]
    if config["swap_ab"]:
        rows, columns = _WARPGROUP_ROWS, config["block_m"]
    if columns < _MIN_BOUNDED_BLOCK_N:
        return None
    known = [peer for peer in peers() if peer.operation == SAME_OPERATION]
    same_rows = [peer for peer in known if peer.block_m == rows] or known
    widths = [peer.block_n for peer in same_rows if peer.block_n is not None]
    nearest = max(n for n in widths if n <= columns)
    same_tile = [peer for peer in same_rows if peer.block_n == nearest]
    exact = [
        peer for peer in same_tile if peer.block_m == rows and peer.cluster == config["cluster"]
    ]
    return min(exact or same_tile, key=lambda peer: peer.exact_issue_share)
