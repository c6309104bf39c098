"""Runs a function in one process per rank of a gloo group, and collects what it returns."""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

# The server imports torch once; each rank is then a fork of a process without threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "pykernels", "pykernels.moe"])
GROUP_TIMEOUT = timedelta(seconds=60)


def run_ranks(
    num_ranks: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120
) -> list[Any]:
    """What ``function(*arguments)`` returns on each rank; it must be importable by its name.

    A rank that ends without an answer, as a killed one does, gives None.

    Raises:
        AssertionError: a rank raised, or has not answered in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(num_ranks)]
        store = str(Path(folder) / "store")
        processes = [
            CONTEXT.Process(
                target=_rank, args=(rank, num_ranks, store, pipe[1], function, arguments)
            )
            for rank, pipe in enumerate(pipes)
        ]
        for process, pipe in zip(processes, pipes, strict=True):
            process.start()
            pipe[1].close()
        try:
            end = time.monotonic() + timeout
            answers = [
                _answer(pipe[0], rank, end - time.monotonic()) for rank, pipe in enumerate(pipes)
            ]
        finally:
            for process in processes:
                process.join(timeout=1)
                if process.is_alive():
                    process.kill()
                    process.join()
    errors = [error for _, error in answers if error is not None]
    assert not errors, "\n".join(errors)
    return [result for result, _ in answers]


def _answer(pipe: Connection, rank: int, seconds: float) -> tuple[Any, str | None]:
    if not pipe.poll(max(seconds, 0)):
        return None, f"rank {rank} has not answered in time"
    try:
        answer: tuple[Any, str | None] = torch.load(
            io.BytesIO(pipe.recv_bytes()), weights_only=False
        )
    except EOFError:
        return None, None
    return answer


def _rank(
    rank: int,
    num_ranks: int,
    store: str,
    pipe: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=num_ranks,
        timeout=GROUP_TIMEOUT,
    )
    try:
        answer: tuple[Any, str | None] = function(*arguments), None
    except BaseException:
        answer = None, f"rank {rank}:\n{traceback.format_exc()}"
    packed = io.BytesIO()
    torch.save(answer, packed)
    pipe.send_bytes(packed.getvalue())
    pipe.close()
    os._exit(0)  # a group that has lost a peer may not end by itself
