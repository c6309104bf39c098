"""Processes of a torch.distributed group, one a GPU, played by threads of one process.

The recording driver gives each memory of its own, and the handles between them. torch.distributed's
functions answer for the calling thread's rank; the connections between the ranks are real ones.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from pykernels import moe
from tests.moe.checking import buffer_of
from tests.moe.played_gpu import Played
from tests.moe.routings import Routing

GATHER_TIMEOUT_S = 30


class Processes:
    """One for each of the driver's devices: rank r is on device r."""

    def __init__(self, played: Played, num_ranks: int, patch: pytest.MonkeyPatch) -> None:
        self.played = played
        self.driver = played.driver
        self.num_ranks = num_ranks
        self._place = threading.local()
        self._offers: list[bytes] = [b""] * num_ranks
        self._barrier = threading.Barrier(num_ranks, timeout=GATHER_TIMEOUT_S)
        streams = [played.driver.create_stream(rank) for rank in range(num_ranks)]
        self._threads = [
            ThreadPoolExecutor(1, initializer=self._begin, initargs=(rank, stream))
            for rank, stream in enumerate(streams)
        ]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = dist.HashStore()
        for name, answer in (
            ("is_initialized", lambda: True),
            ("get_rank", lambda group=None: self._place.rank),
            ("get_world_size", lambda group=None: num_ranks),
            ("get_backend", lambda group=None: "gloo"),
            ("all_gather_object", self._gather),
        ):
            patch.setattr(dist, name, answer)
        patch.setattr("pykernels.moe.links._get_default_store", lambda: store)

    def each(self, function: Callable[[int], Any], ranks: Iterable[int] | None = None) -> list[Any]:
        """What it returns for each of these ranks, all at the same time; then runs launches."""
        outcomes = self.outcomes(function, ranks)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    def outcomes(
        self, function: Callable[[int], Any], ranks: Iterable[int] | None = None
    ) -> list[Any]:
        """As :meth:`each`, with the errors that are raised among the results."""
        chosen = range(self.num_ranks) if ranks is None else ranks
        futures = [self._threads[rank].submit(function, rank) for rank in chosen]
        found = [future.exception() or future.result() for future in futures]
        self.played.run()
        return found

    def make_buffers(self, routing: Routing, hidden: int, **options: Any) -> list[moe.Buffer]:
        return self.each(lambda rank: buffer_of(routing, hidden, group=None, **options))

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()

    def _begin(self, rank: int, stream: int) -> None:
        self._place.rank = rank
        self.driver.set_process(rank)
        self.played.cuda.place.current = (rank, stream)

    def _gather(self, found: list[Any], value: Any, group: Any = None) -> None:
        self._offers[self._place.rank] = pickle.dumps(value)
        self._barrier.wait()
        found[:] = [pickle.loads(offer) for offer in self._offers]
        self._barrier.wait()


class AllRanks:
    """The buffers of all processes in the shape of a LocalGroup's: lists of one per rank."""

    def __init__(self, processes: Processes, buffers: Sequence[moe.Buffer]) -> None:
        self._processes = processes
        self._buffers = buffers

    def dispatch(self, *arguments: Any, **options: Any) -> Any:
        return self._call("dispatch", arguments, options)

    def combine(self, *arguments: Any) -> Any:
        outs = self._call("combine", arguments, {})
        return outs

    def low_latency_dispatch(self, *arguments: Any, **options: Any) -> Any:
        *results, hooks = self._call("low_latency_dispatch", arguments, options)
        return *results, lambda: self._processes.each(lambda rank: hooks[rank]())

    def low_latency_combine(self, *arguments: Any, **options: Any) -> Any:
        outs, hooks = self._call("low_latency_combine", arguments, options)
        return outs, lambda: self._processes.each(lambda rank: hooks[rank]())

    def _call(self, op: str, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        def call(rank: int) -> Any:
            return getattr(self._buffers[rank], op)(*(each[rank] for each in arguments), **options)

        results = self._processes.each(call)
        if isinstance(results[0], tuple):
            return [list(each) for each in zip(*results, strict=True)]
        return results
