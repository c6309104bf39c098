"""Plans of MLA decode: making one, and updating it on the device for the lengths of a step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pykernels import checks, mla_checks
from pykernels._ops import define
from pykernels.device import launch_device, sizing_device
from pykernels.mla_checks import MlaPlan
from pykernels.native import native, tensor_parts

_BLOCK_TOKENS = 64
_ITEM_OVERHEAD = 5  # blocks
_BLOCKS_PER_SPLIT = 8  # of a batch-invariant plan


def mla_decode_plan(
    max_batch: int,
    seqlen_q: int,
    num_heads: int,
    *,
    batch_invariant: bool = False,
    max_seqlen: int | None = None,
    num_sms: int | None = None,
    device: torch.device | str | None = None,
) -> MlaPlan:
    """Allocate a plan, once, for steps of up to ``max_batch`` requests.

    The GPU's SMs are parts that share the blocks of all requests, 64 cached tokens each, evenly:
    long requests are split over several parts, whose partial results are merged. Which part takes
    what is in the plan's tensors, and :func:`pykernels.mla_update_plan` writes it, on the device,
    whenever the lengths have changed. One plan serves all layers and both formats of the cache.

    A plan occupies ``num_slots * seqlen_q * num_heads * 2052`` bytes for partial results, and 16
    for each request and item of work. There are at most ``2 * (num_parts - 1)`` slots, with as many
    parts as SMs divided by the tiles of 64 rows in ``seqlen_q * num_heads``: on 132 SMs 35 MB from
    64 rows on, 9 MB with 16. With ``batch_invariant`` there are 16 for each request, so that 128
    requests of 128 heads occupy 538 MB; a ``max_seqlen`` below 7681 makes it fewer.

    Args:
        max_batch: requests that a step has at most.
        seqlen_q: query tokens of a request.
        num_heads: query heads, 1 to 128.
        batch_invariant: split a request by its own length alone, one split for every 512 tokens,
            up to 16, so that the bits of its results do not depend on the other requests.
        max_seqlen: with ``batch_invariant``, the cached tokens up to which a request gets all its
            splits; a longer one gets as many as this length. None for 16 splits.
        num_sms: how many SMs decode may take; None for all.
        device: of the tensors: a CUDA device or the CPU; None for the current CUDA device if there
            is one, else the CPU.

    Returns:
        The plan, without requests as yet.

    Raises:
        ValueError: an argument is not as above.
        RuntimeError: the GPU or its driver cannot run the kernels.
    """
    mla_checks.check_plan_sizes(max_batch, seqlen_q, num_heads, max_seqlen)
    checks.check_batch_invariant(batch_invariant)
    checks.check_num_sms(num_sms)
    place = _plan_device(device)
    num_items, num_parts, num_slots = native().mla_plan_sizes(
        sizing_device(place),
        int(max_batch),
        int(seqlen_q) * int(num_heads),
        batch_invariant,
        None if max_seqlen is None else int(max_seqlen),
        None if num_sms is None else int(num_sms),
    )

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=place)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=place)

    rows = (num_slots, seqlen_q, num_heads)
    return MlaPlan(
        zeros(num_items, 4),
        zeros(num_parts + 1),
        zeros(max_batch, 4),
        empty(*rows, mla_checks.HEAD_DIM_V),
        empty(*rows),
        batch_invariant,
    )


def mla_update_plan(plan: MlaPlan, cache_seqlens: Tensor) -> None:
    """Plan a step, on the device: once for all its layers, whenever ``cache_seqlens`` changes.

    The lengths are read when the kernel runs, so that a CUDA graph which has captured the call
    plans anew with every replay.

    Args:
        plan: of :func:`pykernels.mla_decode_plan`; its tensors are written.
        cache_seqlens: ``[batch]``, ``int32``, contiguous, with at most ``max_batch`` lengths: the
            cached tokens of each request, those of the step included. A request of a negative
            length is planned as one without tokens; :func:`pykernels.mla_decode` reports it.

    Raises:
        ValueError: a shape, dtype, stride or device is not as above; nothing has been written.
        RuntimeError: the GPU or its driver cannot run the kernel.
    """
    made, lengths = mla_checks.check_update_plan_call(plan, cache_seqlens)
    _OP(made.items, made.part_offsets, made.requests, lengths, made.batch_invariant)


@checks.checks_call(mla_update_plan)
def _check_call(plan: MlaPlan, cache_seqlens: Tensor) -> Tensor:
    made, lengths = mla_checks.check_update_plan_call(plan, cache_seqlens)
    tensors = made.items, made.part_offsets, made.requests, lengths
    real = checks.has_memory(lengths)
    mla_checks.check_update_plan(*tensors, made.batch_invariant, real=real)
    return lengths


def _plan_device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(device, (str, torch.device)):
        try:
            found = torch.device(device)
        except RuntimeError:  # no such device type, or no such index
            found = torch.device("meta")
        if found.type in ("cpu", "cuda"):
            return found
    raise ValueError(f"device must be a CUDA device, the CPU, or None, got {checks.shown(device)}")


def _update(
    items: Tensor,
    part_offsets: Tensor,
    requests: Tensor,
    cache_seqlens: Tensor,
    batch_invariant: bool,
) -> None:
    mla_checks.check_update_plan(items, part_offsets, requests, cache_seqlens, batch_invariant)
    device = launch_device(cache_seqlens)
    if device is not None:
        views = map(tensor_parts, (cache_seqlens, items, part_offsets, requests))
        native().mla_update_plan(device, *views, batch_invariant)
        return
    update_on_the_host(items, part_offsets, requests, cache_seqlens, batch_invariant)


def _fake_update(
    items: Tensor,
    part_offsets: Tensor,
    requests: Tensor,
    cache_seqlens: Tensor,
    batch_invariant: bool,
) -> None:
    mla_checks.check_update_plan(
        items, part_offsets, requests, cache_seqlens, batch_invariant, real=False
    )


_OP = define(
    "mla_update_plan(Tensor(a!) items, Tensor(b!) part_offsets, Tensor(c!) requests, "
    "Tensor cache_seqlens, bool batch_invariant) -> ()",
    implementation=_update,
    fake=_fake_update,
)


# ---- on the host ----


def update_on_the_host(
    items: Tensor,
    part_offsets: Tensor,
    requests: Tensor,
    cache_seqlens: Tensor,
    batch_invariant: bool,
) -> None:
    """What the kernel writes, of CPU tensors; rows of ``items`` behind the last item stay."""
    batch, max_batch = cache_seqlens.size(0), requests.size(0)
    num_parts = part_offsets.size(0) - 1
    requests.zero_()
    part_offsets.zero_()
    if batch == 0:
        return
    lengths = cache_seqlens.numpy().astype(np.int64)
    blocks = -(-np.maximum(lengths, 0) // _BLOCK_TOKENS)
    work = np.maximum(blocks, 1)  # a request without tokens takes time too
    chunks = np.ones(batch, dtype=np.int64)
    if batch_invariant:
        most = items.size(0) // max_batch
        chunk = -(-work // np.clip(-(-work // _BLOCKS_PER_SPLIT), 1, most))
        chunks = -(-work // chunk)
    ends = np.cumsum(chunks * _ITEM_OVERHEAD + work)
    payload = -(-int(ends[-1]) // num_parts)
    starts = ends - chunks * _ITEM_OVERHEAD - work

    # Where in its blocks each request's items end; those of all requests in a row.
    if batch_invariant:
        num_splits = chunks
        request, j = _every_item(num_splits)
        cuts = (j + 1) * chunk[request]
        overheads = (j + 1) * _ITEM_OVERHEAD
    else:
        first_part = (starts + _ITEM_OVERHEAD) // payload
        num_splits = (ends - 1) // payload - first_part + 1
        request, j = _every_item(num_splits)
        cuts = (first_part[request] + j + 1) * payload - starts[request] - _ITEM_OVERHEAD
        overheads = np.full_like(j, _ITEM_OVERHEAD)
    is_last = j + 1 == num_splits[request]
    end_blocks = np.where(is_last, blocks[request], cuts)
    begin_blocks = np.where(j == 0, 0, np.roll(end_blocks, 1))
    last_units = starts[request] + overheads + np.where(is_last, work[request], cuts) - 1

    is_split = num_splits > 1
    slots = np.where(is_split, num_splits, 0)
    first_slots = np.where(is_split, np.cumsum(slots) - slots, 0)
    item_slots = np.where(is_split[request], first_slots[request] + j, -1)
    _write(items, np.stack([request, begin_blocks, end_blocks, item_slots], axis=1))
    _write(requests, np.stack([lengths, num_splits, first_slots, 0 * lengths], axis=1))
    _write(part_offsets, np.searchsorted(last_units // payload, np.arange(num_parts + 1)))


def _every_item(num_splits: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The request of each item, and its number among this request's."""
    request = np.repeat(np.arange(num_splits.size), num_splits)
    first = np.cumsum(num_splits) - num_splits
    return request, np.arange(request.size) - first[request]


def _write(tensor: Tensor, rows: NDArray[np.int64]) -> None:
    """The first rows."""
    tensor[: rows.shape[0]] = torch.from_numpy(rows.astype(np.int32))
