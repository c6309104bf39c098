"""Which kernel a call would get, and what the other candidates would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from pykernels.checks import MAX_SIZE, check_gemm_sizes, check_integer
from pykernels.device import device_num_sms
from pykernels.gemm import fp8_gemm_nt
from pykernels.native import native
from pykernels.quantize import quantize_1x128, quantize_128x128


class Candidate(NamedTuple):
    """A kernel that could run a call.

    Attributes:
        kernel: Its name.
        config: The fields that it was compiled for, for example ``block_m``.
        cost: The model's figures, microseconds (``..._us``) and counts (``num_...``): a model to
            rank candidates by, not a prediction. Empty where there is nothing to choose.
    """

    kernel: str
    config: Mapping[str, int]
    cost: Mapping[str, float]


_COST_FIELDS = ("total_us", "memory_us", "l2_us", "compute_us", "num_tiles", "num_waves")
_BFLOAT16_BYTES = 2


def explain_config(
    op: Callable[..., Any], *, device: torch.device | str | None = None, **sizes: int
) -> list[Candidate]:
    """Ranks the kernels that could run a call; the first is the one that runs.

    Args:
        op: :func:`pykernels.fp8_gemm_nt` with sizes ``m n k`` and, if the call limits it,
            ``num_sms`` (BF16 output); or a quantise op with sizes ``m k``.
        device: Whose SMs count: a CUDA device, or None for the current GPU, else the H200 that the
            emulator stands for.
        sizes: As above.

    Returns:
        Candidates, cheapest first.

    Raises:
        ValueError: the op is unknown, or a size is missing, unknown, or none that the op takes.
        RuntimeError: the device cannot run the kernels, or none are built.
    """
    if op is fp8_gemm_nt:
        _check_sizes(sizes, required=("m", "n", "k"), optional=("num_sms",))
        check_gemm_sizes(sizes["m"], sizes["n"], sizes["k"])
        num_sms = device_num_sms(device)
        num_sms = min(num_sms, sizes.get("num_sms", num_sms))
        ranked = native().explain_fp8_gemm_nt(
            sizes["m"], sizes["n"], sizes["k"], _BFLOAT16_BYTES, num_sms
        )
        return [
            Candidate(
                candidate.kernel,
                candidate.config,
                {field: getattr(candidate, field) for field in _COST_FIELDS},
            )
            for candidate in ranked
        ]
    if op in (quantize_1x128, quantize_128x128):
        _check_sizes(sizes, required=("m", "k"))
        kernels = native().registered_kernels()
        return [Candidate(k.name, k.config, {}) for k in kernels if k.family == op.__name__]
    raise ValueError(
        "op must be fp8_gemm_nt, quantize_1x128 or quantize_128x128, "
        f"got {getattr(op, '__name__', op)}"
    )


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
