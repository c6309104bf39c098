"""``PYTHONPATH=csrc python -m tests.mutants [kernel ...]``: what catches each mutant, as tables."""

import sys

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.mutants.harmless import reason
from tests.mutants.hunt import KERNELS, Hunter

console = Console(width=200)
for kernel in sys.argv[1:] or KERNELS:
    hunter = Hunter(kernel)
    table = Table("", "line", "instruction", "change", "caught by", title=kernel)
    survivors = 0
    for mutant in track(hunter.mutants, kernel, console=Console(stderr=True)):
        caught = hunter.hunt(mutant).caught_by
        if caught is None:
            survivors += 1
            caught = reason(kernel, mutant) or "[red]nothing[/red]"
        what = f"{mutant.source} ({mutant.copy})"
        table.add_row(str(mutant.ordinal), what, mutant.opcode, mutant.change, caught)
    console.print(table)
    console.print(f"{len(hunter.mutants) - survivors} of {len(hunter.mutants)} mutants reported")
