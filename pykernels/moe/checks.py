"""Argument checks of the buffer's calls, beside those of :mod:`pykernels.checks`.

Order: device, dtype, rank, shape, stride, values that the host knows. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from pykernels import checks
from pykernels.group_checks import COUNTER_ROWS
from pykernels.moe.group import BufferSizes, num_scales
from pykernels.moe.handle import DispatchHandle
from pykernels.moe.transport import Batch
from pykernels.overlap import check_no_overlap

MAX_TIMEOUT_S = 86400.0
_FP8_COLUMNS = 16  # e4m3 values that fill 16 bytes


def check_timeout(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, checks.NUMBERS):
        raise ValueError(f"timeout must be a number of seconds, got {checks.shown(timeout)}")
    if not 0 < timeout <= MAX_TIMEOUT_S:
        raise ValueError(
            f"timeout must be above 0 and at most {MAX_TIMEOUT_S:g} seconds, got "
            f"{checks.shown(timeout)}"
        )
    return float(timeout)


def check_device(device: object) -> torch.device:
    """The CPU, or one of torch's GPUs; without an index it is the current one."""
    if not isinstance(device, (str, torch.device)):
        raise ValueError(
            f"device must be a torch.device, its name or None, got {checks.shown(device)}"
        )
    try:
        found = torch.device(device)
    except RuntimeError:  # no such device type, or no such index
        found = torch.device("meta")
    if found.type == "cpu":
        return torch.device("cpu")  # tensors on it have no index
    if found.type != "cuda":
        raise ValueError(f"device must be a CUDA device or the CPU, got {str(device)!r}")
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch finds no GPU for device {device}; pass device='cpu'")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device must be one of the {torch.cuda.device_count()} GPUs that torch finds, got "
            f"{str(device)!r}"
        )
    return torch.device("cuda", index)


def check_ranks_per_node(ranks_per_node: object, num_ranks: int) -> None:
    if ranks_per_node is None:
        return
    checks.check_integer("ranks_per_node", ranks_per_node, 1, num_ranks)
    if num_ranks % int(cast("int", ranks_per_node)) != 0:
        raise ValueError(
            f"ranks_per_node must divide the {num_ranks} ranks of the group, got {ranks_per_node}; "
            "pass None where nodes have different numbers of ranks"
        )


def check_masked_ranks(ranks: object, num_ranks: int, own: int | None) -> frozenset[int]:
    """``own``: the only rank of this process, which cannot leave itself out."""
    found = checks.items(ranks)
    if found is None:
        raise ValueError(f"ranks must be a collection of ranks, got {checks.shown(ranks)}")
    for rank in found:
        checks.check_integer("each rank to mask", rank, 0, num_ranks - 1)
        if rank == own:
            raise ValueError(f"a rank must not mask itself, got {rank}; its peers mask it")
    if len(set(found)) == num_ranks:
        raise ValueError(f"at least one rank must not be masked, got all {num_ranks}")
    return frozenset(int(rank) for rank in found)


def check_capacity(capacity: object, sizes: BufferSizes) -> int:
    """The rows of ``recv_x``; for None the most that distinct experts can need."""
    if capacity is None:
        return sizes.max_rows
    checks.check_integer("capacity (None for the worst case)", capacity, 0, checks.MAX_SIZE)
    return int(cast("int", capacity))


def per_rank(name: str, value: object, num_ranks: int) -> list[object]:
    """With a ``LocalGroup``: one for each rank, in a list, so that no pair is mistaken for it."""
    if not isinstance(value, list):
        raise ValueError(
            f"{name} must be a list of {num_ranks}, one for each rank of the LocalGroup, got "
            f"{type(value).__name__}"
        )
    if len(value) != num_ranks:
        raise ValueError(
            f"{name} must be a list of {num_ranks}, one for each rank of the LocalGroup, got "
            f"{len(value)}"
        )
    return value


