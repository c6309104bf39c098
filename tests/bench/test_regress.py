"""Machine code and counts as committed; and the comparison itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pykernels.bench import regress
from pykernels.bench.regress import Static

LISTING = {"registers": 168, "local_accesses": 0, "main_loop": 400, "issue_share": 0.4}
COUNTS = {"global_bytes_read": 10_000, "shared_bank_conflicts": 0, "warp_instructions": 1000}
RECORDED = Static("13.0.88", {"a": LISTING}, {"a 1x1x1": COUNTS})


@pytest.mark.timeout(900)
def test_kernels_are_as_recorded() -> None:
    assert regress.differences(Static.measure(), Static.read()) == []


def changed(part: str, name: str, value: float) -> Static:
    figures = {key: {**row, name: value} for key, row in getattr(RECORDED, part).items()}
    return dataclasses.replace(RECORDED, **{part: figures})


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("listing", "main_loop", 401, "a: main_loop 401 is more than the recorded 400"),
        ("listing", "registers", 169, "more than"),
        ("listing", "local_accesses", 1, "more than"),
        ("listing", "main_loop", 390, "better than"),
        ("listing", "issue_share", 0.38, "better than"),
        ("counts", "global_bytes_read", 10_001, "more than"),
        ("counts", "global_bytes_read", 9_700, "better than"),
        ("counts", "shared_bank_conflicts", 1, "more than"),
        ("counts", "warp_instructions", 1021, "more than"),
        ("counts", "warp_instructions", 979, "better than"),
    ],
)
def test_a_change_is_found(part: str, name: str, value: float, message: str) -> None:
    (problem,) = regress.differences(changed(part, name, value), RECORDED)
    assert message in problem


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("listing", "main_loop", 400),
        ("listing", "main_loop", 393),
        ("counts", "global_bytes_read", 9_900),
        ("counts", "warp_instructions", 1019),
    ],
)
def test_a_small_gain_is_no_difference(part: str, name: str, value: float) -> None:
    assert regress.differences(changed(part, name, value), RECORDED) == []


def test_another_ptxas_is_compared_loosely() -> None:
    def other(static: Static) -> Static:
        return dataclasses.replace(static, ptxas="12.9.86")

    for value in (300, 419):
        assert regress.differences(other(changed("listing", "main_loop", value)), RECORDED) == []
    for name, value in (("main_loop", 421), ("local_accesses", 1)):
        (problem,) = regress.differences(other(changed("listing", name, value)), RECORDED)
        assert "more than" in problem


def test_kernels_that_come_and_go() -> None:
    found = dataclasses.replace(RECORDED, listing={"b": LISTING})
    assert regress.differences(found, RECORDED) == [
        f"a: recorded, but not built; run `{regress.COMMAND}`",
        f"b: not recorded; run `{regress.COMMAND}`",
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    RECORDED.write(tmp_path / "static.json")
    assert Static.read(tmp_path / "static.json") == RECORDED
