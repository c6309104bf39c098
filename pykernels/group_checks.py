"""Argument checks of the grouped ops, beside those of :mod:`pykernels.checks`.

What the host knows is checked here. The values of offsets, indices and counts are on the device: a
kernel checks them there, and :func:`group_segments` where torch computes on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pykernels import checks
from pykernels.overlap import check_no_overlap

COUNTER_ROWS = 128  # rows that share a ready and a done counter
MAX_ROWS = checks.MAX_SIZE - 1024  # of all groups: kernels count beyond them, by a tile at most
COUNTER_SCOPES = ("gpu", "system")
MAX_TIMEOUT_S = 86400.0


class Groups(NamedTuple):
    """Which rows belong to which group.

    Attributes:
        source: ``"group_offsets"``, ``"m_indices"`` or ``"masked_m"``.
        values: The int32 tensor of that name.
    """

    source: str
    values: Tensor

    @property
    def is_masked(self) -> bool:
        return self.source == "masked_m"

    @property
    def arguments(self) -> tuple[Tensor | None, ...]:
        """As the ops take them: the ragged op group_offsets and m_indices, the masked op one."""
        if self.is_masked:
            return (self.values,)
        return (self.values, None) if self.source == "group_offsets" else (None, self.values)


class Counters(NamedTuple):
    """How a grouped GEMM overlaps with the kernels beside it; see ``grouped_fp8_gemm_nt``."""

    ready: Tensor | None = None
    done: Tensor | None = None
    scope: str = "gpu"
    timeout_s: float = 10.0


NO_COUNTERS = Counters()


class Segment(NamedTuple):
    """Rows ``begin`` to ``end - 1`` of a group; with ``masked_m`` of the group's own rows."""

    group: int
    begin: int
    end: int


def check_groups(**given: Tensor | None) -> Groups:
    """Exactly one of the tensors, by its name."""
    found = {name: values for name, values in given.items() if values is not None}
    if len(found) != 1:
        names = " and ".join(given)
        got = " and ".join(found) or "neither"
        raise ValueError(f"pass exactly one of {names}, got {got}")
    ((source, values),) = found.items()
    return Groups(source, checks.check_tensor(source, values))


def check_optional_groups(**given: Tensor | None) -> Groups | None:
    """At most one of the tensors, by its name; None without any."""
    found = {name: values for name, values in given.items() if values is not None}
    if len(found) > 1:
        raise ValueError(f"pass at most one of {', '.join(given)}, got {' and '.join(found)}")
    return check_groups(**found) if found else None


def check_counter_options(scope: object, timeout_s: object) -> None:
    if not isinstance(scope, str) or scope not in COUNTER_SCOPES:
        raise ValueError(f"counter_scope must be 'gpu' or 'system', got {scope!r}")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, checks.NUMBERS):
        got = checks.shown(timeout_s)
        raise ValueError(f"ready_timeout must be a number of seconds, got {got}")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        got = checks.shown(timeout_s)
        raise ValueError(
            f"ready_timeout must be above 0 and at most {MAX_TIMEOUT_S:g} seconds, got {got}"
        )


def check_expected_m(expected_m: int | None) -> None:
    if expected_m is not None and not isinstance(expected_m, torch.SymInt):
        checks.check_integer("expected_m", expected_m, 0, checks.MAX_SIZE)


def check_grouped_gemm(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    groups: Groups,
    out: Tensor | None,
    out_dtype: torch.dtype,
    counters: Counters = NO_COUNTERS,
    *,
    num_sms: int | None = None,
    expected_m: int | None = None,
    real: bool = True,
) -> None:
    """All requirements of the grouped GEMMs; ``real`` is False where tensors have no memory."""
    named = {"a[0]": a, "a[1]": sfa, "b[0]": b, "b[1]": sfb, groups.source: groups.values}
    if out is not None:
        named["out"] = out
    for name, counter in (("ready", counters.ready), ("done", counters.done)):
        if counter is not None:
            named[name] = counter
    checks.check_same_device(**named)
    _check_dtypes(a, sfa, b, sfb, groups, out, out_dtype, counters)
    _check_ranks(a, sfa, b, sfb, groups, out)
    _check_shapes(a, sfa, b, sfb, groups, out)
    _check_counters(a, groups, counters)

    _check_rows("a[0]", a, whole_rows=True)
    _check_rows("b[0]", b, whole_rows=False)
    if out is not None:
        _check_rows("out", out, whole_rows=True)
    checks.check_num_sms(num_sms)
    check_expected_m(expected_m)
    check_counter_options(counters.scope, counters.timeout_s)
    if real:
        for name in {"a[0]", "b[0]", "out"} & set(named):
            checks.check_address(name, named[name])
        for name in ("out", "done"):
            if name in named:
                others = {other: named[other] for other in named if other != name}
                check_no_overlap(name, named[name], others)


