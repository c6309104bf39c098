"""Two half-batches by turns: one computes while the rows of the other are on their way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from typing import Any, Generic, TypeVar

from pykernels.moe.buffer import Buffer

T = TypeVar("T")
R = TypeVar("R")


class TwoBatchOverlap(Generic[T, R]):
    """Runs two halves of a batch through the same layers, each under the all-to-all of the other.

    ``steps(buffer, half)`` is a generator that stops where a call of its buffer is on its way:
    behind calls with ``return_recv_hook=True``, whose hooks it calls when it goes on, or with
    ``async_finish=True``, for whose events it waits then. What it returns is the half's result. See
    ``docs/moe.md`` for one.

    The halves take turns: the first up to its first stop, the second up to its first, and so on. So
    all ranks make the same calls in the same order if their halves make as many.
    """

    def __init__(
        self,
        steps: Callable[[Buffer, T], Generator[None, None, R]],
        buffers: Sequence[Buffer],
    ) -> None:
        """Takes the layers as steps, and a buffer for each half.

        Args:
            steps: see above.
            buffers: two, since between a call and its hook a buffer takes no other one.

        Raises:
            ValueError: the buffers are not two different ones.
        """
        first, *others = buffers
        if len(others) != 1 or others[0] is first:
            raise ValueError(
                f"buffers must be two different ones, one for each half, got {len(buffers)}"
                + (" times the same" if len(others) == 1 else "")
            )
        self._steps = steps
        self._buffers = first, others[0]

    def __call__(self, first: T, second: T) -> tuple[R, R]:
        """The results of both halves.

        An error of one half is raised at once, and the other is left where it is. Its buffer may
        have a call under way: call ``reset()`` on both buffers, on all ranks.
        """
        results: dict[int, R] = {}
        with ExitStack() as stack:
            halves: dict[int, Any] = {
                place: stack.enter_context(closing(self._steps(self._buffers[place], half)))
                for place, half in enumerate((first, second))
            }
            while halves:
                for place, half in list(halves.items()):
                    try:
                        next(half)
                    except StopIteration as end:
                        results[place] = end.value
                        del halves[place]
        return results[0], results[1]
