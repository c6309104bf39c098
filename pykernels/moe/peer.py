"""Kernels over peer memory: the ranks of one node, or all ranks of this process.

Each rank has a window, which its peers write: what they say of a call, and a slot for each of their
tokens. Kernels send and receive at the same time and never involve the host; epochs in device
memory tell one call from the next. See csrc/moe/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from pykernels import device as devices
from pykernels.moe import gpu
from pykernels.moe.errors import HookPendingError
from pykernels.moe.group import BufferSizes, LocalGroup
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.peer_errors import peer_error
from pykernels.moe.ranks import Rank, check_sizes, device_bytes, make_local_ranks
from pykernels.moe.stats import PeerWait
from pykernels.moe.transport import Batch, CombineCall, DispatchCall, Finish, Received
from pykernels.native import native, strided_view

if TYPE_CHECKING:
    from pykernels import _C
    from pykernels.moe.choice import Settings

_Maker: TypeAlias = Callable[["Rank", int], "_C.Launch"]
DEFAULT_NUM_SMS = 24  # of a rank: as many as bring an NVLink to its limit; see csrc/moe/README.md


class PeerTransport:
    """Implements :class:`pykernels.moe.transport.Transport`."""

    reads_values = False

    def __init__(self, settings: Settings) -> None:
        check_sizes(settings.sizes)
        self._sizes = settings.sizes
        self._gpu = gpu.find(settings.device)
        self._members: Any = None  # of a distributed group
        self._num_sms = 0
        self._streams: Sequence[Any] = []  # of several ranks on one GPU
        self._locals: list[Rank] = []
        self._masked_ranks: frozenset[int] = frozenset()
        self._pending = ""  # a call whose hook has not been called
        self._last: gpu.Point | None = None  # behind the last call
        self._comm: Any = None  # the communication stream, once there is a call beside others
        self.bytes = device_bytes(settings.sizes)
        if isinstance(settings.group, LocalGroup):
            self._make_local(settings)
        else:
            self._join(settings)
        self.ranks = [rank.index for rank in self._locals]
        if self._gpu is not None:
            self._gpu.synchronize()  # the memory is zero for calls on any stream

    def _make_local(self, settings: Settings) -> None:
        num_ranks = settings.sizes.num_ranks
        self._num_sms = self._choose_num_sms(settings.num_sms, num_ranks)
        self._locals = make_local_ranks(settings)
        if self._gpu is not None and num_ranks > 1:
            self._streams = self._gpu.new_streams(num_ranks)

    def _join(self, settings: Settings) -> None:
        from pykernels.moe.ipc import Members

        def prepare() -> None:
            self._num_sms = self._choose_num_sms(settings.num_sms, 1)

        assert self._gpu is not None
        self._members = Members(settings, self._gpu, prepare)
        self._locals = [self._members.rank]

    def dispatch(
        self, call: DispatchCall, batches: Sequence[Batch], received: Sequence[Received]
    ) -> Finish:
        self._begin(call.op)
        arguments = [
            _DispatchArguments(batch, result, self._sizes)
            for batch, result in zip(batches, received, strict=True)
        ]
        ue8m0 = call.scale_fmt == "ue8m0"

        def layout(rank: Rank, place: int) -> _C.Launch:
            launch: _C.Launch = native().make_moe_layout_launch(
                rank.native, *arguments[place].layout
            )
            return launch

        def launch(phases: str) -> _Maker:
            def make(rank: Rank, place: int) -> _C.Launch:
                made: _C.Launch = native().make_moe_dispatch_launch(
                    rank.native,
                    *arguments[place].dispatch,
                    masked=call.masked,
                    ue8m0=ue8m0,
                    phases=phases,
                    num_sms=self._num_sms,
                )
                return made

            return make

        for rank, result in zip(self._locals, received, strict=True):
            if rank.index in self._masked_ranks:
                _nothing_received(result)
        if call.beside:
            first = [layout, launch("send and counts")]
            return self._dispatch_beside(first, launch("rows"), _all_tensors(received))
        if not call.split:
            self._launch([layout, launch("both")])
            return self._finish_now
        self._launch([layout, launch("send")])
        return self._finish_later(call.op, launch("receive"), _all_tensors(received))

    def combine(
        self,
        call: CombineCall,
        y: Sequence[Tensor],
        handles: Sequence[DispatchHandle],
        outs: Sequence[Tensor],
    ) -> Finish:
        self._begin(call.op)
        done = call.done or [None] * len(y)
        arguments = [_combine_arguments(*each) for each in zip(y, handles, outs, done, strict=True)]

        def launch(phases: str) -> _Maker:
            def make(rank: Rank, place: int) -> _C.Launch:
                made: _C.Launch = native().make_moe_combine_launch(
                    rank.native, *arguments[place], phases=phases, num_sms=self._num_sms
                )
                return made

            return make

        for rank, out in zip(self._locals, outs, strict=True):
            if rank.index in self._masked_ranks:
                out.zero_()
        if call.beside:
            return self._combine_beside(call, launch("both"), [*y, *outs])
        if not call.split:
            self._launch([launch("both")])
            return self._finish_now
        self._launch([launch("send")])
        return self._finish_later(call.op, launch("receive"), [*_all_tensors(handles), *outs])

    def allocating(self, call: CombineCall) -> AbstractContextManager[None]:
        if self._gpu is None or not call.beside:
            return nullcontext()
        return self._gpu.on(self._communication())

    def _communication(self) -> Any:
        assert self._gpu is not None
        if self._comm is None:
            (self._comm,) = self._gpu.new_streams(1)
        return self._comm

    def _dispatch_beside(
        self, first: Sequence[_Maker], rows: _Maker, tensors: Sequence[Tensor]
    ) -> Finish:
        """Counts ahead of what the current stream gets next, rows beside it."""
        if self._gpu is None:
            self._launch([*first, rows])
            return self._finish_now
        here = self._gpu.point()
        with self._gpu.on(self._communication()):
            self._gpu.follow(here)
            self._launch(first)
        assert self._last is not None
        self._gpu.follow(self._last)
        return self._beside(rows, tensors)

    def _combine_beside(
        self, call: CombineCall, whole: _Maker, tensors: Sequence[Tensor]
    ) -> Finish:
        """Behind what the current stream has, or beside it where counters tell of y."""
        if self._gpu is None:
            self._launch([whole])
            return self._finish_now
        if call.done is None:
            here = self._gpu.point()
            with self._gpu.on(self._communication()):
                self._gpu.follow(here)
        return self._beside(whole, [*tensors, *(call.done or ())])

    def _beside(self, make: _Maker, tensors: Sequence[Tensor]) -> Finish:
        """Launches on the communication stream; what is returned makes the current one wait."""
        device = self._gpu
        assert device is not None
        with device.on(self._communication()):
            self._launch([make])
            device.keep(tensors)
        end = self._last
        assert end is not None

        def finish() -> None:
            if device.follow(end):
                device.keep(tensors)
            self.check()

        return finish

    def reject(self, op: str, error: ValueError) -> bool:
        """A kernel tells the peers, who find it in this call; in one process there are none."""
        if self._members is None:
            return False
        self._launch([lambda rank, place: native().make_moe_refusal_launch(rank.native)])
        return True

    def check(self, *, wait: bool = False) -> None:
        if wait and self._gpu is not None:
            self._gpu.synchronize()
        found = [record for rank in self._locals if (record := rank.record()) is not None]
        if found:  # ranks that were told of an error come behind the rank that has made it
            raise peer_error(min(found, key=lambda each: each["kind"] == "peer"), self._sizes)

    def reset(self) -> None:
        """All ranks that are not masked call this together."""
        if self._gpu is not None:
            self._gpu.synchronize()  # the last kernels' waits are bounded
        members = self._unmasked()
        if self._members is not None:
            self._members.meet(members, "zeroing")  # nobody's kernel writes here any more
        for rank in self._locals:
            rank.zero()
        self._pending = ""
        self._write_masks()
        if self._gpu is not None:
            self._gpu.synchronize()
            self._last = None
        if self._members is not None:
            self._members.meet(members, "calls")  # nobody's kernel writes before all are ready

    def mask_ranks(self, ranks: frozenset[int]) -> None:
        if ranks == self._masked_ranks:
            return
        self._masked_ranks = ranks
        with nullcontext() if self._gpu is None else self._in_order(self._gpu):
            self._write_masks()

    def _write_masks(self) -> None:
        for rank in self._locals:
            rank.mask(self._masked_ranks)

    def wait_stats(self) -> list[list[PeerWait]]:
        """What the kernels' warps have waited; those that wait at the same time all count."""
        return [rank.waits(self._sizes.num_ranks) for rank in self._locals]

    def close(self) -> None:
        if self._gpu is not None:
            with suppress(RuntimeError):  # an error of another kernel is another call's to raise
                self._gpu.synchronize()
        if self._members is not None:
            self._members.close(self._unmasked())
        self._locals = []

    def _unmasked(self) -> list[int]:
        return [rank for rank in range(self._sizes.num_ranks) if rank not in self._masked_ranks]

    def _begin(self, op: str) -> None:
        if self._pending:
            raise HookPendingError(
                f"{op} must come after the hook of {self._pending}; use another Buffer for a "
                "second batch in flight"
            )

    def _finish_now(self) -> None:
        if self._gpu is None:  # the emulator has run the kernels
            self.check()

    def _finish_later(self, op: str, make: _Maker, used: list[Tensor]) -> Finish:
        """``used``: the tensors that receiving kernels use, dropped by the caller or not."""
        self._pending = op

        def finish() -> None:
            self._pending = ""
            if self._launch([make]) and self._gpu is not None:
                self._gpu.keep(used)
            used.clear()
            self.check()

        return finish

    def _launch(self, makers: Sequence[_Maker]) -> bool:
        """Of every rank that is not masked, these kernels one after the other.

        They follow the last call. Returns whether that was on another stream.
        """
        active = [
            (place, rank)
            for place, rank in enumerate(self._locals)
            if rank.index not in self._masked_ranks
        ]
        if self._gpu is None:
            emulated = devices.launch_device(torch.empty(0, device="cpu"))
            if emulated is None:
                raise RuntimeError(
                    "the call has begun inside of pykernels.emulate and must end there"
                )
            for make in makers:
                emulated.run_together([make(rank, place) for place, rank in active])
            return False
        with self._in_order(self._gpu) as moved:
            self._launch_on(self._gpu, makers, active)
        return moved

    @contextmanager
    def _in_order(self, device: gpu.Gpu) -> Iterator[bool]:
        """Work of the current stream behind the last call; whether that was on another stream."""
        moved = self._last is not None and device.follow(self._last)
        try:
            yield moved
        finally:
            self._last = device.point()

    def _launch_on(
        self,
        device: gpu.Gpu,
        makers: Sequence[_Maker],
        active: Sequence[tuple[int, Rank]],
    ) -> None:
        if not self._streams:
            launcher = device.launcher()
            for make in makers:
                launcher.run(make(self._locals[0], 0))
            return
        with device.forked(self._streams) as streams:
            launchers = [device.launcher(stream) for stream in streams]
            for make in makers:
                for place, rank in active:
                    launchers[place].run(make(rank, place))

    def _choose_num_sms(self, wished: int | None, num_ranks: int) -> int:
        """SMs of a rank; those of all ranks on one GPU fit it together, for they wait for another.

        Also loads the kernels: none may be loaded while another one waits.
        """
        device: _C.Device
        if self._gpu is not None:
            device, together = self._gpu.launcher(), num_ranks
        else:
            device, together = devices.sizing_device(torch.device("cpu")), 1
        num_sms = device.properties.num_sms
        fitting = min(
            device.max_active_clusters(name, (1, 1, 1)) for name in native().moe_kernel_names()
        )
        most = min(fitting, num_sms) // together
        if most < 1:
            raise RuntimeError(f"{together} ranks need a GPU with as many SMs, got {num_sms}")
        if wished is None:
            return min(DEFAULT_NUM_SMS, most)
        if wished > most:
            share = f", the share of each of {together} ranks on this GPU" if together > 1 else ""
            raise ValueError(f"num_sms must be at most {most}{share}, got {wished}")
        return wished


