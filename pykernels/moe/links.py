"""Messages between the ranks of a torch.distributed group, each with a deadline.

Counts and other headers travel over gloo, for which this makes a group of its own: a rank that does
not come is then known by its number, and other users of the group are not disturbed. Rows travel
over the same group on CPUs, over NCCL on GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from pykernels.moe.errors import first_line
from pykernels.moe.rendezvous import Meeting
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
                raise PeerLostError(peer, first_line(error)) from error
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
        """``name`` is this buffer's own, the same on all ranks.

        Raises:
            RuntimeError: torch cannot move rows of this device.
        """
        if device.type == "cuda" and not dist.is_nccl_available():
            raise RuntimeError("rows of CUDA tensors travel over NCCL, which this torch is without")
        self._rank = dist.get_rank(group)
        self._name = name
        self._control: Any = None
        self._data: Any = None  # for rows in GPU memory
        self._device = device
        self.members: list[int] = []
        self.timeout = timeout
        self.waits = WaitCounter(dist.get_world_size(group))

    def connect(self, members: Sequence[int], purpose: str = "calls") -> None:
        """New connections in place of the old ones; all members call this together.

        Each comes when it can, however many of its calls have failed before: a call waits for the
        others for twice the timeout and 5 seconds, since ranks break one call apart, and then up
        to one timeout for the connections and one for the others to have theirs. When it returns,
        all members are connected; when it raises, none of them goes on with these connections.

        Args:
            members: the same on all of them.
            purpose: members only meet in calls of the same one.

        Raises:
            RuntimeError: not all members have come in time, or the store cannot be reached.
        """
        self.close()
        self.members = sorted(members)
        try:
            store = PrefixStore(f"{self._name}/{purpose}/{self.members}", self._store())
            meeting = Meeting(store, self._rank, self.members, self.timeout)
            self._control, self._data = meeting.hold(self._make_groups)
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self._rank} could not connect to all of the ranks {self.members}: "
                f"{first_line(error)}; all of them must call together"
            ) from error

    def _store(self) -> Store:
        try:
            return _get_default_store()
        except ValueError as error:
            raise RuntimeError("torch.distributed is no longer initialised") from error

    def _make_groups(self, store: Store) -> tuple[Any, Any]:
        place = self.members.index(self._rank)
        timeout = timedelta(seconds=self.timeout)
        control = dist.ProcessGroupGloo(store, place, len(self.members), timeout)
        return control, self._group_for_rows(PrefixStore("rows", store), place)

    def _group_for_rows(self, store: Store, place: int) -> Any:
        """What has ``alltoall_base``; None: rows travel as headers do."""
        if self._device.type != "cuda":
            return None
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
            raise PeerLostError(peer, first_line(error)) from error

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
