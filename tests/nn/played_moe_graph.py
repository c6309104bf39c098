"""A CUDA graph without a GPU: torch's ops and the kernels of a captured call, replayed in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.moe.played_gpu import Played

if TYPE_CHECKING:
    from pykernels import _C

# A capture fails where the host reads a value, or a result's shape depends on one.
_READING = ("_local_scalar_dense", "is_nonzero", "nonzero", "bincount", "masked_select", "equal")


class PlayedGraph(TorchDispatchMode):
    """What is called inside of ``with`` is captured; CPU tensors play CUDA tensors.

    Torch's ops run at once as well, on what no kernel has filled yet: a graph that depends on
    values found while it was captured gives wrong results later.
    """

    def __init__(self, played: Played) -> None:
        super().__init__()
        self._played = played
        self._steps: list[tuple[int, Callable[[], None]]] = []  # behind so many launches
        self._kept: list[Any] = []  # as a graph's pool does
        self._first = len(played.driver.launches)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._opname
        assert name not in _READING, f"the host waits for a value in {func}"
        options = kwargs or {}
        result = func(*args, **options)
        self._kept.append(result)
        if func.namespace != "pykernels" and not name.startswith("empty"):
            step = lambda: _again(func, args, options, result)  # noqa: E731
            self._steps.append((len(self._played.driver.launches), step))
        return result

    def replay(self) -> None:
        done = self._first
        for behind, step in self._steps:
            self._run(done, behind)
            step()
            done = behind
        self._run(done, len(self._launches))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._launches = list(self._played.driver.launches)
        assert all(each.captured for each in self._launches[self._first :])

    def _run(self, begin: int, end: int) -> None:
        """One after the other; the same kernel on one stream after another is that of all ranks."""
        together: list[_C.RecordedLaunch] = []
        for launch in self._launches[begin:end]:
            others = {each.stream for each in together}
            if together and (
                launch.stream in others or launch.launch.kernel != together[0].launch.kernel
            ):
                self._run_together(together)
                together = []
            together.append(launch)
        self._run_together(together)

    def _run_together(self, launches: list[_C.RecordedLaunch]) -> None:
        if launches:
            self._played.cuda.emulator.run_together([each.launch for each in launches])
        assert self._played.findings == []


def _again(func: Any, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
    """Into the memory of the first result."""
    found = func(*args, **options)
    for old, new in zip(tree_leaves(result), tree_leaves(found), strict=True):
        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
            with torch.no_grad():
                old.copy_(new)
