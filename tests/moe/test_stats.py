"""Statistics of waits: files, and the command that finds the slow rank."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykernels import cli, moe
from pykernels.moe.stats import WaitCounter
from tests.moe.checking import buffer_of
from tests.moe.routings import ROUTINGS


def waits_of(*seconds: float) -> list[moe.PeerWait]:
    return [moe.PeerWait(peer, each, 3 if each else 0) for peer, each in enumerate(seconds)]


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "rank2.json"
    moe.save_wait_stats(path, 2, waits_of(0.5, 0.25, 0))
    assert moe.load_wait_stats(path) == (2, waits_of(0.5, 0.25, 0))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(b"\x80\xae")
    with pytest.raises(
        ValueError, match=r"other\.json must be a file that pykernels\.moe\.save_wai"
    ):
        moe.load_wait_stats(path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "rank": 0}'])
def test_files_of_others(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"other\.json must be a file that pykernels\.moe\.save_wai"
    ):
        moe.load_wait_stats(path)


def test_counting() -> None:
    counter = WaitCounter(3)
    counter.add(1, 0.5)
    counter.add(1, 0.25)
    assert counter.stats() == [
        moe.PeerWait(0, 0, 0),
        moe.PeerWait(1, 0.75, 2),
        moe.PeerWait(2, 0, 0),
    ]


def test_nobody_waits_in_a_local_group() -> None:
    routing = ROUTINGS[4]
    stats = buffer_of(routing).wait_stats()
    assert stats == [waits_of(*[0.0] * routing.num_ranks)] * routing.num_ranks


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for rank, waits in enumerate([(0, 0.01, 0.9), (0.02, 0, 1.1), (0.005, 0.005, 0)]):
        files.append(str(tmp_path / f"{rank}.json"))
        moe.save_wait_stats(files[-1], rank, waits_of(*waits))
    assert cli.main(["moe-stats", *reversed(files)]) == 0
    printed = capsys.readouterr().out
    rows = [re.findall(r"[\d.]+", line) for line in printed.splitlines() if "│" in line]
    assert rows == [
        ["0", "0.000", "10.000", "900.000", "6"],
        ["1", "20.000", "0.000", "1100.000", "6"],
        ["2", "5.000", "5.000", "0.000", "6"],
    ]
    assert "Waited for most: rank 2, 2000.000 ms of 2040.000 ms (98 %)." in printed

    assert cli.main(["moe-stats", files[0], files[0]]) == 1
    assert "each file must be of another rank, got rank 0 twice" in capsys.readouterr().err
    assert cli.main(["moe-stats", str(tmp_path / "none.json")]) == 1
    moe.save_wait_stats(files[0], 0, waits_of(0, 0, 0))
    capsys.readouterr()
    assert cli.main(["moe-stats", files[0]]) == 0
    assert "No rank has waited for another." in capsys.readouterr().out


@pytest.mark.parametrize("num_ranks", [16, 64])
def test_many_ranks(num_ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No number is cut, however wide the table is."""
    seconds = [12.3456 * peer for peer in range(num_ranks)]
    moe.save_wait_stats(tmp_path / "0.json", 0, waits_of(*seconds))
    assert cli.main(["moe-stats", str(tmp_path / "0.json")]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [f"{1000 * each:.3f}" for each in seconds]
    assert re.findall(r"[^│ ]+", row) == ["0", *cells, str(3 * (num_ranks - 1))]
