"""What was replaced, as text."""

from __future__ import annotations

import collections
import io
import re
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pykernels.integrations.transformers.survey import Left, Replaced

_WIDTH = 120


def report(
    replaced: Sequence[Replaced], left: Sequence[Left], bytes_before: int, bytes_after: int
) -> str:
    """Two tables and the memory; names that differ in numbers alone share a line."""
    console = Console(file=io.StringIO(), width=_WIDTH)
    _print("replaced", ("module", "was", "is"), replaced, console)
    if left:
        _print("left", ("module", "is", "because"), left, console)
    console.print(f"parameters and buffers: {_size(bytes_before)} before, {_size(bytes_after)} now")
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def _print(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, str, str]],
    console: Console,
) -> None:
    counts = collections.Counter(
        (re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), first, second) for name, first, second in rows
    )
    table = Table(*columns, title=title, title_justify="left")
    table.add_column("how many", justify="right")
    for row, count in counts.items():
        table.add_row(*map(escape, row), str(count))
    console.print(table)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
