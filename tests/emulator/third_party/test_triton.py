"""Triton's BF16 matmul with TMA and WGMMA, compiled by Triton here, run in the emulator."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch

from pykernels.emulator import Emulator, Module, Report, TensorMap

BLOCK = {"block_m": 64, "block_n": 128, "block_k": 64}
SWIZZLES = ("none", "32B", "64B", "128B")


@dataclass(frozen=True)
class Compiled:
    """A kernel as Triton's compiler leaves it."""

    module: Module
    name: str
    shared_bytes: int
    scratch_bytes: int
    descriptors: list[tuple[tuple[int, int], str]]  # box and swizzle of each tensor descriptor


def compile_kernel(name: str, signature: dict[str, str], num_warps: int, stages: int) -> Compiled:
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tests.emulator.third_party import triton_kernels

    signature = signature | dict.fromkeys(BLOCK, "constexpr")
    source = ASTSource(getattr(triton_kernels, name), signature=signature, constexprs=BLOCK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = triton_compile(
            source,
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": stages},
        )
    meta = compiled.metadata
    descriptors = [(tuple(d["block_size"]), SWIZZLES[d["swizzle"]]) for d in meta.tensordesc_meta]
    return Compiled(
        Module.from_ptx(compiled.asm["ptx"]),
        name,
        meta.shared,
        meta.global_scratch_size,
        descriptors,
    )


def launch(compiled: Compiled, grid: tuple[int, int], args: list[object], **options: str) -> Report:
    kernel = compiled.module[compiled.name]
    scratch = torch.zeros(
        max(compiled.scratch_bytes * grid[0] * grid[1], 1) + 128, dtype=torch.uint8
    )
    offset = -scratch.data_ptr() % 128
    return Emulator(**options).launch(
        kernel,
        grid=(*grid, 1),
        block=(kernel.required_threads, 1, 1),
        args=[*args, scratch[offset:], None],
        dynamic_smem_bytes=compiled.shared_bytes,
    )


def operands(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(m + n + k)
    a = torch.randn(m, k).bfloat16()
    b = torch.randn(k, n).bfloat16()
    return a, b, torch.full((m, n), float("nan"), dtype=torch.bfloat16)


def assert_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    exact = a.double() @ b.double()
    rounding = (exact.bfloat16().double() - exact).norm(dim=1)
    error = (out.double() - exact).norm(dim=1)
    assert (error <= 1.5 * rounding + 1e-6 * exact.norm(dim=1)).all()


def descriptor_args(map_: TensorMap, tensor: torch.Tensor) -> list[object]:
    return [map_, *tensor.shape, *tensor.stride()]


@pytest.mark.parametrize("completion", ["early", "late", "random"])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("num_warps", [4, 8])
def test_descriptors_from_host(num_warps: int, stages: int, completion: str) -> None:
    m, n, k = 128, 256, 192
    boxes = {"a": "64,64", "b": "64,128", "c": "64,128"}
    signature = {name: f"tensordesc<bf16[{box}]>" for name, box in boxes.items()} | {"k": "i32"}
    compiled = compile_kernel("matmul_descriptors_from_host", signature, num_warps, stages)
    a, b, c = operands(m, n, k)
    args: list[object] = []
    for tensor, (box, swizzle) in zip((a, b, c), compiled.descriptors, strict=True):
        args += descriptor_args(TensorMap.encode_tiled(tensor, box=box, swizzle=swizzle), tensor)
    report = launch(compiled, (m // 64, n // 128), [*args, k], async_completion=completion)
    report.raise_if_findings()
    assert report.counters.tensor_multiply_adds == m * n * k
    assert_product(c, a, b)


def test_descriptors_on_device() -> None:
    """The kernel builds its tensor maps itself: tensormap.replace, cp_fenceproxy, ragged edges."""
    m, n, k = 72, 136, 80
    signature = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*bf16"}
    signature |= {"m": "i32", "n": "i32", "k": "i32"}
    compiled = compile_kernel("matmul_descriptors_on_device", signature, 4, 2)
    a, b, c = operands(m, n, k)
    report = launch(compiled, (2, 2), [a, b, c, m, n, k])
    report.raise_if_findings()
    assert_product(c, a, b)