class RankChecks:
    """Checks what one rank passes; names in messages say which rank, where there are several."""

    def __init__(self, sizes: BufferSizes, device: torch.device, rank: int | None) -> None:
        self._sizes = sizes
        self._device = device
        self._suffix = "" if rank is None else f" of rank {rank}"

    def batch(self, x: object, topk_idx: object, topk_weights: object) -> Batch:
        """All requirements of what is dispatched, but the values of ``topk_idx``."""
        values, scales = self._rows(x)
        name_x = self._name("x") if scales is None else self._name("x[0]")
        name_idx, name_weights = self._name("topk_idx"), self._name("topk_weights")
        name_scales = self._name("x[1]")
        idx = checks.check_tensor(name_idx, topk_idx)
        weights = checks.check_tensor(name_weights, topk_weights)
        named = {name_x: values, name_idx: idx, name_weights: weights}
        if scales is not None:
            named[name_scales] = scales
        self._on_device(named)

        checks.check_dtype(
            name_x, values, torch.bfloat16 if scales is None else torch.float8_e4m3fn
        )
        if scales is not None:
            checks.check_dtype(name_scales, scales, torch.float32)
        checks.check_dtype(name_idx, idx, torch.int64, torch.int32)
        checks.check_dtype(name_weights, weights, torch.float32)
        for name, tensor in named.items():
            checks.check_rank(name, tensor, 2)

        self._batch_shapes(named, name_x, name_idx, name_weights, name_scales)
        checks.check_rows(name_x, values)
        for name, tensor in ((name_idx, idx), (name_weights, weights)):
            self._contiguous(name, tensor)
        _check_address(name_x, values)
        if scales is not None and torch.is_grad_enabled():
            checks.check_no_gradient("dispatch of FP8 rows", {name_x: values, name_scales: scales})
        return Batch(values, scales, idx, weights)

    def topk_values(self, topk_idx: Tensor) -> None:
        """Each entry is an expert or -1; waits for the device."""
        name, last = self._name("topk_idx"), self._sizes.num_experts - 1
        wrong = (topk_idx < -1) | (topk_idx > last)
        if bool(wrong.any()):
            token, k = (int(index) for index in wrong.nonzero()[0])
            raise ValueError(
                f"{name} must be from 0 to {last}, or -1 for a dropped entry, got "
                f"{int(topk_idx[token, k])} for token {token}, k {k}"
            )

    def done(self, counters: object, y: Tensor) -> Tensor:
        """All requirements of the counters of y's rows."""
        name = self._name("done")
        found = checks.check_tensor(name, counters)
        self._on_device({name: found})
        checks.check_dtype(name, found, torch.int32)
        blocks = checks.ceil_div(y.size(0), COUNTER_ROWS)
        if tuple(found.shape) != (blocks,):
            raise ValueError(
                f"{name} must be [ceil(capacity / {COUNTER_ROWS})] = {[blocks]}, got shape "
                f"{list(found.shape)}"
            )
        if not found.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {found.stride()}")
        return found

    def combined(
        self, y: object, handle: object, out: object, *, masked: bool
    ) -> tuple[Tensor, DispatchHandle, Tensor | None]:
        """All requirements of what is combined."""
        found = self._handle(handle, masked=masked)
        name_y, name_out = self._name("y"), self._name("out")
        named = {name_y: checks.check_tensor(name_y, y)}
        if out is not None:
            named[name_out] = checks.check_tensor(name_out, out)
        self._on_device(named)
        for name, tensor in named.items():
            checks.check_dtype(name, tensor, torch.bfloat16)
        checks.check_rank(name_y, named[name_y], 3 if masked else 2)
        rows: tuple[int, ...] = (found.capacity, self._sizes.hidden)
        meaning = "[capacity, hidden]"
        if masked:
            rows = (self._sizes.num_local_experts, *rows)
            meaning = "[num_local_experts, num_ranks * num_max_tokens_per_rank, hidden]"
        checks.check_sizes(name_y, named[name_y], rows, meaning)
        for expert in named[name_y] if masked else [named[name_y]]:
            checks.check_rows(name_y, expert)
            _check_address(name_y, expert)
        result = named.get(name_out)
        if result is not None:
            checks.check_rank(name_out, result, 2)
            shape = (found.num_tokens, self._sizes.hidden)
            checks.check_shape(name_out, result, shape, "[num_tokens, hidden]")
            checks.check_rows(name_out, result)
            _check_address(name_out, result)
            if checks.has_memory(result):
                check_no_overlap(name_out, result, {name_y: named[name_y]})
            checks.check_no_gradient(
                "combine with out", named | {"topk_weights": found.topk_weights}
            )
        return named[name_y], found, result

    def _name(self, name: str) -> str:
        return name + self._suffix

    def _rows(self, x: object) -> tuple[Tensor, Tensor | None]:
        if isinstance(x, Tensor):
            if x.dtype == torch.float8_e4m3fn:
                raise ValueError(
                    f"{self._name('x')} must be bfloat16 or a pair (values, scales), got "
                    "float8_e4m3fn without scales; quantize_1x128 returns such pairs"
                )
            return checks.check_tensor(self._name("x"), x), None
        if not isinstance(x, (tuple, list)):
            raise ValueError(
                f"{self._name('x')} must be a bfloat16 tensor or a pair (values, scales) of "
                f"tensors, got {type(x).__name__}"
            )
        return checks.check_pair(self._name("x"), x)

    def _batch_shapes(
        self, named: dict[str, Tensor], x: str, topk_idx: str, topk_weights: str, scales: str
    ) -> None:
        sizes = self._sizes
        num_tokens, hidden = named[x].shape
        if num_tokens > sizes.num_max_tokens_per_rank:
            raise ValueError(
                f"{x} must have at most num_max_tokens_per_rank = {sizes.num_max_tokens_per_rank} "
                f"rows, got {num_tokens}; split the batch or make a larger buffer"
            )
        if hidden != sizes.hidden:
            raise ValueError(
                f"{x} must have the buffer's hidden of {sizes.hidden} columns, got {hidden}; make "
                "a buffer of that hidden"
            )
        shape = (num_tokens, sizes.num_topk)
        checks.check_shape(topk_idx, named[topk_idx], shape, "[num_tokens, num_topk]")
        checks.check_shape(topk_weights, named[topk_weights], shape, "[num_tokens, num_topk]")
        if scales in named:
            blocks = (num_tokens, num_scales(hidden))
            meaning = "[num_tokens, ceil(hidden / 128)]"
            checks.check_shape(scales, named[scales], blocks, meaning)

    def _on_device(self, named: dict[str, Tensor]) -> None:
        for name, tensor in named.items():
            if tensor.device != self._device:
                raise ValueError(
                    f"{name} must be on the buffer's device {self._device}, got {tensor.device}; "
                    f"move it with .to({str(self._device)!r})"
                )

    def _contiguous(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {tuple(tensor.stride())}; make it so with "
                ".contiguous()"
            )

    def _handle(self, handle: object, *, masked: bool) -> DispatchHandle:
        name, sizes = self._name("handle"), self._sizes
        if not isinstance(handle, DispatchHandle):
            raise ValueError(
                f"{name} must be the DispatchHandle that a dispatch has returned, got "
                f"{checks.shown(handle)}"
            )
        if handle.masked != masked:
            made, fitting = (
                ("low_latency_dispatch", "low_latency_combine")
                if handle.masked
                else ("dispatch", "combine")
            )
            raise ValueError(f"{name} is of {made}, so it must be passed to {fitting}")
        wanted = (sizes.num_ranks, sizes.num_max_tokens_per_rank, sizes.num_topk)
        if tuple(handle.rows.shape) != wanted:
            raise ValueError(
                f"{name} must be of a buffer with [num_ranks, num_max_tokens_per_rank, num_topk] = "
                f"{list(wanted)}, got {list(handle.rows.shape)}; pass it to the buffer it is of"
            )
        return handle


def _check_address(name: str, tensor: Tensor) -> None:
    if checks.has_memory(tensor):
        checks.check_address(name, tensor)


def check_outs_apart(y: Sequence[Tensor], outs: Sequence[Tensor | None]) -> None:
    """Of all ranks of a process: each writes its ``out`` while others read and write theirs."""
    others = {f"y of rank {rank}": rows for rank, rows in enumerate(y)}
    for rank, out in enumerate(outs):
        if out is not None and checks.has_memory(out):
            name = f"out of rank {rank}"
            check_no_overlap(name, out, others)
            others[name] = out


def check_fp8_rows(batch: Batch) -> None:
    """FP8 rows, given or made by the send, are multiples of 16 bytes."""
    checks.check_multiple(
        "hidden of FP8 rows", batch.x.size(1), _FP8_COLUMNS, "pad the rows or send BF16"
    )


def check_same_kind(batches: Sequence[Batch]) -> None:
    """All ranks of a process send BF16 rows, or all send pairs."""
    for rank, batch in enumerate(batches):
        if batch.x.dtype != batches[0].x.dtype:
            raise ValueError(
                f"x must be of one type on all ranks, got {batches[0].x.dtype} on rank 0 and "
                f"{batch.x.dtype} on rank {rank}"
            )
