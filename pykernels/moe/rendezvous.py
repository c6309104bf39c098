"""Where ranks meet that come at different times, and come again after an error: rounds in a store.

The lowest member owns the rounds. It opens one under a name never used before; all members that are
waiting sign in, and once each has, they connect under that name. A round's state changes only by
compare-and-set and ends as connected or failed, the same for all; after a failure the owner opens
the next. So nobody counts attempts, and members that wait at the same time always find each other.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store

from pykernels.moe.errors import first_line

T = TypeVar("T")

_SLACK = 5.0  # seconds between two ranks' calls beyond what the calls before them make of it
_OPEN, _CONNECTING, _CONNECTED = "open", "connecting", "connected"  # any other: why it has failed


def patience(timeout: float) -> float:
    """Seconds that a rank waits for the others, where a call may take ``timeout`` seconds.

    Ranks break one call apart: the first when a peer has not come in time, that peer a timeout
    after its own call began, which may be as late. So two timeouts lie between them, and what the
    callers do meanwhile.
    """
    return 2 * timeout + _SLACK


class Meeting:
    """One call that all members make, at different times and maybe not all of them."""

    def __init__(self, store: Store, rank: int, members: Sequence[int], timeout: float) -> None:
        """``store`` is for these members alone; connecting takes at most ``timeout`` seconds."""
        self._store = store
        self._rank = rank
        self._members = sorted(members)
        self._timeout = timeout
        self._patience = patience(timeout)
        self._round: _Round | None = None  # the last one that this rank has signed
        self._came: set[int] = set()  # who was in one of the earlier rounds
        self._failure = ""  # of the last one that failed
        self._naps = _naps()  # between attempts, too

    def hold(self, connect: Callable[[Store], T]) -> T:
        """What ``connect`` returns, once it has returned on all members in the same round.

        Args:
            connect: all members call it together, with a store that holds nothing yet; it returns
                anything but None. Where it raises a RuntimeError on one of them, all drop what it
                has returned and call it again.

        Raises:
            RuntimeError: the members have not connected while this rank was here, or the store is
                gone.
        """
        deadline = time.monotonic() + self._patience
        try:
            while True:
                current = self._gather(deadline)
                result = self._attempt(current, connect)
                if result is not None:
                    return result
        except DistError as error:
            raise RuntimeError(
                "the process that holds torch.distributed's store cannot be reached "
                f"({first_line(error)})"
            ) from error
        except BaseException:
            with suppress(RuntimeError):  # of a store that is gone
                self._give_up()
            raise

    def _gather(self, deadline: float) -> _Round:
        """The round in which all members begin to connect now."""
        for _ in self._naps:
            self._sign_in()
            current = self._round
            if current is not None:
                state = current.state()
                if state == _OPEN and self._is_owner and current.all_signed(_OPEN):
                    state = current.change(_OPEN, _CONNECTING)
                if state == _CONNECTING:
                    return current
            if time.monotonic() > deadline:
                reason = self._reason()
                if current is None or current.change(_OPEN, self._parting) != _CONNECTING:
                    raise RuntimeError(reason)
        raise AssertionError

    def _sign_in(self) -> None:
        """Into the newest round, if it is open; an older one has failed."""
        newest = self._newest()
        current = self._round
        if newest is None or (current is not None and newest.name == current.name):
            return
        if newest.state() == _OPEN:  # else it is of earlier calls
            self._look_back()
            newest.sign(_OPEN, self._rank)
            self._round = newest

    def _newest(self) -> _Round | None:
        if self._is_owner:
            if self._round is None or self._round.has_failed():
                return _Round.begin(self._store, self._members)
            return self._round
        return _Round.newest(self._store, self._members)

    def _attempt(self, current: _Round, connect: Callable[[Store], T]) -> T | None:
        try:
            result = connect(PrefixStore("connections", current.store))
        except RuntimeError as error:
            current.change(_CONNECTING, f"rank {self._rank}: {first_line(error)}")
            return None
        return result if self._confirm(current) else None

    def _confirm(self, current: _Round) -> bool:
        """Whether all members are connected, on which all of them agree."""
        current.sign(_CONNECTING, self._rank)
        end = time.monotonic() + self._timeout
        for _ in _naps():
            state = current.state()
            if state == _CONNECTING and self._is_owner and current.all_signed(_CONNECTING):
                state = current.change(_CONNECTING, _CONNECTED)
            if state == _CONNECTING and time.monotonic() > end:
                late = sorted(set(self._members) - current.signed(_CONNECTING))
                state = current.change(_CONNECTING, f"ranks {late} took too long to connect")
            if state != _CONNECTING:
                return state == _CONNECTED
        raise AssertionError

    def _give_up(self) -> None:
        """The others do not count on this rank any more."""
        if self._round is not None:
            for state in (_OPEN, _CONNECTING):
                self._round.change(state, self._parting)

    def _look_back(self) -> None:
        """What the round so far tells about the others."""
        if self._round is not None:
            self._came |= self._round.signed(_OPEN)
            if self._round.has_failed():
                self._failure = self._round.state()

    def _reason(self) -> str:
        """Why this rank has waited in vain."""
        self._look_back()
        within = f"within {self._patience:g} s"
        if self._round is None:  # nobody else can be known without the owner
            return f"rank {self._members[0]} has not come {within}"
        missing = sorted(set(self._members) - self._came)
        if missing:
            return f"{_ranks(missing)} not come {within}"
        return f"all have come, but not connected {within} ({self._failure or 'nobody said why'})"

    @property
    def _is_owner(self) -> bool:
        return self._rank == self._members[0]

    @property
    def _parting(self) -> str:
        return f"rank {self._rank} no longer waited"


class _Round:
    """One attempt of all members, as the store knows it."""

    def __init__(self, store: Store, name: str, members: Sequence[int]) -> None:
        self.name = name
        self.store = PrefixStore(name, store)
        self._members = members

    @classmethod
    def begin(cls, store: Store, members: Sequence[int]) -> _Round:
        """A new one, open from now on."""
        made = cls(store, uuid.uuid4().hex, members)
        made.store.set("state", _OPEN)  # before others can find it
        store.set("round", made.name)
        return made

    @classmethod
    def newest(cls, store: Store, members: Sequence[int]) -> _Round | None:
        """The one that has begun last, if any has."""
        if not store.check(["round"]):
            return None
        return cls(store, store.get("round").decode(), members)

    def state(self) -> str:
        return self.store.get("state").decode()

    def has_failed(self) -> bool:
        return self.state() not in (_OPEN, _CONNECTING, _CONNECTED)

    def change(self, before: str, after: str) -> str:
        """The state from now on: ``after``, unless it was no longer ``before``."""
        return self.store.compare_set("state", before, after).decode()

    def sign(self, state: str, rank: int) -> None:
        """This rank is ready for what comes after ``state``."""
        self.store.set(f"{state}/{rank}", "ready")

    def signed(self, state: str) -> set[int]:
        return {rank for rank in self._members if self.store.check([f"{state}/{rank}"])}

    def all_signed(self, state: str) -> bool:
        return self.store.check([f"{state}/{rank}" for rank in self._members])


def _naps() -> Iterator[None]:
    """Without end, ever longer pauses between looks into the store: 10 ms to 100 ms."""
    begin = time.monotonic()
    while True:
        yield
        time.sleep(min(0.1, 0.01 + 0.05 * (time.monotonic() - begin)))


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {list(ranks)} have"
