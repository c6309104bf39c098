"""What a cubin says of its kernel: the attributes that ptxas leaves for the driver."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from pathlib import Path

_MAX_THREADS = 0x05
_MIN_STACK_SIZE = 0x12
_KPARAM_INFO = 0x17
_REGCOUNT = 0x2F
_KPARAM_SIZE_SHIFT = 18
_FORMAT_SIZED = 4


@dataclasses.dataclass(frozen=True)
class CubinInfo:
    """The attributes of a cubin with one kernel."""

    threads: int
    registers: int
    param_bytes: int
    stack_bytes: int


def read_cubin(path: Path) -> CubinInfo:
    """Read the attributes from the ELF sections ``.nv.info`` and ``.nv.info.KERNEL``."""
    values: dict[int, int] = {}
    for section in _info_sections(path.read_bytes()):
        for attribute, value in _attributes(section):
            values[attribute] = max(value, values.get(attribute, 0))
    return CubinInfo(
        threads=values[_MAX_THREADS],
        registers=values[_REGCOUNT],
        param_bytes=values[_KPARAM_INFO] >> _KPARAM_SIZE_SHIFT,
        stack_bytes=values[_MIN_STACK_SIZE],
    )


def _info_sections(elf: bytes) -> Iterator[bytes]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        start = names + name
        if elf[start : elf.index(b"\0", start)].startswith(b".nv.info"):
            yield elf[offset : offset + length]


def _attributes(section: bytes) -> Iterator[tuple[int, int]]:
    """Yield attribute and value: the last word of its block, for threads the product of three."""
    position = 0
    while position + 4 <= len(section):
        form, attribute, value = struct.unpack_from("<BBH", section, position)
        position += 4
        if form != _FORMAT_SIZED:
            continue
        words = struct.unpack_from(f"<{value // 4}I", section, position)
        position += value
        if words:
            yield attribute, math.prod(words) if attribute == _MAX_THREADS else words[-1]
