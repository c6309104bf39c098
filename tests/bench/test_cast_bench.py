"""The benches of the casts, their kernels run by the emulator and their clock replaced."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import pykernels
from pykernels.bench import contest, counts, static_answer
from pykernels.bench.baselines import Prepared, Unavailable, cast
from pykernels.bench.cast_bench import CastShape, QuantizeShape, SiluMulShape, shapes
from pykernels.bench.problem import Options
from pykernels.emulator import Emulator, Module
from tests.bench.test_baselines import aligned
from tests.bench.timing import stand_in_times

PLAIN, OFFSETS = SiluMulShape(40, 384), SiluMulShape(37, 384, capacity=128)
MASKED = SiluMulShape(3, 384, capacity=16, num_groups=5)
ROW_WISE, BLOCK_WISE = QuantizeShape(40, 384), QuantizeShape(256, 384, block_rows=128)
SMALL: list[CastShape] = [PLAIN, OFFSETS, MASKED, ROW_WISE, BLOCK_WISE]
EVERY = pytest.mark.parametrize("shape", SMALL, ids=str)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours take 2 us, a baseline 3."""
    stand_in_times(monkeypatch, QuantizeShape, SiluMulShape)


@EVERY
def test_row(shape: CastShape, timed: None) -> None:
    """All baselines but Triton's run on the CPU, and are right."""
    against = [one for one in shape.baselines() if one.name != "Triton"]
    with pykernels.emulate(checks=()):
        row = contest.measure(shape, 1000.0, against=against, every_kernel=True)
    assert (row["op"], row["kernel"]) == (shape.op.__name__, shape.op.__name__)
    assert (row["us"], row["tflops"], row["bound"]) == (2.0, 0.0, "memory")
    assert row["gbps"] == pytest.approx(shape.num_bytes / 2e3)
    assert row["roofline_share"] == pytest.approx(shape.num_bytes / 1e6 / 2)
    assert row["baselines"].keys() == {one.name for one in against}
    assert {found["ratio"] for found in row["baselines"].values()} == {1.5}
    assert "candidates" not in row  # there is one kernel


@EVERY
def test_wrong_results_are_found(shape: CastShape) -> None:
    operands = shape.emulated_operands()
    right = shape.prepare_op(Options(), operands)
    shape.check(operands, right)

    def change_a_code() -> None:
        right.call()
        codes = shape.own_rows(operands.out).view(torch.uint8)
        place = (..., -1, int(codes[..., -1, :128].view(-1, 128)[-1].bitwise_and(0x7F).argmin()))
        codes[place] = 0x70

    def change_a_scale() -> None:
        right.call()
        operands.scales.view(-1)[0] *= 1.1

    for call in (lambda: None, change_a_code, change_a_scale):
        with pytest.raises(AssertionError, match=r"row \d+, block \d"):
            shape.check(operands, Prepared(call, operands.out))


def test_bytes() -> None:
    """Rows that are cast, results, scales, and what names the rows."""
    assert PLAIN.num_bytes == 40 * 384 * 5 + 4 * 40 * 3
    assert OFFSETS.num_bytes == 37 * 384 * 5 + 4 * 37 * 3 + 8
    assert MASKED.num_bytes == 15 * 384 * 5 + 4 * 15 * 3 + 4 * 5
    assert ROW_WISE.num_bytes == 40 * 384 * 3 + 4 * 40 * 3
    assert BLOCK_WISE.num_bytes == 256 * 384 * 3 + 4 * 2 * 3


def test_a_copy_moves_as_many_bytes() -> None:
    (copy,) = (one for one in PLAIN.baselines() if one.name == cast.COPY)
    prepared = copy.prepare(PLAIN.emulated_operands())
    assert not copy.computes
    assert 2 * prepared.out.numel() == PLAIN.num_bytes


@EVERY
def test_bytes_over_the_minimum(shape: CastShape) -> None:
    row = static_answer.static_row(shape, Options(device="H200"))
    assert row["listing"]["local_accesses"] == 0
    assert row["listing"]["registers"] <= 64
    assert row["listing"]["instructions"] > 100
    assert row["bounding_peer"] is None
    assert row["model"] == []
    ratios = row["emulator"]["ratios"]
    assert ratios["global_bytes_written"] == 1.0
    assert 1.0 <= ratios["global_footprint_bytes_read"] <= 1.01  # whole sectors of 32 bytes
    assert "tensor_multiply_adds" not in ratios


def test_large_shapes_are_counted_on_smaller_ones() -> None:
    counted = {str(shape): counts.emulated_problem(shape) for shape in shapes()}
    assert all(shape.emulation_work <= 2**34 for shape in counted.values())
    smaller = counted["SwiGLU and cast of 32768 in 262144 rows, i 2048"]
    assert smaller == SiluMulShape(4096, capacity=32768)
    assert counted["128x128 cast of 4096x7168"] == QuantizeShape(1024, 7168, 128)


def test_shapes() -> None:
    names = [str(shape) for shape in shapes()]
    assert len(set(names)) == len(names) == 15
    assert "SwiGLU and cast of masked 32x8 in 128 rows, i 2048" in names


def test_room_for_too_few_rows() -> None:
    with pytest.raises(ValueError, match="at least m = 40, got 39"):
        SiluMulShape(40, capacity=39)


@pytest.mark.parametrize(
    "shape", [SiluMulShape(37, 384), OFFSETS, MASKED, SiluMulShape(9, 272)], ids=str
)
def test_triton_kernel_in_the_emulator(shape: SiluMulShape) -> None:
    """What lies between groups stays as it is."""
    operands = shape.emulated_operands()
    operands = operands._replace(
        **{name: aligned(getattr(operands, name)) for name in ("x", "out", "scales")}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = cast.compile_triton()
    programs, arguments = cast.triton_call(operands)
    entry_point = Module.from_ptx(kernel.asm["ptx"])[kernel.metadata.name]

    def run() -> None:
        report = Emulator().launch(
            entry_point,
            grid=(programs, 1, 1),
            block=(entry_point.required_threads, 1, 1),
            args=[*arguments, None, None],
            dynamic_smem_bytes=kernel.metadata.shared,
        )
        report.raise_if_findings()

    shape.check(operands, Prepared(run, operands.out))
    shape.own_rows(operands.scales).zero_()
    assert not operands.scales.any()


def test_triton_needs_whole_programs_of_a_group() -> None:
    with pytest.raises(Unavailable, match="20 rows of a group"):
        cast.triton_call(SiluMulShape(3, 384, capacity=20, num_groups=2).emulated_operands())


def test_triton_listing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = static_answer.foreign_row(cast.write_cubin(tmp_path))
    assert row["name"] == "triton_silu_mul_quantize"
    assert row["local_accesses"] == 0
    assert row["instructions"] > 0
