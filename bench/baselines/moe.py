"""What dispatch and combine are compared with: a copy, NCCL's all-to-all, DeepEP."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from . import Baseline, MoeOperands, Prepared, Unavailable

if TYPE_CHECKING:
    from ..moe_bench import MoeShape

COPY, NCCL, DEEPEP = "copy", "NCCL all_to_all_single", "DeepEP"
_NOTHING = torch.empty(0)


def baselines(shape: MoeShape) -> list[Baseline[MoeOperands]]:
    """On one GPU a copy of as many bytes; across GPUs those that move rows between them."""
    if not shape.across:
        note = "on the device, as many bytes read and written: the ratio is our share of it"
        return [Baseline(COPY, note, partial(_prepare_copy, shape), computes=False)]
    nccl = "the payloads alone, which stand ready by rank; lengths known to the host"
    deepep = "its tokens by source rank, not rows by expert; result not compared"
    deepep_high = f"{deepep}; layout and counts outside of the timed part"
    prepare_deepep = _prepare_low_latency if shape.is_low_latency else _prepare_deepep
    return [
        Baseline(NCCL, nccl, partial(_prepare_nccl, shape), computes=False),
        Baseline(
            DEEPEP,
            deepep if shape.is_low_latency else deepep_high,
            partial(prepare_deepep, shape),
            computes=False,
        ),
    ]


def _prepare_copy(shape: MoeShape, operands: MoeOperands) -> Prepared:
    device = operands.topk_idx[0].device
    size = (shape.num_bytes // 2,)
    source = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Prepared(lambda: target.copy_(source), target)


def _prepare_nccl(shape: MoeShape, operands: MoeOperands) -> Prepared:
    device = operands.topk_idx[0].device
    (rank,) = shape.local_ranks()
    tokens = shape.routing().tokens
    tokens = tokens if shape.is_dispatch else tokens.T
    sent, received = (
        (shape.payload_bytes * part).tolist() for part in (tokens[rank], tokens.T[rank])
    )
    source = torch.randint(0, 256, (sum(sent),), dtype=torch.uint8, device=device)
    target = source.new_empty(sum(received))

    def call() -> None:
        torch.distributed.all_to_all_single(target, source, received, sent)

    return Prepared(call, target)


def _import() -> Any:
    try:
        import deep_ep
    except ImportError as error:
        raise Unavailable("not installed") from error
    return deep_ep


def _prepare_deepep(shape: MoeShape, operands: MoeOperands) -> Prepared:
    """High throughput within a node, by a handle that an earlier dispatch has left."""
    deep_ep = _import()
    group, hidden_bytes = torch.distributed.group.WORLD, shape.hidden * 2
    configs = [
        deep_ep.Buffer.get_dispatch_config(shape.num_ranks),
        deep_ep.Buffer.get_combine_config(shape.num_ranks),
    ]
    num_bytes = max(
        config.get_nvl_buffer_size_hint(hidden_bytes, shape.num_ranks) for config in configs
    )
    buffer = deep_ep.Buffer(group, num_nvl_bytes=num_bytes, num_rdma_bytes=0)
    (x,), (idx,), (weights,) = operands.x, operands.topk_idx, operands.topk_weights
    per_rank, per_node, per_expert, is_in_rank, _ = buffer.get_dispatch_layout(
        idx, shape.num_experts
    )
    recv_x, _, _, _, handle, _ = buffer.dispatch(
        x,
        num_tokens_per_rank=per_rank,
        num_tokens_per_rdma_rank=per_node,
        is_token_in_rank=is_in_rank,
        num_tokens_per_expert=per_expert,
        topk_idx=idx,
        topk_weights=weights,
        config=configs[0],
    )
    if shape.is_dispatch:
        return Prepared(lambda: buffer.dispatch(x, handle=handle, config=configs[0]), _NOTHING)
    return Prepared(lambda: buffer.combine(recv_x, handle, config=configs[1]), _NOTHING)


def _prepare_low_latency(shape: MoeShape, operands: MoeOperands) -> Prepared:
    deep_ep = _import()
    num_tokens = shape.num_tokens
    num_bytes = deep_ep.Buffer.get_low_latency_rdma_size_hint(
        num_tokens, shape.hidden, shape.num_ranks, shape.num_experts
    )
    buffer = deep_ep.Buffer(
        torch.distributed.group.WORLD,
        num_rdma_bytes=num_bytes,
        low_latency_mode=True,
        num_qps_per_rank=shape.num_experts // shape.num_ranks,
    )
    (x,), (idx,), (weights,) = operands.x, operands.topk_idx, operands.topk_weights
    use_fp8 = shape.fp8 or not shape.is_dispatch

    def dispatch() -> Any:
        return buffer.low_latency_dispatch(
            x, idx, num_tokens, shape.num_experts, use_fp8=use_fp8, async_finish=False
        )

    if shape.is_dispatch:
        return Prepared(dispatch, _NOTHING)
    _, _, handle, _, _ = dispatch()
    (y,) = operands.y
    return Prepared(lambda: buffer.low_latency_combine(y, idx, weights, handle), _NOTHING)
