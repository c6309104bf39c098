"""nvcc runs once a test session, also where several workers share it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from kernel_build.toolkit import find_nvcc


def compile_once(
    factory: pytest.TempPathFactory, source: Path, *flags: str, name: str = ""
) -> Path:
    """The PTX of a CUDA file, compiled for sm_90a.

    Args:
        factory: pytest's; workers of one session have their folders side by side.
        source: The ``.cu`` file.
        flags: Further flags of nvcc.
        name: Tells the results of different flags apart.
    """
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = factory.mktemp("nvcc") if session is None else factory.getbasetemp().parent
    ptx = folder / f"{source.stem}{name}.ptx"
    with ptx.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ptx.exists():
            _compile(source, ptx, flags)
    return ptx


def _compile(source: Path, ptx: Path, flags: Sequence[str]) -> None:
    partial = ptx.with_suffix(".partial")
    command = [str(find_nvcc()), "-std=c++17", "-arch=compute_90a", "-ptx", *flags]
    subprocess.run([*command, "-o", str(partial), str(source)], check=True)
    partial.rename(ptx)
