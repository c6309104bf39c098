"""What a kernel moves and issues for a shape, counted in the emulator: no times."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from pykernels.config import Candidate
from pykernels.emulator import Counters, Report
from pykernels.native import native
from pykernels.testing import gemm_operands

from .candidates import Options, Shape, launch

# Above this many multiply-adds a launch takes many seconds here, so a smaller shape is counted.
_MAX_MULTIPLY_ADDS = 2**34
_MIN_K, _MIN_COLUMNS, _MIN_ROWS = 512, 2048, 1024


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counters of one launch, and the least that any kernel must do for the shape."""

    shape: Shape  # that was emulated
    counters: Counters

    @property
    def ratios(self) -> dict[str, float]:
        """Counted over least possible: bytes read and written, multiply-adds."""
        counters, shape = self.counters, self.shape
        return {
            "global_bytes_read": counters.global_bytes_read / shape.bytes_read,
            "global_footprint_bytes_read": counters.global_footprint_bytes_read / shape.bytes_read,
            "global_bytes_written": counters.global_bytes_written / shape.bytes_written,
            "tensor_multiply_adds": counters.tensor_multiply_adds / (shape.flops / 2),
        }

    def row(self) -> dict[str, Any]:
        """For JSON."""
        plain = {
            field.name: getattr(self.counters, field.name)
            for field in dataclasses.fields(self.counters)
            if field.name != "warp_instructions"
        }
        plain["warp_instructions"] = self.counters.instructions
        return {"shape": str(self.shape), "counts": plain, "ratios": self.ratios}


def emulated_shape(shape: Shape) -> Shape:
    """The shape itself, or a smaller one: k is halved first, then columns, then rows."""
    while shape.flops / 2 > _MAX_MULTIPLY_ADDS:
        if shape.k >= 2 * _MIN_K:
            shape = Shape(shape.m, shape.n, _half(shape.k, 128))
        elif shape.n >= 2 * _MIN_COLUMNS:
            shape = Shape(shape.m, _half(shape.n, 128), shape.k)
        elif shape.m >= 2 * _MIN_ROWS:
            shape = Shape(_half(shape.m, 128), shape.n, shape.k)
        else:
            return shape
    return shape


def _half(size: int, multiple: int) -> int:
    return -(-size // (2 * multiple)) * multiple


def count(shape: Shape, candidate: Candidate, options: Options) -> Counts:
    """Emulates one launch of the candidate, without checks.

    Raises:
        EmulationError: the launch cannot go on.
    """
    emulated = emulated_shape(shape)
    a, b = gemm_operands(emulated.m, emulated.n, emulated.k)
    out = torch.empty(emulated.m, emulated.n, dtype=torch.bfloat16)
    device = native().EmulatedDevice(checks=())
    launch(device, candidate, options, (*a, *b, out))
    ((_, values),) = device.reports
    return Counts(emulated, Report.from_native(values).counters)