def _check_dtypes(
    a: Tensor,
    sfa: Tensor,
    b: Tensor,
    sfb: Tensor,
    groups: Groups,
    out: Tensor | None,
    out_dtype: torch.dtype,
    counters: Counters,
) -> None:
    for name, tensor in (("a[0]", a), ("b[0]", b)):
        checks.check_dtype(name, tensor, torch.float8_e4m3fn)
    for name, tensor in (("a[1]", sfa), ("b[1]", sfb)):
        checks.check_dtype(name, tensor, torch.float32)
    checks.check_dtype(groups.source, groups.values, torch.int32)
    checks.check_out_dtype(out, out_dtype)
    for name, counter in (("ready", counters.ready), ("done", counters.done)):
        if counter is not None:
            checks.check_dtype(name, counter, torch.int32)


def _check_ranks(
    a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor, groups: Groups, out: Tensor | None
) -> None:
    rank = 3 if groups.is_masked else 2
    for name, tensor in (("a[0]", a), ("a[1]", sfa)):
        checks.check_rank(name, tensor, rank)
    for name, tensor in (("b[0]", b), ("b[1]", sfb)):
        checks.check_rank(name, tensor, 3)
    checks.check_rank(groups.source, groups.values, 1)
    if out is not None:
        checks.check_rank("out", out, rank)


def _check_shapes(
    a: Tensor, sfa: Tensor, b: Tensor, sfb: Tensor, groups: Groups, out: Tensor | None
) -> None:
    num_groups, n, b_k = b.shape
    *leading, k = a.shape
    if b_k != k:
        raise ValueError(
            f"a[0] and b[0] must have the same k, got {list(a.shape)} and {list(b.shape)}; "
            "b is [num_groups, n, k], one weight a group as torch.nn.Linear stores it"
        )
    if groups.is_masked and leading[0] != num_groups:
        raise ValueError(
            f"a[0] and b[0] must have the same num_groups, got {list(a.shape)} and {list(b.shape)}"
        )
    checks.check_gemm_sizes(leading[-1], n, k)
    rows_name = "num_groups * max_m" if groups.is_masked else "m"
    num_rows = num_groups * leading[-1] if groups.is_masked else leading[-1]
    sizes = (("num_groups", num_groups), (rows_name, num_rows), ("n", n), ("k", k))
    for name, size in sizes:
        checks.check_size(name, size, MAX_ROWS)
    k_blocks = checks.ceil_div(k, checks.SCALE_BLOCK)
    rows = "num_groups, max_m" if groups.is_masked else "m"
    checks.check_sizes("a[1]", sfa, (*leading, k_blocks), f"[{rows}, ceil(k / 128)]")
    checks.check_sizes(
        "b[1]",
        sfb,
        (num_groups, checks.ceil_div(n, checks.SCALE_BLOCK), k_blocks),
        "[num_groups, ceil(n / 128), ceil(k / 128)]",
    )
    lengths = {
        "group_offsets": (num_groups + 1, "[num_groups + 1]"),
        "m_indices": (leading[-1], "[m]"),
        "masked_m": (num_groups, "[num_groups]"),
    }
    length, meaning = lengths[groups.source]
    if groups.source == "group_offsets" and groups.values.size(0) != length:
        raise ValueError(
            f"group_offsets must be [num_groups + 1] = [{length}], got "
            f"{list(groups.values.shape)}; the first one is where group 0 begins, mostly 0, the "
            "last one where the last group ends; pass the group of each row as m_indices="
        )
    checks.check_sizes(groups.source, groups.values, (length,), meaning)
    _check_contiguous(groups)
    if out is not None:
        checks.check_sizes("out", out, (*leading, n), f"[{rows}, n]")


