"""The example under torchrun, and the command that reads its statistics."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "moe_dispatch_combine.py"


@pytest.mark.parametrize("nodes", [[], ["--ranks-per-node", "2"]], ids=["one node", "two nodes"])
def test_under_torchrun(nodes: list[str], tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    ended = subprocess.run(
        [*run, str(EXAMPLE), *nodes, "--stats", str(stats)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if line.startswith("rank ")]
    assert len(lines) == 4
    received = [int(re.findall(r"received (\d+) rows for 4 experts", line)[0]) for line in lines]
    assert sum(received) == 4 * 64 * 4

    files = [f"{stats}.{rank}.json" for rank in range(4)]
    command = [sys.executable, "-m", "pykernels", "moe-stats", *files]
    table = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Waited for most: rank " in table.stdout
