"""Argument checks of the MLA ops' plans and of merging, beside those of :mod:`pykernels.checks`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pykernels import checks
from pykernels.overlap import check_no_overlap

HEAD_DIM_V = 512
MAX_HEADS = 128
NUM_PLAN_TENSORS = 5  # the first fields of an MlaPlan
_VECTOR_COLUMNS = 8  # 16 bytes of BF16


class MlaPlan(NamedTuple):
    """Which part of the GPU takes which blocks of which requests; see ``mla_decode_plan``.

    Attributes:
        items: ``[num_items, 4]``, ``int32``: request, first block, end block, slot, of each item of
            work, in the order of the requests; blocks are of 64 tokens. The slot is where the
            item's partial results go, -1 for a request that is not split.
        part_offsets: ``[num_parts + 1]``, ``int32``: part p takes items ``part_offsets[p]`` to
            ``part_offsets[p + 1] - 1``.
        requests: ``[max_batch, 4]``, ``int32``: length, number of splits and first slot of each
            request, and zero.
        partial_out: ``[num_slots, seqlen_q, num_heads, 512]``, ``float32``.
        partial_lse: ``[num_slots, seqlen_q, num_heads]``, ``float32``.
        batch_invariant: a request is split by its own length alone.
    """

    items: Tensor
    part_offsets: Tensor
    requests: Tensor
    partial_out: Tensor
    partial_lse: Tensor
    batch_invariant: bool


def plan_tensors(plan: MlaPlan) -> dict[str, Tensor]:
    """By the names that messages give them."""
    return {f"plan.{name}": getattr(plan, name) for name in plan._fields[:NUM_PLAN_TENSORS]}


def check_plan_sizes(
    max_batch: object, seqlen_q: object, num_heads: object, max_seqlen: object
) -> None:
    checks.check_integer("max_batch", max_batch, 0, checks.MAX_SIZE)
    checks.check_integer("seqlen_q", seqlen_q, 1, checks.MAX_SIZE // MAX_HEADS)
    checks.check_integer("num_heads", num_heads, 1, MAX_HEADS)
    if max_seqlen is not None:
        checks.check_integer("max_seqlen", max_seqlen, 0, checks.MAX_SIZE)


def check_plan(
    plan: object, batch: int, seqlen_q: int, num_heads: int, device: torch.device
) -> MlaPlan:
    """The plan, if it was made for such a call. Its values are not read."""
    made = _check_plan_type(plan)
    for name, tensor in plan_tensors(made).items():
        if tensor.device != device:
            raise ValueError(
                f"plan was made on {tensor.device} ({name}), and the call has tensors on {device}; "
                f"make one with mla_decode_plan(..., device={str(device)!r})"
            )
    _check_indices(made.items, made.part_offsets, made.requests, made.batch_invariant)
    _check_partial_results(made)
    max_batch = made.requests.size(0)
    _, planned_seqlen_q, planned_num_heads = made.partial_lse.shape
    if batch > max_batch or (seqlen_q, num_heads) != (planned_seqlen_q, planned_num_heads):
        raise ValueError(
            f"plan was made for max_batch = {max_batch}, seqlen_q = {planned_seqlen_q} and "
            f"num_heads = {planned_num_heads}, and the call has batch = {batch}, seqlen_q = "
            f"{seqlen_q} and num_heads = {num_heads}; make one for these with mla_decode_plan"
        )
    return made


def check_update_plan(
    items: Tensor,
    part_offsets: Tensor,
    requests: Tensor,
    cache_seqlens: Tensor,
    batch_invariant: bool,
    *,
    real: bool = True,
) -> None:
    """All requirements of mla_update_plan; ``real`` is False where tensors have no memory."""
    written = {"plan.items": items, "plan.part_offsets": part_offsets, "plan.requests": requests}
    checks.check_same_device(cache_seqlens=cache_seqlens, **written)
    checks.check_dtype("cache_seqlens", cache_seqlens, torch.int32)
    checks.check_rank("cache_seqlens", cache_seqlens, 1)
    _check_indices(items, part_offsets, requests, batch_invariant)
    if cache_seqlens.size(0) > requests.size(0):
        raise ValueError(
            f"cache_seqlens must have at most max_batch = {requests.size(0)} lengths, for which "
            f"the plan was made, got {cache_seqlens.size(0)}"
        )
    _check_contiguous("cache_seqlens", cache_seqlens)
    if real:
        checks.check_address("plan.items", items)
        checks.check_address("plan.requests", requests)
        others = {"cache_seqlens": cache_seqlens, **written}
        for name, tensor in written.items():
            del others[name]
            check_no_overlap(name, tensor, others)


def check_update_plan_call(plan: object, cache_seqlens: object) -> tuple[MlaPlan, Tensor]:
    """What the op itself does not see."""
    return _check_plan_type(plan), checks.check_tensor("cache_seqlens", cache_seqlens)


def _check_plan_type(plan: object) -> MlaPlan:
    if not isinstance(plan, MlaPlan):
        raise ValueError(
            f"plan must be an MlaPlan, got {checks.shown(plan)}; mla_decode_plan makes one"
        )
    for name, tensor in plan_tensors(plan).items():
        checks.check_tensor(name, tensor)
    checks.check_batch_invariant(plan.batch_invariant)
    return plan


def _check_indices(
    items: Tensor, part_offsets: Tensor, requests: Tensor, batch_invariant: bool
) -> None:
    """That these are of one plan: the kernels rely on their sizes."""
    named = {"plan.items": items, "plan.part_offsets": part_offsets, "plan.requests": requests}
    for name, tensor in named.items():
        checks.check_dtype(name, tensor, torch.int32)
        checks.check_rank(name, tensor, 1 if tensor is part_offsets else 2)
    max_batch, num_parts = requests.size(0), part_offsets.size(0) - 1
    if num_parts < 1:
        raise ValueError(f"plan.part_offsets must have a part, got {part_offsets.size(0)} offsets")
    checks.check_sizes("plan.requests", requests, (max_batch, 4), "[max_batch, 4]")
    num_items = items.size(0)
    if not batch_invariant:
        num_items = max_batch + num_parts - 1 if max_batch > 0 else 0
        meaning = "[max_batch + num_parts - 1, 4]"
    else:
        num_items = max(num_items // max(max_batch, 1), 1) * max_batch
        meaning = "[max_batch * num_splits, 4]"
    checks.check_sizes("plan.items", items, (num_items, 4), meaning)
    for name, tensor in named.items():
        _check_contiguous(name, tensor)


def _check_partial_results(plan: MlaPlan) -> None:
    """Behind _check_indices."""
    named = {"plan.partial_out": plan.partial_out, "plan.partial_lse": plan.partial_lse}
    for name, tensor in named.items():
        checks.check_dtype(name, tensor, torch.float32)
        checks.check_rank(name, tensor, 4 if tensor is plan.partial_out else 3)
    num_items, max_batch = plan.items.size(0), plan.requests.size(0)
    more = num_items - max_batch  # than one for each request
    if plan.batch_invariant:
        num_slots = num_items if more > 0 else 0
    else:
        num_slots = more + min(more, max_batch)
    rows = tuple(plan.partial_out.shape[1:3])
    meaning = "[num_slots, seqlen_q, num_heads"
    for (name, tensor), (columns, ending) in zip(
        named.items(), (((HEAD_DIM_V,), ", 512]"), ((), "]")), strict=True
    ):
        checks.check_sizes(name, tensor, (num_slots, *rows, *columns), meaning + ending)
        _check_contiguous(name, tensor)


def _check_contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous, got strides {tuple(tensor.stride())}; "
            f"make it so with {name}.contiguous()"
        )


# ---- merging ----


def check_result_pair(name: str, pair: object) -> tuple[Tensor, Tensor]:
    """Where an op writes its output and log-sum-exps."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name} must be a pair (out, lse) of tensors, got {checks.shown(pair)}")
    out, lse = pair
    return checks.check_tensor(f"{name}[0]", out), checks.check_tensor(f"{name}[1]", lse)


