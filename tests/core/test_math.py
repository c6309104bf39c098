"""Arithmetic that host and device share, compiled for the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_fast_divisor(tmp_path: Path) -> None:
    program = tmp_path / "fast_divisor"
    source = Path(__file__).with_name("fast_divisor.cpp")
    compiler = [
        os.environ.get("CXX", "g++"),
        "-std=c++20",
        "-O2",
        "-Wall",
        "-Werror",
        f"-I{REPOSITORY / 'csrc'}",
    ]
    subprocess.run([*compiler, str(source), "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.stdout == "0\n"
