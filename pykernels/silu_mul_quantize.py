"""SwiGLU fused with the 1x128 FP8 cast: public function, op, and its torch implementation.

It stands between the two grouped GEMMs of an MoE layer, and takes the groups as these do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels import checks, group_checks, quantize
from pykernels._ops import define
from pykernels.device import launch_device
from pykernels.group_checks import Groups
from pykernels.native import native, tensor_parts

_ROW_ELEMENTS = 16  # of any element type these fill a multiple of 16 bytes


def silu_mul_quantize_1x128(
    x: Tensor,
    *,
    group_offsets: Tensor | None = None,
    m_indices: Tensor | None = None,
    masked_m: Tensor | None = None,
    scale_fmt: str = "fp32",
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cast ``silu(gate) * up`` to FP8 with one scale per row and 128 columns.

    The first half of x's columns are the gates, the second half what they multiply, as a weight
    that stacks gate rows, then up rows, produces them. ``y = gate / (1 + exp(-gate)) * up`` is
    computed in FP32 and cast exactly as :func:`pykernels.quantize_1x128` casts it.

    The kernel takes ``e = ex2.approx.ftz(-log2(e) * gate)``, ``r = rcp.approx.ftz(1 + e)`` and
    ``y = (gate * r) * up``, each product and the sum rounded to nearest: off by at most about
    ``(5 + |gate|) * 2^-23`` of y. A gate below -87.3 gives a zero with the sign of the product
    (``r`` has no subnormals), a gate of -infinity NaN, as in torch. CPU tensors run in torch, which
    divides, or, inside :func:`pykernels.emulate`, in the emulator: the results differ in the last
    bits of y, so here and there by one step of e4m3.

    At most one of the three names the rows of groups; without any, all rows are computed. Of other
    rows nothing is read, and their results stay as they are. The result of a row does not depend on
    how its group is named, or on other rows.

    Args:
        x: ``[t, 2 * i]``, or with ``masked_m`` ``[num_groups, max_m, 2 * i]``; ``bfloat16``,
            ``float16`` or ``float32``, row-major.
        group_offsets: ``[num_groups + 1]``, ``int32``: the rows from the first to the last offset
            are computed.
        m_indices: ``[t]``, ``int32``: the group of each row; rows with -1 are not computed.
        masked_m: ``[num_groups]``, ``int32``: how many rows of each group, from its first on.
        scale_fmt: ``"fp32"`` or ``"ue8m0"``; scales are ``float32`` tensors either way.
        out: ``(q, scales)`` to write into (scales of any strides), or None to allocate. They share
            no memory with the inputs or each other.

    ``x`` and ``q`` start at a multiple of 16 bytes, and so do their rows and groups: where i is no
    multiple of 16, the rows of an allocated ``q`` lie the next multiple of 16 bytes apart. i is
    fastest where half a row is a multiple of 16 bytes.

    Returns:
        q ``[t, i]`` or ``[num_groups, max_m, i]``, ``float8_e4m3fn``, and scales ``[t, ceil(i /
        128)]`` or ``[num_groups, max_m, ceil(i / 128)]``, ``float32``; ``out`` where given.

    Raises:
        ValueError: a shape, dtype, stride, alignment, device, format or option is not as above, or
            a tensor requires grad; nothing has been written. So does a wrong value among the
            groups: offsets that start below 0, end before they start or pass t, an index below -1,
            a count below 0 or above max_m. On a GPU :func:`pykernels.check_errors` raises that one,
            and the rows concerned (for offsets, all) are left as they are.
        RuntimeError: the GPU or its driver cannot run the kernel.

    Reference: :func:`pykernels.reference.silu_mul_quantize_1x128` (SwiGLU: arXiv 2002.05202).
    """
    groups = _check_groups(group_offsets, m_indices, masked_m)
    pair = _check_arguments(x, groups, scale_fmt, out)
    if pair is None:
        q, scales = _OP(x, group_offsets, m_indices, masked_m, scale_fmt)
        return q, scales
    q, scales = pair
    _OP_OUT(x, group_offsets, m_indices, masked_m, scale_fmt, q=q, scales=scales)
    return q, scales


