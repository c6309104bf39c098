"""Merging partial attention results by their log-sum-exps: public function, op, in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels import checks, mla_checks
from pykernels._ops import define
from pykernels.device import launch_device
from pykernels.native import native, tensor_parts


def merge_states(
    outs: Tensor, lses: Tensor, *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Merge attention results of the same queries over disjoint keys, as if over all keys.

    ``lse = log(sum(exp(lses)))`` and ``out = sum(exp(lses - lse) * outs)`` over the states. For
    context parallelism: each rank attends to its part of the keys, and the results of all ranks,
    gathered, are the states.

    Computed in FP32, state after state, so that the bits of a row depend on its states alone. A
    state whose lse is -infinity, or so far below the greatest that its weight is no normal FP32
    number, does not count, whatever its output holds; where no state counts, ``out`` is zero and
    ``lse`` -infinity. A NaN among the lses of a row, or infinity, makes the row NaN.

    Args:
        outs: ``[num_states, batch, seqlen_q, num_heads, head_dim_v]``, ``bfloat16`` or ``float32``:
            normalised. ``head_dim_v`` is a multiple of 8. The last dimension is contiguous, and the
            data pointer and all other strides are multiples of 16 bytes.
        lses: ``[num_states, batch, num_heads, seqlen_q]``, ``float32``, any strides: natural
            logarithms.
        out: ``(out, lse)`` to write into, or None to allocate: ``[batch, seqlen_q, num_heads,
            head_dim_v]``, ``bfloat16`` or ``float32``, laid out as ``outs``, and ``[batch,
            num_heads, seqlen_q]``, ``float32``, any strides. They share no memory with the inputs
            or each other.

    Returns:
        out, ``bfloat16`` where allocated, and lse.

    Raises:
        ValueError: a shape, dtype, stride, alignment or device is not as above, or a tensor
            requires grad; nothing has been written.
        RuntimeError: the GPU or its driver cannot run the kernel.

    Reference: :func:`pykernels.reference.merge_states`.
    """
    pair = _check_arguments(outs, lses, out)
    if pair is None:
        merged, lse = _OP(outs, lses)
        return merged, lse
    merged, lse = pair
    _OP_OUT(outs, lses, out=merged, lse=lse)
    return merged, lse


@checks.checks_call(merge_states)
def _check_call(outs: Tensor, lses: Tensor, *, out: tuple[Tensor, Tensor] | None = None) -> Tensor:
    pair = _check_arguments(outs, lses, out)
    mla_checks.check_merge_states(outs, lses, pair, real=checks.has_memory(outs))
    return outs


def _check_arguments(
    outs: Tensor, lses: Tensor, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """The pair to write into, after the checks of what the op itself does not see."""
    tensors = {"outs": checks.check_tensor("outs", outs), "lses": checks.check_tensor("lses", lses)}
    pair = None if out is None else mla_checks.check_result_pair("out", out)
    if pair is not None:
        tensors |= {"out[0]": pair[0], "out[1]": pair[1]}
    checks.check_no_gradient("merge_states", tensors)
    return pair


def _empty_outputs(outs: Tensor) -> tuple[Tensor, Tensor]:
    _, batch, seqlen_q, num_heads, _ = outs.shape
    out = outs.new_empty(outs.shape[1:], dtype=torch.bfloat16)
    return out, outs.new_empty((batch, num_heads, seqlen_q), dtype=torch.float32)


def _compute(outs: Tensor, lses: Tensor, out: Tensor, lse: Tensor) -> None:
    """Runs on whatever computes for these tensors; the arguments have been checked."""
    device = launch_device(outs)
    if device is None:
        compute_in_torch(outs, lses, out, lse)
    elif lse.numel() > 0:
        native().merge_states(device, *map(tensor_parts, (outs, lses, out, lse)))


def compute_in_torch(outs: Tensor, lses: Tensor, out: Tensor, lse: Tensor) -> None:
    """The formula in FP32, relative to the greatest lse of each row."""
    greatest = lses.amax(dim=0)  # NaN if any is
    reference = torch.where(greatest == -torch.inf, 0.0, greatest)
    weights = torch.exp(lses - reference)
    weights = torch.where(weights < torch.finfo(torch.float32).tiny, 0.0, weights)
    total = weights.sum(dim=0)
    is_empty = total == 0
    scale = torch.where(is_empty, 0.0, 1 / total).transpose(1, 2)[..., None]
    merged = torch.zeros_like(out, dtype=torch.float32)
    for values, weight in zip(outs, weights.transpose(2, 3)[..., None], strict=True):
        merged += weight * torch.where(weight == 0, 0.0, values)
    out.copy_(merged * scale)
    lse.copy_(torch.where(is_empty, -torch.inf, reference + torch.log(total)))


def _define(real: bool) -> tuple[Any, Any]:
    """Both overloads: for tensors with memory, or for fake ones."""

    def allocate(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
        mla_checks.check_merge_states(outs, lses, None, real=real)
        out, lse = _empty_outputs(outs)
        if real:
            _compute(outs, lses, out, lse)
        return out, lse

    def write(outs: Tensor, lses: Tensor, *, out: Tensor, lse: Tensor) -> None:
        mla_checks.check_merge_states(outs, lses, (out, lse), real=real)
        if real:
            _compute(outs, lses, out, lse)

    return allocate, write


_allocate, _write = _define(real=True)
_fake_allocate, _fake_write = _define(real=False)
_OP = define(
    "merge_states(Tensor outs, Tensor lses) -> (Tensor, Tensor)",
    implementation=_allocate,
    fake=_fake_allocate,
)
_OP_OUT = define(
    "merge_states.out(Tensor outs, Tensor lses, *, Tensor(a!) out, Tensor(b!) lse) -> ()",
    implementation=_write,
    fake=_fake_write,
)
