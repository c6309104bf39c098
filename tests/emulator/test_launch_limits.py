"""What a launch may ask for, and when one that runs on is ended."""

from __future__ import annotations

import re

import pytest

from pykernels.emulator import EmulationError, Emulator, Launch, Module
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
