"""What the build accepts in the log of ``ptxas -v``: anything unknown there is an error."""

from __future__ import annotations

import re

from kernel_build.errors import BuildError

_PREFIX = r"ptxas info\s*: "
_USED = re.compile(
    _PREFIX + r"Used (\d+) registers, used \d+ barriers(, \d+ bytes (smem|gmem|cmem\[\d+\]))*"
)
_HARMLESS = (
    re.compile(_PREFIX + r"\d+ bytes gmem(, \d+ bytes cmem\[\d+\])*"),
    re.compile(_PREFIX + r"Compiling entry function '\w+' for 'sm_90a'"),
    re.compile(_PREFIX + r"Function properties for \w+"),
    re.compile(r"\s*0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"),
    re.compile(_PREFIX + r"Compile time = [0-9.]+ ms"),
    re.compile(r"\s*"),
)


def registers(log: str) -> int:
    """Return the registers per thread of the one kernel that the log is about.

    Raises:
        BuildError: the log holds an advisory (setmaxnreg ignored, wgmma serialised), a spill, local
            memory, or anything else that a clean kernel does not cause.
    """
    lines = [line for line in log.splitlines() if not any(p.fullmatch(line) for p in _HARMLESS)]
    used = [match for match in map(_USED.fullmatch, lines) if match]
    if len(used) != 1 or len(lines) != 1:
        raise BuildError("ptxas reports more than a clean kernel may cause:\n" + "\n".join(lines))
    return int(used[0].group(1))
