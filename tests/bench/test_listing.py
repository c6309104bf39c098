"""Machine code of the built kernels within its budgets, and the figures' definitions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kernel_build import manifest

from pykernels.bench import listing, peers

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "pykernels" / "kernels"
MANIFEST = manifest.load(ROOT / "csrc" / "manifest.json")
GEMMS = [kernel for kernel in MANIFEST if kernel.family in ("fp8_gemm_nt", "grouped_fp8_gemm_nt")]


@pytest.mark.parametrize("kernel", MANIFEST, ids=lambda kernel: kernel.name)
def test_no_local_memory(kernel: manifest.Kernel) -> None:
    figures = listing.read_listing(BUILT / f"{kernel.name}.cubin")
    assert figures.local_accesses == 0
    assert figures.stack_bytes == 0


@pytest.mark.parametrize("kernel", GEMMS, ids=lambda kernel: kernel.name)
def test_gemm_registers(kernel: manifest.Kernel) -> None:
    """What the roles have fits the register file, after setmaxnreg where they trade."""
    figures = listing.read_listing(BUILT / f"{kernel.name}.cubin")
    rows = kernel.config["block_n" if kernel.config["swap_ab"] else "block_m"]
    consumers = rows // 64 * 128
    threads = consumers + 128
    assert figures.registers * threads <= 65536
    if kernel.config["swap_ab"]:
        assert figures.setmaxnreg == []
    else:
        assert sorted(figures.setmaxnreg) == [40, 232]
        assert 40 * 128 + 232 * consumers <= figures.registers * threads


@pytest.mark.parametrize("kernel", GEMMS, ids=lambda kernel: kernel.name)
def test_gemm_main_loop(kernel: manifest.Kernel) -> None:
    loop = listing.read_listing(BUILT / f"{kernel.name}.cubin").main_loop
    assert loop is not None
    ((opcode, count),) = loop.matrix.items()  # one shape, whole k tiles, each of four
    columns = kernel.config["block_m" if kernel.config["swap_ab"] else "block_n"]
    assert opcode == f"QGMMA.64x{columns}x32.F32.E4M3.E4M3"
    assert count == (8 if kernel.config["swap_ab"] else 16)
    accumulators = columns // 2  # of one matrix instruction, a thread
    assert loop.ffma == count // 4 * accumulators  # one promotion of each a k tile
    peer = peers.bound(kernel.config)
    if peer is not None:
        assert loop.issue_share <= peer.exact_issue_share, f"more than {peer.name}"


@pytest.mark.parametrize(
    ("tile", "cluster", "peer"),
    [
        ((64, 64), 1, "DeepGEMM FP8 1d2d 64x64"),
        ((64, 64), 2, "DeepGEMM FP8 1d2d 64x64"),
        ((64, 96), 1, "DeepGEMM FP8 1d2d 64x64"),
        ((64, 128), 1, "DeepGEMM FP8 1d2d 64x128, cluster 2"),
        ((128, 80), 1, "DeepGEMM FP8 1d2d 128x64, cluster 2"),
        ((128, 128), 1, "DeepGEMM FP8 1d2d 128x128"),
        ((128, 128), 2, "DeepGEMM FP8 1d2d 128x128, cluster 2"),
        ((128, 144), 2, "DeepGEMM FP8 1d2d 128x128, cluster 2"),
        ((128, 192), 2, "DeepGEMM FP8 1d2d 128x192"),
        ((192, 64), 1, "DeepGEMM FP8 1d2d 128x64, cluster 2"),
        ((192, 128), 2, "DeepGEMM FP8 1d2d 256x128"),
        ((128, 48), 1, None),
    ],
)
def test_the_peer_that_bounds_a_tile(tile: tuple[int, int], cluster: int, peer: str | None) -> None:
    block_m, block_n = tile
    config = {"block_m": block_m, "block_n": block_n, "cluster": cluster, "swap_ab": False}
    found = peers.bound(config)
    assert (found.name if found else None) == peer


@pytest.mark.parametrize(
    ("tile", "cluster", "share"),
    [
        ((64, 64), 1, 0.58),
        ((64, 128), 1, 0.38),
        ((128, 128), 1, 0.42),
        ((128, 128), 2, 0.43),
        ((128, 192), 2, 0.34),
    ],
)
def test_grouped_kernels_are_held_to_dense_peers(
    tile: tuple[int, int], cluster: int, share: float
) -> None:
    """Groups cost a kernel nothing in its main loop: the best dense peer bounds it too."""
    (kernel,) = [
        kernel
        for kernel in GEMMS
        if kernel.config["grouped"]
        and not kernel.config["swap_ab"]
        and (kernel.config["block_m"], kernel.config["block_n"]) == tile
        and kernel.config["cluster"] == cluster
    ]
    peer = peers.bound(kernel.config)
    assert peer is not None
    assert peer.issue_share == share
    grouped = [other for other in peers.peers() if other.operation == peers.GROUPED_OPERATION]
    of_tile = [other for other in grouped if (other.block_m, other.block_n) == tile]
    assert all(peer.issue_share <= other.issue_share for other in of_tile)


@pytest.mark.parametrize("block_n", [64, 128])
def test_the_peer_that_bounds_a_swapped_tile(block_n: int) -> None:
    """By what a warpgroup multiplies: 64 rows of B by the rows of A."""
    config = {"block_m": 64, "block_n": block_n, "cluster": 1, "swap_ab": True}
    found = peers.bound(config)
    assert found is not None
    assert found.name == "DeepGEMM FP8 1d2d 64x64"
    assert peers.bound(config | {"block_m": 32}) is None


def test_peers_figures_agree_with_each_other() -> None:
    """Three columns of the file say the same main loop."""
    same = [peer for peer in peers.peers() if peer.operation == peers.SAME_OPERATION]
    assert len(same) >= 12
    for peer in same:
        assert peer.exact_issue_share == pytest.approx(peer.issue_share, abs=0.006), peer.name
        count = int(peer.matrix.partition(" ")[0])
        exact = (peer.main_loop - count) / count
        assert exact == pytest.approx(peer.other_per_matrix, abs=0.0501)


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


def test_table_of_a_cubin(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.main([str(BUILT / "quantize_1x128.cubin")]) == 0
    assert "| quantize_1x128 | " in capsys.readouterr().out


def test_files_that_are_no_listing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the file, whatever is wrong with it."""
    whole = (BUILT / "quantize_1x128.cubin").read_bytes()
    for name, content, message in (
        ("text", b"no cubin", "is no cubin"),
        ("short", whole[:50], "is no cubin"),
        ("cut", whole[:3000], "is no cubin"),
        ("program", Path(sys.executable).read_bytes(), "is no cubin"),
        ("offset", whole[:0x28] + b"\xff" * 8 + whole[0x30:], "is no cubin"),  # of the sections
        ("damaged", whole[:4096] + bytes(len(whole) - 4096), "is no cubin"),
        ("renamed", whole, "holds no kernel named renamed, but quantize_1x128"),
    ):
        cubin = tmp_path / f"{name}.cubin"
        cubin.write_bytes(content)
        assert listing.main([str(cubin)]) == 1, name
        error = capsys.readouterr().err
        assert error.startswith(f"listing: {cubin} {message}"), name
        assert error.count("\n") == 1, error
    for missing in (tmp_path / "none.cubin", tmp_path):
        assert listing.main([str(missing)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("listing: [Errno ")
        assert str(missing) in error
