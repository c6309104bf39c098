"""What a rank of a gloo group does in the tests; each function runs in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pykernels import moe, reference
from pykernels.moe.links import Links
from tests.moe.checking import HIDDEN, buffer_of, capacity_of, results_of_experts, same_bits
from tests.moe.routings import ROUTINGS, Routing


def rank_of_process() -> int:
    return int(torch.distributed.get_rank())


def grouped(routing: Routing, fp8: bool, seed: int, **options: Any) -> list[Tensor]:
    """Rows, their scales, offsets and the combined result of this rank."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN, seed)
    x: Any = batch.fp8()[rank] if fp8 else batch.x[rank]
    with buffer_of(routing, group=None, **options) as buffer:
        recv_x, offsets, handle = buffer.dispatch(
            x, batch.topk_idx[rank], batch.topk_weights[rank], capacity=capacity_of(routing)
        )
        used = int(offsets[-1])
        values, scales = recv_x if fp8 else (recv_x, recv_x)
        y = results_of_experts(values, [slice(0, used)], rank)
        return [values[:used], scales[:used], offsets, y, buffer.combine(y, handle)]


def low_latency(routing: Routing, seed: int, split: bool, **options: Any) -> list[Any]:
    """Rows of each expert, their scales, counts, y and result of this rank; two batches at once."""
    rank = rank_of_process()
    started = []
    with buffer_of(routing, group=None, **options) as buffer:
        for each in (seed, seed + 1):
            batch = routing.batch(HIDDEN, each)
            started.append(
                buffer.low_latency_dispatch(
                    batch.x[rank],
                    batch.topk_idx[rank],
                    batch.topk_weights[rank],
                    return_recv_hook=split,
                )
            )
        results = []
        for (values, scales), masked_m, handle, hook in started:
            hook()
            room = values.size(1)
            used = [slice(e * room, e * room + int(m)) for e, m in enumerate(masked_m)]
            y = results_of_experts(values, used, rank)
            out, hook = buffer.low_latency_combine(y, handle, return_recv_hook=split)
            hook()
            rows = [values[e, : int(m)] for e, m in enumerate(masked_m)]
            row_scales = [scales[e, : int(m)] for e, m in enumerate(masked_m)]
            results.append([rows, row_scales, masked_m, y, out])
    return results


def all_grouped(routings: list[Routing], options: dict[str, Any]) -> list[Any]:
    return [
        grouped(routing, fp8, seed, **options)
        for seed, routing in enumerate(routings)
        for fp8 in (False, True)
    ]


def all_grouped_as_on_gpus(routings: list[Routing], options: dict[str, Any]) -> list[Any]:
    """Rows by all-to-alls of a group of their own, as NCCL moves them, but over gloo."""

    def group_for_rows(links: Links, store: Any, place: int) -> Any:
        return torch.distributed.ProcessGroupGloo(
            store, place, len(links.members), timedelta(seconds=60)
        )

    Links._group_for_rows = group_for_rows  # type: ignore[method-assign]
    return all_grouped(routings, options)


def all_low_latency(routings: list[Routing], options: dict[str, Any]) -> list[Any]:
    return [
        low_latency(routing, seed, split, **options)
        for seed, routing in enumerate(routings)
        for split in (False, True)
    ]


