"""The ranks of a torch.distributed group agree on a buffer: its sizes, and who shares a node."""

from __future__ import annotations

import dataclasses
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed import ProcessGroup

if TYPE_CHECKING:
    from pykernels.moe.base import Wishes
    from pykernels.moe.choice import Settings

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True)
class _Offer:
    """What each rank tells the others."""

    sizes: dict[str, Any] | None  # None if its arguments are wrong
    error: str
    node: str
    name: str  # of the buffer; that of rank 0 counts


def join(group: ProcessGroup | None, wishes: Wishes) -> Settings:
    """The settings of a buffer; every rank of the group calls this.

    Raises:
        ValueError: an argument is wrong, or not the same on all ranks.
        RuntimeError: an argument is wrong on another rank, or there is no group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "torch.distributed is not initialised; call torch.distributed.init_process_group, or "
            "pass a pykernels.moe.LocalGroup"
        )
    if group is not None and not isinstance(group, ProcessGroup):
        raise ValueError(
            "group must be a pykernels.moe.LocalGroup, a torch.distributed group that this process "
            f"is in, or None, got {type(group).__name__}"
        )
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    settings, own_error = None, None
    name = uuid.uuid4().hex
    try:
        default = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
        settings = wishes.settings(group, num_ranks, default)
        offer = _Offer(_shared(settings, wishes), "", _node(), name)
    except (ValueError, RuntimeError) as error:
        own_error = error
        offer = _Offer(None, str(error), _node(), name)
    offers: list[Any] = [None] * num_ranks
    dist.all_gather_object(offers, offer, group=group)
    if own_error is not None:
        raise own_error
    assert settings is not None
    _check_offers(offers)
    per_node = wishes.ranks_per_node or ranks_of_nodes([offer.node for offer in offers])
    name = f"pykernels/moe/{offers[0].name}"
    return dataclasses.replace(settings, ranks_per_node=per_node, rank=rank, name=name)


def _shared(settings: Settings, wishes: Wishes) -> dict[str, Any]:
    """What must be the same on all ranks."""
    device = {"device": settings.device.type, "ranks_per_node": wishes.ranks_per_node}
    return dataclasses.asdict(settings.sizes) | device


def _check_offers(offers: list[_Offer]) -> None:
    for rank, offer in enumerate(offers):
        if offer.sizes is None:
            raise RuntimeError(f"rank {rank} cannot make the buffer: {offer.error}")
    first = offers[0].sizes
    assert first is not None
    for rank, offer in enumerate(offers):
        for name, value in (offer.sizes or {}).items():
            if value != first[name]:
                raise ValueError(
                    f"{name} must be the same on all ranks, got {first[name]} on rank 0 and "
                    f"{value} on rank {rank}"
                )


def ranks_of_nodes(nodes: list[str]) -> int:
    """How many ranks each node has; 1 if they differ or ranks of a node do not follow each other.

    >>> ranks_of_nodes(["a", "a", "b", "b"]), ranks_of_nodes(["a", "b", "a", "b"])
    (2, 1)
    """
    per_node = nodes.count(nodes[0])
    if len(nodes) % per_node != 0:
        return 1
    for begin in range(0, len(nodes), per_node):
        here = nodes[begin : begin + per_node]
        if len(set(here)) != 1 or nodes.count(here[0]) != per_node:
            return 1
    return per_node


def _node() -> str:
    """Ranks with the same host name and the same running kernel share a node."""
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    return f"{socket.gethostname()} {boot}"
