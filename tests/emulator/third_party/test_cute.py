"""CuTe's layouts, descriptors and TMA instructions against the emulator's reading of them."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pykernels.emulator import Emulator, Module, TensorMap

from .compile_once import compile_once

SOURCE = Path(__file__).with_name("cute_programs.cu")
INCLUDE = Path(sysconfig.get_path("purelib")) / "cutlass_library" / "source" / "include"
SWIZZLES = {"INTER": "none", "SW32": "32B", "SW64": "64B", "SW128": "128B"}
COLUMNS = [("INTER", 8), ("SW32", 16), ("SW64", 32), ("SW128", 64)]  # of a box: one swizzle row


@pytest.fixture(scope="module")
def cute(tmp_path_factory: pytest.TempPathFactory) -> Module:
    flags = ["-I", str(INCLUDE), "--expt-relaxed-constexpr"]
    return Module.from_file(compile_once(tmp_path_factory, SOURCE, *flags))


@dataclass(frozen=True)
class Multiply:
    """One tile product: element type, major-ness of A and B, tile, relative tolerance."""

    elements: str
    majors: str
    dtype: torch.dtype
    tile: tuple[int, int, int]

    @property
    def id(self) -> str:
        return f"{self.elements}_{self.majors}"


MULTIPLIES = [
    *(Multiply("bf16", f"{a}_{b}", torch.bfloat16, (128, 128, 64))
      for a in ("k", "mn") for b in ("k", "mn")),
    Multiply("fp8", "k_k", torch.float8_e4m3fn, (128, 96, 128)),
    Multiply("tf32", "k_k", torch.float32, (64, 96, 32)),
]  # fmt: skip


def small_integers(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Values whose products and sums every tensor-core model keeps exactly."""
    return torch.randint(-8, 9, shape).to(torch.float32).to(dtype)


@pytest.mark.parametrize("completion", ["early", "late"])
@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("case", MULTIPLIES, ids=lambda case: case.id)
@pytest.mark.timeout(900)
def test_multiply(cute: Module, case: Multiply, swizzle: str, completion: str) -> None:
    torch.manual_seed(0)
    m, n, k = case.tile
    a, b = small_integers((m, k), case.dtype), small_integers((n, k), case.dtype)
    out = torch.full((m, n), float("nan"))
    kernel = cute[f"{case.id}_{swizzle}"]
    emulator = Emulator(async_completion=completion)
    report = emulator.launch(kernel, grid=(1, 1, 1), block=(128, 1, 1), args=[a, b, out])
    report.raise_if_findings()
    assert torch.equal(out, a.float() @ b.float().T)
    assert report.counters.tensor_multiply_adds == m * n * k


@dataclass(frozen=True)
class Box:
    """Where in a [96, 128] tensor a box of 32 rows starts; outside is zero-filled or clipped."""

    row: int
    column: int
    what: str


BOXES = [
    Box(0, 0, "first"),
    Box(24, 8, "inside"),
    Box(80, 72, "past_the_end"),
    Box(-8, -8, "before_the_start"),
    Box(96, 0, "all_outside"),
]


def expected_box(tensor: torch.Tensor, box: Box, columns: int) -> torch.Tensor:
    rows_all, columns_all = tensor.shape
    expected = torch.zeros(32, columns, dtype=tensor.dtype)
    for row in range(32):
        for column in range(columns):
            y, x = box.row + row, box.column + column
            if 0 <= y < rows_all and 0 <= x < columns_all:
                expected[row, column] = tensor[y, x]
    return expected


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.what)
@pytest.mark.parametrize(("swizzle", "columns"), COLUMNS)
@pytest.mark.timeout(900)
def test_tma_load(cute: Module, swizzle: str, columns: int, box: Box) -> None:
    tensor = torch.arange(96 * 128, dtype=torch.float32).reshape(96, 128).remainder(251).bfloat16()
    out = torch.full((32, columns), float("nan"), dtype=torch.bfloat16)
    tensor_map = TensorMap.encode_tiled(tensor, box=(32, columns), swizzle=SWIZZLES[swizzle])
    report = Emulator().launch(
        cute[f"load_{swizzle}"],
        grid=(1, 1, 1),
        block=(128, 1, 1),
        args=[tensor_map, box.row, box.column, out],
    )
    report.raise_if_findings()
    assert torch.equal(out, expected_box(tensor, box, columns))


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.what)
@pytest.mark.parametrize(("swizzle", "columns"), COLUMNS)
@pytest.mark.timeout(900)
def test_tma_store(cute: Module, swizzle: str, columns: int, box: Box) -> None:
    values = torch.arange(32 * columns, dtype=torch.float32).reshape(32, columns)
    values = values.remainder(251).add(1).bfloat16()
    tensor = torch.full((96, 128), -1.0, dtype=torch.bfloat16)
    tensor_map = TensorMap.encode_tiled(tensor, box=(32, columns), swizzle=SWIZZLES[swizzle])
    report = Emulator().launch(
        cute[f"store_{swizzle}"],
        grid=(1, 1, 1),
        block=(128, 1, 1),
        args=[tensor_map, box.row, box.column, values],
    )
    report.raise_if_findings()
    expected = torch.full((96, 128), -1.0, dtype=torch.bfloat16)
    for row in range(32):
        for column in range(columns):
            y, x = box.row + row, box.column + column
            if 0 <= y < 96 and 0 <= x < 128:
                expected[y, x] = values[row, column]
    assert torch.equal(tensor, expected)
