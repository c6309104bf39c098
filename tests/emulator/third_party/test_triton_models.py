"""Model parts written in Triton: FP8 matmul with block scales, softmax, attention, reductions."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from .triton_program import Program, aligned, compile_program

MODES = ["early", "late", "random"]


@functools.cache
def program(
    name: str, kinds: str, constants: tuple[tuple[str, Any], ...], num_warps: int, num_stages: int
) -> Program:
    """Compiled once a session; the kinds are Triton's types of the first arguments."""
    from . import triton_model_kernels

    function = getattr(triton_model_kernels, name)
    signature = dict(zip(function.arg_names, kinds.split(), strict=False))
    return compile_program(
        function, signature, dict(constants), num_warps=num_warps, num_stages=num_stages
    )


def rounding_bound(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A row's error that rounding the exact result alone causes, times 1.5, and a floor."""
    rounded = (exact.to(dtype).double() - exact).norm(dim=-1)
    return 1.5 * rounded + 2e-6 * exact.norm(dim=-1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("block_m", "warps"), [(64, 4), (16, 4)], ids=["wgmma", "mma.sync"])
def test_fp8_matmul(block_m: int, warps: int, mode: str) -> None:
    """Two and a half tiles in each dimension; the operands are quantised by a kernel, too."""
    m, n, k = 80, 160, 384
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(m, k, generator=generator)
    quantise = program("quantize_groups", "*fp32 *fp8e4nv *fp32", (("block", 128),), 4, 1)
    codes = aligned(torch.zeros(m, k, dtype=torch.float8_e4m3fn))
    scales = aligned(torch.zeros(m, k // 128))
    quantise.launch((m * k // 128,), aligned(a), codes, scales, async_completion=mode)
    groups = a.view(m, -1, 128)
    wanted = groups.abs().amax(dim=-1) / 448
    torch.testing.assert_close(scales, wanted, rtol=3e-7, atol=0)
    ratio = (groups / scales[..., None]).to(torch.float8_e4m3fn).float()
    differs = ratio.view(m, k) != codes.float()  # only where division and rounding meet a tie
    assert differs.float().mean() < 1e-3

    b = aligned(torch.randn(n, k, generator=generator).to(torch.float8_e4m3fn))
    b_scales = aligned(torch.rand(-(-n // 128), k // 128, generator=generator) + 0.5)
    out = aligned(torch.full((m, n), float("nan"), dtype=torch.bfloat16))
    constants = (("block_m", block_m), ("block_n", 64), ("block_k", 128))
    multiply = program(
        "fp8_matmul", "*fp8e4nv *fp8e4nv *bf16 *fp32 *fp32 i32 i32 i32", constants, warps, 3
    )
    assert ("wgmma" in multiply.text) == (block_m == 64)
    grid = (-(-m // block_m), -(-n // 64))
    multiply.launch(grid, codes, b, out, scales, b_scales, m, n, k, async_completion=mode)
    wide_a = (codes.double().view(m, -1, 128) * scales.double()[..., None]).view(m, k)
    wide_b = b_scales.double().repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)
    exact = wide_a @ (b.double() * wide_b).T
    error = (out.double() - exact).norm(dim=-1)
    # Hopper's FP8 products keep 13 fraction bits.
    assert (error <= rounding_bound(exact, torch.bfloat16) + 2e-4 * exact.norm(dim=-1)).all()


@pytest.mark.parametrize(("columns", "block", "warps"), [(100, 128, 4), (1000, 1024, 8)])
def test_softmax(columns: int, block: int, warps: int) -> None:
    x = torch.randn(6, columns, generator=torch.Generator().manual_seed(1)) * 5
    y = aligned(torch.full_like(x, float("nan")))
    kernel = program("softmax", "*fp32 *fp32 i32", (("block", block),), warps, 1)
    kernel.launch((6,), aligned(x), y, columns)
    torch.testing.assert_close(y.double(), torch.softmax(x.double(), -1), rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_attention(causal: bool, mode: str) -> None:
    heads, length, dim = 2, 150, 64
    q, k, v = torch.randn(3, heads, length, dim, generator=torch.Generator().manual_seed(2)).half()
    out = aligned(torch.full_like(q, float("nan")))
    constants = (("block_m", 64), ("block_n", 64), ("dim", dim), ("causal", causal))
    kernel = program("attention", "*fp16 *fp16 *fp16 *fp16 i32 fp32", constants, 4, 2)
    scale = 1 / math.sqrt(dim)
    arguments = [*map(aligned, (q, k, v)), out, length, scale]
    kernel.launch((-(-length // 64), heads), *arguments, async_completion=mode)
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=causal
    )
    error = (out.double() - exact).norm(dim=-1)
    # P is rounded to FP16 before the second product.
    assert (error <= rounding_bound(exact, torch.float16) + 5e-4 * exact.norm(dim=-1)).all()


@pytest.mark.parametrize("seed", range(3))
def test_reductions(seed: int) -> None:
    rows, columns = 12, 300
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-50, 50, (rows, columns), generator=generator).float()
    total, places = aligned(torch.zeros(1)), aligned(torch.zeros(rows, dtype=torch.int32))
    largest = aligned(torch.full((1,), -1e9))
    kernel = program("reductions", "*fp32 *fp32 *i32 *fp32 i32", (("block", 512),), 4, 1)
    kernel.launch((rows,), aligned(x), total, places, largest, columns, seed=seed)
    assert float(total) == float(x.sum())
    assert places.tolist() == [row.tolist().index(float(row.max())) for row in x]
    assert float(largest) == float(x.max())


@pytest.mark.parametrize("seed", range(3))
def test_grid_wide_sum(seed: int) -> None:
    x = torch.arange(20 * 128).float() % 97
    parts, out = aligned(torch.zeros(20)), aligned(torch.zeros(1))
    counter = aligned(torch.zeros(1, dtype=torch.int32))
    kernel = program("last_block_sums", "*fp32 *fp32 *i32 *fp32", (("block", 128),), 4, 1)
    kernel.launch((20,), aligned(x), parts, counter, out, seed=seed)
    assert float(out) == float(x.sum())
