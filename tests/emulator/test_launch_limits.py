"""What a launch may ask for, and when one that runs on is ended."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, Launch, Module, PtxError
from tests.emulator.ptx_program import ptx_program, run_ptx

NOTE = "beyond 8 a launch needs the attribute NON_PORTABLE_CLUSTER_SIZE_ALLOWED"


@pytest.mark.parametrize("size", [1, 8, 9, 16])
def test_clusters_beyond_the_portable_size_are_noted(size: int) -> None:
    report = run_ptx("", {}, grid=(size,), cluster=(size,))
    report.raise_if_findings()
    assert any(NOTE in note for note in report.notes) == (size > 8)


@pytest.mark.parametrize(("registers", "fits"), [(168, True), (176, False)])
def test_a_cta_has_no_more_registers_than_an_sm(registers: int, fits: bool) -> None:
    kernel = Module.from_ptx(ptx_program("", {}))["kernel"]
    launch = Launch(kernel, (1,), (384,), [], registers=registers)
    if fits:
        Emulator().launch_concurrent([launch]).raise_if_findings()
        return
    with pytest.raises(ValueError, match="an SM has 65536 registers, got 176 for each of 384"):
        Emulator().launch_concurrent([launch])


def test_the_most_instructions_are_looked_at_every_turn() -> None:
    emulator = Emulator(max_warp_instructions=5_000)
    with pytest.raises(EmulationError, match="max_warp_instructions") as caught:
        run_ptx("LOOP: bra LOOP;", {}, emulator=emulator)
    executed = re.search(r"no end after (\d+) warp instructions", str(caught.value))
    assert executed is not None
    assert 5_000 < int(executed[1]) <= 5_000 + 4096  # a turn


# ---- clusters that the kernel asks for ----


def clustered(attributes: str) -> Module:
    text = ptx_program(
        "mov.u32 r1, %cluster_nctarank; st.global.u32 [out], r1;", {"out": np.zeros(1, np.uint32)}
    )
    return Module.from_ptx(text.replace(")\n{", f")\n{attributes}\n{{", 1))


@pytest.mark.parametrize("cluster", [(1, 1, 1), (2, 1, 1), 2])
def test_the_cluster_that_a_kernel_requires_is_its_default(cluster: Sequence[int]) -> None:
    kernel = clustered(".explicitcluster\n.reqnctapercluster 2, 1, 1")["kernel"]
    assert kernel.required_cluster == (2, 1, 1)
    out = np.zeros(1, np.uint32)
    Emulator(checks={"sync"}).launch(kernel, (4,), (32,), [out], cluster).raise_if_findings()
    assert out[0] == 2


def test_another_cluster_than_the_required_one_is_refused() -> None:
    kernel = clustered(".reqnctapercluster 2")["kernel"]
    out = np.zeros(1, np.uint32)
    with pytest.raises(ValueError, match=r"cluster must be \(2, 1, 1\), as .reqnctapercluster"):
        Launch(kernel, (4,), (32,), [out], cluster=(4, 1, 1))
    with pytest.raises(ValueError, match="grid must be a multiple of the cluster"):
        Launch(kernel, (3,), (32,), [out])


def test_a_cluster_beyond_the_highest_rank_is_refused() -> None:
    kernel = clustered(".maxclusterrank 4")["kernel"]
    assert (kernel.required_cluster, kernel.max_cluster_rank) == (None, 4)
    out = np.zeros(1, np.uint32)
    Launch(kernel, (8,), (32,), [out], cluster=(4,))
    with pytest.raises(ValueError, match="cluster must have at most 4 CTAs, got 8"):
        Launch(kernel, (8,), (32,), [out], cluster=(8,))


# ---- shared and constant memory ----


def test_too_much_static_shared_memory_is_said_to_be_the_kernels() -> None:
    module = ".shared .b8 s[300000];"
    kernel = Module.from_ptx(ptx_program("mov.u32 r1, s;", {}, module=module))["kernel"]
    with pytest.raises(ValueError, match="'kernel' declares 300000 bytes of static shared memory"):
        Launch(kernel, (1,), (32,))


@pytest.mark.parametrize(("size", "fits"), [(65536, True), (65540, False)])
def test_constant_memory_has_64_kib(size: int, fits: bool) -> None:
    text = ptx_program("", {}, module=f".const .b8 table[{size}];")
    if fits:
        Module.from_ptx(text)
        return
    with pytest.raises(PtxError, match="a module has 64 KiB at most"):
        Module.from_ptx(text)
