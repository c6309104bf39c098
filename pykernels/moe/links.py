"""Messages between the ranks of a torch.distributed group, each with a deadline.

Counts and other headers travel over gloo, for which this makes a group of its own: a rank that does
not come is then known by its number, and other users of the group are not disturbed. Rows travel
over the same group on CPUs, over NCCL on GPUs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from pykernels.moe.stats import WaitCounter


class PeerLostError(Exception):
    """A message from or to a peer has not gone through in time, or never will."""

    def __init__(self, peer: int, detail: str) -> None:
        super().__init__(f"rank {peer}: {detail}")
        self.peer = peer
        self.detail = detail


class Transfer:
    """Messages under way: what they bring, once :meth:`wait` returns."""

    def __init__(self, links: Links, received: dict[int, Tensor]) -> None:
        self._links = links
        self._received = received
        self._works: list[tuple[int, Any, bool]] = []  # peer, torch's Work, whether it receives

    def add(self, peer: int, work: Any, *, receives: bool) -> None:
        self._works.append((peer, work, receives))

    def wait(self) -> dict[int, Tensor]:
        """The tensors that each peer's message has filled.

        Raises:
            PeerLostError: see there; other messages may still be under way.
        """
        deadline = time.monotonic() + self._links.timeout
        for peer, work, receives in self._works:
            begin = time.monotonic()
            left = timedelta(seconds=max(deadline - begin, 0.001))
            try:
                work.wait(left)
            except RuntimeError as error:
                raise PeerLostError(peer, _first_line(error)) from error
            finally:
                if receives:
                    self._links.waits.add(peer, time.monotonic() - begin)
        self._works.clear()
        return self._received


class Links:
    """The connections of one rank; ranks are those of the buffer's group.

    Attributes:
        members: the ranks that are connected, ascending.
        timeout: seconds that a message may take.
        waits: the time that messages were waited for, by their sender.
    """

    def __init__(
        self,
        group: ProcessGroup | None,
        name: str,
        timeout: float,
        device: torch.device,
    ) -> None:
        """``name`` is this buffer's own, the same on all ranks."""
        self._rank = dist.get_rank(group)
        self._name = name
        self._connected: Counter[tuple[int, ...]] = Counter()  # how often which members were
        self._control: Any = None
        self._data: Any = None  # for rows in GPU memory
        self._device = device
        self.members: list[int] = []
        self.timeout = timeout
        self.waits = WaitCounter(dist.get_world_size(group))

    def connect(self, members: Sequence[int]) -> None:
        """New connections in place of the old ones; all members call this together.

        Raises:
            RuntimeError: not all members have come in time.
        """
        self.close()
        self.members = sorted(members)
        # The name of connections that were never tried before, the same on all members: ranks may
        # have been left out of others meanwhile, or have tried in vain.
        key = tuple(self.members)
        store = PrefixStore(f"{self._name}/{self.members}", _get_default_store())
        failures = int(store.add("failures", 0))
        fresh = PrefixStore(f"{self._connected[key]}/{failures}", store)
        timeout = timedelta(seconds=self.timeout)
        place = self.members.index(self._rank)
        try:
            self._control = dist.ProcessGroupGloo(fresh, place, len(self.members), timeout)
        except RuntimeError as error:
            store.add("failures", 1)
            raise RuntimeError(
                f"rank {self._rank} could not connect to all of the ranks {self.members} in "
                f"{self.timeout:g} s ({_first_line(error)}); all of them must call together"
            ) from error
        self._connected[key] += 1
        self._data = self._group_for_rows(PrefixStore("rows", fresh), place)

    def _group_for_rows(self, store: PrefixStore, place: int) -> Any:
        """What has ``alltoall_base``; None: rows travel as headers do."""
        if self._device.type != "cuda":
            return None
        if not dist.is_nccl_available():
            raise RuntimeError("rows of CUDA tensors travel over NCCL, which this torch is without")
        options = dist.ProcessGroupNCCL.Options()
        return dist.ProcessGroupNCCL(store, place, len(self.members), options)

    def close(self) -> None:
        self._control = self._data = None

    def start(
        self,
        outgoing: Mapping[int, Tensor],
        incoming: Mapping[int, Tensor],
        tag: int,
        *,
        of_rows: bool = True,
    ) -> Transfer:
        """Begins to send and receive contiguous tensors, of which either side knows the sizes.

        Args:
            outgoing: by receiver; what this rank sends to itself arrives at once.
            incoming: by sender: what is filled. Messages without bytes are not sent.
            tag: by which messages on CPUs find their receive.
            of_rows: bytes on the buffer's device; else headers, which are on the CPU.
        """
        received = dict(incoming)
        if self._rank in outgoing:
            received[self._rank] = outgoing[self._rank]
        transfer = Transfer(self, received)
        if of_rows and self._data is not None:
            self._start_all_to_all(outgoing, incoming, transfer)
            return transfer
        for peer, tensor in incoming.items():
            if peer != self._rank and tensor.numel() > 0:
                work = self._run(peer, self._control.recv, tensor, tag)
                transfer.add(peer, work, receives=True)
        for peer, tensor in outgoing.items():
            if peer != self._rank and tensor.numel() > 0:
                work = self._run(peer, self._control.send, tensor, tag)
                transfer.add(peer, work, receives=False)
        return transfer

    def _run(self, peer: int, operation: Any, tensor: Tensor, tag: int) -> Any:
        try:
            return operation([tensor], self.members.index(peer), tag)
        except RuntimeError as error:  # the connection is closed
            raise PeerLostError(peer, _first_line(error)) from error

    def _start_all_to_all(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor], transfer: Transfer
    ) -> None:
        """One all-to-all of bytes; what arrives is then copied to where it belongs."""
        peers = [member for member in self.members if member != self._rank]
        sent = [outgoing[peer].view(-1) if peer in outgoing else self._nothing() for peer in peers]
        places = [
            incoming[peer].view(-1) if peer in incoming else self._nothing() for peer in peers
        ]
        sizes = {peer: place.numel() for peer, place in zip(peers, places, strict=True)}
        own = self.members.index(self._rank)
        in_splits = [part.numel() for part in sent]
        out_splits = list(sizes.values())
        in_splits.insert(own, 0)
        out_splits.insert(own, 0)
        arrived = torch.empty(sum(out_splits), dtype=torch.uint8, device=self._device)
        packed = torch.cat([self._nothing(), *sent])
        work = self._data.alltoall_base(
            arrived, packed, out_splits, in_splits, dist.AllToAllOptions()
        )
        transfer.add(self._rank, _Scattered(work, arrived, places), receives=False)

    def _nothing(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8, device=self._device)


class _Scattered:
    """Work whose result is taken apart once it is there."""

    def __init__(self, work: Any, arrived: Tensor, places: Sequence[Tensor]) -> None:
        self._work = work
        self._arrived = arrived
        self._places = places

    def wait(self, timeout: timedelta) -> None:
        """The stream waits, not the host; so NCCL's own timeout holds."""
        self._work.wait()
        parts = self._arrived.split([place.numel() for place in self._places])
        for place, part in zip(self._places, parts, strict=True):
            place.copy_(part)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
