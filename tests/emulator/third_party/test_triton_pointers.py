"""Triton kernels through pointers: cp.async, ldmatrix, mma.sync, shuffles and atomics."""

from __future__ import annotations

import pytest
import torch

from .triton_program import aligned, compile_program

_MODES = ["early", "late", "random"]


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize(
    ("dtype", "kind", "out_dtype", "out_kind"),
    [
        (torch.float16, "fp16", torch.float32, "fp32"),
        (torch.bfloat16, "bf16", torch.float32, "fp32"),
        (torch.float32, "fp32", torch.float32, "fp32"),
        (torch.float8_e4m3fn, "fp8e4nv", torch.float32, "fp32"),
        (torch.int8, "i8", torch.int32, "i32"),
    ],
)
def test_small_tiles(
    dtype: torch.dtype, kind: str, out_dtype: torch.dtype, out_kind: str, mode: str
) -> None:
    """Small integers, so that every accumulation is exact. Ragged in all three dimensions."""
    m, n, k = 24, 80, 112
    signature = {"a_ptr": f"*{kind}", "b_ptr": f"*{kind}", "c_ptr": f"*{out_kind}"}
    signature |= {"m": "i32", "n": "i32", "k": "i32"}
    from .triton_pointer_kernels import matmul_pointers

    program = compile_program(
        matmul_pointers,
        signature,
        {"block_m": 16, "block_n": 64, "block_k": 32},
        num_warps=4,
        num_stages=3,
    )
    assert "mma.sync" in program.text
    torch.manual_seed(1)
    a = torch.randint(-3, 4, (m, k)).float()
    b = torch.randint(-3, 4, (k, n)).float()
    c = aligned(torch.full((m, n), -1, dtype=out_dtype))
    inputs = aligned(a.to(dtype)), aligned(b.to(dtype))
    program.launch((2, 2), *inputs, c, m, n, k, async_completion=mode)
    assert torch.equal(c.float(), a @ b)


def test_atomics() -> None:
    from .triton_pointer_kernels import histogram_and_sum

    program = compile_program(
        histogram_and_sum,
        {"x_ptr": "*i32", "counts_ptr": "*i32", "total_ptr": "*i32", "n": "i32"},
        {"block": 256},
        num_warps=4,
    )
    assert "atom" in program.text
    torch.manual_seed(2)
    x = aligned(torch.randint(0, 10, (1000,), dtype=torch.int32))
    counts = aligned(torch.zeros(10, dtype=torch.int32))
    total = aligned(torch.zeros(1, dtype=torch.int32))
    program.launch((4,), x, counts, total, 1000)
    assert torch.equal(counts.long(), torch.bincount(x, minlength=10))
    assert int(total) == max(int(part.sum()) for part in x.split(256))