class _DispatchArguments:
    """One rank's tensors as the launches take them; what the layout kernel fills is made here."""

    def __init__(self, batch: Batch, result: Received, sizes: BufferSizes) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.int32, device=batch.topk_idx.device)

        handle = result.handle
        self._kept = empty(*batch.topk_idx.shape), empty(sizes.num_experts)
        in_expert, expert_counts = self._kept
        self.layout = _views(
            *(batch.topk_idx, batch.topk_weights.detach()),
            *(in_expert, handle.position_in_rank, expert_counts, handle.send_counts),
        )
        self.dispatch = (
            *_views(batch.x.detach(), batch.scales),
            *self.layout,
            *_views(_flat(result.x), None if result.scales is None else _flat(result.scales)),
            *_views(result.counts, handle.recv_counts, handle.number),
            *_views(handle.rows, handle.row_weights, handle.row_topk, result.counters),
        )


def _combine_arguments(
    y: Tensor, handle: DispatchHandle, out: Tensor, done: Tensor | None
) -> tuple[Any, ...]:
    return (
        *_views(y.detach(), handle.recv_counts, handle.number, handle.rows, handle.row_weights),
        *_views(handle.position_in_rank, handle.send_counts, out),
        *_views(done, None if done is None else handle.groups),
    )


def _views(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if tensor is None else strided_view(tensor) for tensor in tensors)


def _all_tensors(results: Sequence[Received] | Sequence[DispatchHandle]) -> list[Tensor]:
    return [tensor for result in results for tensor in _tensors(result)]


def _tensors(fields: Received | DispatchHandle) -> list[Tensor]:
    """All of these, and of the handle in a dispatch's results."""
    values = fields if isinstance(fields, tuple) else vars(fields).values()
    found = [each for each in values if isinstance(each, Tensor)]
    return found + (_tensors(fields.handle) if isinstance(fields, Received) else [])


def _flat(rows: Tensor) -> Tensor:
    """Rows of all experts one after the other."""
    return rows.flatten(0, 1) if rows.dim() == 3 else rows


def _nothing_received(result: Received) -> None:
    """What a masked rank of this process gets."""
    result.counts.zero_()
    result.handle.recv_counts.zero_()
    result.handle.position_in_rank.fill_(-1)
    result.handle.send_counts.zero_()
    result.handle.number.zero_()
