"""Triton kernels through pointers: cp.async, ldmatrix, mma.sync, shuffles and atomics."""

from __future__ import annotations

import warnings

import pytest
import torch

from pykernels.emulator import Emulator, Kernel, Module

_MODES = ["early", "late", "random"]


def _compile(
    name: str, signature: dict[str, str], constants: dict[str, int], **options: int
) -> tuple[Kernel, str, int]:
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tests.emulator.third_party import triton_pointer_kernels

    source = ASTSource(
        getattr(triton_pointer_kernels, name),
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        # As Triton's launcher finds for torch's tensors: pointers are multiples of 16 bytes.
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, kind in enumerate(signature.values())
            if kind.startswith("*")
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = triton_compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    text = compiled.asm["ptx"]
    return Module.from_ptx(text)[name], text, compiled.metadata.shared


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy at a multiple of 16 bytes."""
    storage = torch.empty(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    start = -storage.data_ptr() % 16
    view = storage[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype)
    return view.view(tensor.shape).copy_(tensor)


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
    kernel, text, shared_bytes = _compile(
        "matmul_pointers",
        signature,
        {"block_m": 16, "block_n": 64, "block_k": 32},
        num_warps=4,
        num_stages=3,
    )
    assert "mma.sync" in text
    torch.manual_seed(1)
    a = torch.randint(-3, 4, (m, k)).float()
    b = torch.randint(-3, 4, (k, n)).float()
    c = _aligned(torch.full((m, n), -1, dtype=out_dtype))
    report = Emulator(async_completion=mode).launch(
        kernel,
        (2, 2),
        (kernel.required_threads,),
        [_aligned(a.to(dtype)), _aligned(b.to(dtype)), c, m, n, k, None, None],
        dynamic_smem_bytes=shared_bytes,
    )
    report.raise_if_findings()
    assert torch.equal(c.float(), a @ b)


def test_atomics() -> None:
    kernel, text, shared_bytes = _compile(
        "histogram_and_sum",
        {"x_ptr": "*i32", "counts_ptr": "*i32", "total_ptr": "*i32", "n": "i32"},
        {"block": 256},
        num_warps=4,
    )
    assert "atom" in text
    torch.manual_seed(2)
    x = _aligned(torch.randint(0, 10, (1000,), dtype=torch.int32))
    counts = _aligned(torch.zeros(10, dtype=torch.int32))
    total = _aligned(torch.zeros(1, dtype=torch.int32))
    Emulator().launch(
        kernel,
        (4,),
        (kernel.required_threads,),
        [x, counts, total, 1000, None, None],
        dynamic_smem_bytes=shared_bytes,
    ).raise_if_findings()
    assert torch.equal(counts.long(), torch.bincount(x, minlength=10))
    assert int(total) == max(int(part.sum()) for part in x.split(256))
