"""One rank of a torch.distributed group whose processes share a node: windows of other processes.

Every rank allocates its window with the driver, sends its 64-byte handle to the others, and maps
theirs.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from pykernels.moe.gpu import Gpu
from pykernels.moe.group import LocalGroup
from pykernels.moe.links import Links
from pykernels.moe.ranks import Rank, window_bytes
from pykernels.native import native

if TYPE_CHECKING:
    from pykernels.moe.choice import Settings


# Of buffers that were dropped without close(): peers may still write there, kernels of this process
# into the peers' windows.
_abandoned: list[object] = []


@dataclasses.dataclass(frozen=True)
class _Offer:
    """What each rank tells the others: its window's handle, or what it cannot do."""

    handle: bytes = b""
    error: str = ""


class Members:
    """This rank's memory and its ways to the others.

    Attributes:
        rank: this rank.
    """

    def __init__(self, settings: Settings, gpu: Gpu, prepare: Callable[[], None]) -> None:
        """All ranks of the group call this together.

        Args:
            settings: of the buffer.
            gpu: of this rank.
            prepare: what else this rank must be able to do; where it raises, no rank is made.

        Raises:
            ValueError: ``prepare`` has raised it.
            RuntimeError: this rank or another one cannot allocate its window, map another's, or
                do what ``prepare`` does.
        """
        assert not isinstance(settings.group, LocalGroup)
        self._group = settings.group
        self._gpu = gpu
        self._mapped: list[Any] = []
        self._window: Any = None
        self._links = Links(settings.group, settings.name, settings.timeout, torch.device("cpu"))
        self._links.connect(range(settings.sizes.num_ranks))
        try:
            handles = self._agree(self._allocate, settings, prepare)
            self._agree(self._map, settings, handles)
        except BaseException:
            self._free()
            self._links.close()
            raise

    def meet(self, members: Sequence[int], purpose: str) -> None:
        """Returns once all of these ranks have come here for the same purpose.

        Raises:
            RuntimeError: they have not come in time.
        """
        self._links.connect(members, purpose)

    def close(self, members: Collection[int]) -> None:
        """Unmaps the others' windows, and frees the own one once these ranks have done so, too."""
        self._unmap()
        with suppress(RuntimeError):  # ranks that are gone have nothing mapped
            self.meet([rank for rank in self._links.members if rank in members], "freeing windows")
        self._free()
        self._links.close()

    def __del__(self) -> None:
        if getattr(self, "_window", None) is not None:
            _abandoned.append((self._window, self._mapped))
            warnings.warn(
                "a MoE buffer was dropped without close(); its memory stays until the process ends",
                ResourceWarning,
                stacklevel=1,
            )

    def _agree(self, step: Callable[..., bytes], *arguments: Any) -> list[bytes]:
        """What the step returns on all ranks; they do it together, and raise if one cannot."""
        failure: Exception | None = None
        try:
            own = _Offer(step(*arguments))
        except (ValueError, RuntimeError) as error:
            own, failure = _Offer(error=str(error)), error
        offers = self._gather(own)
        failed = [(rank, offer.error) for rank, offer in enumerate(offers) if offer.error]
        if failed:
            self._unmap()
            self._gather(_Offer())  # nobody frees what another one has mapped
        if failure is not None:
            raise failure
        for rank, reason in failed:
            raise RuntimeError(f"rank {rank} cannot make the buffer: {reason}")
        return [offer.handle for offer in offers]

    def _allocate(self, settings: Settings, prepare: Callable[[], None]) -> bytes:
        prepare()
        self._window = native().PeerMemory(
            self._gpu.index, window_bytes(settings.sizes), self._gpu.current_stream()
        )
        handle: bytes = self._window.handle()
        return handle

    def _map(self, settings: Settings, handles: Sequence[bytes]) -> bytes:
        addresses = [self._window.address] * len(handles)
        for rank, handle in enumerate(handles):
            if rank != settings.rank:
                addresses[rank] = self._map_peer(rank, handle)
        self.rank = Rank(settings, settings.rank, addresses, self._zero_window)
        return b""

    def _map_peer(self, rank: int, handle: bytes) -> int:
        try:
            peer = native().MappedPeer(self._gpu.index, handle)
        except RuntimeError as error:
            raise RuntimeError(
                f"the window of rank {rank} cannot be mapped: {error}; with ranks_per_node=1 rows "
                "move by torch.distributed instead"
            ) from error
        self._mapped.append(peer)
        address: int = peer.address
        return address

    def _gather(self, offer: _Offer) -> list[_Offer]:
        offers: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(offers, offer, group=self._group)
        return offers

    def _zero_window(self) -> None:
        self._window.zero(self._gpu.current_stream())

    def _unmap(self) -> None:
        for peer in self._mapped:
            peer.close()
        self._mapped = []

    def _free(self) -> None:
        self._unmap()
        if self._window is not None:
            self._window.close()
            self._window = None
