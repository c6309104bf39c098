"""A small PTX program in the place of a registered kernel, so that every device can launch it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pykernels import _C
from pykernels.emulator import Module
from pykernels.emulator.arguments import Argument, pack_arguments
from pykernels.emulator.module import Kernel
from pykernels.native import native
from tests.emulator.ptx_program import ptx_entry

NAME = "quantize_1x128"  # whose cubin the CUDA path loads
_HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"


@dataclass(frozen=True)
class Program:
    """What NAME stands for until the test ends, or another program takes its place."""

    kernel: Kernel

    def launch(self, *args: Argument, grid: int = 1, **options: Any) -> _C.Launch:
        """CTAs of one thread, unless options say otherwise. The arrays must outlive the launch."""
        arguments, memory, _ = pack_arguments(self.kernel, args)
        block = options.pop("block", (1, 1, 1))
        ranges = [entry[:3] for entry in memory]
        return _C.Launch(NAME, (grid, 1, 1), block, arguments, memory=ranges, **options)


RegisterProgram = Callable[..., Program]


@contextmanager
def programs(folder: Path) -> Iterator[RegisterProgram]:
    """Yields what registers a body; its arguments by name decide the parameters' types."""
    (original,) = (info for info in native().registered_kernels() if info.name == NAME)
    fields = ("name", "family", "config", "threads", "registers", "dynamic_shared_bytes")
    kept = {field: getattr(original, field) for field in fields}
    kept |= {field: getattr(original, field) for field in ("param_bytes", "ptx_path")}
    kept |= {
        "cubin_path": original.cubin_path,
        "ptxas": f"{original.min_driver_version // 1000}.0",
    }
    count = 0

    def register(body: str, **args: Argument) -> Program:
        nonlocal count
        count += 1
        text = _HEADER + ptx_entry(body, args, name=NAME)
        path = folder / f"program{count}.ptx"
        path.write_text(text)
        kernel = Module.from_ptx(text)[NAME]
        changed = {"ptx_path": str(path), "param_bytes": kernel.native.param_bytes}
        native().register_kernel(**(kept | changed | {"dynamic_shared_bytes": 200 * 1024}))
        return Program(kernel)

    try:
        yield register
    finally:
        native().register_kernel(**kept)


@pytest.fixture
def register_program(tmp_path: Path) -> Iterator[RegisterProgram]:
    with programs(tmp_path) as register:
        yield register
