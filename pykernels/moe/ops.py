"""The calls of one rank's buffer as ops, so that torch.compile keeps each as one node.

An op names its buffer by a number and changes the buffer's token, a tensor of one element: so that
compilers keep all calls, each on its own and in their order, as the ranks need it. Inside
``torch.compile`` the public methods call the ops; elsewhere nothing is gained by that, and the ops
are there for those who call them by name.

Without gradients, and without hooks: a call with either ends the graph and goes on behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pykernels._ops import define
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.transport import Received

if TYPE_CHECKING:
    from pykernels.moe.buffer import Buffer

T = TypeVar("T")

_buffers: WeakValueDictionary[int, Buffer] = WeakValueDictionary()
_numbers = itertools.count()


def register(buffer: Buffer) -> int:
    """The number that stands for the buffer as long as it lives."""
    number = next(_numbers)
    _buffers[number] = buffer
    return number


def outside_of_graphs(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Calls what torch.compile must not look into."""
    import torch._dynamo

    called: Callable[..., T] = torch._dynamo.disable(function)
    return called(*arguments, **options)


def needs_gradient(*tensors: object) -> bool:
    """Whether any of the tensors, among which may be pairs and None, records one."""
    if not torch.is_grad_enabled():
        return False
    flat = [each for item in tensors for each in (item if isinstance(item, tuple) else (item,))]
    return any(isinstance(each, Tensor) and each.requires_grad for each in flat)


# ---- inside torch.compile ----


def dispatch(
    buffer: Buffer, x: Any, topk_idx: Tensor, topk_weights: Tensor, capacity: int
) -> tuple[Any, Tensor, DispatchHandle]:
    values, scales = (x, None) if isinstance(x, Tensor) else x
    found = _DISPATCH(buffer.number, buffer.token, values, scales, topk_idx, topk_weights, capacity)
    return _public(found, topk_idx, topk_weights, capacity, masked=False)


def low_latency_dispatch(
    buffer: Buffer, x: Any, topk_idx: Tensor, topk_weights: Tensor, fp8: bool, scale_fmt: str
) -> tuple[Any, Tensor, DispatchHandle]:
    values, scales = (x, None) if isinstance(x, Tensor) else x
    found = _LOW_LATENCY_DISPATCH(
        buffer.number, buffer.token, values, scales, topk_idx, topk_weights, fp8, scale_fmt
    )
    return _public(found, topk_idx, topk_weights, found[0].size(1), masked=True)


def combine(buffer: Buffer, y: Tensor, handle: DispatchHandle, out: Tensor | None) -> Tensor:
    """Of both kinds: the handle says which."""
    plain, into = _COMBINES[handle.masked]
    arguments = (buffer.number, buffer.token, y, *_tensors_of(handle))
    if out is None:
        found: Tensor = plain(*arguments)
        return found
    into(*arguments, out=out)
    return out


def _public(
    found: tuple[Tensor, ...], topk_idx: Tensor, topk_weights: Tensor, capacity: int, masked: bool
) -> tuple[Any, Tensor, DispatchHandle]:
    recv_x, scales, counts, *tables = found
    handle = _handle_of(topk_idx, topk_weights, counts, *tables, capacity=capacity, masked=masked)
    return (recv_x if scales.dim() == 1 else (recv_x, scales)), counts, handle


def _handle_of(
    topk_idx: Tensor,
    topk_weights: Tensor,
    groups: Tensor,
    *tables: Tensor,
    capacity: int,
    masked: bool,
) -> DispatchHandle:
    position_in_rank, send_counts, number, recv_counts, rows, row_weights, row_topk = tables
    return DispatchHandle(
        topk_idx=topk_idx,
        topk_weights=topk_weights,
        num_tokens=topk_idx.size(0),
        capacity=capacity,
        masked=masked,
        position_in_rank=position_in_rank,
        send_counts=send_counts,
        number=number,
        groups=groups,
        recv_counts=recv_counts,
        rows=rows,
        row_weights=row_weights,
        row_topk=row_topk,
    )


def _tensors_of(handle: DispatchHandle) -> tuple[Tensor, ...]:
    return (handle.topk_idx, handle.topk_weights, *_tables_of(handle))


def _tables_of(handle: DispatchHandle) -> tuple[Tensor, ...]:
    of_sender = (handle.position_in_rank, handle.send_counts, handle.number)
    return (*of_sender, handle.recv_counts, handle.rows, handle.row_weights, handle.row_topk)


# ---- the ops ----


def _find(number: int) -> Buffer:
    buffer = _buffers.get(int(number))
    if buffer is None:
        raise RuntimeError(f"there is no buffer {number}; a buffer must outlive what calls it")
    return buffer


