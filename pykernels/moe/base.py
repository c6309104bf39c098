"""What all calls of a buffer share: its life, its errors, checks, and results allocated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pykernels import checks
from pykernels.group_checks import COUNTER_ROWS
from pykernels.moe import checks as moe_checks
from pykernels.moe import choice, ops
from pykernels.moe.errors import HookPendingError
from pykernels.moe.group import BufferSizes, LocalGroup, num_scales
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.membership import join
from pykernels.moe.transport import (
    Batch,
    CombineCall,
    DispatchCall,
    Finish,
    Received,
    Transport,
)

_SCALE_ALIGNMENT = 4  # elements; bulk copies move multiples of 16 bytes

Hook: TypeAlias = Callable[[], None]
T = TypeVar("T")
SomeBuffer = TypeVar("SomeBuffer", bound="BufferBase")


@dataclasses.dataclass(frozen=True)
class Wishes:
    """The arguments of a buffer as the caller passes them, not yet checked."""

    hidden: int
    num_experts: int
    num_topk: int
    num_max_tokens_per_rank: int
    device: torch.device | str | None
    num_sms: int | None
    timeout: float
    ranks_per_node: int | None

    def settings(
        self, group: LocalGroup | ProcessGroup | None, num_ranks: int, default_device: str
    ) -> choice.Settings:
        """What a transport is made from, checked; without ``ranks_per_node`` on one node.

        Raises:
            ValueError: an argument is not as :class:`Buffer` wants it.
            RuntimeError: there is no such device.
        """
        sizes = BufferSizes(
            num_ranks,
            self.num_experts,
            self.num_topk,
            self.hidden,
            self.num_max_tokens_per_rank,
        )
        checks.check_num_sms(self.num_sms)
        timeout = moe_checks.check_timeout(self.timeout)
        moe_checks.check_ranks_per_node(self.ranks_per_node, num_ranks)
        device = moe_checks.check_device(default_device if self.device is None else self.device)
        per_node = self.ranks_per_node or num_ranks
        return choice.Settings(group, sizes, device, self.num_sms, timeout, per_node)


class BufferBase:
    """See :class:`pykernels.moe.Buffer`, which adds the calls."""

    def __init__(self, group: LocalGroup | ProcessGroup | None, wishes: Wishes) -> None:
        self._rank: int | None = None  # with a LocalGroup all ranks are here
        if isinstance(group, LocalGroup):
            self._settings = wishes.settings(group, group.num_ranks, "cpu")
        else:
            self._settings = join(group, wishes)
            self._rank = self._settings.rank
        self._sizes = self._settings.sizes
        self._transports: dict[choice.Kind, Transport] = {}
        self._masked_ranks: frozenset[int] = frozenset()
        self._error: BaseException | None = None
        self._closed = False
        self._process = os.getpid()
        self._num_resets = 0
        self._unfilled: WeakSet[DispatchHandle] = WeakSet()  # whose hooks have not been called
        self._transport()  # all ranks make it together

    @property
    def sizes(self) -> BufferSizes:
        """What the buffer was made for."""
        return self._sizes

    @property
    def rank(self) -> int | None:
        """Of this process in the group; None with a ``LocalGroup``, of which it is all ranks."""
        return self._rank

    @property
    def bytes(self) -> int:
        """The device memory that one rank of this buffer holds between calls."""
        return sum(transport.bytes for transport in self._transports.values())

    @property
    def masked_ranks(self) -> list[int]:
        """The ranks that are left out."""
        return sorted(self._masked_ranks)

    def mask_ranks(self, ranks: Collection[int]) -> None:
        """Leave these ranks out from the next call on, in place of those left out before.

        Nothing is sent to them and nothing awaited from them; what tokens would get from them is
        missing in their sums. All other ranks call this together, with the same ranks. After a
        :class:`MoeTimeoutError`, :meth:`reset` follows; so it does, called by all, to take a rank
        in again. Of a ``LocalGroup`` a masked rank receives nothing and gets zeros.

        Raises:
            ValueError: a rank does not exist or is the caller's own, or none would be left.
        """
        self._refuse_if_closed()
        num_ranks = self._sizes.num_ranks
        self._masked_ranks = moe_checks.check_masked_ranks(ranks, num_ranks, self._rank)
        for transport in self._transports.values():
            transport.mask_ranks(self._masked_ranks)

    def check(self, *, wait: bool = True) -> None:
        """Raise the error that a call has left behind, if any.

        Args:
            wait: for the GPU, so that calls under way count. With False what has been found so far
                counts, without any synchronisation: for replays of CUDA graphs, between which no
                call looks.

        Raises:
            ValueError: a call on the GPU has found a wrong value.
            MoeTimeoutError: a peer has not come.
            RuntimeError: calls of two ranks do not match; or the buffer refuses work since an
                earlier error, which is the ``__cause__``.
        """
        checks.check_flag("wait", wait)
        self._ready(wait=wait)

    def reset(self) -> None:
        """Forget errors and all that is under way, and work again.

        All ranks that are not masked call this, each when it gets there: over torch.distributed
        the first waits for the others for twice the buffer's timeout and 5 seconds. Hooks of
        earlier calls are invalid from then on, also where this fails.

        Raises:
            RuntimeError: the others have not come in time; the buffer refuses work until they have
                all called again, at whatever times.
        """
        self._refuse_if_closed()
        self._num_resets += 1  # what was sent is forgotten, also where this fails
        self._error = None  # its traceback holds the connections that are to be closed
        with self._breaking():
            for transport in self._transports.values():
                transport.reset()

    def wait_stats(self) -> Any:
        """How long this rank has waited for each of its peers since the buffer was made.

        Over torch.distributed that is the time that the host has waited for a peer's messages, one
        peer after the other: a wait that ends while another peer is waited for does not count, and
        on GPUs only the exchange of counts is seen. With a ``LocalGroup`` on the CPU nobody waits.

        Returns:
            A list of :class:`PeerWait`, one for each rank; with a ``LocalGroup`` a list of such
            lists. :func:`save_wait_stats` writes them for ``python -m pykernels moe-stats``.
        """
        self._refuse_if_closed()
        return self._public(self._transport().wait_stats())

    def close(self) -> None:
        """Free what the buffer holds; it takes no calls from then on."""
        if not self._closed:
            self._closed = True
            if self._is_fork:
                return  # what it holds is the parent's
            for transport in self._transports.values():
                transport.close()

    def __enter__(self: SomeBuffer) -> SomeBuffer:
        self._refuse_if_closed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_dispatch(
        self, call: DispatchCall, batches: Sequence[Batch]
    ) -> tuple[list[Received], Finish]:
        """Sends rows; results, not complete before what is returned beside them has been called."""
        self._refuse_after_error()
        received = [self._allocate(call, batch) for batch in batches]
        with self._breaking():
            finish = self._transport().dispatch(call, batches, received)
        return received, self._breaking_finish(finish)

    def start_combine(
        self,
        call: CombineCall,
        y: Sequence[Tensor],
        handles: Sequence[DispatchHandle],
        outs: Sequence[Tensor | None] | None = None,
    ) -> tuple[list[Tensor], Finish]:
        """As :meth:`start_dispatch`; ``y`` may have fewer columns than the buffer."""
        self._refuse_after_error()
        with self._transport().allocating(call):
            results = self._empty_results(y, handles, outs or [None] * len(y))
        with self._breaking():
            finish = self._transport().combine(call, y, handles, results)
        return results, self._breaking_finish(finish)

    def _transport(self) -> Transport:
        """What moves the rows of a call that is made now."""
        kind = choice.transport_kind(self._settings)
        if kind not in self._transports:
            transport = choice.make_transport(kind, self._settings)
            transport.mask_ranks(self._masked_ranks)
            self._transports[kind] = transport
        return self._transports[kind]

    def _ready(self, *, wait: bool = False) -> Transport:
        """What the next call uses, once no earlier one has left an error behind."""
        self._refuse_after_error()
        transport = self._transport()
        with self._breaking():
            transport.check(wait=wait)
        return transport

    def _refuse_after_error(self) -> None:
        self._refuse_if_closed()
        if self._error is not None:
            reason = str(self._error) or type(self._error).__name__
            raise RuntimeError(
                f"the buffer refuses work since an earlier call failed: {reason}; call reset() on "
                "all ranks"
            ) from self._error

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the buffer is closed; make a new one")
        if self._is_fork:
            raise RuntimeError(
                f"the buffer must be used in the process that made it, {self._process}, got "
                f"process {os.getpid()}; make one there, with its own torch.distributed group"
            )

    @property
    def _is_fork(self) -> bool:
        """A fork has its parent's connections: what it does there breaks them for both."""
        return self._rank is not None and os.getpid() != self._process

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        """An error inside, or an interrupt, makes the buffer refuse work until it is reset."""
        try:
            yield
        except HookPendingError:
            raise
        except BaseException as error:
            self._error = error
            raise

    @contextmanager
    def _checking(self, transport: Transport, op: str) -> Iterator[None]:
        """Wrong arguments inside: the peers are told in place of the call, where there are any."""
        try:
            yield
        except ValueError as error:
            with self._breaking():
                if transport.reject(op, error):
                    self._error = error
            raise

    def _breaking_finish(self, finish: Finish) -> Finish:
        def breaking() -> None:
            with self._breaking():
                finish()

        return breaking

    def _hook(self, finish: Finish, split: bool) -> Hook:
        """Completes a receive, at once if it is not split; later calls do nothing."""
        pending = [finish]
        begun = self._num_resets

        def hook() -> None:
            if torch.compiler.is_compiling():
                ops.outside_of_graphs(hook)
                return
            if pending:
                self._refuse_if_closed()
                if begun != self._num_resets:
                    raise RuntimeError("reset() has been called since; what was sent is forgotten")
                pending.pop()()

        if not split:
            hook()
        return hook

    def _public(self, values: list[T]) -> T | list[T]:
        return values[0] if self._rank is not None else values

    def _empty_results(
        self,
        y: Sequence[Tensor],
        handles: Sequence[DispatchHandle],
        outs: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """What is given, or allocated in its place."""
        return [
            each.new_empty((handle.num_tokens, each.size(-1))) if out is None else out
            for each, handle, out in zip(y, handles, outs, strict=True)
        ]

    def _allocate(self, call: DispatchCall, batch: Batch) -> Received:
        sizes = self._sizes
        num_tokens, hidden = batch.x.shape
        experts = sizes.num_local_experts
        rows = (experts, call.capacity) if call.masked else (call.capacity,)
        is_fp8 = call.scale_fmt is not None or batch.scales is not None
        dtype = torch.float8_e4m3fn if is_fp8 else torch.bfloat16

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=batch.x.device)

        table = (sizes.num_ranks, sizes.num_max_tokens_per_rank, sizes.num_topk)
        counts = empty(experts if call.masked else experts + 1)
        blocks = (*rows[:-1], checks.ceil_div(call.capacity, COUNTER_ROWS))
        handle = DispatchHandle(
            topk_idx=batch.topk_idx,
            topk_weights=batch.topk_weights,
            num_tokens=num_tokens,
            capacity=call.capacity,
            masked=call.masked,
            position_in_rank=empty(num_tokens, sizes.num_ranks),
            send_counts=empty(sizes.num_ranks),
            number=empty(1),
            groups=counts,
            recv_counts=empty(sizes.num_ranks),
            rows=empty(*table),
            row_weights=empty(*table, dtype=torch.float32),
            row_topk=empty(*table),
        )
        return Received(
            x=empty(*rows, hidden, dtype=dtype),
            scales=_empty_scales(rows, hidden, batch.x.device) if is_fp8 else None,
            counts=counts,
            handle=handle,
            counters=empty(2, *blocks) if call.beside else None,
        )


def _empty_scales(rows: Sequence[int], hidden: int, device: torch.device) -> Tensor:
    """Factors of ``rows`` rows, each row a multiple of 16 bytes behind the one before."""
    columns = num_scales(hidden)
    padded = checks.ceil_div(columns, _SCALE_ALIGNMENT) * _SCALE_ALIGNMENT
    return torch.empty((*rows, padded), dtype=torch.float32, device=device)[..., :columns]
