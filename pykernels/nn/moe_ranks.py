"""An MoE layer's ranks around a buffer: tokens to their experts and results home, both ways.

Lists have one element for each rank of this process: all of them with a ``LocalGroup``, else one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pykernels import moe
from pykernels.nn.moe_checkpoint import Pair

if TYPE_CHECKING:
    from pykernels.nn.moe import MoeLayer


class Tokens(NamedTuple):
    """A rank's batch.

    Attributes:
        x: ``[num_tokens, hidden]``.
        rows: the same in FP8.
        topk_idx: ``[num_tokens, num_topk]``, ``int64``.
        topk_weights: ``[num_tokens, num_topk]``, ``float32``.
    """

    x: Tensor
    rows: Pair
    topk_idx: Tensor
    topk_weights: Tensor


def is_local(buffer: moe.Buffer) -> bool:
    """Whether all ranks are in this process."""
    return buffer.rank is None


def check_buffer(layer: MoeLayer, buffer: moe.Buffer) -> None:
    """A buffer must be of the layer's sizes, and of its rank."""
    sizes = buffer.sizes
    wanted = {
        "num_ranks": layer.num_ranks,
        "num_experts": layer.num_experts,
        "num_topk": layer.gate.num_topk,
        "hidden": layer.hidden,
    }
    for name, value in wanted.items():
        if getattr(sizes, name) != value:
            raise ValueError(
                f"the buffer of MoeLayer must have {name} = {value}, got {getattr(sizes, name)}"
            )
    if buffer.rank not in (None, layer.rank):
        raise ValueError(f"the buffer of MoeLayer must be of rank {layer.rank}, got {buffer.rank}")


def routed(
    layers: Sequence[MoeLayer], tokens: Sequence[Tokens], buffer: moe.Buffer
) -> list[tuple[Tensor, Tensor | None]]:
    """By ``dispatch`` and ``combine``: of each rank its routed and its shared experts' results."""
    rows, topk_idx, topk_weights = _columns(tokens, buffer)
    recv_x, group_offsets, handle = buffer.dispatch(
        rows, topk_idx, topk_weights, capacity=layers[0].capacity
    )
    y = []
    received = zip(layers, tokens, _each(recv_x, buffer), _each(group_offsets, buffer), strict=True)
    for layer, batch, recv_rows, offsets in received:
        layer.count(offsets.diff())
        y.append(layer.experts(recv_rows, offsets, expected_m(layer, batch)))
    shared = [layer.shared(batch) for layer, batch in zip(layers, tokens, strict=True)]
    results = _each(buffer.combine(_whole(y, buffer), handle), buffer)
    return list(zip(results, shared, strict=True))


def routed_low_latency(
    layers: Sequence[MoeLayer], tokens: Sequence[Tokens], buffer: moe.Buffer
) -> list[tuple[Tensor, Tensor | None]]:
    """As :func:`routed`, by the low-latency calls; shared experts run while tokens travel.

    In a graph of ``torch.compile`` no call is split, so there they run behind the receive.
    """
    rows, topk_idx, topk_weights = _columns(tokens, buffer)
    recv_x, masked_m, handle, hook = buffer.low_latency_dispatch(
        rows, topk_idx, topk_weights, return_recv_hook=not torch.compiler.is_compiling()
    )
    shared = [layer.shared(batch) for layer, batch in zip(layers, tokens, strict=True)]
    hook()
    y = []
    received = zip(layers, tokens, _each(recv_x, buffer), _each(masked_m, buffer), strict=True)
    for layer, batch, recv_rows, counts in received:
        layer.count(counts)
        y.append(layer.experts.forward_masked(recv_rows, counts, expected_m(layer, batch)))
    results, _ = buffer.low_latency_combine(_whole(y, buffer), handle)
    return list(zip(_each(results, buffer), shared, strict=True))


def expected_m(layer: MoeLayer, batch: Tokens) -> int:
    """Rows of an expert where all ranks have as many tokens and experts are chosen alike."""
    num_local_experts = layer.num_experts // layer.num_ranks
    return batch.topk_idx.size(0) * batch.topk_idx.size(1) // num_local_experts + 1


def _columns(tokens: Sequence[Tokens], buffer: moe.Buffer) -> tuple[Any, Any, Any]:
    return (
        _whole([batch.rows for batch in tokens], buffer),
        _whole([batch.topk_idx for batch in tokens], buffer),
        _whole([batch.topk_weights for batch in tokens], buffer),
    )


def _whole(values: list[Any], buffer: moe.Buffer) -> Any:
    """As the buffer takes it: a list only with a ``LocalGroup``."""
    return values if is_local(buffer) else values[0]


def _each(value: Any, buffer: moe.Buffer) -> Any:
    """What the buffer returns, as a list."""
    return value if is_local(buffer) else [value]