def error_of(call: Callable[[], Any]) -> str:
    """The error's type and message; an empty string if there is none."""
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def wrong_calls(routing: Routing, ranks_per_node: int | None) -> dict[str, list[str]]:
    """Of each wrong call of rank 1: the errors here, of the next call, and after a reset."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    x, idx, weights = batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
    buffer = buffer_of(routing, group=None, ranks_per_node=ranks_per_node)
    is_wrong = rank == 1

    def dispatch(**changes: Any) -> Any:
        arguments = {"x": x, "topk_idx": idx, "topk_weights": weights, "capacity": 500}
        return buffer.dispatch(**(arguments | (changes if is_wrong else {})))

    _, _, handle = dispatch()
    _, _, again = dispatch()
    _, _, other = buffer.dispatch(x, torch.full_like(idx, 0), weights, capacity=500)
    y = torch.zeros(500, HIDDEN, dtype=torch.bfloat16)
    too_long = torch.zeros(routing.num_max_tokens_per_rank + 1, HIDDEN, dtype=torch.bfloat16)
    cases: dict[str, Callable[[], Any]] = {
        "dtype": lambda: dispatch(x=x.float()),
        "hidden": lambda: dispatch(x=x[:, :64].contiguous()),
        "too_many_tokens": lambda: dispatch(x=too_long),
        "index": lambda: dispatch(topk_idx=torch.full_like(idx, routing.num_experts)),
        "capacity": lambda: dispatch(capacity=0),
        "fp8_on_one_rank": lambda: dispatch(x=batch.fp8()[rank]),
        "scale_fmt_on_one_rank": lambda: buffer.low_latency_dispatch(
            x, idx, weights, scale_fmt="ue8m0" if is_wrong else "fp32"
        ),
        "another_call": lambda: (
            buffer.combine(y, handle) if is_wrong else buffer.dispatch(x, idx, weights)
        ),
        "another_handle": lambda: buffer.combine(y, other if is_wrong else handle),
        "as_many_tokens": lambda: buffer.combine(y, again if is_wrong else handle),
        "handle": lambda: buffer.combine(y, "handle" if is_wrong else handle),
    }
    found = {}
    for name, call in cases.items():
        errors = [error_of(call), error_of(dispatch)]
        buffer.reset()
        found[name] = [*errors, error_of(dispatch)]
    return found


WRONG_BUFFERS: list[dict[str, Any]] = [
    {"hidden": 128},
    {"hidden": 12},
    {"timeout": 0},
    {"device": "meta"},
    {"ranks_per_node": 3},
    {"group": 4},
]


def different_buffers() -> list[str]:
    """Errors of buffers that rank 1 makes otherwise, and of one after them."""
    rank = rank_of_process()
    sizes = {"hidden": 64, "num_experts": 8, "num_topk": 2, "num_max_tokens_per_rank": 4}
    found = []
    for wrong in [*WRONG_BUFFERS[:-1], {}]:
        arguments: dict[str, Any] = sizes | (wrong if rank == 1 else {})
        found.append(error_of(functools.partial(moe.Buffer, **arguments)))
    found.append(error_of(functools.partial(moe.Buffer, **(sizes | WRONG_BUFFERS[-1]))))
    return found


def masked(routing: Routing, ranks_per_node: int, left_out: list[int]) -> list[Any]:
    """Ranks that stay away: results without them, and with them after a reset by all."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, ranks_per_node=ranks_per_node)

    def both() -> list[Tensor]:
        sent = batch.topk_idx[rank], batch.topk_weights[rank]
        recv_x, offsets, handle = buffer.dispatch(batch.x[rank], *sent, capacity=500)
        return [recv_x[: int(offsets[-1])], offsets, buffer.combine(recv_x, handle)]

    errors = [error_of(lambda: buffer.mask_ranks([rank]))]
    results = []
    if rank not in left_out:
        buffer.mask_ranks(left_out)
        results = both()
        buffer.reset()  # connects the others without them
        results += both()
    buffer.mask_ranks([])
    if rank not in left_out:
        errors.append(error_of(both))
    torch.distributed.barrier()
    buffer.reset()
    return [errors, results, both()]


def one_rank_dies(routing: Routing) -> list[Any] | None:
    """Rank 1 is killed: the others' error, and what they get once they have left it out."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, timeout=5)
    sent = batch.topk_idx[rank], batch.topk_weights[rank]

    def both() -> Tensor:
        recv_x, _, handle = buffer.dispatch(batch.x[rank], *sent, capacity=500)
        return buffer.combine(recv_x, handle)  # type: ignore[no-any-return]

    both()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        both()
    except moe.MoeTimeoutError as error:
        fields: list[Any] = [error.rank, error.peer, error.phase, error.expected, error.seen]
    again = error_of(both)
    buffer.mask_ranks([1])
    buffer.reset()
    return [fields, again, both()]


def one_rank_resets_alone(routing: Routing, alone: int) -> list[str]:
    """Its error, that of its next call, and what a reset by all gives."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, timeout=1)

    def dispatch() -> Any:
        return buffer.dispatch(batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank])

    errors = [error_of(buffer.reset), error_of(dispatch)] if rank == alone else []
    torch.distributed.barrier()
    if rank == alone:
        time.sleep(0.3)  # what it left in the store is all that the other one finds
    buffer.reset()
    return [*errors, error_of(dispatch)]


