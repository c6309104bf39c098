"""What the MoE tests share: buffers of a routing, and whole calls against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels import moe, reference
from pykernels.moe.handle import DispatchHandle
from tests.moe.routings import Batch, Routing

HIDDEN = 144  # two blocks of scale factors, the second one of 16 columns


def same_bits(x: Tensor, y: Tensor) -> bool:
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def buffer_of(
    routing: Routing, hidden: int = HIDDEN, group: Any = "local", **options: Any
) -> moe.Buffer:
    return moe.Buffer(
        moe.LocalGroup(routing.num_ranks) if group == "local" else group,
        hidden=hidden,
        num_experts=routing.num_experts,
        num_topk=routing.num_topk,
        num_max_tokens_per_rank=routing.num_max_tokens_per_rank,
        **options,
    )


def capacity_of(routing: Routing) -> int:
    """Enough for experts that are named twice, too."""
    return routing.num_ranks * routing.num_max_tokens_per_rank * routing.num_topk


def results_of_experts(rows: Tensor, used: Sequence[slice], seed: int) -> Tensor:
    """Random results; NaN in rows that no token has."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.full(rows.shape, torch.nan, dtype=torch.bfloat16)
    flat = y.view(-1, rows.size(-1))
    for part in used:
        size = flat[part].shape
        flat[part] = torch.randn(size, generator=generator).bfloat16()
    return y


def check_grouped(
    routing: Routing, batch: Batch, buffer: moe.Buffer, x: list[Any], masked: Sequence[int] = ()
) -> list[DispatchHandle]:
    """dispatch and combine."""
    capacity = capacity_of(routing)
    sent = batch.topk_idx, batch.topk_weights
    recv_x, offsets, handles = buffer.dispatch(x, *sent, capacity=capacity)
    expected = reference.moe_dispatch(
        x, batch.topk_idx, num_experts=routing.num_experts, masked_ranks=masked
    )
    y = []
    for rank, (rows, rank_offsets) in enumerate(expected):
        assert torch.equal(offsets[rank], rank_offsets)
        used = int(rank_offsets[-1])
        if isinstance(rows, Tensor):
            assert recv_x[rank].shape == (capacity, rows.size(1))
            assert same_bits(recv_x[rank][:used], rows)
        else:
            assert same_bits(recv_x[rank][0][:used], rows[0])
            assert same_bits(recv_x[rank][1][:used], rows[1])
        like = recv_x[rank] if isinstance(rows, Tensor) else recv_x[rank][0]
        y.append(results_of_experts(like, [slice(0, used)], rank))
    outs = buffer.combine(y, handles)
    exact = reference.moe_combine(y, *sent, num_experts=routing.num_experts, masked_ranks=masked)
    for out, wanted in zip(outs, exact, strict=True):
        assert same_bits(out, wanted)
    return handles


def check_masked_layout(
    routing: Routing,
    batch: Batch,
    buffer: moe.Buffer,
    x: list[Any],
    sent: list[Any],
    **options: Any,
) -> None:
    """low_latency_dispatch and low_latency_combine. ``sent``: the rows as they travel."""
    recv_x, masked_m, handles, hook = buffer.low_latency_dispatch(
        x, batch.topk_idx, batch.topk_weights, **options
    )
    hook()
    expected = reference.moe_low_latency_dispatch(
        sent, batch.topk_idx, num_experts=routing.num_experts
    )
    room = routing.num_ranks * routing.num_max_tokens_per_rank
    y = []
    for rank, (experts, counts) in enumerate(expected):
        assert torch.equal(masked_m[rank], counts)
        for e, rows in enumerate(experts):
            count = int(counts[e])
            if isinstance(rows, Tensor):
                assert same_bits(recv_x[rank][e, :count], rows)
            else:
                assert same_bits(recv_x[rank][0][e, :count], rows[0])
                assert same_bits(recv_x[rank][1][e, :count], rows[1])
        like = recv_x[rank] if isinstance(recv_x[rank], Tensor) else recv_x[rank][0]
        used = [slice(e * room, e * room + int(count)) for e, count in enumerate(counts)]
        y.append(results_of_experts(like, used, rank))
    outs, hook = buffer.low_latency_combine(
        y, handles, return_recv_hook=options.get("return_recv_hook", False)
    )
    hook()
    exact = reference.moe_combine(
        y, batch.topk_idx, batch.topk_weights, num_experts=routing.num_experts
    )
    for out, wanted in zip(outs, exact, strict=True):
        assert same_bits(out, wanted)


KINDS = ("bf16", "fp32", "ue8m0", "pair")  # BF16 as it is, cast with these factors, FP8 as given


def check_low_latency(routing: Routing, buffer: moe.Buffer, kind: str, split: bool) -> None:
    """check_masked_layout of rows of one of the KINDS."""
    batch = routing.batch(HIDDEN)
    options: dict[str, Any] = {"fp8": kind != "bf16", "return_recv_hook": split}
    x: list[Any] = batch.x
    sent: list[Any] = batch.x
    if kind in ("fp32", "ue8m0"):
        options["scale_fmt"] = kind
        sent = [reference.quantize_1x128(each, scale_fmt=kind) for each in batch.x]
    elif kind == "pair":
        x = sent = batch.fp8("ue8m0")
    check_masked_layout(routing, batch, buffer, x, sent, **options)
