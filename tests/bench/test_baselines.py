"""The baselines as far as they go without a GPU: compiled, listed; Triton's kernels emulated."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pykernels.bench import static_answer
from pykernels.bench.baselines import (
    Prepared,
    Unavailable,
    baselines,
    build,
    cutlass_gemm,
    deepgemm,
    flat,
    grouped_baselines,
)
from pykernels.bench.baselines import triton_launch as triton_baseline
from pykernels.bench.baselines.triton_launch import LARGE, SMALL, Tile
from pykernels.bench.gemm_bench import Shape
from pykernels.bench.grouped_bench import GroupedShape
from pykernels.emulator import Emulator, Module, TensorMap
from pykernels.gemm import compute_in_torch
from pykernels.testing import TENSOR_CORE_FLOOR, assert_rows_close, gemm_operands

SWIZZLES = ("none", "32B", "64B", "128B")


def compiled(tile: Tile, kernel: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton_baseline.compile_kernel(tile, kernel)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy at a multiple of 16 bytes."""
    storage = torch.empty(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    start = -storage.data_ptr() % 16
    view = storage[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype)
    return view.view(tensor.shape).copy_(tensor)


def emulate(
    kernel: Any, programs: int, matrices: list[torch.Tensor], arguments: Sequence[object]
) -> None:
    """A compiled kernel on matrices of whose descriptors it takes the first arguments."""
    values: list[object] = []
    for tensor, entry in zip(matrices, kernel.metadata.tensordesc_meta, strict=True):
        box, swizzle = tuple(entry["block_size"]), SWIZZLES[entry["swizzle"]]
        tensor_map = TensorMap.encode_tiled(tensor, box=box, swizzle=swizzle)
        values += [tensor_map, *tensor.shape, *tensor.stride()]
    entry_point = Module.from_ptx(kernel.asm["ptx"])[kernel.metadata.name]
    report = Emulator().launch(
        entry_point,
        grid=(programs, 1, 1),
        block=(entry_point.required_threads, 1, 1),
        args=[*values, *arguments, None, None],
        dynamic_smem_bytes=kernel.metadata.shared,
    )
    report.raise_if_findings()


@pytest.mark.parametrize("tile", [SMALL, LARGE], ids=str)
def test_triton_kernel_in_the_emulator(tile: Tile) -> None:
    """Ragged in all sizes, so that groups of tiles and all edges are walked."""
    m, n, k = 1200, 264, 400
    (a, sfa), (b, sfb) = gemm_operands(m, n, k)
    out = aligned(torch.full((m, n), float("nan"), dtype=torch.bfloat16))
    scales = [aligned(sfa), aligned(sfb)]
    arguments = [*scales, m, n, k, *sfa.stride(), *sfb.stride()]
    programs = -(-m // tile.block_m) * -(-n // tile.block_n)
    emulate(
        compiled(tile, triton_baseline.KERNEL), programs, [aligned(a), aligned(b), out], arguments
    )
    exact = torch.empty(m, n)
    compute_in_torch(a, sfa, b, sfb, exact)
    assert_rows_close(out, exact, floor=TENSOR_CORE_FLOOR)


@pytest.mark.parametrize("source", ["group_offsets", "masked_m"])
@pytest.mark.parametrize(
    ("tile", "rows"),
    [(SMALL, (37, 0, 130, 1)), (LARGE, (257, 0, 1100, 3))],
    ids=lambda value: str(value) if isinstance(value, Tile) else "",
)
def test_grouped_triton_kernel_in_the_emulator(
    tile: Tile, rows: tuple[int, ...], source: str
) -> None:
    """Fewer programs than tiles; what lies between groups stays as it is."""
    problem = GroupedShape(rows, 272, 400, source)
    operands = problem.emulated_operands()
    operands = operands._replace(
        **{name: aligned(getattr(operands, name)) for name in ("a", "sfa", "b", "sfb", "out")}
    )
    call = triton_baseline.grouped_call(operands)
    assert call.tile == tile
    kernel = compiled(tile, triton_baseline.GROUPED_KERNEL)

    def run() -> None:
        emulate(kernel, 7, [matrix for matrix, _ in call.boxes], call.arguments)

    problem.check(operands, Prepared(run, operands.out, operands.sfa, operands.sfb))
    between = flat(operands.out).clone()
    between[operands.rows()] = 0
    assert not between.any()


@pytest.mark.parametrize("kernel", [triton_baseline.KERNEL, triton_baseline.GROUPED_KERNEL])
def test_triton_listing(kernel: str, tmp_path: Path) -> None:
    """One k tile of four WGMMA a turn, promoted once; no spills."""
    row = static_answer.foreign_row(triton_baseline.write_cubin(tmp_path, LARGE, kernel))
    assert row["name"] == kernel.replace("fp8_gemm_nt", "m128n128").join(("triton_", ""))
    assert row["local_accesses"] == 0
    assert row["matrix"] == "4 MMA 64x128"
    assert row["ffma"] >= 64
    assert 0.4 < row["issue_share"] < 1.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [0, 3, 4], ids=lambda number: build.VARIANTS[number].name)
def test_cutlass_library(number: int) -> None:
    """Carried, compiled before or compiled now; listed as published; its functions answer."""
    variant = build.VARIANTS[number]
    carried = build.FOLDER_VARIABLE in os.environ
    library = build.find(variant) if carried else build.build(variant, build.folder())
    assert library is not None
    row = static_answer.foreign_row(library.with_suffix(".cubin"))
    assert row["matrix"] in ("4 MMA 64x128", "8 MMA 64x128")
    assert row["local_accesses"] == 0
    assert 0.40 < row["issue_share"] < 0.52  # 0.44 as published, grouped 0.50
    assert row["setmaxnreg"] == [40, 232]
    functions = cutlass_gemm.load(library)
    groups = (cutlass_gemm.Group * 3)((0, 100), (100, 0), (100, 28))
    problem = cutlass_gemm.Problem(*[None] * 6, groups, 128, 256, 512, 128, 3)
    assert ctypes.sizeof(problem) == 80
    assert functions.baseline_workspace_bytes(problem) >= (256 if variant.grouped else 0)
    if not torch.cuda.is_available():
        assert functions.baseline_run(problem, None) is not None  # an error, not a crash


def test_what_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    dense = Shape(8, 8, 128).emulated_operands()
    grouped = GroupedShape((3, 0, 5), 8, 128).emulated_operands()
    not_built = r"not built: run `python -m bench\.baselines\.build`"
    for baseline in cutlass_gemm.baselines():
        with pytest.raises(Unavailable, match=not_built):
            baseline.prepare(dense)
    for grouped_baseline in cutlass_gemm.grouped_baselines():
        with pytest.raises(Unavailable, match=not_built):
            grouped_baseline.prepare(grouped)
    for package in ("deep_gemm", "triton", "triton.tools.tensor_descriptor"):
        monkeypatch.setitem(sys.modules, package, None)
    for absent in (deepgemm.baseline(), triton_baseline.baseline()):
        with pytest.raises(Unavailable, match="not installed"):
            absent.prepare(dense)
    for grouped_absent in (deepgemm.grouped_baseline(), triton_baseline.grouped_baseline()):
        with pytest.raises(Unavailable, match="not installed"):
            grouped_absent.prepare(grouped)


def test_a_library_is_built_once_for_each_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler that only notes that it ran."""
    runs: list[list[str]] = []

    def compile_nothing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        runs.append(command)
        kept = Path(command[command.index("-keep-dir") + 1])
        (kept / "cutlass_gemm.cubin").touch()
        (kept / "library.so").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    release = ["13.0.88"]
    monkeypatch.setattr(build, "_nvcc", lambda: (Path("nvcc"), release[0]))
    monkeypatch.setattr(build.subprocess, "run", compile_nothing)
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    first, second = build.VARIANTS[:2]
    library = build.build(first, tmp_path)
    assert build.build(first, tmp_path) == library == build.find(first)
    assert build.build(second, tmp_path) != library
    assert len(runs) == 2
    release[0] = "13.1.0"
    assert build.build(first, tmp_path) != library
    assert len(runs) == 3
    assert len(list(tmp_path.iterdir())) == 6  # nothing temporary is left


def test_baselines_have_names_of_their_own() -> None:
    names = [baseline.name for baseline in baselines()]
    assert len(set(names)) == len(names) == 10
    names = [baseline.name for baseline in grouped_baselines()]
    assert len(set(names)) == len(names) == 6


@pytest.mark.parametrize("source", ["group_offsets", "masked_m"])
def test_groups_as_cutlass_takes_them(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's product in torch, from the addresses and groups that it is given."""
    problem = GroupedShape((37, 0, 130, 1), 264, 400, source)
    operands = problem.emulated_operands()

    class Library:
        @staticmethod
        def baseline_workspace_bytes(call: cutlass_gemm.Problem) -> int:
            return 16

        @staticmethod
        def baseline_prepare(call: cutlass_gemm.Problem, stream: object) -> None:
            assert call.workspace

        @staticmethod
        def baseline_run(call: cutlass_gemm.Problem, stream: object) -> None:
            n, k, k_blocks, n_blocks = call.n, call.k, 4, 3
            scale_rows = 0
            for group in range(call.num_groups):
                first, rows = call.groups[group].first_row, call.groups[group].rows
                a = at(call.a + first * k, (rows, k), torch.float8_e4m3fn)
                b = at(call.b + group * n * k, (n, k), torch.float8_e4m3fn)
                sfa = at(call.sfa + 4 * scale_rows * k_blocks, (k_blocks, rows), torch.float32)
                sfb_address = call.sfb + 4 * group * n_blocks * k_blocks
                sfb = at(sfb_address, (k_blocks, n_blocks), torch.float32)
                d = at(call.d + 2 * first * n, (rows, n), torch.bfloat16)
                compute_in_torch(a, sfa.t(), b, sfb.t(), d)
                scale_rows += rows

    monkeypatch.setattr(cutlass_gemm, "find", lambda variant: Path("library.so"))
    monkeypatch.setattr(cutlass_gemm, "load", lambda path: Library)
    monkeypatch.setattr(cutlass_gemm, "_stream", lambda tensor: 0)
    for baseline in cutlass_gemm.grouped_baselines():
        problem.check(operands, baseline.prepare(operands))


def at(address: int, sizes: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The memory at an address; an empty tensor where there is none."""
    num_bytes = math.prod(sizes) * dtype.itemsize
    if num_bytes == 0:
        return torch.empty(sizes, dtype=dtype)
    values = (ctypes.c_uint8 * num_bytes).from_address(address)
    return torch.frombuffer(values, dtype=dtype).view(sizes)


def test_scales_for_cutlass_are_m_major_and_padded() -> None:
    sfa = torch.arange(10.0).view(5, 2)
    columns = cutlass_gemm.m_major(sfa)
    assert columns.shape == (2, 8)
    assert torch.equal(columns[:, :5], sfa.t())


def test_without_nvidia_cutlass_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install pykernels\[bench\]"):
        build.cutlass_include()