def _check_contiguous(groups: Groups) -> None:
    if groups.values.size(0) > 1 and groups.values.stride(0) != 1:
        raise ValueError(
            f"{groups.source} must be contiguous, got stride {groups.values.stride(0)}; "
            f"pass {groups.source}.contiguous()"
        )


def _check_counters(a: Tensor, groups: Groups, counters: Counters) -> None:
    blocks = checks.ceil_div(a.size(-2), COUNTER_ROWS)
    if groups.is_masked:
        shape: tuple[int, ...] = (a.size(0), blocks)
        meaning = "[num_groups, ceil(max_m / 128)]"
    else:
        shape, meaning = (blocks,), "[ceil(m / 128)]"
    for name, counter in (("ready", counters.ready), ("done", counters.done)):
        if counter is None:
            continue
        if groups.source == "m_indices":
            raise ValueError(f"{name} counters go with group_offsets and masked_m, not m_indices")
        checks.check_sizes(name, counter, shape, meaning)
        if not counter.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {counter.stride()}")


def _check_rows(name: str, tensor: Tensor, *, whole_rows: bool) -> None:
    """Rows as in a matrix; groups of them a multiple of 16 bytes apart.

    ``whole_rows``: groups are a whole number of rows apart, since the kernels count all rows.
    """
    if tensor.dim() == 2:
        checks.check_rows(name, tensor)
        return
    if tensor.numel() == 0:
        return
    checks.check_rows(name, tensor[0])
    num_groups, rows, columns = tensor.shape
    group_stride, row_stride, _ = tensor.stride()
    group_bytes = group_stride * tensor.element_size()
    if num_groups == 1:
        return
    if group_bytes % checks.ALIGNMENT != 0:
        raise ValueError(
            f"the group stride of {name} must be a multiple of {checks.ALIGNMENT} bytes, got "
            f"{group_bytes}; allocate groups padded to 16 bytes and pass a view of them"
        )
    if whole_rows and rows > 1 and group_stride % row_stride != 0:
        raise ValueError(
            f"the group stride of {name} must be a multiple of its row stride, got strides "
            f"{tensor.stride()}; slice it from a contiguous tensor"
        )
    if whole_rows:
        between = group_stride // row_stride if rows > 1 else 1
        checks.check_size(f"rows of {name}", (num_groups - 1) * between + rows, MAX_ROWS)
    if name.startswith("out") and group_stride < (rows - 1) * row_stride * (rows > 1) + columns:
        raise ValueError(
            f"groups of {name} must not overlap, got strides {tensor.stride()} for shape "
            f"{list(tensor.shape)}; allocate it with torch.empty"
        )


def check_silu_mul_quantize(
    x: Tensor,
    groups: Groups | None,
    scale_fmt: str,
    out: tuple[Tensor, Tensor] | None,
    *,
    real: bool = True,
) -> None:
    """All requirements of silu_mul_quantize_1x128; ``real`` as above."""
    inputs = {"x": x} if groups is None else {"x": x, groups.source: groups.values}
    outputs = {} if out is None else {"out[0]": out[0], "out[1]": out[1]}
    checks.check_same_device(**inputs, **outputs)
    checks.check_dtype("x", x, torch.bfloat16, torch.float16, torch.float32)
    if groups is not None:
        checks.check_dtype(groups.source, groups.values, torch.int32)
    if out is not None:
        checks.check_dtype("out[0]", out[0], torch.float8_e4m3fn)
        checks.check_dtype("out[1]", out[1], torch.float32)
    rank = 3 if groups is not None and groups.is_masked else 2
    for name, tensor in {"x": x, **outputs}.items():
        checks.check_rank(name, tensor, rank)

    _check_silu_mul_shapes(x, groups, out)
    _check_rows("x", x, whole_rows=False)
    if out is not None:
        _check_rows("out[0]", out[0], whole_rows=False)
        checks.check_distinct_elements("out[1]", out[1])
    checks.check_scale_format(scale_fmt)
    if real:
        checks.check_address("x", x)
        if out is not None:
            checks.check_address("out[0]", out[0])
            check_no_overlap("out[0]", out[0], {**inputs, "out[1]": out[1]})
            check_no_overlap("out[1]", out[1], inputs)


