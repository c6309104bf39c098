"""Gradients: dispatch and combine are each other's, by the routing of the forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pykernels.moe.handle import DispatchHandle
from pykernels.moe.transport import Batch, CombineCall, DispatchCall, Finish, Received

_PARTS = 3  # BF16 numbers that hold an FP32 number
_COLUMNS = 8  # BF16 columns that fill 16 bytes
_NO_TOKEN = -1  # in the place of a row's k
_HIGH_BITS = -65536  # 0xFFFF0000 as int32: what BF16 keeps of an FP32 number


class Calls(Protocol):
    """What gradients need of a buffer."""

    def start_dispatch(
        self, call: DispatchCall, batches: Sequence[Batch]
    ) -> tuple[list[Received], Finish]: ...

    def start_combine(
        self, call: CombineCall, y: Sequence[Tensor], handles: Sequence[DispatchHandle]
    ) -> tuple[list[Tensor], Finish]: ...


def dispatch(buffer: Calls, call: DispatchCall, batches: Sequence[Batch]) -> list[Received]:
    """A dispatch that is differentiable in x."""
    received: list[Received] = []
    function: Any = _Dispatch  # torch leaves apply without types
    rows = function.apply(buffer, call, batches, received, *(batch.x for batch in batches))
    return [each._replace(x=x) for each, x in zip(received, rows, strict=True)]


def combine(
    buffer: Calls, call: CombineCall, y: Sequence[Tensor], handles: Sequence[DispatchHandle]
) -> list[Tensor]:
    """A combine that is differentiable in y and in the handles' ``topk_weights``."""
    weights = [handle.topk_weights for handle in handles]
    function: Any = _Combine  # torch leaves apply without types
    return list(function.apply(buffer, call, handles, *y, *weights))


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        buffer: Calls,
        call: DispatchCall,
        batches: Sequence[Batch],
        received: list[Received],
        *x: Tensor,
    ) -> tuple[Tensor, ...]:
        found, finish = buffer.start_dispatch(call, batches)
        finish()
        received += found
        ctx.buffer, ctx.handles = buffer, [each.handle for each in found]
        return tuple(each.x for each in found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Each token's gradient is the sum of its rows' gradients."""
        rows = [gradient.contiguous() for gradient in gradients]
        call = CombineCall("the gradient of dispatch")
        of_x, finish = ctx.buffer.start_combine(call, rows, _unweighted(ctx.handles))
        finish()
        return None, None, None, None, *of_x


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        buffer: Calls,
        call: CombineCall,
        handles: Sequence[DispatchHandle],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        y = tensors[: len(handles)]
        outs, finish = buffer.start_combine(call, y, handles)
        finish()
        ctx.buffer, ctx.handles = buffer, handles
        ctx.of_weights = any(ctx.needs_input_grad[3 + len(handles) :])
        # The backward pass goes by topk_idx again, so torch must notice where it has changed.
        idx = (handle.topk_idx for handle in handles if not handle.topk_idx.is_inference())
        ctx.save_for_backward(*(y if ctx.of_weights else ()), *idx)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """A row's gradient is its token's, weighted; a weight's is its row times its token's."""
        handles: Sequence[DispatchHandle] = ctx.handles
        saved = ctx.saved_tensors  # raises where one has changed
        rows = _gradients_at_rows(ctx.buffer, handles, gradients)
        of_y = [_weighted(row, handle) for row, handle in zip(rows, handles, strict=True)]
        of_weights: Sequence[Tensor | None] = [None] * len(handles)
        if ctx.of_weights:
            dots = [
                (row.float() * y.float()).sum(dim=1)
                for row, y in zip(rows, saved[: len(rows)], strict=True)
            ]
            of_weights = _send_home(ctx.buffer, handles, dots, gradients[0].size(1))
        return None, None, None, *of_y, *of_weights


def _gradients_at_rows(
    buffer: Calls, handles: Sequence[DispatchHandle], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of the results, sent to the rows that the tokens have."""
    batches = [
        Batch(gradient.contiguous(), None, handle.topk_idx, handle.topk_weights.detach())
        for gradient, handle in zip(gradients, handles, strict=True)
    ]
    call = DispatchCall("the gradient of combine", masked=False, capacity=handles[0].capacity)
    received, finish = buffer.start_dispatch(call, batches)
    finish()
    return [each.x for each in received]


def _weighted(rows: Tensor, handle: DispatchHandle) -> Tensor:
    """Each row times its weight, zeros in rows that no token has."""
    weight = _of_rows(handle, handle.row_weights, 0.0)
    has_token = _of_rows(handle, handle.row_topk, _NO_TOKEN) != _NO_TOKEN
    weighted = (weight[:, None] * rows.float()).to(rows.dtype)
    return torch.where(has_token[:, None], weighted, 0)


def _of_rows(handle: DispatchHandle, table: Tensor, default: float) -> Tensor:
    """``[capacity]``: what the table says of each row, the default of rows that no token has.

    Which entries count is decided on the device, so that the host does not wait for their number:
    the others all go to one more row.
    """
    position = torch.arange(handle.rows.size(1), device=table.device)
    is_row = (position < handle.recv_counts[:, None])[..., None] & (handle.rows >= 0)
    row = torch.where(is_row, handle.rows, handle.capacity).long()
    found = table.new_full((handle.capacity + 1,), default)
    found[row] = table
    return found[:-1]


def _send_home(
    buffer: Calls, handles: Sequence[DispatchHandle], dots: Sequence[Tensor], hidden: int
) -> list[Tensor]:
    """A number for each row to its token's ``[num_tokens, num_topk]``, exactly.

    It travels as three BF16 columns for each k, whose sum it is; all other rows of the token have
    zeros there. (Below 2^-110 its last bits are below what BF16 can hold.)
    """
    num_topk = handles[0].topk_idx.size(1)
    at_once = min(num_topk, hidden // _PARTS)
    found = []
    for first in range(0, num_topk, at_once):
        last = min(first + at_once, num_topk)
        columns = -(-_PARTS * (last - first) // _COLUMNS) * _COLUMNS
        rows = [
            _spread(dot, handle, first, columns) for dot, handle in zip(dots, handles, strict=True)
        ]
        call = CombineCall("the gradient of topk_weights")
        sums, finish = buffer.start_combine(call, rows, _unweighted(handles))
        finish()
        parts = [each[:, : _PARTS * (last - first)].float() for each in sums]
        found.append([each.unflatten(1, (last - first, _PARTS)) for each in parts])
    joined = [torch.cat(each, dim=1) for each in zip(*found, strict=True)]
    return [each[..., 0] + each[..., 1] + each[..., 2] for each in joined]


def _spread(dot: Tensor, handle: DispatchHandle, first: int, columns: int) -> Tensor:
    """``[capacity, columns]``: each row's number in the columns of its k, from k = first on."""
    column = torch.arange(columns, device=dot.device)
    k = _of_rows(handle, handle.row_topk, _NO_TOKEN)[:, None] - first
    parts = torch.stack(split_fp32(dot), dim=1)
    return torch.where(column // _PARTS == k, parts[:, column % _PARTS], 0)


def split_fp32(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three BF16 tensors whose sum, from left to right, is the FP32 tensor.

    Each takes the leading 8 of the 24 significant bits that are left.
    """
    parts = []
    rest = values
    for _ in range(_PARTS):
        high = (rest.view(torch.int32) & _HIGH_BITS).view(torch.float32)
        parts.append(torch.where(rest.isnan(), rest, high).bfloat16())
        rest = torch.where(values.isfinite(), rest - high, 0)
    return parts[0], parts[1], parts[2]


def _unweighted(handles: Sequence[DispatchHandle]) -> list[DispatchHandle]:
    return [
        dataclasses.replace(handle, row_weights=torch.ones_like(handle.row_weights))
        for handle in handles
    ]
