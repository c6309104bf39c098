"""Published figures of grouped FP8 GEMMs: other machines, other clocks, other ways of measuring."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .grouped_bench import GroupedShape


@dataclasses.dataclass(frozen=True)
class Figure:
    """One time.

    Attributes:
        library: What was measured.
        gpu: On what.
        us: Microseconds, from TFLOPS where those are published.
        source: Where it stands.
    """

    library: str
    gpu: str
    us: float
    source: str


_README = "DeepGEMM's README"
_PULL = "DeepGEMM pull request 192"
# Layout, groups, rows of each, n, k: TFLOPS on an H800.
_TFLOPS = {
    ("group_offsets", 4, 8192, 4096, 7168): 1381.0,
    ("group_offsets", 4, 8192, 7168, 2048): 1262.0,
    ("masked_m", 1, 1024, 4096, 7168): 1233.0,
    ("masked_m", 2, 512, 4096, 7168): 1040.0,
    ("masked_m", 4, 256, 4096, 7168): 932.0,
}
# Microseconds on an H100.
_MICROSECONDS = {
    ("masked_m", 16, 32, 4096, 7168): 168.0,
    ("masked_m", 16, 96, 4096, 7168): 176.0,
    ("masked_m", 16, 160, 4096, 7168): 229.0,
}


def figures(shape: GroupedShape) -> list[Figure]:
    """Of exactly this call; none if groups differ in their rows."""
    if shape.is_skewed:
        return []
    key = (shape.source, shape.num_groups, shape.rows[0], shape.n, shape.k)
    found = []
    if key in _TFLOPS:
        us = shape.flops / _TFLOPS[key] / 1e6
        found.append(Figure("DeepGEMM", "H800", us, f"{_README}: {_TFLOPS[key]:g} TFLOPS"))
    if key in _MICROSECONDS:
        found.append(Figure("DeepGEMM", "H100", _MICROSECONDS[key], _PULL))
    return found
