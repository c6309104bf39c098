"""Calls that go on beside the caller's work: with ``async_finish=True``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class CommEvent:
    """What a call still does on the buffer's communication stream.

    Attributes:
        ready: of a dispatch, ``[ceil(capacity / 128)]``, ``int32``: how many of the rows from
            ``128 i`` on have come; what ``grouped_fp8_gemm_nt`` takes as ``ready``. A list of them
            with a ``LocalGroup``; None of a combine.
        done: zeros of the same shape, for the ``done`` of the GEMM whose result is combined and of
            that combine.
    """

    def __init__(self, finish: Callable[[], None], ready: Any = None, done: Any = None) -> None:
        self.ready = ready
        self.done = done
        self._finish = finish

    def wait(self) -> None:
        """Make the current stream wait for the end of the call.

        The host does not wait. May be called again, and on other streams.

        Raises:
            MoeTimeoutError: a peer has not come, as far as the GPU has come.
            RuntimeError: the call is wrong, or the buffer has been closed or reset since.
            ValueError: a value is wrong.
        """
        self._finish()
