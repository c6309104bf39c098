"""The public buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pykernels import checks
from pykernels.moe import ops
from pykernels.moe.base import Hook, Wishes
from pykernels.moe.calls import BufferCalls
from pykernels.moe.event import CommEvent
from pykernels.moe.group import LocalGroup
from pykernels.moe.transport import Received


class Buffer(BufferCalls):
    """Moves tokens to the experts that they chose, and the experts' results home.

    All ranks of the group make the buffer together, with the same sizes, and make the same calls
    in the same order. Expert e lives on rank ``e // (num_experts / num_ranks)``. Several buffers
    may be in use at once. ``with`` closes the buffer at its end.

    What moves the rows: for CUDA tensors of one node, kernels over peer memory, as for CPU tensors
    of a ``LocalGroup`` inside :func:`pykernels.emulate`; for CPU tensors of a ``LocalGroup``
    outside of it, torch in this process; else the point-to-point operations of torch.distributed,
    gloo for CPU tensors and NCCL for CUDA tensors, which send a token once to each node and on from
    there. Results have the same bits everywhere.

    Args:
        group: a :class:`LocalGroup`; or a torch.distributed group, None for the default group.
            With a ``LocalGroup`` every tensor argument and result of the buffer, handles among
            them, is a list of one per rank.
        hidden: columns of a token, a multiple of 8; of 16 where rows travel as FP8.
        num_experts: of all ranks together, a multiple of their number.
        num_topk: experts that a token names, at most 32.
        num_max_tokens_per_rank: tokens of one rank and call at most.
        device: of all tensors; None for the CPU, or, of a group whose only backend is NCCL, the
            current GPU.
        num_sms: how many SMs the kernels of a rank may take; None for 24, or fewer where ranks
            share a GPU.
        timeout: seconds that a rank waits for another before it gives up; at most 86400.
        ranks_per_node: of a distributed group, how many ranks share a node: those with the same
            ``rank // ranks_per_node``. None: those of one host name.

    Attributes:
        number: by which ``torch.ops.pykernels.moe_dispatch`` and the like know this buffer.
        token: a tensor that they change, so that compilers keep their order.

    Raises:
        ValueError: an argument is not as above, or not the same on all ranks.
        RuntimeError: another rank has passed wrong arguments, or the device has no transport.
    """

    def __init__(
        self,
        group: LocalGroup | ProcessGroup | None = None,
        *,
        hidden: int,
        num_experts: int,
        num_topk: int,
        num_max_tokens_per_rank: int,
        device: torch.device | str | None = None,
        num_sms: int | None = None,
        timeout: float = 30.0,
        ranks_per_node: int | None = None,
    ) -> None:
        super().__init__(
            group,
            Wishes(
                hidden=hidden,
                num_experts=num_experts,
                num_topk=num_topk,
                num_max_tokens_per_rank=num_max_tokens_per_rank,
                device=device,
                num_sms=num_sms,
                timeout=timeout,
                ranks_per_node=ranks_per_node,
            ),
        )
        self.number = ops.register(self)
        self.token = torch.zeros(1, dtype=torch.int32, device=self._settings.device)

    def dispatch(
        self,
        x: Any,
        topk_idx: Any,
        topk_weights: Any,
        *,
        capacity: int | None = None,
        async_finish: bool = False,
    ) -> Any:
        """Send each token to the ranks of its experts, and group what arrives by expert.

        A token travels once to each rank, whatever number of its experts lives there.
        Differentiable in BF16 ``x``; gradients of ``topk_weights`` come from :meth:`combine`.

        Args:
            x: ``[num_tokens, hidden]``, ``bfloat16``; or a pair ``(values, scales)`` as
                :func:`pykernels.quantize_1x128` makes it: ``float8_e4m3fn`` and ``[num_tokens,
                ceil(hidden / 128)]``, ``float32``, any strides. Values are row-major; their data
                pointer and row stride are multiples of 16 bytes.
            topk_idx: ``[num_tokens, num_topk]``, ``int32`` or ``int64``, contiguous: the experts of
                each token, -1 for none.
            topk_weights: ``[num_tokens, num_topk]``, ``float32``, contiguous.
            capacity: rows of ``recv_x``; None for the most that distinct experts can need,
                ``num_ranks * num_max_tokens_per_rank * min(num_topk, num_local_experts)``. That
                is 3.8 GB with 8 ranks, 4096 tokens, 8 of 32 local experts and 7168 BF16 columns.
            async_finish: return when the counts are there, in the order of the current stream; rows
                arrive on the buffer's communication stream. Not differentiable.

        Returns:
            recv_x ``[capacity, hidden]``, of x's type (a pair with ``[capacity, ceil(hidden /
            128)]`` scales); group_offsets ``[num_local_experts + 1]``, ``int32``: rows
            ``group_offsets[e] : group_offsets[e + 1]`` belong to local expert e, ordered by source
            rank, then token, then k; and the handle for :meth:`combine`. Rows behind the last are
            unspecified. With ``async_finish`` also a :class:`CommEvent`: nothing of recv_x may be
            read before its ``wait()``, but by a grouped GEMM that takes its ``ready``.

        Raises:
            ValueError: an argument is not as above, ``topk_idx`` names no expert of the buffer, or
                more rows than ``capacity`` arrive. What only the GPU knows, the next call or
                :meth:`check` raises.
            MoeTimeoutError: a peer has not come.
            RuntimeError: a peer's call was wrong or another one, or the buffer refuses work.

        Reference: :func:`pykernels.reference.moe_dispatch`.
        """
        checks.check_flag("async_finish", async_finish)
        if torch.compiler.is_compiling():
            if self._rank is not None and not (async_finish or ops.needs_gradient(x, topk_weights)):
                rows = self._sizes.max_rows if capacity is None else capacity
                return ops.dispatch(self, x, topk_idx, topk_weights, rows)
            call = self.dispatch
            options: dict[str, Any] = {"capacity": capacity, "async_finish": async_finish}
            return ops.outside_of_graphs(call, x, topk_idx, topk_weights, **options)
        if not async_finish:
            return self._result(self.dispatch_ranks(x, topk_idx, topk_weights, capacity))
        received, finish = self.dispatch_beside(x, topk_idx, topk_weights, capacity)
        ready, done = (
            self._public([_counters(each)[place] for each in received]) for place in (0, 1)
        )
        return *self._result(received), CommEvent(finish, ready, done)

    def combine(
        self,
        y: Any,
        handle: Any,
        *,
        out: Any = None,
        done: Any = None,
        async_finish: bool = False,
    ) -> Any:
        """Send the experts' results home, weighted and summed.

        On the experts' rank ``acc = fmaf(weight, y[row], acc)`` in FP32 from +0, over a token's
        rows in ascending expert order, rounded to BF16; at home the FP32 sum of these over the
        ranks in ascending order, rounded to BF16. The same bits always. Rows that no token has are
        not read. Differentiable in ``y`` and in the ``topk_weights`` of the dispatch.

        Args:
            y: ``[capacity, hidden]``, ``bfloat16``, row-major: a result for each row of recv_x.
            handle: of the :meth:`dispatch`; it may be used several times.
            out: ``[num_tokens, hidden]``, ``bfloat16``, row-major, to write into; or None.
            done: with ``async_finish``, the ``done`` of the dispatch's :class:`CommEvent`, which a
                grouped GEMM that stores y fills, launched before this call: tokens are sent as
                their rows are stored, not behind the GEMM.
            async_finish: return at once; the call goes on on the buffer's communication stream. Not
                differentiable.

        Returns:
            ``[num_tokens, hidden]``, ``bfloat16``; zeros for a token that went nowhere. With
            ``async_finish`` also a :class:`CommEvent`: the result may be read, and y changed,
            behind its ``wait()``.

        Raises:
            ValueError: an argument is not as above; nothing has been written.
            MoeTimeoutError: a peer has not come.
            RuntimeError: a peer's call was wrong or another one, or the buffer refuses work.

        Reference: :func:`pykernels.reference.moe_combine`.
        """
        checks.check_flag("async_finish", async_finish)
        if done is not None and not async_finish:
            raise ValueError("done must be None without async_finish, got counters")
        if torch.compiler.is_compiling():
            if self._rank is not None and not (
                async_finish or ops.needs_gradient(y, handle.topk_weights)
            ):
                return ops.combine(self, y, handle, out)
            options = {"out": out, "done": done, "async_finish": async_finish}
            return ops.outside_of_graphs(self.combine, y, handle, **options)
        if not async_finish:
            return self._public(self.combine_ranks(y, handle, out))
        results, finish = self.combine_beside(y, handle, out, done)
        return self._public(results), CommEvent(finish)

    def low_latency_dispatch(
        self,
        x: Any,
        topk_idx: Any,
        topk_weights: Any,
        *,
        fp8: bool = True,
        scale_fmt: str = "fp32",
        return_recv_hook: bool = False,
    ) -> tuple[Any, Any, Any, Hook]:
        """As :meth:`dispatch`, with a fixed room for each expert; for decoding.

        Not differentiable.

        Args:
            x: as for :meth:`dispatch`.
            topk_idx: as for :meth:`dispatch`.
            topk_weights: as for :meth:`dispatch`.
            fp8: cast BF16 rows as ``quantize_1x128(x, scale_fmt=scale_fmt)`` does, in the send; a
                pair is sent as it is. With False, ``x`` is BF16 and stays so.
            scale_fmt: ``"fp32"`` or ``"ue8m0"``: of the cast.
            return_recv_hook: return once the send has started, and receive in ``hook()``.

        Returns:
            recv_x ``[num_local_experts, num_ranks * num_max_tokens_per_rank, hidden]``, by default
            the pair with ``[..., ceil(hidden / 128)]`` scales; masked_m ``[num_local_experts]``,
            ``int32``: rows ``0 : masked_m[e]`` of expert e are valid, ordered by source rank, then
            token, then k; the handle; and the hook, which completes the receive (else it has
            nothing to do). Before the hook has been called, nothing of the others may be read.

        Raises:
            ValueError: an argument is not as above, or tokens that name one expert twice bring more
                rows than its room.
            MoeTimeoutError: a peer has not come.
            RuntimeError: a peer's call was wrong or another one, or the buffer refuses work.

        Reference: :func:`pykernels.reference.moe_low_latency_dispatch`.
        """
        if torch.compiler.is_compiling():
            has_gradient = ops.needs_gradient(x, topk_weights)  # an error, outside of the graph
            if self._rank is not None and not return_recv_hook and not has_gradient:
                found = ops.low_latency_dispatch(self, x, topk_idx, topk_weights, fp8, scale_fmt)
                return *found, _nothing_to_do
            options = {"fp8": fp8, "scale_fmt": scale_fmt, "return_recv_hook": return_recv_hook}
            call = self.low_latency_dispatch
            return ops.outside_of_graphs(call, x, topk_idx, topk_weights, **options)
        received, hook = self.low_latency_dispatch_ranks(
            x, topk_idx, topk_weights, fp8, scale_fmt, return_recv_hook
        )
        return *self._result(received), hook

    def low_latency_combine(
        self, y: Any, handle: Any, *, out: Any = None, return_recv_hook: bool = False
    ) -> tuple[Any, Hook]:
        """As :meth:`combine`, of rows as :meth:`low_latency_dispatch` lays them out.

        Not differentiable.

        Args:
            y: ``[num_local_experts, num_ranks * num_max_tokens_per_rank, hidden]``, ``bfloat16``,
                rows contiguous, experts and rows multiples of 16 bytes apart.
            handle: of the :meth:`low_latency_dispatch`, after its hook.
            out: as for :meth:`combine`.
            return_recv_hook: return once the send has started, and receive in ``hook()``.

        Returns:
            ``[num_tokens, hidden]``, ``bfloat16``, complete once the hook has been called; and the
            hook.

        Raises:
            ValueError: an argument is not as above; nothing has been written.
            MoeTimeoutError: a peer has not come.
            RuntimeError: a peer's call was wrong or another one, or the buffer refuses work.
        """
        if torch.compiler.is_compiling():
            has_gradient = ops.needs_gradient(y, getattr(handle, "topk_weights", None))
            if self._rank is not None and not return_recv_hook and not has_gradient:
                return ops.combine(self, y, handle, out), _nothing_to_do
            options = {"out": out, "return_recv_hook": return_recv_hook}
            return ops.outside_of_graphs(self.low_latency_combine, y, handle, **options)
        results, hook = self.low_latency_combine_ranks(y, handle, out, return_recv_hook)
        return self._public(results), hook


def _nothing_to_do() -> None:
    """The hook of a call that has received."""


def _counters(received: Received) -> Tensor:
    assert received.counters is not None
    return received.counters
