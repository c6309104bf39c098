"""Static figures of a kernel's machine code: registers, local memory, what its main loop issues.

``python bench/listing.py pykernels/kernels/*.cubin`` prints one row a kernel; needs nvdisasm, which
comes with the PyPI package nvidia-cuda-nvdisasm.

The main loop is the innermost natural loop with most tensor instructions. Its hot part runs from
the loop's header to its last back edge; blocks that ptxas moved behind the kernel's end (retries
of waits) count apart. The issue share is the number of hot instructions over the clocks that the
tensor cores take for the loop's matrix instructions at their nominal rate: a warpgroup has one warp
on each of the SM's four schedulers, so at 1 the loop is bound by issue, however many warpgroups
there are. No latencies: the figure ranks loops, it does not predict time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

# Dense multiply-adds a clock and SM of a Hopper GPU, by machine instruction (H100 datasheet).
_MACS_PER_CLOCK = {"QGMMA": 4096, "IGMMA": 4096, "HGMMA": 2048}
_TF32_MACS_PER_CLOCK = 1024
_WARP_MMA = ("HMMA", "QMMA", "IMMA", "BMMA", "DMMA")
_JUMPS = ("BRA", "BRX", "JMP", "JMX", "RET", "EXIT", "KILL")

_SECTION = re.compile(r'^\t\.section[\t ]"?\.text\.([^,"\s]+)')
_ANY_SECTION = re.compile(r"^\t\.section[\t ]")
_LABEL = re.compile(r"^([\w.$]+):\s*$")
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\w*(?:\.[\w-]+)*)\s*([^;]*);"
)
_TARGET = re.compile(r"`\((\.L\w*)\)")
_SHAPE = re.compile(r"\w+\.(\d+)x(\d+)x(\d+)")
_PREDICATE_OPERAND = re.compile(r"[!~]?U?[PR][0-9TZ]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One machine instruction as nvdisasm prints it."""

    predicate: str  # "P0", "!P0", ...; empty if there is none
    opcode: str  # with modifiers
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def is_matrix(self) -> bool:
        return self.base in _MACS_PER_CLOCK or self.base in ("BGMMA", *_WARP_MMA)

    @property
    def tensor_clocks(self) -> float:
        """Clocks of an SM's tensor cores for one warpgroup-wide instruction at the nominal rate."""
        shape = _SHAPE.match(self.opcode)
        if shape is None or self.base not in _MACS_PER_CLOCK:
            return 0.0
        m, n, k = (int(size) for size in shape.groups())
        rate = _TF32_MACS_PER_CLOCK if "TF32" in self.opcode else _MACS_PER_CLOCK[self.base]
        return m * n * k / rate


@dataclasses.dataclass(frozen=True)
class Function:
    """The code of one function, without the padding at its end."""

    instructions: list[Instruction]
    labels: dict[str, int]  # name -> index of the instruction behind it


@dataclasses.dataclass(frozen=True)
class MainLoop:
    """The loop that does the work; all counts are of its hot part unless named otherwise."""

    instructions: int
    cold_instructions: int
    matrix: Counter[str]  # opcode -> count
    ffma: int
    tensor_clocks: float

    @property
    def num_matrix(self) -> int:
        return self.matrix.total()

    @property
    def other_per_matrix(self) -> float:
        return (self.instructions - self.num_matrix) / self.num_matrix

    @property
    def issue_share(self) -> float:
        """Infinite for a loop without warpgroup-wide matrix instructions."""
        return self.instructions / self.tensor_clocks if self.tensor_clocks else float("inf")


@dataclasses.dataclass(frozen=True)
class Listing:
    """The figures of one kernel."""

    name: str
    registers: int
    stack_bytes: int
    local_accesses: int  # instructions that load or store local memory
    instructions: int
    setmaxnreg: list[int]
    main_loop: MainLoop | None


def find_nvdisasm() -> Path:
    """Path of nvdisasm: from the PyPI package, else from PATH.

    Raises:
        RuntimeError: there is none.
    """
    packages = Path(sysconfig.get_paths()["purelib"])
    for found in sorted(packages.glob("nvidia/*/bin/nvdisasm")):
        return found
    on_path = shutil.which("nvdisasm")
    if on_path is None:
        raise RuntimeError(
            "listings of machine code need nvdisasm, of the package nvidia-cuda-nvdisasm; install "
            "it with `pip install pykernels[bench]`"
        )
    return Path(on_path)


