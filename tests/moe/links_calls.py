"""How ranks of a gloo group connect in the tests; each function runs in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from pykernels.moe.links import Links
from tests.moe.gloo_calls import error_of, rank_of_process

GIVE_UP = 40  # seconds


def links_of(timeout: float) -> Links:
    return Links(None, "test", timeout, torch.device("cpu"))


def tries_to_connect(links: Links, members: Sequence[int]) -> int:
    """How many calls it takes, made one after the other; 0 if none succeeds."""
    begin, tries = time.monotonic(), 0
    while time.monotonic() - begin < GIVE_UP:
        tries += 1
        if not error_of(lambda: links.connect(members)):
            return tries
    return 0


def heard(links: Links) -> list[int]:
    """What each member says over the connections: its number."""
    own = torch.tensor([rank_of_process()])
    peers = [member for member in links.members if member != own]
    incoming = {peer: torch.empty_like(own) for peer in peers}
    arrived = links.start(dict.fromkeys(peers, own), incoming, 0, of_rows=False).wait()
    return sorted([int(own), *(int(tensor) for tensor in arrived.values())])


def staggered(delays: Sequence[float], timeout: float) -> tuple[int, list[int]]:
    """Ranks that come one after the other, and come again at once when they fail."""
    links = links_of(timeout)
    members = range(len(delays))
    dist.barrier()
    time.sleep(delays[rank_of_process()])
    tries = tries_to_connect(links, members)
    return tries, heard(links) if tries else []


def fails_to_construct(failing: int) -> tuple[int, list[int]]:
    """One rank's first group is an error once it is there; all the others' are not."""
    links = links_of(2)
    make, failures = dist.ProcessGroupGloo, [RuntimeError("at the deadline")]

    def construct(*arguments: Any) -> Any:
        group = make(*arguments)
        if failures and rank_of_process() == failing:
            raise failures.pop()
        return group

    dist.ProcessGroupGloo = construct  # type: ignore[assignment, misc]
    dist.barrier()
    tries = tries_to_connect(links, range(dist.get_world_size()))
    return tries, heard(links) if tries else []


def with_and_without(left_out: int) -> tuple[str, list[int]]:
    """All members but one fail to connect to all, connect without it, and then with it."""
    rank, size = rank_of_process(), dist.get_world_size()
    others = [member for member in range(size) if member != left_out]
    links = links_of(1)
    dist.barrier()
    error = ""
    if rank != left_out:
        time.sleep(0.2 * rank)  # so that one after the other gives up
        error = error_of(lambda: links.connect(range(size)))
        tries = [tries_to_connect(links, others), tries_to_connect(links, others)]
        assert tries == [1, 1]
        assert heard(links) == others
    dist.barrier()
    time.sleep(0.3 * rank)
    assert tries_to_connect(links, range(size)) == 1
    return error, heard(links)
