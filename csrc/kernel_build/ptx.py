"""What the build reads from, rejects in and changes in the PTX that nvcc wrote."""

from __future__ import annotations

import math
import re
from pathlib import Path

from kernel_build.errors import BuildError

_FILE = re.compile(r'^(\s*\.file\s+\d+\s+)"([^"]*)"', re.MULTILINE)
_FLOAT = r"(?:f16x2|f16|bf16x2|bf16|f32x2|f32|f64)"
_UNROUNDED = re.compile(rf"^\s*(?:@!?%\w+\s+)?((?:add|sub|mul)((?:\.\w+)*)\.{_FLOAT})\s")
_ROUNDING = {"rn", "rz", "rm", "rp"}
_FIRST_TOOLKIT_OF_PTX_9 = 13
_PARAM = re.compile(r"\.param(?:\s+\.align\s+(\d+))?\s+\.([bsuf]\d+)\s+\w+(?:\[(\d+)\])?")


def relative_paths(text: str, roots: dict[Path, str]) -> str:
    """Return the PTX with the paths of its ``.file`` lines made relative.

    Args:
        text: PTX.
        roots: folder -> what stands for it, for example the repository -> ``""``. The first folder
            that holds a path wins; a path in none of them keeps only its name, below ``system``.
    """

    def replace(match: re.Match[str]) -> str:
        path = Path(match.group(2)).resolve()
        for root, name in roots.items():
            if path.is_relative_to(root):
                return f'{match.group(1)}"{Path(name) / path.relative_to(root)}"'
        return f'{match.group(1)}"system/{path.name}"'

    return _FILE.sub(replace, text)


def file_paths(text: str) -> list[str]:
    """Return the paths of the ``.file`` lines."""
    return [match.group(2) for match in _FILE.finditer(text)]


def unrounded(text: str) -> list[str]:
    """Return the floating-point add, sub and mul without a rounding modifier, as ``line: opcode``.

    ptxas may fuse them, and the GPU would then round differently from the emulator.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _UNROUNDED.match(line)
        if match and not _ROUNDING.intersection(match.group(2).split(".")):
            found.append(f"{number}: {match.group(1)}")
    return found


def version(text: str) -> str:
    """Return the PTX ISA version, for example ``9.0``."""
    return _require(r"^\.version\s+(\S+)", text, ".version").group(1)


def stamped(text: str, ptxas_release: str) -> str:
    """Return the PTX with a ``.version`` that a ptxas of this release reads.

    Our kernels use nothing newer than PTX 8.7; nvcc stamps the newest version that it knows.
    """
    if int(ptxas_release.split(".")[0]) >= _FIRST_TOOLKIT_OF_PTX_9:
        return text
    return re.sub(r"^\.version\s+9\.\d+$", ".version 8.7", text, count=1, flags=re.MULTILINE)


def threads(text: str, kernel: str) -> int:
    """Return the threads of a CTA, from the entry's ``.maxntid``."""
    pattern = r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?"
    match = _require(pattern, _header(text, kernel), f".maxntid of {kernel}")
    return math.prod(int(size) for size in match.groups() if size)


def param_bytes(text: str, kernel: str) -> int:
    """Return the size of the entry's one parameter."""
    params = _PARAM.findall(_header(text, kernel))
    if len(params) != 1:
        raise BuildError(f"{kernel} must take one parameter struct, got {len(params)} parameters")
    _, element, count = params[0]
    return int(element[1:]) // 8 * int(count or 1)


def shared_bytes(text: str, kernel: str) -> int:
    """Return the dynamic shared memory, from the global ``KERNEL_shared_bytes``."""
    pattern = rf"\.u32\s+{kernel}_shared_bytes(?:\s*=\s*(\d+))?\s*;"
    return int(_require(pattern, text, f"{kernel}_shared_bytes").group(1) or 0)


def _header(text: str, kernel: str) -> str:
    """Return an entry's parameters and directives, up to its body."""
    return _require(rf"\.entry\s+{kernel}\s*\([^{{]*", text, f"entry {kernel}").group(0)


def _require(pattern: str, text: str, what: str) -> re.Match[str]:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise BuildError(f"the PTX has no {what}")
    return match
