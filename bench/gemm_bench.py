"""The dense FP8 GEMM: its shapes, its correctness, its time, and cuBLASLt's in the same run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pykernels
from bench import harness
from pykernels.gemm import compute_in_torch
from pykernels.native import native, tensor_view
from pykernels.testing import TENSOR_CORE_FLOOR, assert_rows_close

# n x k of DeepSeek-V3's linear layers.
WEIGHTS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
ROWS = (64, 128, 4096, 1, 16, 32, 256, 512, 1024, 2048, 8192)  # in the order of interest
Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # a, sfa, b, sfb, out


@dataclasses.dataclass(frozen=True)
class Shape:
    """One product."""

    m: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def num_bytes(self) -> int:
        """Operands, scales and the BF16 output, each once."""
        k_blocks = -(-self.k // 128)
        scales = 4 * k_blocks * (self.m + -(-self.n // 128))
        return self.m * self.k + self.n * self.k + scales + 2 * self.m * self.n


def shapes() -> Iterator[Shape]:
    """All shapes, the most telling first: a run that is cut short has measured those."""
    for m in ROWS:
        for n, k in WEIGHTS:
            yield Shape(m, n, k)


def make_operands(shape: Shape, seed: int) -> Operands:
    """Random values and scales on the GPU; zeros would draw less power and so run faster."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def quantized(rows: int) -> Tensor:
        values = torch.randn(rows, shape.k, generator=generator, device="cuda") * 40
        return values.to(torch.float8_e4m3fn)

    def scales(rows: int) -> Tensor:
        blocks = -(-shape.k // 128)
        return torch.rand(rows, blocks, generator=generator, device="cuda") + 0.5

    out = torch.empty(shape.m, shape.n, dtype=torch.bfloat16, device="cuda")
    return quantized(shape.m), scales(shape.m), quantized(shape.n), scales(-(-shape.n // 128)), out


def check(shape: Shape, kernel: str | None) -> None:
    """Asserts one result against torch, row by row."""
    a, sfa, b, sfb, out = operands = make_operands(shape, seed=0)
    run(operands, kernel)
    exact = torch.empty(shape.m, shape.n, dtype=torch.float32, device="cuda")
    compute_in_torch(a, sfa, b, sfb, exact)
    assert_rows_close(out, exact, floor=TENSOR_CORE_FLOOR)


def run(operands: Operands, kernel: str | None) -> None:
    """Through the public op, or, for a named kernel, through the binding."""
    a, sfa, b, sfb, out = operands
    if kernel is None:
        pykernels.fp8_gemm_nt((a, sfa), (b, sfb), out=out)
        return
    device = native().CudaDevice(a.get_device(), torch.cuda.current_stream().cuda_stream)
    native().fp8_gemm_nt(device, *(tensor_view(tensor) for tensor in operands), None, kernel)


def measure(shape: Shape, copy_gbps: float, *, every_kernel: bool = False) -> dict[str, Any]:
    """One row: the op, cuBLASLt, and on request every kernel of the family by name."""
    check(shape, None)
    sets = [make_operands(shape, seed) for seed in range(harness.num_rotated_sets(shape.num_bytes))]
    roofline = harness.Roofline(shape.flops, shape.num_bytes, copy_gbps)
    timing = harness.time_calls([partial(run, operands, None) for operands in sets])
    row: dict[str, Any] = {"op": "fp8_gemm_nt", "m": shape.m, "n": shape.n, "k": shape.k}
    row |= roofline.row(timing)
    row["warm_l2_us"] = harness.time_calls([partial(run, sets[0], None)]).median_us
    ranked = pykernels.explain_config(pykernels.fp8_gemm_nt, m=shape.m, n=shape.n, k=shape.k)
    row["kernel"] = ranked[0].kernel
    row |= _baseline(sets, timing)
    if every_kernel:
        row["kernels_us"] = {c.kernel: _kernel_us(shape, sets, c.kernel) for c in ranked}
    row["nvidia_smi"] = harness.nvidia_smi()
    return row


def _kernel_us(shape: Shape, sets: list[Operands], kernel: str) -> float:
    check(shape, kernel)
    return harness.time_calls([partial(run, operands, kernel) for operands in sets]).median_us


def _baseline(sets: list[Operands], timing: harness.Timing) -> dict[str, Any]:
    """cuBLASLt with one scale per tensor (less work than ours), on the same rotated operands."""
    one = torch.ones((), device="cuda")

    def call(operands: Operands) -> object:
        a, _, b, _, _ = operands
        return torch._scaled_mm(
            a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    try:
        baseline = harness.time_calls([partial(call, operands) for operands in sets])
    except RuntimeError as error:
        return {"baseline": "cuBLASLt torch._scaled_mm", "baseline_error": str(error)}
    return {
        "baseline": "cuBLASLt torch._scaled_mm",
        "baseline_us": baseline.median_us,
        "ratio": baseline.median_us / timing.median_us,
    }
