"""Every program of ``fail/`` gives its finding, and no other, in every schedule; ``pass/`` none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_build.toolkit import find_binaries, find_nvcc, find_ptxas

from tests.emulator.annotated import HERE, Outcome, Program, load

SCHEDULES = [(mode, seed) for mode in ("early", "late", "random") for seed in range(4)]
FAIL = sorted((HERE / "fail").glob("*.ptx"))
PASS = sorted((HERE / "pass").glob("*.ptx"))


def outcomes(program: Program) -> list[tuple[str, Outcome]]:
    return [
        (
            f"{program.path.parent.name}/{program.path.name}, {mode} completion, seed {seed}",
            program.run(seed=seed, async_completion=mode),
        )
        for mode, seed in SCHEDULES
    ]


@pytest.mark.parametrize("path", FAIL, ids=lambda path: path.stem)
def test_finding(path: Path) -> None:
    program = load(path)
    assert program.finds, "a program of fail/ states what it finds"
    allowed = [*(one for group in program.finds for one in group), *program.may_find]
    for schedule, outcome in outcomes(program):
        for group in program.finds:
            found = any(one.matches(f) for one in group for f in outcome.report.findings)
            wanted = " or ".join(map(str, group))
            assert found, f"{schedule}: {wanted} is missing from\n{outcome.report}"
        for finding in outcome.report.findings:
            assert any(one.matches(finding) for one in allowed), f"{schedule}: {finding}"
        assert outcome.ended == program.ends or program.may_end, f"{schedule}\n{outcome.report}"


@pytest.mark.parametrize("path", PASS, ids=lambda path: path.stem)
def test_no_finding_and_the_right_result(path: Path) -> None:
    program = load(path)
    assert not program.finds
    assert program.expects, "a program of pass/ states its result"
    for schedule, outcome in outcomes(program):
        assert not outcome.ended, f"{schedule}\n{outcome.report}"
        assert not outcome.report.findings, f"{schedule}\n{outcome.report}"
        for name in program.expects:
            np.testing.assert_array_equal(
                outcome.arrays[name].ravel(), program.expected_value(name).ravel(), schedule
            )


def test_each_fault_has_its_right_idiom() -> None:
    assert [path.name for path in FAIL] == [path.name for path in PASS]
    assert len(FAIL) >= 25


@pytest.mark.parametrize("folder", ["fail", "pass"])
def test_ptxas_takes_every_program(folder: str, tmp_path: Path) -> None:
    """They are programs of a GPU, not only of the emulator."""
    ptxas = find_ptxas(find_binaries(find_nvcc()))
    for path in sorted((HERE / folder).glob("*.ptx")):
        command = [ptxas, "-arch=sm_90a", "-O1", "-o", tmp_path / "program.cubin", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{path.name}: {done.stderr}"
