"""What a buffer asks of the thing that moves rows between ranks.

A transport serves the ranks that live in this process: all of them with a ``LocalGroup``, one with
a distributed group. Lists have one element for each of these. Arguments have been checked and
results allocated by the buffer; a transport only moves rows and fills results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from pykernels.moe.handle import DispatchHandle
from pykernels.moe.stats import PeerWait

Finish: TypeAlias = Callable[[], None]  # completes the receive; is called once


class Batch(NamedTuple):
    """What a rank sends.

    Attributes:
        x: ``[T, hidden]``, BF16 or e4m3.
        scales: ``[T, ceil(hidden / 128)]``, FP32, any strides; None with BF16.
        topk_idx: ``[T, num_topk]``, ``int32`` or ``int64``, contiguous.
        topk_weights: ``[T, num_topk]``, ``float32``, contiguous.
    """

    x: Tensor
    scales: Tensor | None
    topk_idx: Tensor
    topk_weights: Tensor


class Received(NamedTuple):
    """What a rank receives: contiguous tensors, allocated and not initialised.

    Attributes:
        x: ``[capacity, hidden]``, or masked ``[num_local_experts, capacity, hidden]``.
        scales: the same with ``ceil(hidden / 128)`` columns; None with BF16.
        counts: ``[num_local_experts + 1]`` row offsets, or masked ``[num_local_experts]`` row
            counts; ``int32``.
        handle: its tensors ``position_in_rank``, ``send_counts``, ``number``, ``recv_counts``,
            ``rows``, ``row_weights`` and ``row_topk`` are to be filled.
        counters: ``[2, ...]``, ``int32``, of a call beside the caller's work: how many of each 128
            rows are there, and zeros. Else None.
    """

    x: Tensor
    scales: Tensor | None
    counts: Tensor
    handle: DispatchHandle
    counters: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class DispatchCall:
    """How a dispatch is done.

    Attributes:
        op: its name in messages, the same on all ranks.
        masked: the layout of what is received.
        capacity: rows of ``recv_x``, of each expert where masked.
        scale_fmt: in which format the send casts BF16 rows to FP8; None: rows travel as they are.
        split: the caller completes the receive later.
        beside: rows are received on the communication stream, beside the caller's work; counts are
            there when the call returns, in the order of its stream.
    """

    op: str
    masked: bool
    capacity: int
    scale_fmt: str | None = None
    split: bool = False
    beside: bool = False


@dataclasses.dataclass(frozen=True)
class CombineCall:
    """How a combine is done; see :class:`DispatchCall`.

    Attributes:
        done: counters of each rank's rows of y, which may still be on their way; with ``beside``.
    """

    op: str
    split: bool = False
    beside: bool = False
    done: tuple[Tensor, ...] | None = None


class Transport(Protocol):
    """Moves rows. Errors of ``dispatch``, ``combine`` and what they return break the buffer.

    Attributes:
        reads_values: whether the host reads ``topk_idx`` anyway; the buffer then checks it, else
            the transport reports wrong entries, by ``check`` at the latest.
        bytes: of the memory that one rank of the buffer holds between calls.
    """

    @property
    def reads_values(self) -> bool: ...

    @property
    def bytes(self) -> int: ...

    def dispatch(
        self, call: DispatchCall, batches: Sequence[Batch], received: Sequence[Received]
    ) -> Finish:
        """Sends all rows. What it returns completes the receive and fills ``received``.

        The caller may change the batches' tensors once this has returned (on their stream). More
        rows than the capacity are an error, a ValueError where the host knows, else by ``check``.
        ``hidden`` may be any multiple of 16 bytes up to the buffer's.
        """

    def combine(
        self,
        call: CombineCall,
        y: Sequence[Tensor],
        handles: Sequence[DispatchHandle],
        outs: Sequence[Tensor],
    ) -> Finish:
        """Sums rows of ``y`` and sends them home; see :meth:`dispatch`.

        Args:
            call: how.
            y: BF16, laid out as the dispatch's ``recv_x``, with any ``hidden`` up to the buffer's.
            handles: of that dispatch.
            outs: ``[T, hidden]``, BF16, rows a multiple of 16 bytes apart.
        """

    def allocating(self, call: CombineCall) -> AbstractContextManager[None]:
        """Where results of this call are allocated: on the stream that writes them."""

    def reject(self, op: str, error: ValueError) -> bool:
        """Takes the place of a call with wrong arguments; True if the peers now know of it.

        All ranks' buffers then refuse work until ``reset``.
        """

    def check(self, *, wait: bool = False) -> None:
        """Raises an error that a call has left behind; with ``wait``, of calls under way too."""

    def reset(self) -> None:
        """Forgets errors and what is under way; all ranks that are not masked call it together."""

    def mask_ranks(self, ranks: frozenset[int]) -> None:
        """Which ranks are left out from the next call on, in place of those before."""

    def wait_stats(self) -> list[list[PeerWait]]:
        """Of each rank of this process, the waits for each peer since the buffer was made."""

    def close(self) -> None:
        """Frees what the transport holds; no other call follows."""
