"""Reference of the FP8 GEMM with fine-grained scales (DeepSeek-V3 report, section 3.3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def fp8_gemm_nt(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``dequant(a) @ dequant(b).T`` in float64.

    Args:
        a: ``[m, k]`` values and ``[m, ceil(k / 128)]`` scales.
        b: ``[n, k]`` values and ``[ceil(n / 128), ceil(k / 128)]`` scales.

    Returns:
        ``[m, n]``, ``float64``: exact products (every one fits), summed in float64.
    """
    return dequantize_1x128(*a) @ dequantize_128x128(*b).T


def dequantize_1x128(q: Tensor, scales: Tensor) -> Tensor:
    """Return ``x[i, j] = q[i, j] * scales[i, j // 128]`` in float64."""
    x = q.to(torch.float64)
    for i in range(x.size(0)):
        for block in range(scales.size(1)):
            x[i, block * 128 : (block + 1) * 128] *= scales[i, block].double()
    return x


def dequantize_128x128(q: Tensor, scales: Tensor) -> Tensor:
    """Return ``x[i, j] = q[i, j] * scales[i // 128, j // 128]`` in float64."""
    x = q.to(torch.float64)
    for row_block in range(scales.size(0)):
        for block in range(scales.size(1)):
            x[row_block * 128 : (row_block + 1) * 128, block * 128 : (block + 1) * 128] *= scales[
                row_block, block
            ].double()
    return x
