"""Machine code of the built kernels within its budgets, and the figures' definitions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from kernel_build import manifest

from bench import listing

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "pykernels" / "kernels"
KERNELS = [kernel.name for kernel in manifest.load(ROOT / "csrc" / "manifest.json")]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that a kernel's main loop may issue, and where the figure is from."""

    issue_share: float
    source: str


# The lowest shares of other libraries' kernels of the same tile, by the same definition.
BUDGETS = {
    "fp8_gemm_nt_m64n64c1": Budget(0.58, "DeepGEMM FP8 1d2d 64x64"),
    "fp8_gemm_nt_m64n128c1": Budget(0.38, "DeepGEMM FP8 1d2d 64x128, cluster 2"),
    "fp8_gemm_nt_m128n128c1": Budget(0.42, "DeepGEMM FP8 1d2d 128x128"),
    "fp8_gemm_nt_m128n128c2": Budget(0.43, "DeepGEMM FP8 1d2d 128x128, cluster 2"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_no_local_memory(name: str) -> None:
    figures = listing.read_listing(BUILT / f"{name}.cubin")
    assert figures.local_accesses == 0
    assert figures.stack_bytes == 0


@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("fp8_gemm")])
def test_gemm_registers(name: str) -> None:
    """The roles' registers after setmaxnreg fit what the CTA has at launch."""
    kernel = manifest.select(manifest.load(ROOT / "csrc" / "manifest.json"), name)
    figures = listing.read_listing(BUILT / f"{name}.cubin")
    consumers = int(kernel.config["block_m"]) * 2
    assert sorted(figures.setmaxnreg) == [40, 232]
    assert 40 * 128 + 232 * consumers <= figures.registers * (consumers + 128) <= 65536


@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("fp8_gemm")])
def test_gemm_main_loop(name: str) -> None:
    budget = BUDGETS[name]
    loop = listing.read_listing(BUILT / f"{name}.cubin").main_loop
    assert loop is not None
    assert loop.issue_share <= budget.issue_share, f"more than {budget.source}"
    ((opcode, count),) = loop.matrix.items()  # one shape, four k tiles of four
    assert opcode.startswith("QGMMA.64x")
    assert count == 16
    accumulators = loop.tensor_clocks / 16 * 4096 / 32 / 128  # of one matrix instruction, a thread
    assert loop.ffma == 4 * accumulators  # one promotion of each accumulator every k tile


LOOPS = """
\t.section\t.text.kernel,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FADD R2, R2, R3 ;
.L_x_1:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3 ;
        /*0030*/              @!P0 BRA `(.L_x_3) ;
.L_x_2:
        /*0040*/                   QGMMA.64x64x32.F32.E4M3.E4M3 R24, gdesc[UR20], RZ, !UPT ;
        /*0050*/                   QGMMA.64x64x32.F32.E4M3.E4M3 R24, gdesc[UR24], R24, gsb0 ;
        /*0060*/                   FFMA R4, R24, R5, R4 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/               @P2 BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3 ;
        /*00b0*/               @P0 BRA `(.L_x_2) ;
        /*00c0*/                   BRA `(.L_x_3) ;
.L_x_4:
        /*00d0*/                   BRA `(.L_x_4);
        /*00e0*/                   NOP ;
"""


def test_main_loop_is_the_innermost_one_with_matrix_instructions() -> None:
    function = listing.parse(LOOPS)["kernel"]
    assert len(function.instructions) == 13  # without the padding
    loop = listing.main_loop(function)
    assert loop is not None
    assert loop.instructions == 6  # from the wait to the branch back
    assert loop.cold_instructions == 3  # the retry of the wait, behind the end
    assert loop.ffma == 1
    assert loop.tensor_clocks == 2 * 64 * 64 * 32 / 4096
    assert loop.other_per_matrix == 2.0
    assert loop.issue_share == 6 / 64


def test_kernel_without_matrix_instructions_has_no_main_loop() -> None:
    text = LOOPS.replace("QGMMA.64x64x32.F32.E4M3.E4M3", "FFMA")
    assert listing.main_loop(listing.parse(text)["kernel"]) is None