def one_rank_is_interrupted(routing: Routing) -> list[Any]:
    """Rank 0, in a wait for rank 1: errors, seconds until all have reset, and the next call's."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, timeout=15)

    def dispatch() -> Any:
        return buffer.dispatch(batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank])

    dispatch()
    if rank == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        time.sleep(0.8)
    begin = time.monotonic()
    try:
        errors = [error_of(dispatch)]
    except KeyboardInterrupt:
        errors = [error_of(buffer.check)]
    buffer.reset()
    return [*errors, time.monotonic() - begin, error_of(dispatch)]


def in_a_fork(routing: Routing) -> list[str]:
    """Errors in a fork of this process, and here after it."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, timeout=5)

    def dispatch() -> Any:
        return buffer.dispatch(batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank])

    dispatch()
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        errors = [error_of(call) for call in (dispatch, buffer.check, buffer.reset, buffer.close)]
        os.write(writes, json.dumps(errors).encode())
        os._exit(0)
    os.close(writes)
    _, status = os.waitpid(child, 0)
    errors = json.loads(os.read(reads, 10_000)) if status == 0 else [f"status {status}"]
    return [*errors, error_of(dispatch)]


def without_a_group(routing: Routing) -> list[str]:
    """Errors of a call and of a reset once torch.distributed's groups are gone."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, timeout=5)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sent = batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
    return [error_of(lambda: buffer.dispatch(*sent)), error_of(buffer.reset)]


def one_rank_is_slow() -> list[Any]:
    """Rank 2 sleeps before each call: who is waited for most. Then it stays away for too long."""
    routing = Routing("slow", (4, 4, 4), 3, 2, 4)
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, timeout=2)

    def dispatch() -> Any:
        return buffer.dispatch(batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank])

    for _ in range(3):
        if rank == 2:
            time.sleep(0.2)
        dispatch()
    waits = buffer.wait_stats()
    if rank == 2:
        time.sleep(3)
    errors = [error_of(dispatch), error_of(buffer.check)]
    buffer.reset()
    dispatch()
    return [waits, errors]


def gradients(routing: Routing, hidden: int) -> list[Tensor | None]:
    """Of x and topk_weights, for a loss with random factors."""
    rank, batch = rank_of_process(), routing.batch(hidden)
    x = batch.x[rank].requires_grad_()
    weights = batch.topk_weights[rank].requires_grad_()
    buffer = buffer_of(routing, hidden, group=None)
    recv_x, _, handle = buffer.dispatch(
        x, batch.topk_idx[rank], weights, capacity=capacity_of(routing)
    )
    out = buffer.combine(recv_x * 2, handle)
    (out.float() * factors(out, rank)).sum().backward()
    return [x.grad, weights.grad]


def factors(out: Tensor, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(out.shape, generator=generator)


def in_subgroups(routing: Routing) -> list[list[Tensor]]:
    """Two groups of two of the four ranks, and two buffers at once in each."""
    rank = rank_of_process()
    groups = [torch.distributed.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    mine, place = groups[rank % 2], rank // 2
    buffers = [buffer_of(routing, group=mine) for _ in range(2)]
    started = []
    for seed, buffer in enumerate(buffers):
        batch = routing.batch(HIDDEN, 2 * (rank % 2) + seed)
        recv_x, offsets, handle = buffer.dispatch(
            batch.x[place], batch.topk_idx[place], batch.topk_weights[place]
        )
        started.append((recv_x, int(offsets[-1]), handle))
    results = []
    for buffer, (recv_x, used, handle) in reversed(list(zip(buffers, started, strict=True))):
        results.append([recv_x[:used], buffer.combine(recv_x, handle)])
    return results[::-1]


def many_calls(routing: Routing, num_calls: int) -> bool:
    """Whether the last of many results is the first one's."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None)
    outs = []
    for _ in range(num_calls):
        recv_x, _, handle = buffer.dispatch(
            batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
        )
        outs.append(buffer.combine(recv_x, handle))
    return all(same_bits(out, outs[0]) for out in outs)


