"""Tokens to the ranks of their experts and back: ``torchrun --nproc-per-node 4`` runs it on CPUs.

Each rank routes its tokens to the best of 16 experts, sends them, runs its own experts in FP8,
combines the results and compares them with a computation that has all experts in one place. The
rows travel over gloo. With ``--ranks-per-node 2`` the processes act as two nodes.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor

import pykernels
from pykernels import moe

HIDDEN, INTERMEDIATE = 256, 128
NUM_EXPERTS, NUM_TOPK, NUM_TOKENS = 16, 4, 64
ALLOWED_ERROR = 0.04  # the cast between the two GEMMs, to 3 fraction bits, costs about 2.6 %

Pair = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description="MoE dispatch and combine on CPUs.")
    parser.add_argument("--ranks-per-node", type=int, help="pretend that so many share a node")
    parser.add_argument("--stats", help="write waiting times to STATS.RANK.json")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    with moe.Buffer(
        hidden=HIDDEN,
        num_experts=NUM_EXPERTS,
        num_topk=NUM_TOPK,
        num_max_tokens_per_rank=NUM_TOKENS,
        ranks_per_node=options.ranks_per_node,
    ) as buffer:
        run(buffer, rank, num_ranks)
        if options.stats:
            moe.save_wait_stats(f"{options.stats}.{rank}.json", rank, buffer.wait_stats())
    dist.destroy_process_group()


def run(buffer: moe.Buffer, rank: int, num_ranks: int) -> None:
    gate_up, down = expert_weights()
    x, topk_idx, topk_weights = route(rank)

    local = slice(rank * NUM_EXPERTS // num_ranks, (rank + 1) * NUM_EXPERTS // num_ranks)
    q, scales = pykernels.quantize_1x128(x)
    (recv_q, recv_scales), group_offsets, handle = buffer.dispatch(
        (q, scales), topk_idx, topk_weights
    )
    local_weights = quantized(gate_up[local]), quantized(down[local])
    y = experts((recv_q, recv_scales), group_offsets, *local_weights)
    out = buffer.combine(y, handle)

    values = pykernels.reference.dequantize_1x128(q, scales)
    exact = dense(values, topk_idx, topk_weights, dequantized(gate_up), dequantized(down))
    error = float((out.double() - exact).norm() / exact.norm())
    crossed = int((handle.position_in_rank >= 0).sum())
    lines: list[str | None] = [None] * num_ranks
    dist.all_gather_object(
        lines,
        f"rank {rank}: sent {len(x)} tokens as {crossed} rows, received {int(group_offsets[-1])} "
        f"rows for {len(group_offsets) - 1} experts, relative error {error:.3f}",
    )
    if rank == 0:
        print("\n".join(str(line) for line in lines))
    if error > ALLOWED_ERROR:
        raise SystemExit(f"rank {rank}: the error must be at most {ALLOWED_ERROR}, got {error:.3f}")


def route(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's tokens, their experts and the experts' weights."""
    generator = torch.Generator().manual_seed(1 + rank)
    x = torch.randn(NUM_TOKENS, HIDDEN, generator=generator).bfloat16()
    scores = torch.randn(NUM_TOKENS, NUM_EXPERTS, generator=generator).sigmoid()
    topk_weights, topk_idx = scores.topk(NUM_TOPK, dim=1)
    return x, topk_idx, topk_weights / topk_weights.sum(dim=1, keepdim=True)


def expert_weights() -> tuple[Tensor, Tensor]:
    """Those of all experts, the same on all ranks; a real model has only its own."""
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(NUM_EXPERTS, 2 * INTERMEDIATE, HIDDEN, generator=generator)
    down = torch.randn(NUM_EXPERTS, HIDDEN, INTERMEDIATE, generator=generator)
    return (gate_up * HIDDEN**-0.5).bfloat16(), (down * INTERMEDIATE**-0.5).bfloat16()


def experts(rows: Pair, group_offsets: Tensor, gate_up: Pair, down: Pair) -> Tensor:
    """``down(silu(gate) * up)`` of each row by its expert: two grouped FP8 GEMMs."""
    hidden = pykernels.grouped_fp8_gemm_nt(rows, gate_up, group_offsets)
    activated = pykernels.silu_mul_quantize_1x128(hidden, group_offsets=group_offsets)
    return pykernels.grouped_fp8_gemm_nt(activated, down, group_offsets)


def quantized(weights: Tensor) -> Pair:
    q, scales = zip(*(pykernels.quantize_128x128(each) for each in weights), strict=True)
    return torch.stack(q), torch.stack(scales)


def dequantized(weights: Tensor) -> Tensor:
    """What the FP8 weights are, in float64."""
    pairs = zip(*quantized(weights), strict=True)
    return torch.stack([pykernels.reference.dequantize_128x128(*pair) for pair in pairs])


def dense(
    x: Tensor, topk_idx: Tensor, topk_weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Every expert on every token, in float64."""
    gate, up = torch.einsum("th,eih->tei", x, gate_up).chunk(2, dim=2)
    results = torch.einsum("tei,ehi->teh", torch.nn.functional.silu(gate) * up, down)
    weights = torch.zeros(len(x), NUM_EXPERTS, dtype=torch.float64)
    weights.scatter_(1, topk_idx, topk_weights.double())
    return torch.einsum("te,teh->th", weights, results)


if __name__ == "__main__":
    main()
