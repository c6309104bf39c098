"""Arguments of no use: a ValueError that names them, or PTX errors with their line."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import pykernels
from pykernels.emulator import (
    EmulationError,
    Emulator,
    Kernel,
    Launch,
    Module,
    PtxError,
    TensorMap,
    Trace,
    explore,
)
from tests.emulator.ptx_program import ptx_program

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"
HUGE = 10**5000  # more digits than Python prints


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


STORE = "st.global.u32 [x], 7;"
ARRAYS_OF_NO_USE = [
    (np.array([object(), object()]), "elements of plain bytes"),
    (np.zeros(2, [("a", "O"), ("b", "i8")]), "elements of plain bytes"),
    (np.array(["a", "bc"], np.dtypes.StringDType()), "elements of plain bytes"),
    (np.zeros(3, "V0"), "elements of plain bytes"),
    (np.zeros(3, ">i4"), "machine's byte order, got dtype >i4; convert it with"),
    (np.zeros(3, [("a", "<i4"), ("b", ">f4")]), "machine's byte order"),
]


@pytest.mark.parametrize(("array", "message"), ARRAYS_OF_NO_USE)
def test_arrays_whose_elements_no_kernel_reads(array: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    made = Module.from_ptx(ptx_program(STORE, {"x": None}))["kernel"]
    launch, a_launch = Launch(made, 1, 1, [array]), Launch(kernel(), 1, 1)
    calls: dict[str, Callable[[], object]] = {
        "x_param": lambda: Emulator().launch_concurrent([launch]),
        "tensor": lambda: Emulator().register(array),
        r"arrays\[0\]": lambda: explore(a_launch, arrays=[array], progress=False),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name} must .*{message}"):
            call()
    with pytest.raises(ValueError, match="tensor must"):
        TensorMap.encode_tiled(array, box=(1,))


def test_arrays_of_structs() -> None:
    array = np.zeros(2, [("a", "i4"), ("b", "f4")])
    made = Module.from_ptx(ptx_program(STORE, {"x": None}))["kernel"]
    Emulator().launch(made, 1, 1, [array]).raise_if_findings()
    assert array["a"].tolist() == [7, 0]


def test_tensors_that_only_pretend() -> None:
    with FakeTensorMode():
        fake = torch.zeros(4)
    with pytest.raises(ValueError, match="tensor must have memory of its own, got a FakeTensor"):
        Emulator().register(fake)


# ---- memory that is gone ----


def replace_data(tensor: torch.Tensor) -> None:
    tensor.data = torch.zeros(1)


def free_storage(tensor: torch.Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def resize(tensor: torch.Tensor) -> None:
    tensor.resize_(8192, 64)


@pytest.mark.parametrize("change", [replace_data, free_storage, resize])
def test_tensors_whose_memory_has_changed(change: Callable[[torch.Tensor], None]) -> None:
    tensor, other = torch.zeros(4096, 64), torch.zeros(4096, 64)
    tensor_map = TensorMap.encode_tiled(tensor, box=(8, 8))
    text = ptx_program("", {"map": None, "out": None})
    made = Module.from_ptx(text)["kernel"]
    launch = Launch(made, 1, 1, [tensor_map, other])
    emulator = Emulator()
    emulator.register(tensor)
    Emulator().launch_concurrent([launch])
    change(tensor)
    with pytest.raises(ValueError, match="map_param must lie"):
        Emulator().launch_concurrent([launch])
    with pytest.raises(ValueError, match="map_param must lie"):
        explore(launch, progress=False)
    with pytest.raises(ValueError, match="registered tensor 0 must lie"):
        emulator.launch(kernel(), 1, 1)


def test_an_array_that_is_resized() -> None:
    array = np.zeros(16)
    emulator = Emulator()
    emulator.register(array)
    array.resize(1 << 20, refcheck=False)
    with pytest.raises(ValueError, match="registered tensor 0 must lie where it lay"):
        emulator.launch(kernel(), 1, 1)


def test_a_tensor_without_its_storage() -> None:
    tensor = torch.zeros(64)
    free_storage(tensor)
    with pytest.raises(ValueError, match=r"must lie within its storage.*ends at byte 256 of 0"):
        Emulator().register(tensor)
    Emulator().register(torch.zeros(0))


def test_memory_lives_as_long_as_who_needs_it() -> None:
    tensor = torch.zeros(1 << 22)
    pointer = np.array([tensor.data_ptr()], np.int64)
    emulator = Emulator()
    emulator.register(tensor)
    del tensor
    made = Module.from_ptx(
        ptx_program("ld.global.u64 rd1, [x]; st.global.u32 [rd1 + 16777212], 7;", {"x": None})
    )["kernel"]
    emulator.launch(made, 1, 1, [pointer]).raise_if_findings()


def test_tensor_maps_are_not_copied_without_their_tensor() -> None:
    tensor_map = TensorMap.encode_tiled(torch.zeros(16, 16), box=(8, 8))
    assert copy.copy(tensor_map) is tensor_map
    for attempt in (copy.deepcopy, pickle.dumps, lambda x: copy.deepcopy([x])):
        with pytest.raises(TypeError, match="holds the address of its tensor"):
            attempt(tensor_map)


def test_launches_are_equal_to_themselves_alone() -> None:
    launches = [Launch(kernel(), 1, 1, []) for _ in range(2)]
    array = np.zeros((2, 2))
    made = Module.from_ptx(ptx_program(STORE, {"x": None}))["kernel"]
    launches += [Launch(made, 1, 1, [array]), Launch(made, 1, 1, [array])]
    assert len(set(launches)) == 4
    assert all((a == b) == (a is b) for a in launches for b in launches)


def test_values_without_memory_are_printed() -> None:
    tensor = torch.zeros(64)
    launch = Launch(kernel(), 1, 1, [tensor, HUGE])
    free_storage(tensor)
    assert "args=[a tensor of shape [64], an int of 16610 bits]" in repr(launch)
    with pytest.raises(ValueError, match=r"grid must be .*got a tensor of shape \[64\]"):
        Launch(kernel(), tensor, 1)  # type: ignore[arg-type]


# ---- kinds of values ----


@pytest.mark.parametrize(
    ("type", "value", "message"),
    [
        (".u32", np.zeros(4), "n is of type .u32 and takes an integer, got an array"),
        (".u32", None, "n is of type .u32 and takes an integer, got None"),
        (".f64", None, "n is of type .f64 and takes a float, got None"),
        (".f32", torch.zeros(1), "n is of type .f32 and takes a float, got an array"),
        (".u16", 1.5, "n is of type .u16 and takes no float, got 1.5"),
        (".u32", "huge", "n must fit 32 bits, got an int of 16610 bits"),
        (".f32", "huge", "n must fit a float, got an int of 16610 bits"),
        (".u32", "map", "n is of type .u32 and takes an integer, got a TensorMap"),
    ],
)
def test_values_of_another_kind(type: str, value: object, message: str) -> None:
    if isinstance(value, str):
        tensor_map = TensorMap.encode_tiled(torch.zeros(16, 16), box=(8, 8))
        value = {"map": tensor_map, "huge": HUGE}[value]
    text = f"{HEADER}.visible .entry kernel(.param {type} n)\n{{\n    ret;\n}}\n"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Emulator().launch(Module.from_ptx(text)["kernel"], 1, 1, [value])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(4), "m is of type .b8 and takes 64 bytes, got an array"),
        (None, "m is of type .b8 and takes 64 bytes, got None"),
        (3, "m is of type .b8 and takes 64 bytes, got the integer 3"),
        (b"123", "m must have 64 bytes, got 3"),
    ],
)
def test_values_in_place_of_a_struct(value: object, message: str) -> None:
    text = f"{HEADER}.visible .entry kernel(.param .align 64 .b8 m[64])\n{{\n    ret;\n}}\n"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Emulator().launch(Module.from_ptx(text)["kernel"], 1, 1, [value])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((300, 32), {"box": (300, 32)}, "box of dimension 0 must be from 1 to 256, got 300"),
        ((4, 512), {"box": (4, 512)}, "box of dimension 1 must be from 1 to 256, got 512"),
        ((4, 32), {"box": (4, 3)}, "box of dimension 1 must be a multiple of 16 bytes, got 12"),
        ((4, 33), {"box": (4, 32)}, "stride of dimension 0 must be a multiple of 16 bytes"),
        (
            (4, 6, 32),
            {"box": (1, 1, 4), "element_strides": (1, 9, 1)},
            "element stride of dimension 1 must be from 1 to 8, got 9",
        ),
    ],
)
def test_tensor_maps_number_dimensions_as_the_tensor(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TensorMap.encode_tiled(torch.zeros(shape), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"async_completion": "\udc00"}, "async_completion must be"),
        ({"async_completion": "Late"}, "async_completion must be"),
        ({"checks": "\udc00"}, "checks must be"),
        ({"checks": ["race", "\udc00"]}, "checks must be"),
        ({"checks": None}, "checks must be .* got None"),
        ({"checks": np.array(3)}, "checks must be"),
        ({"schedule": "\udc00"}, "schedule must be"),
        ({"trace": Trace(1, 0, "late", None)}, "runs of a trace must be a sequence"),  # type: ignore[arg-type]
        ({"trace": Trace(1, 0, "late", "ab")}, "runs of a trace must be a sequence"),  # type: ignore[arg-type]
        ({"trace": Trace(1, 0, "late", (None,))}, "a run of a trace must be a sequence"),  # type: ignore[arg-type]
        ({"trace": Trace(1, 0, "late", ((np.zeros(4),),))}, "a step of a trace must be"),  # type: ignore[arg-type]
        ({"trace": Trace(1, 0, "late", (((np.zeros(2), 0, 0),),))}, "a step of a trace must be"),  # type: ignore[arg-type]
        ({"trace": Trace(1, 0, "\udc00", ())}, "async_completion must be"),
    ],
)
def test_options_of_no_use(options: dict[str, Any], message: str) -> None:
    for make in (Emulator, pykernels.emulate):
        with pytest.raises(ValueError, match=message), make(**options):  # type: ignore[attr-defined]
            pass


def test_integers_of_thousands_of_digits() -> None:
    with pytest.raises(ValueError, match=r"seed must be at most .*, got an int of 16610 bits"):
        Emulator(seed=HUGE)
    with pytest.raises(ValueError, match=r"seed must be an integer, got \[an int of 16610 bits\]"):
        Emulator(seed=[HUGE])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be at most"):
        Emulator(trace=Trace(1, HUGE, "late", ()))
    with pytest.raises(ValueError, match="grid must be from"):
        Launch(kernel(), HUGE, 1)  # type: ignore[arg-type]


def test_an_option_that_does_not_exist() -> None:
    message = r"^emulate\(\) got an unexpected keyword argument 'foo'$"
    with pytest.raises(TypeError, match=message), pykernels.emulate(foo=1):
        pass


def test_values_are_shortened_in_messages() -> None:
    for value in (["x" * 10**6], "y" * 10**6, 10**4000):
        with pytest.raises(ValueError, match="grid must be") as caught:
            Launch(kernel(), value, 1)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match="grid must be one to three integers"):
        Launch(kernel(), itertools.count(), 1)  # type: ignore[arg-type]


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
