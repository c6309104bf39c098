"""How long ranks wait for each other: what finds a slow rank."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_FORMAT = 1  # of the files
_WIDEST = 1_000_000  # columns of a table of any number of ranks


@dataclasses.dataclass(frozen=True)
class PeerWait:
    """A rank's waits for one peer since its buffer was made.

    Attributes:
        peer: the rank that was waited for.
        seconds: the time of all waits together.
        waits: how many.
    """

    peer: int
    seconds: float
    waits: int


class WaitCounter:
    """Adds up a rank's waits for its peers."""

    def __init__(self, num_ranks: int) -> None:
        self._seconds = [0.0] * num_ranks
        self._waits = [0] * num_ranks

    def add(self, peer: int, seconds: float) -> None:
        self._seconds[peer] += seconds
        self._waits[peer] += 1

    def stats(self) -> list[PeerWait]:
        counted = zip(self._seconds, self._waits, strict=True)
        return [PeerWait(peer, *each) for peer, each in enumerate(counted)]


def save(path: str | Path, rank: int, waits: Sequence[PeerWait]) -> None:
    """Writes one rank's statistics as JSON, for ``python -m pykernels moe-stats``."""
    content = {
        "format": _FORMAT,
        "rank": rank,
        "waits": [dataclasses.asdict(wait) for wait in waits],
    }
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def load(path: str | Path) -> tuple[int, list[PeerWait]]:
    """The rank and its statistics.

    Raises:
        ValueError: the file is not one that :func:`save` writes.
        OSError: it cannot be read.
    """
    written = Path(path).read_bytes()
    try:
        content = json.loads(written)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}")
        waits = [_peer_wait(wait) for wait in content["waits"]]
        return int(content["rank"]), waits
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} must be a file that pykernels.moe.save_wait_stats has written, format "
            f"{_FORMAT}; {type(error).__name__}: {error}"
        ) from error


def _peer_wait(wait: dict[str, Any]) -> PeerWait:
    return PeerWait(int(wait["peer"]), float(wait["seconds"]), int(wait["waits"]))


def run(paths: Sequence[Path], console: Console) -> int:
    """Prints who waits for whom, a row for each file, and the peer that is waited for most."""
    from rich.table import Table

    ranks = sorted((load(path) for path in paths), key=lambda each: each[0])
    repeated = [rank for (rank, _), (other, _) in itertools.pairwise(ranks) if rank == other]
    if repeated:
        raise ValueError(f"each file must be of another rank, got rank {repeated[0]} twice")
    peers = sorted({wait.peer for _, waits in ranks for wait in waits})
    console.print("Milliseconds that a rank (row) has waited for a peer (column):")
    table = Table()
    table.add_column("rank")
    for peer in peers:
        table.add_column(str(peer), justify="right")
    table.add_column("waits", justify="right")
    for rank, waits in ranks:
        seconds = {wait.peer: wait.seconds for wait in waits}
        cells = [f"{1e3 * seconds[peer]:.3f}" if peer in seconds else "" for peer in peers]
        table.add_row(str(rank), *cells, str(sum(wait.waits for wait in waits)))
    narrow = console.width
    needed = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    console.width = max(narrow, needed)  # else rich cuts the numbers
    console.print(table)
    console.width = narrow
    console.print(most_waited_for(ranks))
    return 0


def most_waited_for(ranks: Sequence[tuple[int, Sequence[PeerWait]]]) -> str:
    """A sentence about the peer for which the others have waited longest."""
    totals: dict[int, float] = {}
    for rank, waits in ranks:
        for wait in waits:
            if wait.peer != rank:
                totals[wait.peer] = totals.get(wait.peer, 0.0) + wait.seconds
    everyone = sum(totals.values())
    if everyone == 0:
        return "No rank has waited for another."
    peer = max(totals, key=lambda each: (totals[each], -each))
    share = 100 * totals[peer] / everyone
    return (
        f"Waited for most: rank {peer}, {1e3 * totals[peer]:.3f} ms of "
        f"{1e3 * everyone:.3f} ms ({share:.0f} %)."
    )
