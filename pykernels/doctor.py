"""What this machine has, and what will run where: ``python -m pykernels doctor``."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pykernels.native import KERNELS_DIR, kernel_metadata, native

if TYPE_CHECKING:
    from rich.console import Console

Row = tuple[str, str]


def run(console: Console) -> int:
    """Prints both tables. Status 0 if kernels run at least in the emulator, else 1."""
    from rich.markup import escape
    from rich.table import Table

    machine = Table(title="This machine")
    machine.add_column("what")
    machine.add_column("found")
    for what, found in machine_rows():
        machine.add_row(what, escape(found))
    console.print(machine)

    where = Table(title="What runs where")
    where.add_column("tensors")
    where.add_column("computed by")
    rows, usable = placement()
    for tensors, computed_by in rows:
        where.add_row(tensors, escape(computed_by))
    console.print(where)
    return 0 if usable else 1


def machine_rows() -> Iterator[Row]:
    """What is installed, each row found out by itself so that one failure hides no other."""
    yield "Python", f"{platform.python_version()} ({platform.machine()})"
    yield "torch", _torch()
    yield from _driver()
    yield "toolkit", _toolkit()
    yield "extension", _extension()
    yield "kernels", _kernels()


def placement() -> tuple[list[Row], bool]:
    """Where tensors are computed, and whether the kernels run anywhere."""
    emulator = _emulator_problem()
    gpu = _gpu_placement()
    emulated = "the PTX emulator, the GPU's bits" if emulator is None else f"nothing: {emulator}"
    rows = [
        ("CUDA", gpu),
        ("CPU", "torch, vectorised; sums in FP32"),
        ("CPU, inside pykernels.emulate()", emulated),
    ]
    return rows, emulator is None


def _torch() -> str:
    cuda = torch.version.cuda
    build = f"built for CUDA {cuda}" if cuda else "built without CUDA"
    if not cuda:
        return f"{torch.__version__}, {build}"
    return f"{torch.__version__}, {build}, sees {torch.cuda.device_count()} GPUs"


def _driver() -> Iterator[Row]:
    try:
        info = native().driver_info()
    except RuntimeError as error:
        yield "driver", f"unknown: {error}"
        return
    if info["version"] is None:
        yield "driver", f"none: {info['error']}"
        yield "GPU", "none"
        return
    version = info["version"]
    yield "driver", f"for CUDA {version // 1000}.{version % 1000 // 10}"
    for index, device in enumerate(info["devices"]):
        major, minor = device.compute_capability
        yield f"GPU {index}", f"{device.name}, sm_{major}{minor}, {device.num_sms} SMs"
    if not info["devices"]:
        yield "GPU", f"none: {info['error'] or 'the driver lists no device'}"


def _toolkit() -> str:
    """Needed to build kernels, never to run them."""
    found = os.environ.get("CUDACXX") or shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME")
    if found is None and home:
        found = str(Path(home) / "bin" / "nvcc")
    if found is None:
        return "no nvcc; not needed to run"
    try:
        text = subprocess.run(
            [found, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{found} does not run: {error}"
    release = re.search(r"release ([0-9.]+)", text)
    return f"nvcc {release.group(1) if release else '(unknown release)'}, {found}"


def _extension() -> str:
    try:
        return str(native().__file__)
    except RuntimeError as error:
        return f"none: {error}"


def _kernels() -> str:
    try:
        kernels = kernel_metadata()
    except RuntimeError as error:
        return f"none: {error}"
    families = Counter(str(kernel["family"]) for kernel in kernels)
    counts = ", ".join(f"{count} {family}" for family, count in sorted(families.items()))
    tools = sorted({f"nvcc {kernel.get('nvcc', '?')}" for kernel in kernels})
    return f"{len(kernels)} in {KERNELS_DIR} ({counts}; {', '.join(tools)})"


def _emulator_problem() -> str | None:
    try:
        native().EmulatedDevice()
    except RuntimeError as error:
        return str(error)
    return None


def _gpu_placement() -> str:
    if not torch.cuda.is_available():
        return "nothing: torch sees no GPU"
    lines = []
    for index in range(torch.cuda.device_count()):
        try:
            device = native().CudaDevice(index, 0)
            lines.append(f"cuda:{index}: the cubins, on {device.properties.name}")
        except RuntimeError as error:
            lines.append(f"cuda:{index}: nothing: {error}")
    return "\n".join(lines)
