"""What a dispatch remembers, so that combine finds each token's rows and each row's token."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class DispatchHandle:
    """One rank's side of a dispatch; with a ``LocalGroup`` there is a list of them.

    R ranks, Tmax tokens of a rank at most, T tokens of this rank. All tensors are on the buffer's
    device. Entries of ``rows``, ``row_weights`` and ``row_topk`` for ``i >= recv_counts[s]`` are
    unspecified.

    Attributes:
        topk_idx: ``[T, num_topk]``, as given to the dispatch.
        topk_weights: ``[T, num_topk]``, as given to the dispatch; gradients of combine go there.
        num_tokens: T.
        capacity: rows of ``recv_x``; of each expert in the masked layout.
        masked: whether ``recv_x`` is ``[num_local_experts, R * Tmax, hidden]``, from
            ``low_latency_dispatch``, or ``[capacity, hidden]``.
        position_in_rank: ``[T, R]``, ``int32``: the how-manieth (0, 1, ...) of this rank's tokens
            for that rank, or -1 if it does not go there.
        send_counts: ``[R]``, ``int32``: tokens that went to each rank; combine compares them with
            what the rank returns.
        number: ``[1]``, ``int32``: of the dispatch among the buffer's calls since its reset, the
            same on all ranks; combine compares it, too.
        groups: ``group_offsets`` or ``masked_m``, as returned beside the handle.
        recv_counts: ``[R]``, ``int32``: tokens that came from each rank.
        rows: ``[R, Tmax, num_topk]``, ``int32``: the rows of ``recv_x`` that hold the i-th token
            from rank s, ascending by expert, then k; -1 behind the last. In the masked layout
            ``row = expert * R * Tmax + position``.
        row_weights: ``[R, Tmax, num_topk]``, ``float32``: the weights of those rows.
        row_topk: ``[R, Tmax, num_topk]``, ``int32``: which k of its token each of those rows is.
    """

    topk_idx: Tensor
    topk_weights: Tensor
    num_tokens: int
    capacity: int
    masked: bool
    position_in_rank: Tensor
    send_counts: Tensor
    number: Tensor
    groups: Tensor
    recv_counts: Tensor
    rows: Tensor
    row_weights: Tensor
    row_topk: Tensor
