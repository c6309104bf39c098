"""The calls of a buffer: checked once, results allocated, and handed to a transport.

Lists have one element for each rank of this process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels import checks
from pykernels.moe import autograd
from pykernels.moe import checks as moe_checks
from pykernels.moe.base import BufferBase, Hook
from pykernels.moe.errors import HookPendingError
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.transport import Batch, CombineCall, DispatchCall, Finish, Received


class BufferCalls(BufferBase):
    """See :class:`pykernels.moe.Buffer` for what the arguments are.

    Methods whose names end in ``ranks`` do a call; others say what it would return, of tensors
    without memory.
    """

    def dispatch_ranks(
        self, x: Any, topk_idx: Any, topk_weights: Any, capacity: int | None
    ) -> list[Received]:
        transport = self._ready()
        with self._checking(transport, "dispatch"):
            sent = (x, topk_idx, topk_weights)
            call, batches = self._dispatch_call(*sent, capacity, transport.reads_values)
        if torch.is_grad_enabled() and any(each.x.requires_grad for each in batches):
            call = dataclasses.replace(call, op="dispatch with a gradient of x")
            return autograd.dispatch(self, call, batches)
        received, finish = self.start_dispatch(call, batches)
        finish()
        return received

    def dispatch_beside(
        self, x: Any, topk_idx: Any, topk_weights: Any, capacity: int | None
    ) -> tuple[list[Received], Finish]:
        """A dispatch whose rows arrive beside the caller's work."""
        transport = self._ready()
        with self._checking(transport, "dispatch"):
            sent = (x, topk_idx, topk_weights)
            call, batches = self._dispatch_call(*sent, capacity, transport.reads_values)
            for each in batches:
                checks.check_no_gradient(
                    "dispatch with async_finish", {"x": each.x, "topk_weights": each.topk_weights}
                )
        call = dataclasses.replace(call, beside=True)
        received, finish = self.start_dispatch(call, batches)
        return received, self._waiting(finish)

    def combine_beside(
        self, y: Any, handle: Any, out: Any, done: Any
    ) -> tuple[list[Tensor], Finish]:
        """A combine that goes on beside the caller's work."""
        transport = self._ready()
        op = "combine with async_finish"
        with self._checking(transport, "combine"):
            rows, handles, outs = self._combined(y, handle, out, masked=False)
            for each, made in zip(rows, handles, strict=True):
                checks.check_no_gradient(op, {"y": each, "topk_weights": made.topk_weights})
            counters = None
            if done is not None:
                columns = zip(self._rank_checks(), self._per_rank("done", done), rows, strict=True)
                counters = tuple(check.done(*each) for check, *each in columns)
        call = CombineCall("combine", beside=True, done=counters)
        results, finish = self.start_combine(call, rows, handles, outs)
        return results, self._waiting(finish)

    def _waiting(self, finish: Finish) -> Finish:
        begun = self._num_resets

        def wait() -> None:
            self._refuse_if_closed()
            if begun != self._num_resets:
                raise RuntimeError("reset() has been called since; what was sent is forgotten")
            finish()

        return wait

    def dispatched(
        self, x: Any, topk_idx: Any, topk_weights: Any, capacity: int | None
    ) -> list[Received]:
        call, batches = self._dispatch_call(x, topk_idx, topk_weights, capacity, False)
        return [self._allocate(call, batch) for batch in batches]

    def combine_ranks(self, y: Any, handle: Any, out: Any) -> list[Tensor]:
        transport = self._ready()
        with self._checking(transport, "combine"):
            rows, handles, outs = self._combined(y, handle, out, masked=False)
        weights = [each.topk_weights for each in handles]
        of_rows = any(each.requires_grad for each in rows)
        of_weights = any(each.requires_grad for each in weights)
        if torch.is_grad_enabled() and (of_rows or of_weights):
            what = " and ".join(["y"] * of_rows + ["topk_weights"] * of_weights)
            call = CombineCall(f"combine with a gradient of {what}")
            return autograd.combine(self, call, rows, handles)
        results, finish = self.start_combine(CombineCall("combine"), rows, handles, outs)
        finish()
        return results

    def combined(self, y: Any, handle: Any, out: Any, *, masked: bool) -> list[Tensor]:
        return self._empty_results(*self._combined(y, handle, out, masked=masked))

    def low_latency_dispatch_ranks(
        self, x: Any, topk_idx: Any, topk_weights: Any, fp8: Any, scale_fmt: Any, split: Any
    ) -> tuple[list[Received], Hook]:
        transport = self._ready()
        with self._checking(transport, "low_latency_dispatch"):
            checks.check_flag("return_recv_hook", split)
            sent = (x, topk_idx, topk_weights)
            call, batches = self._low_latency_call(*sent, fp8, scale_fmt, transport.reads_values)
        call = dataclasses.replace(call, split=bool(split))
        received, finish = self.start_dispatch(call, batches)
        handles = [each.handle for each in received]
        self._unfilled.update(handles)

        def fill() -> None:
            finish()
            self._unfilled.difference_update(handles)

        return received, self._hook(fill, call.split)

    def low_latency_dispatched(
        self, x: Any, topk_idx: Any, topk_weights: Any, fp8: Any, scale_fmt: Any
    ) -> list[Received]:
        sent = (x, topk_idx, topk_weights)
        call, batches = self._low_latency_call(*sent, fp8, scale_fmt, False)
        return [self._allocate(call, batch) for batch in batches]

    def low_latency_combine_ranks(
        self, y: Any, handle: Any, out: Any, split: Any
    ) -> tuple[list[Tensor], Hook]:
        transport = self._ready()
        op = "low_latency_combine"
        with self._checking(transport, op):
            checks.check_flag("return_recv_hook", split)
            rows, handles, outs = self._combined(y, handle, out, masked=True)
            for each, made in zip(rows, handles, strict=True):
                checks.check_no_gradient(op, {"y": each, "topk_weights": made.topk_weights})
        if any(each in self._unfilled for each in handles):
            raise HookPendingError(
                f"{op} must come after the hook of the low_latency_dispatch of its handle; call "
                "the hook first"
            )
        call = CombineCall(op, split=bool(split))
        results, finish = self.start_combine(call, rows, handles, outs)
        return results, self._hook(finish, call.split)

    def _dispatch_call(
        self, x: Any, idx: Any, weights: Any, capacity: int | None, reads_values: bool
    ) -> tuple[DispatchCall, list[Batch]]:
        batches = self._batches(x, idx, weights, reads_values=reads_values)
        rows = moe_checks.check_capacity(capacity, self._sizes)
        return DispatchCall("dispatch", masked=False, capacity=rows), batches

    def _low_latency_call(
        self, x: Any, idx: Any, weights: Any, fp8: Any, scale_fmt: Any, reads_values: bool
    ) -> tuple[DispatchCall, list[Batch]]:
        op = "low_latency_dispatch"
        checks.check_flag("fp8", fp8)
        checks.check_scale_format(scale_fmt)
        batches = self._batches(x, idx, weights, reads_values=reads_values)
        is_bf16 = batches[0].scales is None
        if not is_bf16 and not fp8:
            raise ValueError("x must be bfloat16 with fp8=False, got a pair (values, scales)")
        for each in batches:
            checks.check_no_gradient(op, {"x": each.x, "topk_weights": each.topk_weights})
            if fp8:
                moe_checks.check_fp8_rows(each)
        cast = scale_fmt if fp8 and is_bf16 else None
        rows = self._sizes.expert_rows
        return DispatchCall(op, masked=True, capacity=rows, scale_fmt=cast), batches

    def _batches(self, x: Any, idx: Any, weights: Any, *, reads_values: bool) -> list[Batch]:
        names = ("x", "topk_idx", "topk_weights")
        columns = [
            self._per_rank(name, each) for name, each in zip(names, (x, idx, weights), strict=True)
        ]
        checked = self._rank_checks()
        batches = [check.batch(*each) for check, *each in zip(checked, *columns, strict=True)]
        moe_checks.check_same_kind(batches)
        for check, batch in zip(checked, batches, strict=True):
            if batch.scales is not None:
                moe_checks.check_fp8_rows(batch)
            if reads_values:
                check.topk_values(batch.topk_idx)
        return batches

    def _combined(
        self, y: Any, handle: Any, out: Any, *, masked: bool
    ) -> tuple[list[Tensor], list[DispatchHandle], list[Tensor | None]]:
        columns = [self._per_rank("y", y), self._per_rank("handle", handle)]
        outs = [None] * len(columns[0]) if out is None else self._per_rank("out", out)
        checked = zip(self._rank_checks(), *columns, outs, strict=True)
        found = [check.combined(*each, masked=masked) for check, *each in checked]
        rows, handles, results = (list(each) for each in zip(*found, strict=True))
        if self._rank is None:
            moe_checks.check_outs_apart(rows, results)
        return rows, handles, results

    def _per_rank(self, name: str, value: Any) -> list[Any]:
        if self._rank is not None:
            return [value]
        return moe_checks.per_rank(name, value, self._sizes.num_ranks)

    def _rank_checks(self) -> list[moe_checks.RankChecks]:
        device = self._settings.device
        if self._rank is not None:
            return [moe_checks.RankChecks(self._sizes, device, None)]
        ranks = range(self._sizes.num_ranks)
        return [moe_checks.RankChecks(self._sizes, device, rank) for rank in ranks]

    def _result(self, received: Sequence[Received]) -> tuple[Any, Any, Any]:
        rows = [each.x if each.scales is None else (each.x, each.scales) for each in received]
        return (
            self._public(rows),
            self._public([each.counts for each in received]),
            self._public([each.handle for each in received]),
        )
