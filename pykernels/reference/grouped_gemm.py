"""References of the grouped FP8 GEMMs: row by row, the row's own group.

Rows of no group are zeros here; the ops leave them as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pykernels.reference.gemm import dequantize_1x128, dequantize_128x128


def grouped_fp8_gemm_nt(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    group_offsets: Tensor | None = None,
    *,
    m_indices: Tensor | None = None,
) -> Tensor:
    """Return ``dequant(a)[row] @ dequant(b[group of the row]).T`` in float64.

    Args:
        a: ``[m, k]`` values and ``[m, ceil(k / 128)]`` scales.
        b: ``[num_groups, n, k]`` values, ``[num_groups, ceil(n / 128), ceil(k / 128)]`` scales.
        group_offsets: ``[num_groups + 1]``; group g has the rows from offset g to offset g + 1.
        m_indices: instead, ``[m]``: the group of each row, -1 for none.

    Returns:
        ``[m, n]``, ``float64``.
    """
    values, scales = b
    rows = dequantize_1x128(*a)
    weights = [dequantize_128x128(values[g], scales[g]) for g in range(values.size(0))]
    out = torch.zeros(rows.size(0), values.size(1), dtype=torch.float64)
    for row in range(rows.size(0)):
        for group, weight in enumerate(weights):
            if m_indices is not None:
                belongs = int(m_indices[row]) == group
            else:
                assert group_offsets is not None
                belongs = int(group_offsets[group]) <= row < int(group_offsets[group + 1])
            if belongs:
                out[row] = weight @ rows[row]
    return out


def grouped_fp8_gemm_nt_masked(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], masked_m: Tensor
) -> Tensor:
    """Return the product of the first ``masked_m[g]`` rows of each ``a[g]`` with ``b[g]``.

    Args:
        a: ``[num_groups, max_m, k]`` values and ``[num_groups, max_m, ceil(k / 128)]`` scales.
        b: as in :func:`grouped_fp8_gemm_nt`.
        masked_m: ``[num_groups]``.

    Returns:
        ``[num_groups, max_m, n]``, ``float64``.
    """
    values, scales = b
    num_groups, max_m, _ = a[0].shape
    out = torch.zeros(num_groups, max_m, values.size(1), dtype=torch.float64)
    for group in range(num_groups):
        rows = dequantize_1x128(a[0][group], a[1][group])
        weight = dequantize_128x128(values[group], scales[group])
        for row in range(int(masked_m[group])):
            out[group, row] = weight @ rows[row]
    return out
