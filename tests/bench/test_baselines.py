"""The baselines as far as they go without a GPU: compiled, listed, and Triton's kernel emulated."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pykernels.bench import static_answer
from pykernels.bench.baselines import Unavailable, baselines, build, cutlass_gemm, deepgemm
from pykernels.bench.baselines import triton_launch as triton_baseline
from pykernels.emulator import Emulator, Module, TensorMap
from pykernels.gemm import compute_in_torch
from pykernels.testing import TENSOR_CORE_FLOOR, assert_rows_close, gemm_operands

SWIZZLES = ("none", "32B", "64B", "128B")


@pytest.fixture(scope="module", params=[triton_baseline.SMALL, triton_baseline.LARGE], ids=str)
def compiled(request: pytest.FixtureRequest) -> tuple[triton_baseline.Tile, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param, triton_baseline.compile_kernel(request.param)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy at a multiple of 16 bytes."""
    storage = torch.empty(tensor.numel() * tensor.element_size() + 16, dtype=torch.uint8)
    start = -storage.data_ptr() % 16
    view = storage[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype)
    return view.view(tensor.shape).copy_(tensor)


def test_triton_kernel_in_the_emulator(compiled: tuple[triton_baseline.Tile, Any]) -> None:
    """Ragged in all sizes, so that groups of tiles and all edges are walked."""
    tile, kernel = compiled
    m, n, k = 1200, 264, 400
    (a, sfa), (b, sfb) = gemm_operands(m, n, k)
    out = aligned(torch.full((m, n), float("nan"), dtype=torch.bfloat16))
    operands = [aligned(a), aligned(b), out]
    arguments: list[object] = []
    for tensor, entry in zip(operands, kernel.metadata.tensordesc_meta, strict=True):
        box, swizzle = tuple(entry["block_size"]), SWIZZLES[entry["swizzle"]]
        tensor_map = TensorMap.encode_tiled(tensor, box=box, swizzle=swizzle)
        arguments += [tensor_map, *tensor.shape, *tensor.stride()]
    scales = [aligned(sfa), aligned(sfb)]
    arguments += [*scales, m, n, k, *sfa.stride(), *sfb.stride(), None, None]
    entry_point = Module.from_ptx(kernel.asm["ptx"])[triton_baseline.KERNEL]
    report = Emulator().launch(
        entry_point,
        grid=(-(-m // tile.block_m) * -(-n // tile.block_n), 1, 1),
        block=(entry_point.required_threads, 1, 1),
        args=arguments,
        dynamic_smem_bytes=kernel.metadata.shared,
    )
    report.raise_if_findings()
    exact = torch.empty(m, n)
    compute_in_torch(a, sfa, b, sfb, exact)
    assert_rows_close(out, exact, floor=TENSOR_CORE_FLOOR)


def test_triton_listing(tmp_path: Path) -> None:
    """One k tile of four WGMMA a turn, promoted once; no spills."""
    row = static_answer.foreign_row(triton_baseline.write_cubin(tmp_path, triton_baseline.LARGE))
    assert row["name"] == "triton_m128n128"
    assert row["local_accesses"] == 0
    assert row["matrix"] == "4 MMA 64x128"
    assert row["ffma"] >= 64
    assert 0.4 < row["issue_share"] < 1.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cutlass_library() -> None:
    """Carried, compiled before or compiled now; listed as published; its functions answer."""
    variant = build.VARIANTS[0]
    carried = build.FOLDER_VARIABLE in os.environ
    library = build.find(variant) if carried else build.build(variant, build.folder())
    assert library is not None
    row = static_answer.foreign_row(library.with_suffix(".cubin"))
    assert row["matrix"] in ("4 MMA 64x128", "8 MMA 64x128")
    assert row["local_accesses"] == 0
    assert 0.40 < row["issue_share"] < 0.52  # 0.44 as published
    assert row["setmaxnreg"] == [40, 232]
    functions = cutlass_gemm.load(library)
    problem = cutlass_gemm.Problem(*[None] * 6, 128, 256, 512, 128)
    assert ctypes.sizeof(problem) == 64
    assert functions.baseline_workspace_bytes(problem) >= 256
    if not torch.cuda.is_available():
        assert functions.baseline_run(problem, None) is not None  # an error, not a crash


def test_what_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    (a, sfa), (b, sfb) = gemm_operands(8, 8, 128)
    operands = (a, sfa, b, sfb, torch.empty(8, 8, dtype=torch.bfloat16))
    for baseline in cutlass_gemm.baselines():
        with pytest.raises(
            Unavailable, match=r"not built: run `python -m bench\.baselines\.build`"
        ):
            baseline.prepare(operands)
    monkeypatch.setitem(sys.modules, "deep_gemm", None)
    with pytest.raises(Unavailable, match="not installed"):
        deepgemm.baseline().prepare(operands)


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
    assert len(set(names)) == len(names) == 9


def test_scales_for_cutlass_are_m_major_and_padded() -> None:
    sfa = torch.arange(10.0).view(5, 2)
    columns = cutlass_gemm.m_major(sfa)
    assert columns.shape == (2, 8)
    assert torch.equal(columns[:, :5], sfa.t())


def test_without_nvidia_cutlass_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install pykernels\[bench\]"):
        build.cutlass_include()
