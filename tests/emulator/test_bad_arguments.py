"""Arguments of no use: a ValueError that names them, or PTX errors with their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pykernels.emulator import (
    EmulationError,
    Emulator,
    Kernel,
    Launch,
    Module,
    PtxError,
    TensorMap,
)
from tests.emulator.ptx_program import ptx_program


def kernel() -> Kernel:
    return Module.from_ptx(ptx_program("", {}))["kernel"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 1.5}, "grid must be one to three integers, got 1.5"),
        ({"block": None}, "block must be one to three integers, got None"),
        ({"dynamic_smem_bytes": 1.5}, "dynamic_smem_bytes must be an integer, got 1.5"),
        ({"dynamic_smem_bytes": -1}, "dynamic_smem_bytes must be at least 0, got -1"),
        ({"registers": -5}, "registers must be at least 0, got -5"),
        ({"registers": 10**6}, "registers must be at most 256"),
        ({"args": None}, "args must be a sequence"),
        ({"kernel": "copy"}, "kernel must be a Kernel of a Module, got 'copy'"),
    ],
)
def test_bad_types_of_a_launch(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Launch(**{"kernel": kernel(), "grid": 1, "block": 32, **changes})


def test_numpy_integers_are_integers() -> None:
    launch = Launch(kernel(), np.int64(3), (np.int32(32), 1))  # type: ignore[arg-type]
    assert (launch.grid, launch.block) == ((3, 1, 1), (32, 1, 1))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 3).to_sparse(), "dense tensor, got torch.sparse_coo"),
        (torch.zeros(3, dtype=torch.complex64).conj().imag, "lazily negated"),
    ],
)
def test_tensors_without_plain_memory(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Emulator().register(tensor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": (-1, 8)}, r"box\[0\] must be at least 0, got -1"),
        ({"box": (1.5, 8)}, r"box\[0\] must be an integer, got 1.5"),
        ({"box": (8, 2**40)}, r"box\[1\] must be at most 4294967295"),
        ({"box": None}, "box must have one value per dimension"),
        ({"box": (8, 8), "swizzle": []}, "swizzle must be one of none"),
    ],
)
def test_bad_types_of_a_tensor_map(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorMap.encode_tiled(torch.zeros(16, 16), **options)


@pytest.mark.parametrize("text", [None, b".version 9.0", 3])
def test_ptx_that_is_no_string(text: Any) -> None:
    with pytest.raises(ValueError, match="text must be a string, got"):
        Module.from_ptx(text)


def test_instructions_without_registers_are_named() -> None:
    text = (
        ".version 9.0\n.target sm_90a\n.address_size 64\n.entry bare()\n{\n    trap;\n    ret;\n}\n"
    )
    with pytest.raises(EmulationError, match="PTX line 6: trap") as caught:
        Emulator().launch(Module.from_ptx(text)["bare"], 1, 32)
    (finding,) = caught.value.report.findings
    assert finding.first is not None
    assert finding.first.ptx == "trap"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    program = ptx_program("", {})
    path = tmp_path / "latin.ptx"
    path.write_bytes(b"// J\xfcrgen\n" + program.encode())
    assert list(Module.from_file(path).kernels) == ["kernel"]
    assert list(Module.from_ptx("// \udcfc\n" + program).kernels) == ["kernel"]
    for line in ("é" * 200, "\udcfc", "x" + "é" * 200):
        with pytest.raises(PtxError) as caught:
            Module.from_ptx(program + line)
        assert caught.value.line == program.count("\n") + 1