def _pair(x: Tensor, scales: Tensor | None) -> Any:
    return x if scales is None else (x, scales)


def _results(received: Received) -> tuple[Tensor, ...]:
    """Without scales a vector of none stands in their place."""
    x, scales = received.x, received.scales
    scales = x.new_empty(0, dtype=torch.float32) if scales is None else scales
    return (x, scales, received.counts, *_tables_of(received.handle))


def _define_dispatch(real: bool) -> Callable[..., tuple[Tensor, ...]]:
    """For tensors with memory, or for fake ones."""

    def dispatch(
        buffer: int,
        token: Tensor,
        x: Tensor,
        scales: Tensor | None,
        topk_idx: Tensor,
        topk_weights: Tensor,
        capacity: int,
    ) -> tuple[Tensor, ...]:
        with torch.no_grad():
            of_rank = _find(buffer).dispatch_ranks if real else _find(buffer).dispatched
            (received,) = of_rank(_pair(x, scales), topk_idx, topk_weights, capacity)
            return _results(received)

    return dispatch


def _define_low_latency_dispatch(real: bool) -> Callable[..., tuple[Tensor, ...]]:
    def low_latency_dispatch(
        buffer: int,
        token: Tensor,
        x: Tensor,
        scales: Tensor | None,
        topk_idx: Tensor,
        topk_weights: Tensor,
        fp8: bool,
        scale_fmt: str,
    ) -> tuple[Tensor, ...]:
        found, sent = _find(buffer), (_pair(x, scales), topk_idx, topk_weights)
        with torch.no_grad():
            if real:
                (received,), _ = found.low_latency_dispatch_ranks(*sent, fp8, scale_fmt, False)
            else:
                (received,) = found.low_latency_dispatched(*sent, fp8, scale_fmt)
            return _results(received)

    return low_latency_dispatch


def _define_combine(real: bool, masked: bool) -> tuple[Any, Any]:
    """Both overloads."""

    def call(number: int, y: Tensor, tensors: tuple[Tensor, ...], out: Tensor | None) -> Tensor:
        capacity = y.size(1) if masked and y.dim() == 3 else y.size(0)
        routing, tables = tensors[:2], tensors[2:]
        no_groups = tables[0].new_empty(0)  # which only a combine beside a GEMM needs
        handle = _handle_of(*routing, no_groups, *tables, capacity=capacity, masked=masked)
        buffer = _find(number)
        with torch.no_grad():
            if not real:
                (result,) = buffer.combined(y, handle, out, masked=masked)
            elif masked:
                (result,), _ = buffer.low_latency_combine_ranks(y, handle, out, False)
            else:
                (result,) = buffer.combine_ranks(y, handle, out)
            return result

    def combine(buffer: int, token: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        return call(buffer, y, tensors, None)

    def combine_into(buffer: int, token: Tensor, y: Tensor, *tensors: Tensor, out: Tensor) -> None:
        call(buffer, y, tensors, out)

    return combine, combine_into


_BUFFER = "int buffer, Tensor(a!) token"
_BATCH = "Tensor x, Tensor? scales, Tensor topk_idx, Tensor topk_weights"
_TABLES = "position_in_rank, send_counts, number, recv_counts, rows, row_weights, row_topk"
_RECEIVED = ", ".join(
    f"Tensor {each}" for each in ("recv_x", "recv_scales", "counts", *_TABLES.split(", "))
)
_HANDLE = ", ".join(f"Tensor {each}" for each in ("topk_idx", "topk_weights", *_TABLES.split(", ")))
_DISPATCH = define(
    f"moe_dispatch({_BUFFER}, {_BATCH}, int capacity) -> ({_RECEIVED})",
    implementation=_define_dispatch(real=True),
    fake=_define_dispatch(real=False),
)
_LOW_LATENCY_DISPATCH = define(
    f"moe_low_latency_dispatch({_BUFFER}, {_BATCH}, bool fp8, str scale_fmt) -> ({_RECEIVED})",
    implementation=_define_low_latency_dispatch(real=True),
    fake=_define_low_latency_dispatch(real=False),
)


def _define_combines(name: str, masked: bool) -> tuple[Any, Any]:
    plain, into = _define_combine(real=True, masked=masked)
    fake_plain, fake_into = _define_combine(real=False, masked=masked)
    arguments = f"{_BUFFER}, Tensor y, {_HANDLE}"
    return (
        define(f"{name}({arguments}) -> Tensor", implementation=plain, fake=fake_plain),
        define(
            f"{name}.out({arguments}, *, Tensor(b!) out) -> ()",
            implementation=into,
            fake=fake_into,
        ),
    )


_COMBINES = (
    _define_combines("moe_combine", masked=False),
    _define_combines("moe_low_latency_combine", masked=True),
)
