"""What the FP8 GEMM is compared with: each library's kernel behind one interface.

A baseline prepares everything that is not its kernel's own work (layouts of scales, descriptors,
workspaces) before the clock starts; its result is compared with torch before it is timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # a, sfa, b, sfb, out


class Unavailable(Exception):  # noqa: N818 - not an error: the row says why
    """A baseline cannot run here or cannot run this shape; the text says why."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A call on one set of operands, and what it must compute.

    Attributes:
        call: Launches on the current stream; may be captured into a graph.
        out: Where the result is after a call.
        sfa: The scales of a that it applies, one per row and 128 columns.
        sfb: The scales of b that it applies, one per 128x128 block.
    """

    call: Callable[[], object]
    out: Tensor
    sfa: Tensor
    sfb: Tensor


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One contender.

    Attributes:
        name: As in the tables.
        note: How its work differs from ours.
        prepare: Makes a call; raises :class:`Unavailable`.
    """

    name: str
    note: str
    prepare: Callable[[Operands], Prepared]


def baselines() -> list[Baseline]:
    """All of them, also those that are not installed."""
    from . import cublaslt, cutlass_gemm, deepgemm, triton_launch

    return [
        *cublaslt.baselines(),
        *cutlass_gemm.baselines(),
        triton_launch.baseline(),
        deepgemm.baseline(),
    ]
