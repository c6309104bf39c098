"""What a rank of a gloo group does with its MoE layer; each function runs in a process of its own.

Without Hugging Face's models, which take long to import.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pykernels.nn import MoeLayer


def both_ways(
    layers: Sequence[Sequence[MoeLayer]], x: Sequence[Tensor]
) -> list[list[tuple[Tensor, Tensor]]]:
    """Of each of the layers this rank's results, by either way, and the counts of its experts."""
    rank = dist.get_rank()
    most = max(len(each) for each in x)
    return [_both_ways(of_ranks[rank], x[rank], most) for of_ranks in layers]


def _both_ways(layer: MoeLayer, x: Tensor, most: int) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad(), layer.make_buffer(num_max_tokens_per_rank=most) as buffer:
        layer.use_buffers(buffer)
        return [
            (layer(x, low_latency=low_latency), layer.expert_counts(reset=True))
            for low_latency in (False, True)
        ]
