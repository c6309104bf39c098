"""The public buffer: checks a call once, allocates its results, and hands it to a transport."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import ProcessGroup

from pykernels import checks
from pykernels.moe import autograd
from pykernels.moe import checks as moe_checks
from pykernels.moe.base import BufferBase, Hook, Wishes
from pykernels.moe.group import LocalGroup
from pykernels.moe.transport import CombineCall, DispatchCall


class Buffer(BufferBase):
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
        num_sms: how many SMs the kernels may take; None for all.
        timeout: seconds that a rank waits for another before it gives up.
        ranks_per_node: of a distributed group, how many ranks share a node: those with the same
            ``rank // ranks_per_node``. None: those of one host name.

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

    def dispatch(
        self,
        x: Any,
        topk_idx: Any,
        topk_weights: Any,
        *,
        capacity: int | None = None,
    ) -> tuple[Any, Any, Any]:
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
                ``num_ranks * num_max_tokens_per_rank * min(num_topk, num_local_experts)``.

        Returns:
            recv_x ``[capacity, hidden]``, of x's type (a pair with ``[capacity, ceil(hidden /
            128)]`` scales); group_offsets ``[num_local_experts + 1]``, ``int32``: rows
            ``group_offsets[e] : group_offsets[e + 1]`` belong to local expert e, ordered by source
            rank, then token, then k; and the handle for :meth:`combine`. Rows behind the last are
            unspecified.

        Raises:
            ValueError: an argument is not as above, ``topk_idx`` names no expert of the buffer, or
                more rows than ``capacity`` arrive. What only the GPU knows, the next call or
                :meth:`check` raises.
            MoeTimeoutError: a peer has not come.
            RuntimeError: a peer's call was wrong or another one, or the buffer refuses work.

        Reference: :func:`pykernels.reference.moe_dispatch`.
        """
        transport = self._ready()
        with self._checking(transport, "dispatch"):
            batches = self._batches(transport, x, topk_idx, topk_weights)
            rows = moe_checks.check_capacity(capacity, self._sizes)
        needs_grad = torch.is_grad_enabled() and any(each.x.requires_grad for each in batches)
        op = "dispatch with a gradient of x" if needs_grad else "dispatch"
        call = DispatchCall(op, masked=False, capacity=rows)
        if needs_grad:
            received = autograd.dispatch(self, call, batches)
        else:
            received, finish = self.start_dispatch(call, batches)
            finish()
        return self._result(received)

    def combine(self, y: Any, handle: Any, *, out: Any = None) -> Any:
        """Send the experts' results home, weighted and summed.

        On the experts' rank ``acc = fmaf(weight, y[row], acc)`` in FP32 from +0, over a token's
        rows in ascending expert order, rounded to BF16; at home the FP32 sum of these over the
        ranks in ascending order, rounded to BF16. The same bits always. Rows that no token has are
        not read. Differentiable in ``y`` and in the ``topk_weights`` of the dispatch.

        Args:
            y: ``[capacity, hidden]``, ``bfloat16``, row-major: a result for each row of recv_x.
            handle: of the :meth:`dispatch`; it may be used several times.
            out: ``[num_tokens, hidden]``, ``bfloat16``, row-major, to write into; or None.

        Returns:
            ``[num_tokens, hidden]``, ``bfloat16``; zeros for a token that went nowhere.

        Raises:
            ValueError: an argument is not as above; nothing has been written.
            MoeTimeoutError: a peer has not come.
            RuntimeError: a peer's call was wrong or another one, or the buffer refuses work.

        Reference: :func:`pykernels.reference.moe_combine`.
        """
        transport = self._ready()
        with self._checking(transport, "combine"):
            rows, handles, outs = self._combined(y, handle, out, masked=False)
        weights = [each.topk_weights for each in handles]
        of_rows = any(each.requires_grad for each in rows)
        of_weights = any(each.requires_grad for each in weights)
        if torch.is_grad_enabled() and (of_rows or of_weights):
            what = " and ".join(["y"] * of_rows + ["topk_weights"] * of_weights)
            call = CombineCall(f"combine with a gradient of {what}")
            return self._public(autograd.combine(self, call, rows, handles))
        results, finish = self.start_combine(CombineCall("combine"), rows, handles, outs)
        finish()
        return self._public(results)

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
        transport = self._ready()
        op = "low_latency_dispatch"
        with self._checking(transport, op):
            checks.check_flag("fp8", fp8)
            checks.check_flag("return_recv_hook", return_recv_hook)
            checks.check_scale_format(scale_fmt)
            batches = self._batches(transport, x, topk_idx, topk_weights)
            is_bf16 = batches[0].scales is None
            if not is_bf16 and not fp8:
                raise ValueError("x must be bfloat16 with fp8=False, got a pair (values, scales)")
            for each in batches:
                checks.check_no_gradient(op, {"x": each.x})
                if fp8:
                    moe_checks.check_fp8_rows(each)
        call = DispatchCall(
            op,
            masked=True,
            capacity=self._sizes.expert_rows,
            scale_fmt=scale_fmt if fp8 and is_bf16 else None,
            split=bool(return_recv_hook),
        )
        received, finish = self.start_dispatch(call, batches)
        return *self._result(received), self._hook(finish, call.split)

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
        transport = self._ready()
        op = "low_latency_combine"
        with self._checking(transport, op):
            checks.check_flag("return_recv_hook", return_recv_hook)
            rows, handles, outs = self._combined(y, handle, out, masked=True)
            for each in rows:
                checks.check_no_gradient(op, {"y": each})
        call = CombineCall(op, split=bool(return_recv_hook))
        results, finish = self.start_combine(call, rows, handles, outs)
        return self._public(results), self._hook(finish, call.split)
