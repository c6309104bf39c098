"""Which kernel a call would get, and what the other candidates would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pykernels.checks import (
    MAX_SIZE,
    check_batch_invariant,
    check_gemm_sizes,
    check_integer,
    check_num_sms,
    check_size,
)
from pykernels.device import planning_device
from pykernels.gemm import fp8_gemm_nt
from pykernels.group_checks import MAX_ROWS
from pykernels.grouped_gemm import grouped_fp8_gemm_nt, grouped_fp8_gemm_nt_masked
from pykernels.mla import mla_decode
from pykernels.mla_checks import MAX_HEADS
from pykernels.native import native
from pykernels.quantize import quantize_1x128, quantize_128x128
from pykernels.silu_mul_quantize import silu_mul_quantize_1x128

if TYPE_CHECKING:
    from pykernels import _C


class Candidate(NamedTuple):
    """A kernel that could run a call.

    Attributes:
        kernel: Its name.
        config: The fields that it was compiled for, for example ``block_m``.
        cost: The model's figures: microseconds (``total_us`` and its parts), bytes
            (``hbm_bytes``, ``l2_bytes``) and counts (``num_tiles``, ``num_waves``): a model to
            rank candidates by, not a prediction. Empty where there is nothing to choose.
        schedule: How the CTAs of a cluster share work: ``cluster_m``, ``cluster_n``, ``split_k``.
            Empty where there is nothing to choose.
    """

    kernel: str
    config: Mapping[str, int]
    cost: Mapping[str, float]
    schedule: Mapping[str, int]


_SCHEDULE_FIELDS = ("cluster_m", "cluster_n", "split_k")
_BFLOAT16_BYTES = 2
_CAST_SIZES: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (quantize_1x128, ("m", "k")),
    (quantize_128x128, ("m", "k")),
    (silu_mul_quantize_1x128, ("m", "i")),
)


def explain_config(
    op: Callable[..., Any],
    *,
    device: torch.device | str | None = None,
    num_sms: int | None = None,
    batch_invariant: bool = False,
    **sizes: int,
) -> list[Candidate]:
    """Ranks the kernels that could run a call; the first is the one that runs.

    Args:
        op: :func:`pykernels.fp8_gemm_nt` with sizes ``m n k`` (BF16 output), a grouped GEMM with
            sizes ``num_groups m n k``, where m is the rows of each group, a quantise op with sizes
            ``m k``, :func:`pykernels.silu_mul_quantize_1x128` with sizes ``m i`` (m: all rows), or
            :func:`pykernels.mla_decode` with sizes ``seqlen_q num_heads fp8`` (1 for an FP8 cache,
            else 0), whose rows decide alone.
        device: Whose constants count: a CUDA device, the name of a known GPU (``"H20"``), or None
            for the current GPU, else the H200 that the emulator stands for.
        num_sms: As in the call of a GEMM; quantise ops have no such option.
        batch_invariant: As in the call of :func:`pykernels.fp8_gemm_nt`; grouped GEMMs always are.
        sizes: As above.

    Returns:
        Candidates, cheapest first. ``csrc/gemm/README.md``, "Cost model", has the formulas. Empty
        where the call launches nothing: where a size is 0, but for the k of a grouped GEMM, whose
        kernel writes zeros to the rows of groups.

    Raises:
        ValueError: the op is unknown, or the device, an option or a size is missing, unknown, or
            none that the op takes.
        RuntimeError: the device cannot run the kernels, or none are built.
    """
    check_num_sms(num_sms)
    check_batch_invariant(batch_invariant)
    if op is fp8_gemm_nt:
        _check_sizes(sizes, "m", "n", "k")
        m, n, k = sizes["m"], sizes["n"], sizes["k"]
        check_gemm_sizes(m, n, k)
        gpu = gpu_model(device)
        return [] if 0 in (m, n, k) else _ranked_gemms((m, n, k), gpu, num_sms, batch_invariant)
    if op in (grouped_fp8_gemm_nt, grouped_fp8_gemm_nt_masked):
        _check_sizes(sizes, "num_groups", "m", "n", "k")
        m, n, k, num_groups = (sizes[name] for name in ("m", "n", "k", "num_groups"))
        check_gemm_sizes(m, n, k)
        check_size("num_groups * m", int(num_groups) * int(m), MAX_ROWS)
        gpu = gpu_model(device)
        empty = 0 in (m, n, num_groups)
        return [] if empty else _ranked_gemms((m, n, k), gpu, num_sms, False, num_groups)
    if op is mla_decode:
        return _decode_kernel(sizes, gpu_model(device))
    sizes_of_op = next((names for known, names in _CAST_SIZES if known is op), None)
    if sizes_of_op is not None:
        if num_sms is not None or batch_invariant:
            raise ValueError(
                "num_sms and batch_invariant are options of fp8_gemm_nt, not of "
                f"{op.__name__}; leave them out"
            )
        _check_sizes(sizes, *sizes_of_op)
        gpu_model(device)
        kernels = [] if 0 in sizes.values() else native().registered_kernels()
        return [Candidate(k.name, k.config, {}, {}) for k in kernels if k.family == op.__name__]
    raise ValueError(
        "op must be fp8_gemm_nt, a grouped GEMM, quantize_1x128, quantize_128x128, "
        "silu_mul_quantize_1x128 or mla_decode, "
        f"got {getattr(op, '__name__', op)}"
    )


def _ranked_gemms(
    sizes: tuple[int, int, int],
    gpu: _C.GpuModel,
    num_sms: int | None,
    batch_invariant: bool,
    num_groups: int = 0,
) -> list[Candidate]:
    ranked = native().explain_fp8_gemm_nt(
        *sizes, _BFLOAT16_BYTES, gpu, num_sms, batch_invariant, num_groups=num_groups
    )
    return [
        Candidate(
            candidate.kernel,
            candidate.config,
            candidate.cost,
            dict(zip(_SCHEDULE_FIELDS, candidate.schedule, strict=True)),
        )
        for candidate in ranked
    ]


def _decode_kernel(sizes: Mapping[str, int], gpu: _C.GpuModel) -> list[Candidate]:
    _check_sizes(sizes, "seqlen_q", "num_heads", "fp8")
    check_integer("num_heads", sizes["num_heads"], 0, MAX_HEADS)
    check_integer("fp8", sizes["fp8"], 0, 1)
    num_rows = int(sizes["seqlen_q"]) * int(sizes["num_heads"])
    check_size("seqlen_q * num_heads", num_rows)
    if num_rows == 0:
        return []
    name = native().mla_decode_kernel(num_rows, bool(sizes["fp8"]), gpu.num_sms)
    kernels = native().registered_kernels()
    return [Candidate(k.name, k.config, {}, {}) for k in kernels if k.name == name]


def gpu_model(device: torch.device | str | None) -> _C.GpuModel:
    """The constants of a device or of a known GPU by its name.

    Warns once for a GPU that there are no constants for; it gets those of the nearest.

    Raises:
        ValueError: the device is neither None, nor a CUDA device, nor the name of a known GPU.
        RuntimeError: there is no GPU, or it cannot run the kernels.
    """
    if isinstance(device, str):
        known: _C.GpuModel | None = native().find_gpu_model(device)
        if known is not None:
            return known
    found: _C.GpuModel = native().device_gpu_model(planning_device(device))
    return found


def _check_sizes(sizes: Mapping[str, int], *required: str) -> None:
    if set(sizes) != set(required):
        raise ValueError(f"sizes must be {', '.join(required)}, got {', '.join(sizes) or 'none'}")
    for name, size in sizes.items():
        check_integer(name, size, 0, MAX_SIZE)
