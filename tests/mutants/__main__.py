"""``python -m tests.mutants``: what catches each mutant, as a table."""

from rich.console import Console
from rich.table import Table

from tests.mutants.hunt import SHAPES, hunt

for kernel in SHAPES:
    table = Table("line", "instruction", "change", "caught by", title=kernel)
    for outcome in hunt(kernel):
        mutant = outcome.mutant
        caught = outcome.caught_by or "[red]nothing[/red]"
        table.add_row(mutant.source, mutant.instruction.split()[0], mutant.change, caught)
    Console(width=180).print(table)
