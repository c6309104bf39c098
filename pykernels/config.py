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
)
from pykernels.device import planning_device
from pykernels.gemm import fp8_gemm_nt
from pykernels.native import native
from pykernels.quantize import quantize_1x128, quantize_128x128

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


def explain_config(
    op: Callable[..., Any],
    *,
    device: torch.device | str | None = None,
    batch_invariant: bool = False,
    **sizes: int,
) -> list[Candidate]:
    """Ranks the kernels that could run a call; the first is the one that runs.

    Args:
        op: :func:`pykernels.fp8_gemm_nt` with sizes ``m n k`` and, if the call limits it,
            ``num_sms`` (BF16 output); or a quantise op with sizes ``m k``.
        device: Whose constants count: a CUDA device, the name of a known GPU (``"H20"``), or None
            for the current GPU, else the H200 that the emulator stands for.
        batch_invariant: As in the call of :func:`pykernels.fp8_gemm_nt`.
        sizes: As above.

    Returns:
        Candidates, cheapest first. ``csrc/gemm/README.md``, "Cost model", has the formulas.

    Raises:
        ValueError: the op is unknown, or a size is missing, unknown, or none that the op takes.
        RuntimeError: the device cannot run the kernels, or none are built.
    """
    if op is fp8_gemm_nt:
        _check_sizes(sizes, required=("m", "n", "k"), optional=("num_sms",))
        check_gemm_sizes(sizes["m"], sizes["n"], sizes["k"])
        check_batch_invariant(batch_invariant)
        ranked = native().explain_fp8_gemm_nt(
            sizes["m"],
            sizes["n"],
            sizes["k"],
            _BFLOAT16_BYTES,
            gpu_model(device),
            sizes.get("num_sms"),
            batch_invariant,
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
    if op in (quantize_1x128, quantize_128x128):
        _check_sizes(sizes, required=("m", "k"))
        kernels = native().registered_kernels()
        return [Candidate(k.name, k.config, {}, {}) for k in kernels if k.family == op.__name__]
    raise ValueError(
        "op must be fp8_gemm_nt, quantize_1x128 or quantize_128x128, "
        f"got {getattr(op, '__name__', op)}"
    )


def gpu_model(device: torch.device | str | None) -> _C.GpuModel:
    """The constants of a device or of a known GPU by its name.

    Warns once for a GPU that there are no constants for; it gets those of the nearest.

    Raises:
        ValueError: the device is neither None, nor a CUDA device, nor the name of a known GPU.
        RuntimeError: the GPU cannot run the kernels.
    """
    if isinstance(device, str):
        known: _C.GpuModel | None = native().find_gpu_model(device)
        if known is not None:
            return known
    try:
        found: _C.GpuModel = native().device_gpu_model(planning_device(device))
    except ValueError as error:
        names = ", ".join(gpu.name for gpu in native().gpu_models())
        raise ValueError(f"{error}; known GPUs are {names}") from error
    return found


def _check_sizes(
    sizes: Mapping[str, int], *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    missing = [name for name in required if name not in sizes]
    unknown = [name for name in sizes if name not in required + optional]
    if missing or unknown:
        raise ValueError(
            f"sizes must be {', '.join(required)}"
            + (f" and may be {', '.join(optional)}" if optional else "")
            + f", got {', '.join(sizes) or 'none'}"
        )
    for name, size in sizes.items():
        check_integer(name, size, 1 if name == "num_sms" else 0, MAX_SIZE)
