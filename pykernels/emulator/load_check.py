"""``python -m pykernels emulate-check``: which PTX files the emulator loads, what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pykernels import _C

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Refusal:
    """A statement, or a whole text, that the emulator does not run.

    Attributes:
        line: Line of the file, from 1; 0 if the file cannot be read.
        form: Opcode with its modifiers; empty where no statement is at fault.
        reason: What is wrong, with the line.
    """

    line: int
    form: str
    reason: str


@dataclass(frozen=True)
class FileCheck:
    """What loading one file finds.

    Attributes:
        path: As given, or as found in the folder.
        kernels: Entry points.
        instructions: Statements of all functions.
        forms: How many of them have each opcode with its modifiers.
        refusals: In the order of the text; empty if the file loads.
    """

    path: str
    kernels: int
    instructions: int
    forms: dict[str, int]
    refusals: tuple[Refusal, ...]


def check_path(path: Path) -> list[FileCheck]:
    """Load a file, or every ``.ptx`` file in a folder and the folders in it.

    Args:
        path: The file, whatever its name, or the folder.

    Returns:
        One entry a file, in the order of their paths.

    Raises:
        ValueError: there is no such file or folder, or the folder holds no PTX file.
    """
    if path.is_file():
        return [check_file(path)]
    if not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder")
    files = sorted(found for found in path.rglob("*.ptx") if found.is_file())
    if not files:
        raise ValueError(f"{path} holds no .ptx file")
    return [check_file(file) for file in files]


def check_file(path: Path) -> FileCheck:
    """Load one file and collect all that is refused, not only the first."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        return FileCheck(str(path), 0, 0, {}, (Refusal(0, "", str(error)),))
    kernels, instructions, forms, refusals = _C.emulator.check_module(text)
    found = tuple(Refusal(line, form, reason) for line, _, form, reason in refusals)
    return FileCheck(str(path), kernels, instructions, forms, found)


def refused_forms(files: Iterable[FileCheck]) -> Counter[str]:
    """How many statements of each form are refused; what is no statement counts as ``""``."""
    return Counter(refusal.form for file in files for refusal in file.refusals)


def run(path: Path, console: Console | None) -> int:
    """Print the report, as JSON if there is no console; 1 if anything is refused, else 0."""
    files = check_path(path)
    if console is None:
        forms = dict(refused_forms(files).most_common())
        print(json.dumps({"files": [asdict(file) for file in files], "refused_forms": forms}))
    else:
        _print_files(files, console)
        _print_forms(refused_forms(files), console)
    return 1 if any(file.refusals for file in files) else 0


def _print_files(files: list[FileCheck], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="PTX files")
    for name in ("file", "kernels", "instructions", "refused"):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for file in files:
        counts = str(file.kernels), f"{file.instructions:,}", str(len(file.refusals) or "ok")
        table.add_row(Text(file.path), *counts)
    table.add_section()
    kernels = str(sum(file.kernels for file in files))
    instructions = f"{sum(file.instructions for file in files):,}"
    refused = str(sum(len(file.refusals) for file in files) or "ok")
    table.add_row(f"{len(files)} files", kernels, instructions, refused)
    console.print(table)
    for file in files:
        for refusal in file.refusals:
            console.print(Text(f"{file.path}: {refusal.reason}"))


def _print_forms(forms: Counter[str], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    if not forms:
        return
    table = Table(title="Refused forms")
    table.add_column("form", overflow="fold")
    table.add_column("statements", justify="right")
    for form, count in forms.most_common():
        table.add_row(Text(form or "(no statement)"), str(count))
    console.print(table)
