"""Errors of the all-to-all that arguments alone do not cause."""

from __future__ import annotations


class HookPendingError(RuntimeError):
    """A call came between another one and its hook. Nothing has been sent: the buffer goes on."""


class MoeTimeoutError(RuntimeError):
    """A rank has waited for a peer for longer than the buffer's timeout, or the peer is gone.

    The buffer refuses work from then on, until all ranks call :meth:`Buffer.reset`; a rank that is
    gone for good is left out with :meth:`Buffer.mask_ranks` first.

    Attributes:
        rank: the rank that waited.
        peer: the rank that it waited for.
        phase: what it waited in, for example ``"dispatch"``.
        expected: the number of the call that the peer was to take part in.
        seen: the number of the last call in which the peer was heard of.
    """

    def __init__(
        self, *, rank: int, peer: int, phase: str, expected: int, seen: int, detail: str = ""
    ) -> None:
        super().__init__(rank, peer, phase, expected, seen, detail)
        self.rank = rank
        self.peer = peer
        self.phase = phase
        self.expected = expected
        self.seen = seen
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        fields = ("rank", "peer", "phase", "expected", "seen", "detail")
        return _restore, ({field: getattr(self, field) for field in fields},)

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"rank {self.rank} waited for rank {self.peer} in {self.phase}: expected call "
            f"{self.expected}, seen {self.seen}{detail}; call reset() on all ranks, after "
            f"mask_ranks([{self.peer}]) if rank {self.peer} is gone"
        )


def first_line(error: Exception) -> str:
    """What another library's error says before it goes into details."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _restore(fields: dict[str, int | str]) -> MoeTimeoutError:
    return MoeTimeoutError(**fields)  # type: ignore[arg-type]