def check_vectors(name: str, tensor: Tensor) -> None:
    """Rows along the last dimension, contiguous, all other strides multiples of 16 bytes."""
    *sizes, columns = tensor.shape
    *strides, column_stride = tensor.stride()
    if any(size == 0 for size in (*sizes, columns)):
        return
    if columns > 1 and column_stride != 1:
        raise ValueError(
            f"{name} must be contiguous in its last dimension, got stride {column_stride}; "
            f"make it so with {name}.contiguous()"
        )
    for dim, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        stride_bytes = stride * tensor.element_size()
        if size > 1 and stride_bytes % checks.ALIGNMENT != 0:
            raise ValueError(
                f"the strides of {name} must be multiples of {checks.ALIGNMENT} bytes, got "
                f"{stride_bytes} in dimension {dim}; allocate it so that they are and pass a view"
            )


def check_merge_states(
    outs: Tensor, lses: Tensor, out: tuple[Tensor, Tensor] | None, *, real: bool = True
) -> None:
    """All requirements of merge_states; ``real`` is False where tensors have no memory."""
    inputs = {"outs": outs, "lses": lses}
    results = {} if out is None else {"out[0]": out[0], "out[1]": out[1]}
    checks.check_same_device(**inputs, **results)
    checks.check_dtype("outs", outs, torch.bfloat16, torch.float32)
    checks.check_dtype("lses", lses, torch.float32)
    if out is not None:
        checks.check_dtype("out[0]", out[0], torch.bfloat16, torch.float32)
        checks.check_dtype("out[1]", out[1], torch.float32)
    ranks = {"outs": 5, "lses": 4, "out[0]": 4, "out[1]": 3}
    for name, tensor in {**inputs, **results}.items():
        checks.check_rank(name, tensor, ranks[name])

    num_states, batch, seqlen_q, num_heads, head_dim_v = outs.shape
    names = ("num_states", "batch", "seqlen_q", "num_heads", "head_dim_v")
    for name, size in zip(names, outs.shape, strict=True):
        checks.check_size(name, size)
    if num_states == 0:
        raise ValueError("outs must have at least 1 state, got 0")
    fix = "pad outs with columns of zeros and slice the result"
    checks.check_multiple("head_dim_v (columns of outs)", head_dim_v, _VECTOR_COLUMNS, fix)
    rows = (batch, num_heads, seqlen_q)
    row_names = "batch, num_heads, seqlen_q"
    checks.check_sizes("lses", lses, (num_states, *rows), f"[num_states, {row_names}]")
    if out is not None:
        shape = (batch, seqlen_q, num_heads, head_dim_v)
        checks.check_sizes("out[0]", out[0], shape, "[batch, seqlen_q, num_heads, head_dim_v]")
        checks.check_sizes("out[1]", out[1], rows, f"[{row_names}]")

    check_vectors("outs", outs)
    if out is not None:
        check_vectors("out[0]", out[0])
        for name, tensor in results.items():
            checks.check_distinct_elements(name, tensor)
    if real:
        checks.check_address("outs", outs)
        if out is not None:
            checks.check_address("out[0]", out[0])
            check_no_overlap("out[0]", out[0], {**inputs, "out[1]": out[1]})
            check_no_overlap("out[1]", out[1], inputs)
