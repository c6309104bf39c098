"""What the ops are compared with: each library's kernel behind one interface.

A baseline prepares everything that is not its kernel's own work (layouts of scales, descriptors,
workspaces) before the clock starts; its result is compared with torch before it is timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pykernels.group_checks import Groups, Segment

if TYPE_CHECKING:
    from ..moe_bench import MoeShape


class Operands(NamedTuple):
    """Of ``fp8_gemm_nt``; a contender writes into the ``out`` that it is given."""

    a: Tensor
    sfa: Tensor
    b: Tensor
    sfb: Tensor
    out: Tensor


class GroupedOperands(NamedTuple):
    """Of the grouped GEMMs.

    Attributes:
        a: ``[m, k]``, or ``[num_groups, max_m, k]``; so sfa and out.
        sfa: One scale a row and 128 columns.
        b: ``[num_groups, n, k]``.
        sfb: One scale a 128x128 block.
        out: Where a contender writes.
        groups: On the device.
        segments: What the groups say, for contenders that need it on the host: of each group that
            has any its rows, counted in ``a`` flattened to a matrix.
    """

    a: Tensor
    sfa: Tensor
    b: Tensor
    sfb: Tensor
    out: Tensor
    groups: Groups
    segments: tuple[Segment, ...]

    def piece(self, segment: Segment) -> Operands:
        """One group's rows and weight as a product of their own."""
        rows = slice(segment.begin, segment.end)
        a, sfa, out = (flat(tensor)[rows] for tensor in (self.a, self.sfa, self.out))
        return Operands(a, sfa, self.b[segment.group], self.sfb[segment.group], out)

    def rows(self) -> Tensor:
        """The rows of all segments."""
        ranges = [torch.arange(segment.begin, segment.end) for segment in self.segments]
        return torch.cat(ranges).to(self.a.device)


def flat(tensor: Tensor) -> Tensor:
    """All groups' rows as one matrix."""
    return tensor.view(-1, tensor.size(-1))


class CastOperands(NamedTuple):
    """Of the casts; a contender writes into the ``out`` and ``scales`` that it is given.

    Attributes:
        x: BF16 rows, or groups of rows.
        out: The FP8 values.
        scales: One a row and 128 columns, or one a 128x128 block.
        groups: Which rows are cast, on the device; None for all.
        begins: ``[num_groups]``, ``int32``: the first of each group's rows, counted in ``x``
            flattened to a matrix; so ``ends``, the row behind its last.
        ends: For contenders that need them ready.
    """

    x: Tensor
    out: Tensor
    scales: Tensor
    groups: Groups | None
    begins: Tensor
    ends: Tensor


class MlaOperands(NamedTuple):
    """Of ``mla_decode``; a contender writes into the ``out`` and ``lse`` that it is given.

    Attributes:
        q: ``[batch, seqlen_q, num_heads, 576]``.
        kv_cache: ``[num_pages, page_size, 1, 576]`` in BF16, or ``[..., 656]`` bytes.
        block_table: ``[batch, max_pages]``.
        cache_seqlens: ``[batch]``.
        out: ``[batch, seqlen_q, num_heads, 512]``.
        lse: ``[batch, num_heads, seqlen_q]``.
        lengths: What ``cache_seqlens`` says, for contenders that need it on the host.
        softmax_scale: Of the scores.
    """

    q: Tensor
    kv_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    out: Tensor
    lse: Tensor
    lengths: tuple[int, ...]
    softmax_scale: float

    @property
    def is_fp8(self) -> bool:
        return self.kv_cache.dtype == torch.uint8


class MoeOperands(NamedTuple):
    """Of the MoE all-to-all; lists have one element for each rank of this process.

    Attributes:
        buffer: A ``pykernels.moe.Buffer``.
        x: ``[num_tokens, hidden]``, or pairs of values and scales.
        topk_idx: ``[num_tokens, num_topk]``.
        topk_weights: The same.
        y: Of a combine, as the dispatch has laid out its rows.
        handle: Of that dispatch, as combine takes it.
        out: Of a combine, ``[ranks of this process, num_tokens, hidden]``.
        seed: From which values are made, so that other processes know them.
    """

    buffer: Any
    x: list[Any]
    topk_idx: list[Tensor]
    topk_weights: list[Tensor]
    y: list[Tensor]
    handle: Any
    out: Tensor
    seed: int


ProductT = TypeVar("ProductT", Operands, GroupedOperands)
OperandsT = TypeVar("OperandsT", Operands, GroupedOperands, CastOperands, MlaOperands, MoeOperands)


class Unavailable(Exception):  # noqa: N818 - not an error: the row says why
    """A baseline cannot run here or cannot run this shape; the text says why."""


_NO_SCALES = torch.empty(0)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A call on one set of operands, and what it must compute.

    Attributes:
        call: Launches on the current stream; may be captured into a graph.
        out: Where the result is after a call.
        sfa: Of a product: the scales of a that it applies, one per row and 128 columns.
        sfb: Of a product: the scales of b that it applies, one per 128x128 block.
        rows: Of a grouped product: the row of ``out``, as a matrix, for each row of the segments;
            None where they are rows of the operands' own ``out``.
        results: Of attention, by a library that allocates its results or has another logarithm:
            ``out`` and ``lse`` of the last call as the operands have them. Of the MoE all-to-all
            what the last call has returned.
    """

    call: Callable[[], object]
    out: Tensor
    sfa: Tensor = _NO_SCALES
    sfb: Tensor = _NO_SCALES
    rows: Tensor | None = None
    results: Callable[[], tuple[Any, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Baseline(Generic[OperandsT]):
    """One contender.

    Attributes:
        name: As in the tables.
        note: How its work differs from ours.
        prepare: Makes a call; raises :class:`Unavailable`.
        computes: Whether the result is the op's: that of a copy is not.
    """

    name: str
    note: str
    prepare: Callable[[OperandsT], Prepared]
    computes: bool = True


def baselines() -> list[Baseline[Operands]]:
    """All of the dense GEMM, also those that are not installed."""
    from . import cublaslt, cutlass_gemm, deepgemm, triton_launch

    return [
        *cublaslt.baselines(),
        *cutlass_gemm.baselines(),
        triton_launch.baseline(),
        deepgemm.baseline(),
    ]


def grouped_baselines() -> list[Baseline[GroupedOperands]]:
    """All of the grouped GEMMs, also those that are not installed."""
    from . import cublaslt, cutlass_gemm, deepgemm, triton_launch

    return [
        *cublaslt.grouped_baselines(),
        *cutlass_gemm.grouped_baselines(),
        triton_launch.grouped_baseline(),
        deepgemm.grouped_baseline(),
    ]


def mla_baselines() -> list[Baseline[MlaOperands]]:
    """All of MLA decode, also those that are not installed."""
    from . import flash_attention, flashinfer_mla, flashmla, triton_mla_launch

    return [
        *flashmla.baselines(),
        flash_attention.baseline(),
        flashinfer_mla.baseline(),
        *triton_mla_launch.baselines(),
    ]


def moe_baselines(shape: MoeShape) -> list[Baseline[MoeOperands]]:
    """All of the MoE all-to-all, also those that are not installed."""
    from . import moe

    return moe.baselines(shape)
