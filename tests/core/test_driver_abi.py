"""Our declarations of the CUDA driver against cuda.h, by the host compiler."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import triton
from kernel_build import toolkit
from kernel_build.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]


def cuda_include() -> Path:
    """The folder of cuda.h: that of nvcc's toolkit, else the copy that Triton brings along."""
    try:
        toolkit_root = toolkit.find_binaries(toolkit.find_nvcc()).resolve().parent
    except BuildError:
        toolkit_root = Path("/nonexistent")
    for folder in (toolkit_root / "include", toolkit_root / "targets" / "x86_64-linux" / "include"):
        if (folder / "cuda.h").is_file():
            return folder
    return Path(triton.__file__).parent / "backends" / "nvidia" / "include"


def test_declarations_match_cuda_h() -> None:
    include = cuda_include()
    assert (include / "cuda.h").is_file()
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror"]
    command += [f"-I{ROOT / 'csrc'}", f"-isystem{include}"]
    command += [str(Path(__file__).with_name("driver_abi.cpp"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
