"""The grouped FP8 GEMM of MoE layers: public functions, ops, and their torch implementation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pykernels import checks, group_checks
from pykernels._ops import define
from pykernels.device import launch_device
from pykernels.gemm import compute_in_torch
from pykernels.group_checks import COUNTER_ROWS, NO_COUNTERS, Counters, Groups
from pykernels.native import native, tensor_parts

_COUNTER_COLUMNS = 8  # columns of a row that a done counter counts as 1
_NS_PER_S = 1e9


def grouped_fp8_gemm_nt(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    group_offsets: Tensor | None = None,
    *,
    m_indices: Tensor | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    expected_m: int | None = None,
    ready: Tensor | None = None,
    done: Tensor | None = None,
    counter_scope: str = "gpu",
    ready_timeout: float = 10.0,
) -> Tensor:
    """Multiply each row of ``a`` with the weight of its group: ``dequant(a) @ dequant(b[g]).T``.

    Groups have any number of rows, none too, with no padding between them. The arithmetic is that
    of :func:`pykernels.fp8_gemm_nt` without a split of k, so a row's bits depend on nothing but the
    row, its group's weight and k. Rows of no group are neither read nor written: those of ``out``
    keep what they hold, which is arbitrary where ``out`` is allocated here.

    Offsets and indices are read on the device, without a copy to the host, so a call can be
    captured into a CUDA graph. A wrong value there leaves the rows concerned untouched and is
    raised by :func:`pykernels.check_errors`; the emulator and torch on the CPU raise at once.

    Args:
        a: ``[m, k]``, ``float8_e4m3fn``, row-major; ``[m, ceil(k / 128)]``, ``float32``, any
            strides: one scale per row and 128 columns. k is a multiple of 16.
        b: ``[num_groups, n, k]``, ``float8_e4m3fn``, each group row-major;
            ``[num_groups, ceil(n / 128), ceil(k / 128)]``, ``float32``, any strides: one scale per
            128x128 block. n is a multiple of 8.
        group_offsets: ``[num_groups + 1]``, ``int32``: group g has the rows from
            ``group_offsets[g]`` to ``group_offsets[g + 1] - 1``. The first one is mostly 0; then
            come the sums of the counts, as ``torch.cumsum(counts, 0, dtype=torch.int32)`` has them.
        m_indices: instead, ``[m]``, ``int32``: the group of each row, -1 for none. Rows of a group
            that follow one another make tiles; they need not be sorted.
        out: ``[m, n]``, ``bfloat16`` or ``float32``, row-major, to write into; None to allocate.
        out_dtype: ``bfloat16`` or ``float32``, of the result allocated when ``out`` is None.
        num_sms: how many SMs the kernel may take; None for all.
        expected_m: rows that a group is expected to have, by which the kernel is chosen; None for
            ``m / num_groups``. Worth giving where m is a capacity.
        ready: ``[ceil(m / 128)]``, ``int32``, or None. Counter i says how many of the rows from
            128 i to 128 i + 127 another kernel has written in ``a``: it adds with release
            semantics. A tile waits until the counters of its rows have reached what of these rows
            belongs to groups. To overlap, both kernels run on different streams and fit on the GPU
            together, this one with ``num_sms`` that the other leaves free: then neither order of
            their starts can block the other. What else this call reads or writes is ordered with
            other work as usual, by streams and events.
        done: likewise, or None: the kernel adds, with release semantics, for each row stored
            ``n / 8`` in the end, a part for each tile. The caller zeroes both kinds of counters.
        counter_scope: ``"gpu"``, or ``"system"`` where the counters' other side is another GPU.
        ready_timeout: seconds after which rows that are not ready are given up, with an error for
            :func:`pykernels.check_errors`. An emulated instruction takes a nanosecond.

    Values and ``out`` start at a multiple of 16 bytes, and so do their rows and groups. ``out``
    shares no memory with the inputs.

    Returns:
        ``[m, n]``, row-major: ``out`` where given. k = 0: zeros in the rows of groups. Where m, n
        or num_groups is 0, nothing runs and no offset or index is read.

    Raises:
        ValueError: a shape, dtype, stride, alignment or device is not as above, or a tensor
            requires grad; nothing has been written. On the CPU also for a wrong offset or index.
        RuntimeError: the GPU or its driver cannot run the kernels, or rows are not ready on a CPU.

    Reference: :func:`pykernels.reference.grouped_fp8_gemm_nt` (DeepSeek-V3 report, section 3.3.2).
    """
    groups = group_checks.check_groups(group_offsets=group_offsets, m_indices=m_indices)
    counters = Counters(ready, done, counter_scope, ready_timeout)
    name = "grouped_fp8_gemm_nt"
    _check_arguments(name, a, b, out, out_dtype, num_sms, expected_m, counters)
    ops = _OP, _OP_OUT
    return _call(ops, (*a, *b), groups, out, out_dtype, num_sms, expected_m, counters)


def grouped_fp8_gemm_nt_masked(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    masked_m: Tensor,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    expected_m: int | None = None,
    ready: Tensor | None = None,
    done: Tensor | None = None,
    counter_scope: str = "gpu",
    ready_timeout: float = 10.0,
) -> Tensor:
    """As :func:`grouped_fp8_gemm_nt` where every group has room for ``max_m`` rows.

    The layout of low-latency dispatch: group g has its rows at the start of ``a[g]``.

    Args:
        a: ``[num_groups, max_m, k]``, ``float8_e4m3fn``, each group row-major, groups a multiple of
            the row stride apart; ``[num_groups, max_m, ceil(k / 128)]``, ``float32``, any strides.
        b: ``[num_groups, n, k]``; ``[num_groups, ceil(n / 128), ceil(k / 128)]``.
        masked_m: ``[num_groups]``, ``int32``, on the device: the rows that each group has.
        out: ``[num_groups, max_m, n]``, ``bfloat16`` or ``float32``, strides as those of ``a``;
            None to allocate. Rows from ``masked_m[g]`` on keep what they hold.
        out_dtype: ``bfloat16`` or ``float32``, of the result allocated when ``out`` is None.
        num_sms: how many SMs the kernel may take; None for all.
        expected_m: rows that a group is expected to have, by which the kernel is chosen; None for
            ``max_m``.
        ready: ``[num_groups, ceil(max_m / 128)]``, ``int32``, or None: counters of each group's own
            rows.
        done: likewise.
        counter_scope: ``"gpu"`` or ``"system"``.
        ready_timeout: seconds.

    Returns:
        ``[num_groups, max_m, n]``: ``out`` where given.

    Raises:
        ValueError: as :func:`grouped_fp8_gemm_nt`; on the CPU also for a wrong ``masked_m``.
        RuntimeError: likewise.

    Reference: :func:`pykernels.reference.grouped_fp8_gemm_nt_masked`.
    """
    groups = Groups("masked_m", checks.check_tensor("masked_m", masked_m))
    counters = Counters(ready, done, counter_scope, ready_timeout)
    name = "grouped_fp8_gemm_nt_masked"
    _check_arguments(name, a, b, out, out_dtype, num_sms, expected_m, counters)
    ops = _MASKED_OP, _MASKED_OP_OUT
    return _call(ops, (*a, *b), groups, out, out_dtype, num_sms, expected_m, counters)


def _call(
    ops: tuple[torch._ops.OpOverload, torch._ops.OpOverload],
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    groups: Groups,
    out: Tensor | None,
    out_dtype: torch.dtype,
    num_sms: int | None,
    expected_m: int | None,
    counters: Counters,
) -> Tensor:
    """Counters belong to the overload that writes into what it is given."""
    op, op_out = ops
    arguments = (*operands, *groups.arguments)
    if out is None and counters.ready is None and counters.done is None:
        result: Tensor = op(*arguments, out_dtype, num_sms, expected_m)
        return result
    if out is None:
        group_checks.check_grouped_gemm(
            *operands,
            groups,
            None,
            out_dtype,
            counters,
            num_sms=num_sms,
            expected_m=expected_m,
            real=False,  # the op checks addresses
        )
        out = _empty_output(operands[0], operands[2], out_dtype)
    options = (num_sms, expected_m, counters.ready, counters.scope, float(counters.timeout_s))
    op_out(*arguments, *options, out=out, done=counters.done)
    return out


def _check_arguments(
    op: str,
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    out: Tensor | None,
    out_dtype: torch.dtype,
    num_sms: int | None,
    expected_m: int | None,
    counters: Counters,
) -> None:
    """The checks of what the op itself does not see."""
    a_values, sfa = checks.check_pair("a", a)
    b_values, sfb = checks.check_pair("b", b)
    tensors = {"a[0]": a_values, "a[1]": sfa, "b[0]": b_values, "b[1]": sfb}
    given = {"out": out, "ready": counters.ready, "done": counters.done}
    for name, tensor in given.items():
        if tensor is not None:
            tensors[name] = checks.check_tensor(name, tensor)
    checks.check_no_gradient(op, tensors)
    checks.check_out_dtype_argument(out, out_dtype)
    checks.check_num_sms(num_sms)
    group_checks.check_expected_m(expected_m)
    group_checks.check_counter_options(counters.scope, counters.timeout_s)


@checks.checks_call(grouped_fp8_gemm_nt)
def _check_call(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    group_offsets: Tensor | None = None,
    *,
    m_indices: Tensor | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    expected_m: int | None = None,
    ready: Tensor | None = None,
    done: Tensor | None = None,
    counter_scope: str = "gpu",
    ready_timeout: float = 10.0,
) -> Tensor:
    groups = group_checks.check_groups(group_offsets=group_offsets, m_indices=m_indices)
    counters = Counters(ready, done, counter_scope, ready_timeout)
    name = "grouped_fp8_gemm_nt"
    _check_all(name, a, b, groups, out, out_dtype, num_sms, expected_m, counters)
    return a[0]


@checks.checks_call(grouped_fp8_gemm_nt_masked)
def _check_masked_call(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    masked_m: Tensor,
    *,
    out: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    num_sms: int | None = None,
    expected_m: int | None = None,
    ready: Tensor | None = None,
    done: Tensor | None = None,
    counter_scope: str = "gpu",
    ready_timeout: float = 10.0,
) -> Tensor:
    groups = Groups("masked_m", checks.check_tensor("masked_m", masked_m))
    counters = Counters(ready, done, counter_scope, ready_timeout)
    name = "grouped_fp8_gemm_nt_masked"
    _check_all(name, a, b, groups, out, out_dtype, num_sms, expected_m, counters)
    return a[0]


def _check_all(
    op: str,
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    groups: Groups,
    out: Tensor | None,
    out_dtype: torch.dtype,
    num_sms: int | None,
    expected_m: int | None,
    counters: Counters,
) -> None:
    """What a call checks, and the op that it calls."""
    _check_arguments(op, a, b, out, out_dtype, num_sms, expected_m, counters)
    dtype = out_dtype if out is None else out.dtype
    real = checks.has_memory(a[0])
    group_checks.check_grouped_gemm(
        *a, *b, groups, out, dtype, counters, num_sms=num_sms, expected_m=expected_m, real=real
    )
    if real and a[0].device.type == "cpu" and launch_device(a[0]) is None:
        segments = group_checks.group_segments(groups, b[0].size(0), a[0].size(-2))
        _require_ready(segments, groups, counters)


def _empty_output(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.size(1)), dtype=out_dtype)


def _compute(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    groups: Groups,
    out: Tensor,
    num_sms: int | None,
    expected_m: int | None,
    counters: Counters,
) -> None:
    """Runs on whatever computes for these tensors; the arguments have been checked."""
    device = launch_device(a)
    if out.numel() == 0 or b.size(0) == 0:
        return
    if device is None:
        multiply_in_torch(a, sfa, b, sfb, groups, out, counters)
        return
    if counters.ready is not None and isinstance(device, native().EmulatedDevice):
        segments = group_checks.group_segments(groups, b.size(0), a.size(-2))
        _require_ready(segments, groups, counters)
    ready, done = (
        None if counter is None else tensor_parts(counter.view(-1))
        for counter in (counters.ready, counters.done)
    )
    tensors = (a, sfa, b, sfb, out, groups.values)
    native().grouped_fp8_gemm_nt(
        device,
        *map(tensor_parts, tensors),
        groups.source,
        num_sms,
        expected_m,
        ready,
        done,
        counters.scope == "system",
        int(counters.timeout_s * _NS_PER_S),
    )


def multiply_in_torch(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    groups: Groups,
    out: Tensor,
    counters: Counters = NO_COUNTERS,
) -> None:
    """The kernels' order of operations in torch, group by group; see ``compute_in_torch``."""
    segments = group_checks.group_segments(groups, b.size(0), a.size(-2))
    _require_ready(segments, groups, counters)
    for group, rows in _rows_of_groups(segments, groups):
        row_values, row_scales = a[rows], sfa[rows]
        result = out.new_empty(row_values.size(0), b.size(1))
        compute_in_torch(row_values, row_scales, b[group], sfb[group], result, batch_invariant=True)
        out[rows] = result
    if counters.done is not None:
        stored = _rows_by_counter(segments, groups, counters.done)
        counters.done.add_(stored * (b.size(1) // _COUNTER_COLUMNS))


def _rows_of_groups(
    segments: list[group_checks.Segment], groups: Groups
) -> Iterator[tuple[int, Any]]:
    """Each group with what its rows are in a: by indices they may stand anywhere."""
    if groups.source == "m_indices":
        for group in sorted({segment.group for segment in segments}):
            yield group, (groups.values == group).nonzero().flatten()
        return
    for group, begin, end in segments:
        yield group, ((group, slice(begin, end)) if groups.is_masked else slice(begin, end))


def _rows_by_counter(
    segments: list[group_checks.Segment], groups: Groups, counter: Tensor
) -> Tensor:
    """How many rows of groups each counter stands for."""
    rows = torch.zeros_like(counter)
    for group, begin, end in segments:
        of_group = rows[group] if groups.is_masked else rows
        for i in range(begin // COUNTER_ROWS, checks.ceil_div(end, COUNTER_ROWS)):
            last = min(end, (i + 1) * COUNTER_ROWS)
            of_group[i] += last - max(begin, i * COUNTER_ROWS)
    return rows


def _require_ready(
    segments: list[group_checks.Segment], groups: Groups, counters: Counters
) -> None:
    """On the CPU, also in the emulator, nothing fills rows during a call."""
    if counters.ready is None:
        return
    expected = _rows_by_counter(segments, groups, counters.ready)
    for place in (counters.ready < expected).nonzero().tolist()[:1]:
        seen, wanted = (int(tensor[tuple(place)]) for tensor in (counters.ready, expected))
        raise RuntimeError(
            f"the rows of ready{place} are not there: {seen} of {wanted}; on the CPU they must "
            "have been written before the call"
        )


def _allocate(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    groups: Groups,
    out_dtype: torch.dtype,
    num_sms: int | None,
    expected_m: int | None,
    *,
    real: bool = True,
) -> Tensor:
    group_checks.check_grouped_gemm(
        a,
        sfa,
        b,
        sfb,
        groups,
        None,
        out_dtype,
        num_sms=num_sms,
        expected_m=expected_m,
        real=real,
    )
    out = _empty_output(a, b, out_dtype)
    if real:
        _compute(a, sfa, b, sfb, groups, out, num_sms, expected_m, NO_COUNTERS)
    return out


def _write(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    groups: Groups,
    num_sms: int | None,
    expected_m: int | None,
    counters: Counters,
    out: Tensor,
    *,
    real: bool = True,
) -> None:
    group_checks.check_grouped_gemm(
        a,
        sfa,
        b,
        sfb,
        groups,
        out,
        out.dtype,
        counters,
        num_sms=num_sms,
        expected_m=expected_m,
        real=real,
    )
    if real:
        _compute(a, sfa, b, sfb, groups, out, num_sms, expected_m, counters)


# Schemas: what both overloads of an op take first, then their options.
_OPERANDS = "Tensor a, Tensor sfa, Tensor b, Tensor sfb"
_OPTIONS = "int? num_sms=None, int? expected_m=None"
_OUT_OPTIONS = (
    f'{_OPTIONS}, Tensor? ready=None, str counter_scope="gpu", float ready_timeout=10.0, '
    "*, Tensor(a!) out, Tensor(b!)? done=None"
)


def _define_ragged(real: bool) -> tuple[Any, Any]:
    """Both overloads of the ragged op: for tensors with memory, or for fake ones."""

    def allocate(
        a: Tensor,
        sfa: Tensor,
        b: Tensor,
        sfb: Tensor,
        group_offsets: Tensor | None = None,
        m_indices: Tensor | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
        num_sms: int | None = None,
        expected_m: int | None = None,
    ) -> Tensor:
        groups = group_checks.check_groups(group_offsets=group_offsets, m_indices=m_indices)
        return _allocate(a, sfa, b, sfb, groups, out_dtype, num_sms, expected_m, real=real)

    def write(
        a: Tensor,
        sfa: Tensor,
        b: Tensor,
        sfb: Tensor,
        group_offsets: Tensor | None = None,
        m_indices: Tensor | None = None,
        num_sms: int | None = None,
        expected_m: int | None = None,
        ready: Tensor | None = None,
        counter_scope: str = "gpu",
        ready_timeout: float = 10.0,
        *,
        out: Tensor,
        done: Tensor | None = None,
    ) -> None:
        groups = group_checks.check_groups(group_offsets=group_offsets, m_indices=m_indices)
        counters = Counters(ready, done, counter_scope, ready_timeout)
        _write(a, sfa, b, sfb, groups, num_sms, expected_m, counters, out, real=real)

    return allocate, write


def _define_masked(real: bool) -> tuple[Any, Any]:
    """The same of the masked op."""

    def allocate(
        a: Tensor,
        sfa: Tensor,
        b: Tensor,
        sfb: Tensor,
        masked_m: Tensor,
        out_dtype: torch.dtype = torch.bfloat16,
        num_sms: int | None = None,
        expected_m: int | None = None,
    ) -> Tensor:
        groups = Groups("masked_m", masked_m)
        return _allocate(a, sfa, b, sfb, groups, out_dtype, num_sms, expected_m, real=real)

    def write(
        a: Tensor,
        sfa: Tensor,
        b: Tensor,
        sfb: Tensor,
        masked_m: Tensor,
        num_sms: int | None = None,
        expected_m: int | None = None,
        ready: Tensor | None = None,
        counter_scope: str = "gpu",
        ready_timeout: float = 10.0,
        *,
        out: Tensor,
        done: Tensor | None = None,
    ) -> None:
        counters = Counters(ready, done, counter_scope, ready_timeout)
        groups = Groups("masked_m", masked_m)
        _write(a, sfa, b, sfb, groups, num_sms, expected_m, counters, out, real=real)

    return allocate, write


def _register(
    name: str, groups: str, implementations: tuple[Any, Any], fakes: tuple[Any, Any]
) -> tuple[torch._ops.OpOverload, torch._ops.OpOverload]:
    allocate = f"{name}({_OPERANDS}, {groups}, ScalarType out_dtype=bfloat16, {_OPTIONS}) -> Tensor"
    write = f"{name}.out({_OPERANDS}, {groups}, {_OUT_OPTIONS}) -> ()"
    return (
        define(allocate, implementation=implementations[0], fake=fakes[0]),
        define(write, implementation=implementations[1], fake=fakes[1]),
    )


_OP, _OP_OUT = _register(
    "grouped_fp8_gemm_nt",
    "Tensor? group_offsets=None, Tensor? m_indices=None",
    _define_ragged(real=True),
    _define_ragged(real=False),
)
_MASKED_OP, _MASKED_OP_OUT = _register(
    "grouped_fp8_gemm_nt_masked",
    "Tensor masked_m",
    _define_masked(real=True),
    _define_masked(real=False),
)