@checks.checks_call(silu_mul_quantize_1x128)
def _check_call(
    x: Tensor,
    *,
    group_offsets: Tensor | None = None,
    m_indices: Tensor | None = None,
    masked_m: Tensor | None = None,
    scale_fmt: str = "fp32",
    out: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    groups = _check_groups(group_offsets, m_indices, masked_m)
    pair = _check_arguments(x, groups, scale_fmt, out)
    real = checks.has_memory(x)
    group_checks.check_silu_mul_quantize(x, groups, scale_fmt, pair, real=real)
    if real and x.device.type == "cpu" and launch_device(x) is None:
        _computed_rows(x, groups)
    return x


def _check_groups(
    group_offsets: Tensor | None, m_indices: Tensor | None, masked_m: Tensor | None
) -> Groups | None:
    return group_checks.check_optional_groups(
        group_offsets=group_offsets, m_indices=m_indices, masked_m=masked_m
    )


def _check_arguments(
    x: Tensor, groups: Groups | None, scale_fmt: str, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor] | None:
    """The pair to write into, after the checks of what the op itself does not see."""
    tensors = {"x": checks.check_tensor("x", x)}
    pair = None if out is None else checks.check_pair("out", out)
    if pair is not None:
        tensors |= {"out[0]": pair[0], "out[1]": pair[1]}
    checks.check_no_gradient("silu_mul_quantize_1x128", tensors)
    checks.check_scale_format(scale_fmt)
    return pair


def _empty_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    *rows, columns = x.shape
    i = columns // 2
    q_row = checks.ceil_div(i, _ROW_ELEMENTS) * _ROW_ELEMENTS
    q = torch.empty((*rows, q_row), dtype=torch.float8_e4m3fn, device=x.device)[..., :i]
    blocks = (*rows, checks.ceil_div(i, checks.SCALE_BLOCK))
    return q, torch.empty(blocks, dtype=torch.float32, device=x.device)


def _compute(x: Tensor, groups: Groups | None, scale_fmt: str, q: Tensor, scales: Tensor) -> None:
    """Runs on whatever computes for these tensors; the arguments have been checked."""
    device = launch_device(x)
    if device is None:
        compute_in_torch(x, _computed_rows(x, groups), scale_fmt, q, scales)
        return
    if x.numel() == 0 or (groups is not None and _num_groups(groups) == 0):
        return
    arguments: list[Any] = [*map(tensor_parts, (x, q, scales)), scale_fmt == "ue8m0"]
    if groups is not None:
        arguments += tensor_parts(groups.values), groups.source
    native().silu_mul_quantize(device, *arguments)


def _num_groups(groups: Groups) -> int:
    """0 if there are none; with indices the number of rows."""
    return groups.values.numel() - (1 if groups.source == "group_offsets" else 0)


def _computed_rows(x: Tensor, groups: Groups | None) -> Tensor | None:
    """Which rows are computed, a flag each; None for all.

    Raises:
        ValueError: a wrong value among the groups, of CPU tensors.
    """
    if groups is None:
        return None
    values = groups.values
    if groups.source == "group_offsets":
        begin, end = int(values[0]), int(values[-1])
        if not 0 <= begin <= end <= x.size(0):
            raise ValueError(
                f"group_offsets must start at 0 or above, not end before that, and end at t = "
                f"{x.size(0)} or below, got {begin} to {end}"
            )
        row = torch.arange(x.size(0), device=x.device)
        return (row >= begin) & (row < end)
    if groups.source == "m_indices":
        _check_values("m_indices of row", values, -1, None)
        return values >= 0
    _check_values("masked_m of group", values, 0, x.size(1))
    return torch.arange(x.size(1), device=x.device) < values[:, None]


def _check_values(what: str, values: Tensor, least: int, most: int | None) -> None:
    wrong = values < least
    if most is not None:
        wrong = wrong | (values > most)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{what} {index} must be {allowed}, got {int(values[index])}")


def compute_in_torch(
    x: Tensor, rows: Tensor | None, scale_fmt: str, q: Tensor, scales: Tensor
) -> None:
    """The formula in FP32, then the cast of :func:`pykernels.quantize_1x128`.

    ``rows``: a flag for each row to compute; None for all.
    """
    chosen = x.new_ones(x.shape[:-1], dtype=torch.bool) if rows is None else rows
    gate, up = x[chosen].float().chunk(2, dim=-1)
    y = gate / (1 + torch.exp(-gate)) * up
    row_q = q.new_empty(y.shape)
    row_scales = scales.new_empty(y.size(0), scales.size(-1))
    quantize.compute_in_torch(y, scale_fmt, 1, row_q, row_scales)
    q.view(torch.uint8)[chosen] = row_q.view(torch.uint8)
    scales[chosen] = row_scales


def _define(real: bool) -> tuple[Any, Any]:
    """Both overloads: for tensors with memory, or for fake ones."""

    def allocate(
        x: Tensor,
        group_offsets: Tensor | None,
        m_indices: Tensor | None,
        masked_m: Tensor | None,
        scale_fmt: str,
    ) -> tuple[Tensor, Tensor]:
        groups = _check_groups(group_offsets, m_indices, masked_m)
        group_checks.check_silu_mul_quantize(x, groups, scale_fmt, None, real=real)
        q, scales = _empty_outputs(x)
        if real:
            _compute(x, groups, scale_fmt, q, scales)
        return q, scales

    def write(
        x: Tensor,
        group_offsets: Tensor | None,
        m_indices: Tensor | None,
        masked_m: Tensor | None,
        scale_fmt: str,
        *,
        q: Tensor,
        scales: Tensor,
    ) -> None:
        groups = _check_groups(group_offsets, m_indices, masked_m)
        group_checks.check_silu_mul_quantize(x, groups, scale_fmt, (q, scales), real=real)
        if real:
            _compute(x, groups, scale_fmt, q, scales)

    return allocate, write


_allocate, _write = _define(real=True)
_fake_allocate, _fake_write = _define(real=False)
_INPUTS = "Tensor x, Tensor? group_offsets, Tensor? m_indices, Tensor? masked_m, str scale_fmt"
_OP = define(
    f"silu_mul_quantize_1x128({_INPUTS}) -> (Tensor, Tensor)",
    implementation=_allocate,
    fake=_fake_allocate,
)
_OP_OUT = define(
    f"silu_mul_quantize_1x128.out({_INPUTS}, *, Tensor(a!) q, Tensor(b!) scales) -> ()",
    implementation=_write,
    fake=_fake_write,
)
