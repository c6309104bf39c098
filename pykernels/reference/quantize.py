"""Reference of the casts to FP8 with fine-grained scales, block by block and value by value.

Quotients are formed in float64 and rounded to float32; with 53 bits against 24 this double rounding
gives the correctly rounded float32 quotient.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_E4M3_MAX = 448.0
_UE8M0_MIN_EXPONENT = -127


def quantize_1x128(x: Tensor, *, scale_fmt: str = "fp32") -> tuple[Tensor, Tensor]:
    """Specification of :func:`pykernels.quantize_1x128`."""
    return _quantize(x, 1, scale_fmt)


def quantize_128x128(x: Tensor, *, scale_fmt: str = "fp32") -> tuple[Tensor, Tensor]:
    """Specification of :func:`pykernels.quantize_128x128`."""
    return _quantize(x, 128, scale_fmt)


def _quantize(x: Tensor, block_rows: int, scale_fmt: str) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    values = x.double().numpy()
    q = np.zeros((m, k), dtype=np.uint8)
    scales = np.zeros((math.ceil(m / block_rows), math.ceil(k / 128)), dtype=np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (
                slice(i * block_rows, (i + 1) * block_rows),
                slice(j * 128, (j + 1) * 128),
            )
            scale = _scale(values[at], scale_fmt)
            scales[i, j] = scale
            if math.isnan(scale):
                q[at] = 0x7F
            else:
                quotients = (values[at] / np.float64(scale)).astype(np.float32)
                q[at] = round_to_e4m3(quotients.astype(np.float64))
    return torch.from_numpy(q).view(torch.float8_e4m3fn), torch.from_numpy(scales)


def _scale(block: np.ndarray, scale_fmt: str) -> float:
    """The scale factor of one block, a float32 value."""
    if not np.isfinite(block).all():
        return math.nan
    scale = float(np.float32(np.abs(block).max() / _E4M3_MAX))
    if scale == 0.0:
        return 1.0
    if scale_fmt == "ue8m0":
        mantissa, exponent = math.frexp(
            scale
        )  # scale = mantissa * 2^exponent, mantissa in [0.5, 1)
        if mantissa == 0.5:
            exponent -= 1
        return math.ldexp(1.0, max(exponent, _UE8M0_MIN_EXPONENT))
    return scale


def round_to_e4m3(values: np.ndarray) -> np.ndarray:
    """The e4m3 code (uint8) nearest to each finite float64 value, ties to even, saturating at 448.

    Codes 0 to 0x7E are the non-negative values in ascending order, so a tie goes to the even code.
    """
    table = np.array([_decode(code) for code in range(0x7F)])
    magnitudes = np.abs(values)
    upper = np.minimum(np.searchsorted(table, magnitudes), 0x7E)
    lower = np.maximum(upper - 1, 0)
    below = magnitudes - table[lower]
    above = table[upper] - magnitudes
    take_lower = (below < above) | ((below == above) & (lower % 2 == 0))
    codes: np.ndarray = np.where(take_lower, lower, upper).astype(np.uint8)
    codes[np.signbit(values)] |= 0x80
    return codes


def _decode(code: int) -> float:
    """The value of a non-negative e4m3 code: 4 exponent bits with bias 7, 3 fraction bits."""
    exponent, fraction = code >> 3, code & 7
    if exponent == 0:
        return fraction / 8 * 2.0**-6
    return (1 + fraction / 8) * 2.0 ** (exponent - 7)
