"""The only place that decides what moves rows for a buffer."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import torch
from torch.distributed import ProcessGroup

from pykernels.device import launch_device
from pykernels.moe import gpu
from pykernels.moe.group import BufferSizes, LocalGroup
from pykernels.moe.transport import Transport

Kind: TypeAlias = Literal["local", "peer", "collective"]
MAX_PEERS = 8  # GPUs of one node that reach each other's memory


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a transport is made from.

    Attributes:
        group: a ``LocalGroup``, a torch.distributed group, or None for the default group.
        sizes: the same on all ranks.
        device: of all tensors of this process; CUDA devices have an index.
        num_sms: how many SMs each kernel may take; None for the transport's choice.
        timeout: seconds that a rank waits for another.
        ranks_per_node: ranks of a node of a distributed group, which follow one another; the
            group's size where all are on one node, 1 where they are spread unevenly.
        rank: of this process in a distributed group.
        name: of this buffer, the same on all ranks of a distributed group and no other buffer's.
    """

    group: LocalGroup | ProcessGroup | None
    sizes: BufferSizes
    device: torch.device
    num_sms: int | None
    timeout: float
    ranks_per_node: int
    rank: int = 0
    name: str = ""


def transport_kind(settings: Settings) -> Kind:
    """Of a call that is made now: for CPU tensors it depends on ``pykernels.emulate``."""
    on_gpu = gpu.find(settings.device) is not None
    if isinstance(settings.group, LocalGroup):
        emulated = not on_gpu and launch_device(torch.empty(0, device="cpu")) is not None
        return "peer" if on_gpu or emulated else "local"
    num_ranks = settings.sizes.num_ranks
    one_node = settings.ranks_per_node == num_ranks
    return "peer" if on_gpu and one_node and num_ranks <= MAX_PEERS else "collective"


def make_transport(kind: Kind, settings: Settings) -> Transport:
    """A new transport; of a distributed group, all ranks make theirs together."""
    if kind == "local":
        from pykernels.moe.local import LocalTransport

        return LocalTransport(settings.sizes)
    if kind == "collective":
        from pykernels.moe.collective import CollectiveTransport

        return CollectiveTransport(settings)
    from pykernels.moe.peer import PeerTransport

    return PeerTransport(settings)


def buffer_bytes(
    *,
    num_ranks: int,
    num_experts: int,
    num_topk: int,
    hidden: int,
    num_max_tokens_per_rank: int,
) -> int:
    """The device memory that one rank of a buffer over peer memory holds, exactly.

    Raises:
        ValueError: a size is not one that :class:`Buffer` takes.
    """
    from pykernels.moe.ranks import check_sizes, device_bytes

    sizes = BufferSizes(num_ranks, num_experts, num_topk, hidden, num_max_tokens_per_rank)
    check_sizes(sizes)
    return device_bytes(sizes)