def _check_silu_mul_shapes(
    x: Tensor, groups: Groups | None, out: tuple[Tensor, Tensor] | None
) -> None:
    *leading, columns = x.shape
    fix = "pass both halves"
    checks.check_multiple("the columns of x (gates, then as many of up)", columns, 2, fix)
    i = columns // 2
    names = ["num_groups", "max_m"] if len(leading) == 2 else ["t"]
    for name, size in (*zip(names, leading, strict=True), ("i", i)):
        checks.check_size(name, size)
    if groups is not None:
        checks.check_rank(groups.source, groups.values, 1)
        length, meaning = leading[0], f"[{names[0]}]"
        if groups.source == "group_offsets":
            length, meaning = max(groups.values.size(0), 1), "[num_groups + 1]"
        checks.check_sizes(groups.source, groups.values, (length,), meaning)
        _check_contiguous(groups)
    if out is not None:
        rows = ", ".join(names)
        blocks = checks.ceil_div(i, checks.SCALE_BLOCK)
        checks.check_sizes("out[0]", out[0], (*leading, i), f"[{rows}, i]")
        checks.check_sizes("out[1]", out[1], (*leading, blocks), f"[{rows}, ceil(i / 128)]")


def group_segments(groups: Groups, num_groups: int, num_rows: int) -> list[Segment]:
    """The groups' rows, read on the host; empty groups are left out.

    Args:
        groups: on the CPU.
        num_groups: of b.
        num_rows: m, or max_m.

    Raises:
        ValueError: a value is wrong; the words are those of the kernels' errors.
    """
    read: dict[str, Callable[[list[int], int, int], list[Segment]]] = {
        "group_offsets": _segments_by_offsets,
        "m_indices": _segments_by_indices,
        "masked_m": _segments_by_counts,
    }
    found = read[groups.source](groups.values.tolist(), num_groups, num_rows)
    return [segment for segment in found if segment.begin < segment.end]


def _segments_by_offsets(offsets: list[int], num_groups: int, num_rows: int) -> list[Segment]:
    for group in range(num_groups):
        begin, end = offsets[group], offsets[group + 1]
        negative = begin if begin != 0 else end
        if negative < 0 and begin <= 0:
            raise ValueError(f"group_offsets of group {group} must be at least 0, got {negative}")
        if end > num_rows:
            raise ValueError(
                f"group_offsets of group {group} end at {end}, must be at most {num_rows}: offsets "
                "may not pass the last row"
            )
        if end < begin:
            raise ValueError(
                f"group_offsets of group {group} end at {end}, must be at least {begin}: offsets "
                "may not decrease"
            )
    return [Segment(g, offsets[g], offsets[g + 1]) for g in range(num_groups)]


def _segments_by_indices(indices: list[int], num_groups: int, num_rows: int) -> list[Segment]:
    segments: list[Segment] = []
    for row, group in enumerate(indices):
        if not -1 <= group < num_groups:
            raise ValueError(
                f"m_indices of row {row} must be from -1 to {num_groups - 1}, got {group}"
            )
        if group < 0:
            continue
        if segments and segments[-1].group == group and segments[-1].end == row:
            segments[-1] = segments[-1]._replace(end=row + 1)
        else:
            segments.append(Segment(group, row, row + 1))
    return segments


def _segments_by_counts(counts: list[int], num_groups: int, num_rows: int) -> list[Segment]:
    for group, count in enumerate(counts):
        if not 0 <= count <= num_rows:
            raise ValueError(f"masked_m of group {group} must be from 0 to {num_rows}, got {count}")
    return [Segment(group, 0, count) for group, count in enumerate(counts)]
