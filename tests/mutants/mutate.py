"""Makes the mutants of a kernel's PTX: each wait, arrive, commit and expect_tx removed in turn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

ENTRY = re.compile(r"\.entry\s+(\w+)")
STATEMENT = re.compile(r"^\s*(?:@!?%?\w+\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>[^;]*);")
# The caller of an inlined PTX wrapper says more than the wrapper.
LOCATION = re.compile(
    r"^\s*\.loc\s+(?:.*inlined_at\s+)?(?P<file>\d+)\s+(?P<line>\d+)",
)
FILE = re.compile(r'^\s*\.file\s+(?P<file>\d+)\s+"(?P<path>[^"]+)"', re.MULTILINE)

# What counts as a wait, an arrival, a commit or an expect_tx, by opcode prefix. Not bar.warp.sync:
# lanes that run in step do not show its absence, which takes a race detector.
SYNCHRONISING = (
    "mbarrier.try_wait",
    "mbarrier.test_wait",
    "mbarrier.arrive",
    "mbarrier.expect_tx",
    "barrier.cluster.arrive",
    "barrier.cluster.wait",
    "bar.sync",
    "bar.arrive",
    "barrier.sync",
    "barrier.arrive",
    "cp.async.bulk.commit_group",
    "cp.async.bulk.wait_group",
    "wgmma.commit_group",
    "wgmma.wait_group",
    "griddepcontrol.wait",
)


@dataclass(frozen=True)
class Mutant:
    """A kernel with one instruction taken out, or reduced."""

    ordinal: int  # among the kernel's mutants, in the order of the text
    change: str  # "removed", or what the instruction became
    instruction: str
    ptx_line: int
    source: str  # CUDA file and line of the instruction
    ptx: str

    @property
    def id(self) -> str:
        return f"{self.ordinal:02d}-{self.instruction.split()[0]}-{self.source}"


def mutants(ptx: str) -> Iterator[Mutant]:
    """Yields the mutants of the one kernel in this PTX text.

    A removed try_wait leaves its predicate true, as if the wait had ended at once; from
    ``arrive.expect_tx`` the expected bytes are also taken out alone.
    """
    files = {match["file"]: match["path"] for match in FILE.finditer(ptx)}
    lines = ptx.splitlines()
    location = "?"
    ordinal = 0
    for index, line in enumerate(lines):
        if found := LOCATION.match(line):
            location = f"{files[found['file']].rsplit('/', 1)[-1]}:{found['line']}"
        statement = STATEMENT.match(line)
        if statement is None or not statement["opcode"].startswith(SYNCHRONISING):
            continue
        for change, text in _replacements(statement["opcode"], statement["operands"]):
            mutated = [
                *lines[:index],
                line.replace(statement[0].strip(), text),
                *lines[index + 1 :],
            ]
            yield Mutant(
                ordinal,
                change,
                statement[0].strip().rstrip(";"),
                index + 1,
                location,
                "\n".join(mutated) + "\n",
            )
            ordinal += 1


def _replacements(opcode: str, operands: str) -> Iterator[tuple[str, str]]:
    if opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait")):
        predicate = operands.split(",")[0]
        yield "removed", f"setp.eq.u32 {predicate}, 0, 0;"
        return
    yield "removed", ""
    if opcode.startswith("mbarrier.arrive.expect_tx"):
        state, barrier, _ = (part.strip() for part in operands.rsplit(",", 2))
        yield "expect_tx removed", f"{opcode.replace('.expect_tx', '')} {state}, {barrier};"
