"""Where nvcc and ptxas come from: the system's toolkit or the PyPI wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kernel_build.errors import BuildError

WHEELS = "nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl"


def find_nvcc(
    environment: Mapping[str, str] | None = None, packages: Sequence[str] | None = None
) -> Path:
    """Return nvcc: from CUDACXX, CUDA_HOME or CUDA_PATH, PATH, the wheels, in this order.

    Args:
        environment: the variables; None for those of this process.
        packages: the folders that may hold the wheels; None for Python's own, which include those
            of the environment that pip makes for a build.

    Raises:
        BuildError: a variable names no nvcc, or there is none anywhere.
    """
    environment = os.environ if environment is None else environment
    for source, nvcc in _named_candidates(environment):
        if not nvcc.is_file():
            raise BuildError(f"{source} is set, but {nvcc} does not exist")
        return nvcc
    on_path = shutil.which("nvcc", path=environment.get("PATH", ""))
    if on_path:
        return Path(on_path)
    for folder in sys.path if packages is None else packages:
        nvcc = Path(folder) / "nvidia" / "cu13" / "bin" / "nvcc"
        if nvcc.is_file():
            return nvcc
    raise BuildError(
        "no nvcc: set CUDACXX or CUDA_HOME, put nvcc on the PATH, install the wheels of the 13.0 "
        f"line ({WHEELS}), or set PYKERNELS_KERNELS_DIR to a folder of prebuilt kernels"
    )


def _named_candidates(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    if environment.get("CUDACXX"):
        named = environment["CUDACXX"]
        yield "CUDACXX", Path(shutil.which(named, path=environment.get("PATH", "")) or named)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(variable):
            yield variable, Path(environment[variable]) / "bin" / "nvcc"


def find_binaries(nvcc: Path) -> Path:
    """Return the folder of the toolkit that nvcc, perhaps a script that starts it, belongs to."""
    output = run([str(nvcc), "--dryrun", "-arch=sm_90a", "-cubin", "-x", "cu", "/dev/null"])
    here = re.search(r"^#\$ _HERE_=(.+)$", output, re.MULTILINE)
    return Path(here.group(1)) if here else nvcc.resolve().parent


def find_ptxas(binaries: Path) -> Path:
    """Return the toolkit's ptxas, or the one that ``PYKERNELS_PTXAS`` names.

    Cubins of ptxas 12.9 run on drivers from 525 on, those of ptxas 13 need 580.
    """
    ptxas = Path(os.environ.get("PYKERNELS_PTXAS") or binaries / "ptxas")
    if not ptxas.is_file():
        raise BuildError(f"there is no ptxas: {ptxas} does not exist")
    return ptxas


def release(tool: Path) -> str:
    """Return the version of nvcc or ptxas, for example ``13.0.88``."""
    output = run([str(tool), "--version"])
    version = re.search(r"release [0-9.]+, V([0-9.]+)", output)
    if version is None:
        raise BuildError(f"{tool} --version names no release: {output!r}")
    return version.group(1)


def run(command: list[str]) -> str:
    """Run a tool and return what it printed, or raise a BuildError that shows both."""
    try:
        result = subprocess.run(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not start: {error}") from error
    if result.returncode != 0:
        text = f"exit status {result.returncode} of: {' '.join(command)}\n{result.stdout}"
        raise BuildError(text)
    return result.stdout