def bytes_to_other_nodes(routing: Routing, ranks_per_node: int) -> list[int]:
    """What this rank's dispatch and combine put on the network."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    buffer = buffer_of(routing, group=None, ranks_per_node=ranks_per_node)
    sent = [0]
    start = Links.start

    def counted(links: Links, outgoing: Any, incoming: Any, tag: int, **options: Any) -> Any:
        for peer, tensor in outgoing.items():
            if peer // ranks_per_node != rank // ranks_per_node and tensor.dtype == torch.uint8:
                sent[-1] += tensor.numel()
        return start(links, outgoing, incoming, tag, **options)

    Links.start = counted  # type: ignore[method-assign]
    recv_x, _, handle = buffer.dispatch(
        batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
    )
    sent.append(0)
    buffer.combine(recv_x, handle)
    return sent


def over_tcp(address: str, num_ranks: int, rank: int, interface: str) -> None:
    """A rank that finds the others over a network: a line of JSON says how it went."""
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://{address}", rank=rank, world_size=num_ranks
    )
    routing = next(each for each in ROUTINGS if str(each) == f"{num_ranks}-skewed")
    batch = routing.batch(HIDDEN)
    with buffer_of(routing, group=None) as buffer:
        per_node = buffer._settings.ranks_per_node
        recv_x, _, handle = buffer.dispatch(
            batch.x[rank], batch.topk_idx[rank], batch.topk_weights[rank]
        )
        out = buffer.combine(recv_x, handle)
    received = reference.moe_dispatch(batch.x, batch.topk_idx, num_experts=routing.num_experts)
    exact = reference.moe_combine(
        [rows for rows, _ in received if isinstance(rows, Tensor)],
        batch.topk_idx,
        batch.topk_weights,
        num_experts=routing.num_experts,
    )
    print(json.dumps({"same": same_bits(out, exact[rank]), "ranks_per_node": per_node}))


if __name__ == "__main__":
    over_tcp(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])


def exchange_on(device: str, routing: Routing) -> list[Tensor]:
    """Calls of both kinds with tensors of a device: rows, offsets, and what comes home of them."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    sent = [each[rank].to(device) for each in batch]
    options: dict[str, Any] = {"group": None, "device": device, "timeout": 20}
    with buffer_of(routing, **options) as buffer, buffer_of(routing, **options) as other:
        for _ in range(3):
            recv_x, offsets, handle = buffer.dispatch(*sent, capacity=capacity_of(routing))
            out = buffer.combine(recv_x, handle)
        _, _, low_handle, hook = other.low_latency_dispatch(*sent, fp8=False, return_recv_hook=True)
        hook()
        buffer.check()
        other.check()
        used = int(offsets[-1])
        counts = low_handle.recv_counts
        return [each.cpu() for each in (recv_x[:used], offsets, out, counts)]


def peer_dies_on(device: str, routing: Routing) -> list[Any]:
    """Rank 1 of two is killed: the other's error, what it gets alone, and how long that takes."""
    rank, batch = rank_of_process(), routing.batch(HIDDEN)
    sent = [each[rank].to(device) for each in batch]
    buffer = buffer_of(routing, group=None, device=device, timeout=3)

    def both() -> Tensor:
        recv_x, _, handle = buffer.dispatch(*sent, capacity=capacity_of(routing))
        out = buffer.combine(recv_x, handle)
        buffer.check()
        return out.cpu()  # type: ignore[no-any-return]

    both()
    torch.distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)  # the process is gone, and its memory with it
    start = time.monotonic()
    error = error_of(both)
    seconds = time.monotonic() - start
    buffer.mask_ranks([1])
    buffer.reset()
    return [error, seconds, both()]