def disassemble(cubin: Path) -> dict[str, Function]:
    """The functions of a cubin by name."""
    return _disassemble(cubin, cubin.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _disassemble(cubin: Path, _changed: int) -> dict[str, Function]:
    """Kept, because nvdisasm takes most of a second for each file."""
    command = [str(find_nvdisasm()), "-c", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse(text)


def parse(text: str) -> dict[str, Function]:
    """The functions in the output of ``nvdisasm -c``."""
    functions: dict[str, Function] = {}
    current: Function | None = None
    pending: list[str] = []
    for line in text.splitlines():
        if _ANY_SECTION.match(line):
            section = _SECTION.match(line)
            current = functions.setdefault(section[1], Function([], {})) if section else None
            pending = []
        elif current is None:
            continue
        elif instruction := _INSTRUCTION.match(line):
            for label in pending:
                current.labels[label] = len(current.instructions)
            pending = []
            _, predicate, opcode, operands = instruction.groups()
            current.instructions.append(Instruction(predicate or "", opcode, operands.strip()))
        elif label_line := _LABEL.match(line):
            pending.append(label_line[1])
    for function in functions.values():
        _trim_padding(function)
    return functions


def _trim_padding(function: Function) -> None:
    """Drops the NOPs and the branch to itself that fill up a function's last lines."""
    instructions = function.instructions
    while instructions:
        last = instructions[-1]
        targets = [function.labels.get(label) for label in _TARGET.findall(last.operands)]
        if last.base != "NOP" and not (last.base == "BRA" and len(instructions) - 1 in targets):
            return
        instructions.pop()


def _successors(function: Function, index: int) -> list[int] | None:
    """Where a jump goes; None for an instruction that only goes on to the next one."""
    instruction = function.instructions[index]
    base, operands = instruction.base, instruction.operands
    targets = [function.labels[t] for t in _TARGET.findall(operands) if t in function.labels]
    if base not in _JUMPS and not (base == "WARPSYNC" and targets):
        return None
    if base in ("EXIT", "KILL"):
        targets = []
    predicated = instruction.predicate not in ("", "PT", "UPT")
    goes_on = predicated or base == "WARPSYNC" or (base == "BRA" and not targets)
    if base == "BRA" and (
        any(mark in instruction.opcode for mark in ("DIV", "CONV", ".U"))
        or _PREDICATE_OPERAND.match(operands)
    ):
        goes_on = True
    following = [*targets, index + 1] if goes_on else targets
    return [target for target in following if target < len(function.instructions)]


@dataclasses.dataclass(frozen=True)
class _Graph:
    """Basic blocks as half-open ranges of instructions, and the edges between them."""

    blocks: list[range]
    successors: list[list[int]]

    @functools.cached_property
    def predecessors(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.blocks]
        for block, targets in enumerate(self.successors):
            for target in targets:
                found[target].append(block)
        return found


def _graph(function: Function) -> _Graph:
    size = len(function.instructions)
    jumps = {i: s for i in range(size) if (s := _successors(function, i)) is not None}
    starts = {0, *(i for i in function.labels.values() if i < size)}
    starts |= {i + 1 for i in jumps if i + 1 < size}
    ordered = sorted(starts)
    blocks = [range(a, b) for a, b in zip(ordered, [*ordered[1:], size], strict=True)]
    block_at = {block.start: number for number, block in enumerate(blocks)}
    successors = []
    for block in blocks:
        targets = jumps.get(block[-1], [block.stop] if block.stop < size else [])
        successors.append(sorted({block_at[target] for target in targets}))
    return _Graph(blocks, successors)


def _dominators(graph: _Graph) -> list[int]:
    """For each block the set, as a bit mask, of the blocks on every path to it.

    Entries are the first block and each block that no earlier entry reaches (called code in the
    same section).
    """
    entries, reached = set(), set()
    for block in range(len(graph.blocks)):
        if block not in reached:
            entries.add(block)
            stack = [block]
            while stack:
                visited = stack.pop()
                if visited not in reached:
                    reached.add(visited)
                    stack.extend(graph.successors[visited])
    everything = (1 << len(graph.blocks)) - 1
    dominators = [1 << b if b in entries else everything for b in range(len(graph.blocks))]
    changed = True
    while changed:
        changed = False
        for block in set(range(len(graph.blocks))) - entries:
            meet = everything
            for predecessor in graph.predecessors[block]:
                meet &= dominators[predecessor]
            meet |= 1 << block
            changed |= meet != dominators[block]
            dominators[block] = meet
    return dominators


def _natural_loops(graph: _Graph) -> dict[int, set[int]]:
    """Header block -> blocks of the loop, loops with one header merged."""
    dominators = _dominators(graph)
    loops: dict[int, set[int]] = {}
    for block, targets in enumerate(graph.successors):
        for header in targets:
            if not dominators[block] >> header & 1:
                continue
            body = loops.setdefault(header, {header})
            stack = [block]
            while stack:
                inside = stack.pop()
                if inside not in body:
                    body.add(inside)
                    stack.extend(graph.predecessors[inside])
    return loops


def main_loop(function: Function) -> MainLoop | None:
    """The innermost loop with most matrix instructions; None if no loop has any."""
    if not function.instructions:
        return None
    graph = _graph(function)
    instructions = function.instructions

    def num_matrix(body: set[int]) -> int:
        return sum(instructions[i].is_matrix for block in body for i in graph.blocks[block])

    loops = {h: body for h, body in _natural_loops(graph).items() if num_matrix(body)}
    innermost = {
        header: body
        for header, body in loops.items()
        if not any(other < body for other in loops.values())
    }
    if not innermost:
        return None
    header = max(innermost, key=lambda h: (num_matrix(innermost[h]), -len(innermost[h])))
    body = innermost[header]
    end = max(graph.blocks[block].stop for block in body if header in graph.successors[block])
    members = [i for block in body for i in graph.blocks[block]]
    hot = [instructions[i] for i in members if graph.blocks[header].start <= i < end]
    return MainLoop(
        instructions=len(hot),
        cold_instructions=len(members) - len(hot),
        matrix=Counter(instruction.opcode for instruction in hot if instruction.is_matrix),
        ffma=sum(instruction.base == "FFMA" for instruction in hot),
        tensor_clocks=sum(instruction.tensor_clocks for instruction in hot),
    )


def _attributes(elf: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of all ``.nv.info`` sections: what ptxas tells the driver of a kernel."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(count)]
    for name, _, _, _, offset, size in headers:
        if not elf.startswith(b".nv.info", headers[names_index][4] + name):
            continue
        position = offset
        while position + 4 <= offset + size:
            form, attribute, length = struct.unpack_from("<BBH", elf, position)
            position += 4
            if form == 4:  # a block of `length` bytes follows
                yield attribute, elf[position : position + length]
                position += length


def read_listing(cubin: Path, *, any_name: bool = False) -> Listing:
    """The figures of a cubin that holds one kernel, named as the file or by ``any_name``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no cubin, or holds another kernel.
        RuntimeError: there is no nvdisasm.
    """
    values = {0x2F: 0, 0x12: 0}  # registers, stack bytes a thread
    try:
        for attribute, block in _attributes(cubin.read_bytes()):
            if attribute in values and len(block) == 8:  # (symbol, value)
                values[attribute] = max(values[attribute], struct.unpack("<II", block)[1])
        functions = disassemble(cubin)
    except (struct.error, OverflowError, IndexError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{cubin} is no cubin, or none that nvdisasm can read") from error
    name = next(iter(functions), "") if any_name and len(functions) == 1 else cubin.stem
    if name not in functions:
        held = ", ".join(functions) or "none"
        raise ValueError(f"{cubin} holds no kernel named {name}, but {held}")
    function = functions[name]
    counts = Counter(instruction.base for instruction in function.instructions)
    return Listing(
        name=cubin.stem,
        registers=values[0x2F],
        stack_bytes=values[0x12],
        local_accesses=counts["LDL"] + counts["STL"],
        instructions=len(function.instructions),
        setmaxnreg=[
            int(instruction.operands.rpartition(" ")[2], 0)
            for instruction in function.instructions
            if instruction.base == "USETMAXREG"
        ],
        main_loop=main_loop(function),
    )


def format_table(listings: list[Listing]) -> str:
    """A Markdown table, one row a kernel."""
    rows = [
        "| kernel | registers (after setmaxnreg) | local | main loop | other/MMA | issue |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for listing in listings:
        moved = "/".join(str(count) for count in sorted(listing.setmaxnreg)) or "-"
        loop, ratio, share = "-", "-", "-"
        if listing.main_loop is not None:
            shapes = ", ".join(f"{n} {op}" for op, n in listing.main_loop.matrix.items())
            loop = f"{listing.main_loop.instructions}, {shapes}"
            ratio = f"{listing.main_loop.other_per_matrix:.1f}"
            share = f"{listing.main_loop.issue_share:.3f}"
        rows.append(
            f"| {listing.name} | {listing.registers} ({moved}) | {listing.local_accesses} "
            f"| {loop} | {ratio} | {share} |"
        )
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of the cubins given, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cubins", nargs="+", type=Path)
    cubins = parser.parse_args(arguments).cubins
    try:
        print(format_table([read_listing(cubin) for cubin in cubins]))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"listing: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
