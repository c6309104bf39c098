"""The emulator recognises instructions, no kernels: a disguised kernel gives the same bits."""

from __future__ import annotations

import re

import pytest
from torch import Tensor

from pykernels.emulator import Module
from tests.cases import assert_same_bits
from tests.kernel_launch import GemmLaunch

KERNELS = {
    "fp8_gemm_nt_m64n64c1": (64, 64),
    "fp8_gemm_nt_m128n128c1": (128, 128),
    "fp8_gemm_nt_m128n128c2": (128, 128),
}
SIZES = (200, 136, 400)
UNRELATED_LOOP = """
    .reg .b32 %unrelated;
    .reg .pred %more;
    mov.u32 %unrelated, 7;
$unrelated_loop:
    add.s32 %unrelated, %unrelated, -1;
    setp.ne.s32 %more, %unrelated, 0;
    @%more bra $unrelated_loop;
"""


def disguise(ptx: str, kernel: str) -> str:
    """Other names for kernel, registers and labels, no line information, and a loop in front."""
    ptx = ptx.replace(kernel, "something_else")
    ptx = re.sub(r"%(rs|rd|r|p|f|fd)(\d+|<)", r"%other_\1\2", ptx)
    ptx = ptx.replace("$L__", "$M__")
    ptx = re.sub(r"^\s*\.(loc|file)\s.*$", "", ptx, flags=re.MULTILINE)
    head, body = re.split(r"^\{", ptx, maxsplit=1, flags=re.MULTILINE)
    declarations, code = re.match(r"((?:\s*\.(?:reg|shared)[^;]*;)*)(.*)", body, re.DOTALL).groups()
    return head + "{" + declarations + UNRELATED_LOOP + code


def result_and_counts(launch: GemmLaunch, ptx: str) -> tuple[Tensor, int, int]:
    report = launch.run(Module.from_ptx(ptx))
    report.raise_if_findings()
    return launch.out.clone(), report.counters.wgmma, report.counters.tma_bytes_loaded


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_disguised_kernel_gives_the_same_bits(kernel: str) -> None:
    launch = GemmLaunch.make(kernel, SIZES)
    plain = result_and_counts(launch, launch.ptx())
    disguised = result_and_counts(launch, disguise(launch.ptx(), kernel))
    assert_same_bits(disguised[0], plain[0])
    assert disguised[1:] == plain[1:]


@pytest.mark.parametrize("kernel", KERNELS)
def test_counters_equal_the_tile_arithmetic(kernel: str) -> None:
    m, n, k = SIZES
    block_m, block_n = KERNELS[kernel]
    cluster = 2 if kernel.endswith("c2") else 1
    launch = GemmLaunch.make(kernel, SIZES)
    counters = launch.run(Module.from_ptx(launch.ptx())).counters
    tiles = -(-m // (block_m * cluster)) * cluster * -(-n // block_n)
    k_tiles = -(-k // 128)
    assert counters.wgmma == tiles * k_tiles * 4 * (block_m // 64)
    assert counters.tensor_multiply_adds == counters.wgmma * 64 * block_n * 32
