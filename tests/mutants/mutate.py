"""Makes the mutants of a kernel's PTX: each instruction that orders is removed or weakened."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

STATEMENT = re.compile(
    r"^\s*(?P<guard>@!?%?\w+\s+|)(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>[^;]*);"
)
# The caller of an inlined PTX wrapper says more than the wrapper.
LOCATION = re.compile(r"^\s*\.loc\s+(?:.*inlined_at\s+)?(?P<file>\d+)\s+(?P<line>\d+)")
FILE = re.compile(r'^\s*\.file\s+(?P<file>\d+)\s+"(?P<path>[^"]+)"', re.MULTILINE)

# Waits, arrivals, commits, barriers and fences, by opcode prefix: what can be taken out.
SYNCHRONISING = (
    "mbarrier.try_wait",
    "mbarrier.test_wait",
    "mbarrier.arrive",
    "mbarrier.expect_tx",
    "barrier.cluster.arrive",
    "barrier.cluster.wait",
    "bar.sync",
    "bar.arrive",
    "bar.warp.sync",
    "barrier.sync",
    "barrier.arrive",
    "cp.async.bulk.commit_group",
    "cp.async.bulk.wait_group",
    "cp.async.commit_group",
    "cp.async.wait_",
    "cp.async.mbarrier.arrive",
    "fence.",
    "membar.",
    "wgmma.fence",
    "wgmma.commit_group",
    "wgmma.wait_group",
    "griddepcontrol.wait",
)
# An order or a scope that an opcode names, not part of `.shared::cluster` or `barrier.cluster`.
ORDER = re.compile(r"\.(acquire|release|acq_rel)(?=\.(?:cta|cluster|gpu|sys)\.)")
SCOPE = re.compile(r"(?<=\.)(acquire|release|acq_rel|relaxed|sc)\.(cluster|gpu|sys)(?![\w:])")
NARROWER = {"cluster": "cta", "gpu": "cta", "sys": "gpu"}
ONE = re.compile(r"^\s*mov\.\w+\s+(%\w+), 1;", re.MULTILINE)
# Forms whose scope or order is part of their name.
ONE_FORM = ("fence.mbarrier_init", "fence.proxy.async")
# What is changed in all copies of a source line at once: a loop, since schedules need not reach
# every copy of it with a wait that has not ended, and a scope, which one of several may be without.
IN_ALL_COPIES = re.compile("tried once|narrowed")


@dataclass(frozen=True)
class Mutant:
    """A kernel with one instruction taken out, or weakened."""

    ordinal: int  # among the kernel's mutants, in the order of the text
    copy: int  # among those of the same source line, opcode and change: loops are unrolled
    change: str  # what has become of the instruction
    instruction: str
    ptx_line: int
    source: str  # CUDA file and line of the instruction
    ptx: str

    @property
    def opcode(self) -> str:
        return self.instruction.split(" ")[0]

    @property
    def id(self) -> str:
        return f"{self.ordinal:03d}-{self.source}-{self.opcode}-{self.change}"


def mutants(ptx: str) -> Iterator[Mutant]:
    """Yields the mutants of the one kernel in this PTX text.

    A removed try_wait leaves its predicate true, as if the wait had ended at once.
    """
    lines = ptx.splitlines()
    ordinal = 0
    copies: Counter[tuple[str, ...]] = Counter()
    ones = set(ONE.findall(ptx))
    statements = list(_statements(ptx))
    for index, location, statement in statements:
        opcode, operands = statement["opcode"], statement["operands"].strip()
        for change, text in _replacements(opcode, operands):
            key = (location, opcode, change)
            in_all_copies = IN_ALL_COPIES.search(change) is not None
            if in_all_copies and copies[key] > 0:
                continue
            if text.startswith("{") and statement["guard"]:
                continue  # a block takes no guard
            if change == "one arrival fewer" and operands.rsplit(", ", 1)[-1] in ones:
                continue  # none fewer than one
            mutated = list(lines)
            mutated[index] = _replaced(statement, text)
            if in_all_copies:
                for other, place, copy in statements:
                    if (place, copy["opcode"]) == (location, opcode):
                        found = dict(_replacements(opcode, copy["operands"].strip()))
                        mutated[other] = _replaced(copy, found[change])
            yield Mutant(
                ordinal,
                copies[key],
                change,
                f"{opcode} {operands}".strip(),
                index + 1,
                location,
                "\n".join(mutated) + "\n",
            )
            copies[key] += 1
            ordinal += 1


def _statements(ptx: str) -> Iterator[tuple[int, str, re.Match[str]]]:
    """Index of the line, file and line of the source, and the statement itself."""
    files = {match["file"]: match["path"] for match in FILE.finditer(ptx)}
    location = "?"
    for index, line in enumerate(ptx.splitlines()):
        if found := LOCATION.match(line):
            location = f"{files[found['file']].rsplit('/', 1)[-1]}:{found['line']}"
        if statement := STATEMENT.match(line):
            yield index, location, statement


def _replaced(statement: re.Match[str], text: str) -> str:
    """The line with another statement; its guard goes where nothing is left."""
    begin = statement.start("opcode" if text else "guard")
    return statement.string[:begin] + text + statement.string[statement.end() :]


def _replacements(opcode: str, operands: str) -> Iterator[tuple[str, str]]:
    """What the statement becomes behind its guard; empty if the guard goes, too."""
    if opcode.startswith(SYNCHRONISING):
        yield "removed", _without(opcode, operands)
    if opcode.startswith("mbarrier.arrive.expect_tx"):
        state, barrier, _ = (part.strip() for part in operands.rsplit(",", 2))
        yield "expect_tx removed", f"{opcode.replace('.expect_tx', '')} {state}, {barrier};"
        yield "half the bytes", _with_last(opcode, operands, "shr.b32")
    if opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait")):
        once = f"{_statement(opcode, operands)} {_without(opcode, operands)}"
        yield "tried once", once
    if opcode.startswith(("mbarrier.try_wait.parity", "mbarrier.test_wait.parity")):
        yield "the other parity", _with_last(opcode, operands, "xor.b32")
    if opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait", "mbarrier.arrive")):
        yield "of the next barrier", _statement(opcode, operands.replace("]", "+8]", 1))
    if opcode.startswith("bar.sync") and "," in operands:
        yield "a warp fewer", _with_last(opcode, operands, "sub.u32", 32)
    if opcode.startswith("mbarrier.init"):
        yield "one arrival fewer", _with_last(opcode, operands, "sub.u32")
    if opcode.startswith("fence.proxy.async.shared"):
        yield "of the other space", _statement("fence.proxy.async.global", operands)
    if opcode.startswith("fence.proxy.async"):
        yield "not of the proxy", _statement("fence.acq_rel.cta", operands)
    if ".wait_group" in opcode:
        yield "one group more", _statement(opcode, str(int(operands) + 1))
    if opcode.startswith(ONE_FORM):
        return
    if opcode.startswith(("barrier.cluster.arrive.release", "barrier.cluster.arrive.aligned")):
        relaxed = opcode.replace(".release", "").replace(".arrive", ".arrive.relaxed")
        yield "relaxed", _statement(relaxed, operands)
    elif not opcode.startswith("fence.") and (order := ORDER.search(opcode)):
        relaxed = opcode[: order.start()] + ".relaxed" + opcode[order.end() :]
        yield f"{order[1]} relaxed", _statement(relaxed, operands)
    if scope := SCOPE.search(opcode):
        narrow = opcode[: scope.start(2)] + NARROWER[scope[2]] + opcode[scope.end(2) :]
        yield f"{scope[2]} narrowed to {NARROWER[scope[2]]}", _statement(narrow, operands)


def _without(opcode: str, operands: str) -> str:
    if opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait")):
        predicate = operands.split(",")[0]
        return f"setp.eq.u32 {predicate}, 0, 0;"
    return ""


def _with_last(opcode: str, operands: str, change: str, by: int = 1) -> str:
    """The statement with its last operand changed by an instruction; never under a guard."""
    others, last = (part.strip() for part in operands.rsplit(",", 1))
    changed = f"{change} changed, {last}, {by};"
    return f"{{ .reg .b32 changed; {changed} {opcode} {others}, changed; }}"


def _statement(opcode: str, operands: str) -> str:
    return f"{opcode} {operands};" if operands else f"{opcode};"
