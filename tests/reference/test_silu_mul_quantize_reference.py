"""The reference of the fused SwiGLU cast against torch's silu and the reference of the cast."""

from __future__ import annotations

import pytest
import torch

from pykernels import reference
from tests.cases import assert_same_bits


def test_silu_mul_against_torch() -> None:
    x = torch.randn(20, 66, generator=torch.Generator().manual_seed(1)) * 8
    x[0, :6] = torch.tensor([0.0, -0.0, torch.inf, torch.nan, -90.0, 90.0])
    x[1, 0] = -torch.inf
    x[2, 0], x[2, 33] = 1e30, 1e30
    gate, up = x.double().chunk(2, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    expected[2, 0] = torch.inf  # of float32
    torch.testing.assert_close(reference.silu_mul(x), expected, rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale_fmt", ["fp32", "ue8m0"])
def test_the_cast_is_the_other_reference(scale_fmt: str) -> None:
    x = torch.randn(6, 4, 2 * 140, generator=torch.Generator().manual_seed(2))
    y = reference.silu_mul(x).view(24, 140)
    expected = reference.quantize_1x128(y, scale_fmt=scale_fmt)
    q, scales = reference.silu_mul_quantize_1x128(x.view(24, 280), scale_fmt=scale_fmt)
    assert_same_bits(q, expected[0])
    assert_same_bits(scales, expected[1])


def test_rows_without_a_group_are_zero() -> None:
    x = torch.ones(4, 3, 32)
    masked = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    _, scales = reference.silu_mul_quantize_1x128(x, masked_m=masked)
    assert (scales[..., 0] > 0).sum(dim=1).tolist() == masked.tolist()
    rows = x.view(12, 32)
    offsets = torch.tensor([2, 2, 9], dtype=torch.int32)
    _, scales = reference.silu_mul_quantize_1x128(rows, group_offsets=offsets)
    assert scales.nonzero()[:, 0].tolist() == list(range(2, 9))
    indices = torch.arange(12, dtype=torch.int32) % 3 - 1
    _, scales = reference.silu_mul_quantize_1x128(rows, m_indices=indices)
    assert scales.nonzero()[:, 0].tolist() == [row for row in range(12) if row % 3]
