"""One row of a table: an instruction form, a program around it, and what the program must write.

Expected values come from NumPy, ml_dtypes or are written out. The emulator runs a row through
:func:`emulate`, a GPU through :mod:`tests.emulator.isa.tables.replay`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pykernels.emulator import Emulator, Module, Report, TensorMap
from tests.emulator.ptx_program import ptx_entry

Array = npt.NDArray[Any]

_ALIGNMENT = 512  # as GPU allocations have at least
_HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"


@dataclass(frozen=True)
class Map:
    """A tensor map of one of the row's arrays."""

    tensor: str
    box: tuple[int, ...]
    swizzle: str = "none"

    def encode(self, arrays: Mapping[str, Array]) -> TensorMap:
        return TensorMap.encode_tiled(arrays[self.tensor], box=self.box, swizzle=self.swizzle)


@dataclass(frozen=True, eq=False)
class Row:
    """A form and a program that contains it.

    Attributes:
        form: Opcode with its modifiers, as in ``forms.txt``.
        body: Instructions in the registers of :mod:`tests.emulator.ptx_program`.
        inputs: Arrays, numbers and tensor maps by the name of the register that holds them.
        expected: Arrays as the launch leaves them, by name; those that are no inputs start as 0.
        module: Declarations at module scope; rows of one table that share a name share the text.
        also: Further forms that the program contains and its result depends on.
        tolerance: Relative error that the PTX ISA allows, where it leaves the result open.
    """

    form: str
    body: str
    inputs: Mapping[str, Array | int | bytes | Map]
    expected: Mapping[str, Array]
    module: str = ""
    also: tuple[str, ...] = ()
    grid: int = 1
    block: int = 32
    cluster: int = 1
    dynamic_smem_bytes: int = 0
    tolerance: float = 0.0
    note: str = ""

    @property
    def id(self) -> str:
        return f"{self.form}{'-' + self.note if self.note else ''}"

    @property
    def forms(self) -> tuple[str, ...]:
        return (self.form, *self.also)

    def uses(self, form: str) -> bool:
        """Whether a statement of the body, or of a function beside it, has this form."""
        text = f"{self.module} {self.body}"
        return re.search(rf"(?:^|[\s;{{}}]){re.escape(form)}[\s;]", text) is not None

    def arguments(self) -> dict[str, Array | int | bytes | Map]:
        """Fresh arguments, outputs that are no inputs zeroed."""
        zeros = {k: np.zeros_like(v) for k, v in self.expected.items() if k not in self.inputs}
        return {
            name: aligned(value) if isinstance(value, np.ndarray) else value
            for name, value in {**self.inputs, **zeros}.items()
        }

    def differences(self, results: Mapping[str, Array]) -> list[str]:
        """What differs from the expected values, bit for bit; any NaN equals any other."""
        return [
            text
            for name, wanted in self.expected.items()
            if (text := _difference(name, results[name], wanted, self.tolerance))
        ]


def aligned(array: Array) -> Array:
    """A copy that begins where a GPU allocation could."""
    storage = np.zeros(array.nbytes + _ALIGNMENT, np.uint8)
    start = -storage.ctypes.data % _ALIGNMENT
    copy = storage[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _difference(name: str, got: Array, wanted: Array, tolerance: float) -> str:
    if wanted.dtype.kind == "f":
        with np.errstate(all="ignore"):
            error = np.abs(got.astype(np.float64) - wanted) / np.abs(wanted.astype(np.float64))
        close = (error <= tolerance) & (tolerance > 0)
        same = (_bits(got) == _bits(wanted)) | (np.isnan(got) & np.isnan(wanted)) | close
    else:
        same = _bits(got) == _bits(wanted)
    if same.all():
        return ""
    (at, *_) = np.flatnonzero(~same.ravel())
    values = f"{got.ravel()[at]!r}, expected {wanted.ravel()[at]!r}"
    return f"{name}[{at}] is {values}; {np.count_nonzero(~same)} of {same.size} differ"


def _bits(values: Array) -> Array:
    return values.view(np.dtype(f"u{values.itemsize}"))


def module_text(rows: Iterable[Row]) -> str:
    """A module with a kernel ``row<i>`` for each row, which ptxas and the emulator take alike."""
    rows = list(rows)
    declarations = dict.fromkeys(row.module for row in rows if row.module)
    entries = [_entry(row, f"row{i}") for i, row in enumerate(rows)]
    return "\n".join([_HEADER, *declarations, *entries])


def _entry(row: Row, name: str) -> str:
    text = ptx_entry(row.body, _kinds(row), name=name)
    return text.replace("\n{\n", f"\n.reqntid {row.block}\n{{\n", 1)


def _kinds(row: Row) -> dict[str, object]:
    """Arguments by which ptx_entry knows the parameters' types."""
    arguments = row.arguments()
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    return {
        name: value.encode(arrays) if isinstance(value, Map) else value
        for name, value in arguments.items()
    }


def emulate(row: Row, **options: object) -> tuple[dict[str, Array], Report]:
    """The row's arrays after a launch in the emulator, and the report."""
    arguments = row.arguments()
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    values = [
        value.encode(arrays) if isinstance(value, Map) else value for value in arguments.values()
    ]
    report = Emulator(**options).launch(
        Module.from_ptx(module_text([row]))["row0"],
        (row.grid,),
        (row.block,),
        values,
        (row.cluster,),
        row.dynamic_smem_bytes,
    )
    return arrays, report
