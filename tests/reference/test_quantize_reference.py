"""The quantise references against ml_dtypes, torch's casts and a second way to the scale."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from pykernels import reference


def test_e4m3_against_ml_dtypes_and_torch() -> None:
    """All e4m3 values, all ties between neighbours, and what lies just beside them."""
    codes = np.arange(0x7F, dtype=np.uint8)
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ties = (values[:-1] + values[1:]) / 2
    points = np.concatenate([values, ties, [0.0, 1e-30, 460.0]]).astype(np.float32)
    points = np.concatenate([points, np.nextafter(points, 1e9), np.nextafter(points, -1e9)])
    points = np.concatenate([points, -points, [-0.0]]).astype(np.float32)
    result = reference.round_to_e4m3(points.astype(np.float64))
    clipped = np.clip(points, -448, 448)
    assert np.array_equal(result, clipped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    cast = torch.from_numpy(clipped).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(result, cast)


@pytest.mark.parametrize("scale_fmt", ["fp32", "ue8m0"])
@pytest.mark.parametrize("block_rows", [1, 128])
def test_against_numpy_formula(scale_fmt: str, block_rows: int) -> None:
    """float32 divisions by numpy, the cast by ml_dtypes, powers of two by log2."""
    generator = torch.Generator().manual_seed(block_rows)
    x = torch.randn(256, 384, generator=generator) * torch.logspace(-20, 20, 256)[:, None]
    quantize = reference.quantize_1x128 if block_rows == 1 else reference.quantize_128x128
    q, scales = quantize(x, scale_fmt=scale_fmt)

    blocks = x.numpy().reshape(256 // block_rows, block_rows, 3, 128)
    expected = np.abs(blocks).max(axis=(1, 3)) / np.float32(448)
    if scale_fmt == "ue8m0":
        expected = np.exp2(np.ceil(np.log2(expected.astype(np.float64)))).astype(np.float32)
    assert np.array_equal(scales.numpy(), expected)
    quotients = np.clip(blocks / expected[:, None, :, None], -448, 448)
    cast = quotients.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).reshape(256, 384)
    assert np.array_equal(q.view(torch.uint8).numpy(), cast)


def test_dequantized_values_are_near() -> None:
    """Half a unit of 3 fraction bits: 2^-4 relative, or half the smallest step of the block."""
    x = torch.randn(130, 300, generator=torch.Generator().manual_seed(3))
    q, scales = reference.quantize_1x128(x)
    error = (reference.dequantize_1x128(q, scales) - x).abs()
    step = scales.repeat_interleave(128, dim=1)[:, :300] * 2.0**-10
    assert bool((error <= x.abs() * 2.0**-4 * (1 + 1e-6) + step).all())


def test_ue8m0_scale_is_a_power_of_two_and_not_below() -> None:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(4))
    x[0] = 448.0  # scale exactly 1: not rounded up
    _, exact = reference.quantize_1x128(x)
    _, scales = reference.quantize_1x128(x, scale_fmt="ue8m0")
    assert float(scales[0]) == 1.0
    assert bool((scales >= exact).all())
    assert bool((scales < 2 * exact).all())
    assert bool((torch.frexp(scales).mantissa == 0.5).all())


def test_special_blocks() -> None:
    x = torch.ones(5, 128)
    x[0] = 0
    x[1, 5] = torch.nan
    x[2, 5] = -torch.inf
    x[3] = 2.0**-149  # the scale rounds to zero
    q, scales = reference.quantize_1x128(x)
    codes = q.view(torch.uint8)
    assert scales[:, 0].tolist()[0] == 1.0
    assert bool((codes[0] == 0).all())
    assert bool(scales[1:3].isnan().all())
    assert bool((codes[1:3] == 0x7F).all())
    assert float(scales[3]) == 1.0
    assert bool((codes[3] == 0).all())
    assert float(scales[4]) == float(np.float32(1) / np.float32(448))
