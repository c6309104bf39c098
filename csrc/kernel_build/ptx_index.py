"""The index of the PTX wrappers, ptx/README.md: instruction, wrapper, emulator handler, test.

``PYTHONPATH=csrc python -m kernel_build.ptx_index`` writes it; a test compares it with the headers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# The last words of a wrapper's first line: the PTX version and the oldest architecture.
_REQUIREMENT = re.compile(r"^(?P<form>.*?);\s+PTX (?P<ptx>\d+\.\d+), (?P<sm>sm_\d+a?)(?: .*)?$")
_FUNCTION = re.compile(r"^__device__ __forceinline__ \w+ (?P<name>\w+)\(")
# Forms whose emulator handler stands with the compiler's own forms, in another file.
_HANDLER_STEMS = {"mov": "move", "wgmma": "wgmma"}

_HEADER = """\
# PTX wrappers

One function per instruction form, one file per family, namespace `pykernels::ptx`. The comment of
each wrapper gives the exact form, what it orders and who may call it; waits loop in `csrc/core`.
The headers include nothing of the host, so they compile under NVRTC too.

Written by `PYTHONPATH=csrc python -m kernel_build.ptx_index`; a test keeps it true.

| instruction | since | wrapper | emulator handler | test |
| --- | --- | --- | --- | --- |
"""


class Wrapper(NamedTuple):
    """One wrapper as its header documents it."""

    form: str  # the instruction form, for example "griddepcontrol.wait"
    ptx: str  # the first PTX version that has it
    sm: str  # the oldest architecture that has it
    name: str  # of the function
    body: str  # the function's text, without comments
    header: str  # the file's stem

    @property
    def opcode(self) -> str:
        """The opcode with all its modifiers."""
        return self.form.split()[0]

    @property
    def handler_stem(self) -> str:
        """Stem of the emulator's file and of its test."""
        return _HANDLER_STEMS.get(self.opcode.partition(".")[0], self.header)


def read_wrappers(header: Path) -> list[Wrapper]:
    """The wrappers of a header, in its order.

    Args:
        header: a file of ptx/.

    Returns:
        Every function whose comment starts with an instruction form.
    """
    wrappers = []
    comment: list[str] = []
    lines = header.read_text().splitlines()
    for index, line in enumerate(lines):
        if line.startswith("///"):
            comment.append(line.removeprefix("///").strip())
            continue
        function = _FUNCTION.match(line)
        requirement = _requirement(comment)
        if function and requirement:
            wrappers.append(
                Wrapper(
                    form=requirement["form"],
                    ptx=requirement["ptx"],
                    sm=requirement["sm"],
                    name=function["name"],
                    body="\n".join(lines[index : lines.index("}", index) + 1]),
                    header=header.stem,
                )
            )
        if not line.startswith("template"):
            comment = []
    return wrappers


def _requirement(comment: list[str]) -> re.Match[str] | None:
    """Matches the comment up to its first empty line: a form may take several lines."""
    first = comment[: comment.index("")] if "" in comment else comment
    return _REQUIREMENT.match(" ".join(first))


def read_all(repository: Path) -> list[Wrapper]:
    """The wrappers of all headers, headers in the order of their names."""
    return [
        wrapper
        for header in sorted((repository / "ptx").glob("*.cuh"))
        for wrapper in read_wrappers(header)
    ]


def render(wrappers: list[Wrapper]) -> str:
    """The text of ptx/README.md."""
    rows = []
    for wrapper in wrappers:
        stem = wrapper.handler_stem
        rows.append(
            f"| `{wrapper.form}` | PTX {wrapper.ptx}, {wrapper.sm} "
            f"| [`{wrapper.name}`]({wrapper.header}.cuh) "
            f"| [{stem}.cpp](../csrc/emulator/isa/{stem}.cpp) "
            f"| [test_{stem}.py](../tests/emulator/isa/test_{stem}.py) |"
        )
    return _HEADER + "\n".join(rows) + "\n"


def main() -> None:
    """Write the index."""
    repository = Path(__file__).resolve().parent.parent.parent
    (repository / "ptx" / "README.md").write_text(render(read_all(repository)))


if __name__ == "__main__":
    main()
