"""Annotated PTX programs: ``fail/`` holds one per kind of finding, ``pass/`` the right idiom.

A program is a PTX file. The comment that opens it says what goes wrong on a GPU and why, and how to
run it and what must come of it, one key a line:

    launch: grid=2 block=32 cluster=2 smem=1024 rank=0 pdl=1 registers=128 kernel=name n=5
        One line a launch; several run together. `smem` is dynamic shared memory, `pdl` a
        programmatic dependent launch, `sms` the SMs, `limit` the warp instructions after which
        the emulator gives up. Other keys are parameters of the kernel, by name.
    args: out:u32[64]=0 x:f16[8x16]=1 y:u32[32]=range m:map=x,box:8x8,swizzle:128B
        Parameters by name: arrays filled with a number or with 0, 1, 2, ..., or holding the bytes
        of a tensor map (`=map:x`), and tensor maps of arrays.
    finds: race "text" "text"
        A finding of this kind whose message holds these texts. Every run must report it.
    or finds: sync "text"
        What may stand in place of the one above, in schedules where something else comes first.
    may find: init "text"
        What some schedules report besides.
    ends
        Every run ends with an EmulationError. `may end`: some do.
    expects: out = arange(64)
        The array after the run, as a NumPy expression.

The guilty lines carry ``// <-- first`` (where the finding is reported) and ``// <-- second``, or
``// <-- either`` twice where the schedule decides which of the two accesses comes later. A number
behind it says which `finds` is meant if there are several.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pykernels.emulator import (
    EmulationError,
    Emulator,
    Finding,
    Kernel,
    Launch,
    Module,
    Report,
    TensorMap,
)
from pykernels.emulator.arguments import Argument

HERE = Path(__file__).resolve().parent
Array = npt.NDArray[np.generic]

_KEY = re.compile(
    r"^// (launch|args|finds|or finds|may find|expects|(?:may end|ends)$)(?:: (.*))?$"
)
_MARKER = re.compile(r"<-- (first|second|either)(?: of (\d+))?")
_ARRAY = re.compile(r"(?P<type>\w+)\[(?P<shape>[\dx]+)\]=(?P<fill>.+)")
_ALIGNMENT = 1024  # of every array, in bytes
_TYPES = {"u8": "uint8", "u32": "uint32", "u64": "uint64", "f16": "float16", "f32": "float32"}
_EXPRESSION_NAMES = {name: getattr(np, name) for name in ("arange", "array", "full", "ones")}
_SETTINGS = (
    "kernel",
    "grid",
    "block",
    "cluster",
    "smem",
    "rank",
    "pdl",
    "registers",
    "sms",
    "limit",
)


@dataclass(frozen=True)
class Expected:
    """A finding as the header states it, with the lines that are marked for it."""

    kind: str
    texts: tuple[str, ...]
    first: int | None = None
    second: int | None = None
    either: frozenset[int] = frozenset()

    def matches(self, finding: Finding) -> bool:
        if finding.kind != self.kind or not all(text in finding.message for text in self.texts):
            return False
        lines = [site.ptx_line for site in finding.sites]
        if self.either:
            return bool(lines) and self.either.issuperset(lines[:2])
        marked = [line for line in (self.first, self.second) if line is not None]
        return lines[: len(marked)] == marked

    def __str__(self) -> str:
        lines = sorted(self.either) or [self.first, self.second]
        return f"{self.kind} {self.texts} at PTX lines {lines}"


@dataclass
class Program:
    """One annotated program."""

    path: Path
    text: str
    launches: list[dict[str, str]] = field(default_factory=list)
    args: dict[str, str] = field(default_factory=dict)
    finds: list[list[Expected]] = field(default_factory=list)  # each with its alternatives
    may_find: list[Expected] = field(default_factory=list)
    ends: bool = False
    may_end: bool = False
    expects: dict[str, str] = field(default_factory=dict)

    def run(self, *, seed: int, async_completion: str) -> Outcome:
        """Run it on fresh arguments."""
        values = _values(self.args)
        module = Module.from_ptx(self.text)
        launches = [_launch(module, settings, values) for settings in self.launches]
        first = self.launches[0]
        emulator = Emulator(
            num_sms=int(first.get("sms", 132)),
            seed=seed,
            async_completion=async_completion,
            max_warp_instructions=int(first.get("limit", 1 << 32)),
        )
        ended = False
        try:
            report = emulator.launch_concurrent(launches)
        except EmulationError as error:
            report, ended = error.report, True
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return Outcome(report, ended, arrays)

    def expected_value(self, name: str) -> Array:
        """What `expects` says of this array."""
        names = {"__builtins__": {}, **_EXPRESSION_NAMES}
        return np.asarray(eval(self.expects[name], names))


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    report: Report
    ended: bool
    arrays: dict[str, Array]


def load(path: Path) -> Program:
    """Read a program's header and markers.

    Raises:
        ValueError: a line of the header is not as the module's comment says.
    """
    program = Program(path, path.read_text())
    marked = _markers(program.text)
    for line in program.text.splitlines():
        key = _KEY.match(line)
        if key is None:
            continue
        name, value = key[1], key[2]
        if name == "launch":
            program.launches.append(dict(pair.split("=", 1) for pair in value.split()))
        elif name == "args":
            program.args = dict(pair.split(":", 1) for pair in value.split())
        elif name == "expects":
            array, expression = value.split(" = ", 1)
            program.expects[array] = expression
        elif name in ("ends", "may end"):
            program.ends, program.may_end = name == "ends", name == "may end"
        elif name == "finds":
            program.finds.append([_expected(value, marked.get(len(program.finds) + 1, {}))])
        elif name == "or finds":
            program.finds[-1].append(_expected(value, {}))
        else:
            program.may_find.append(_expected(value, {}))
    if not program.launches:
        raise ValueError(f"{path} has no launch")
    return program


def _markers(text: str) -> dict[int, dict[str, list[int]]]:
    """Lines by the number of the finding and the marker."""
    marked: dict[int, dict[str, list[int]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for role, finding in _MARKER.findall(line):
            marked.setdefault(int(finding or 1), {}).setdefault(role, []).append(number)
    return marked


def _expected(value: str, marked: dict[str, list[int]]) -> Expected:
    kind, *texts = shlex.split(value)
    sides = {role: lines[0] for role, lines in marked.items() if role != "either"}
    if any(len(lines) != 1 for role, lines in marked.items() if role != "either"):
        raise ValueError(f"two lines are marked as one side of {value}")
    return Expected(kind, tuple(texts), either=frozenset(marked.get("either", ())), **sides)


def _values(args: dict[str, str]) -> dict[str, Argument]:
    values: dict[str, Argument] = {}
    for name, text in args.items():
        if text.startswith("map="):
            values[name] = _tensor_map(text.removeprefix("map="), values)
            continue
        array = _ARRAY.fullmatch(text)
        if array is None:
            raise ValueError(f"not an argument: {name}:{text}")
        shape = tuple(int(size) for size in array["shape"].split("x"))
        values[name] = _filled(shape, np.dtype(_TYPES[array["type"]]), array["fill"], values)
    return values


def _filled(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], fill: str, values: dict[str, Argument]
) -> Array:
    count = int(np.prod(shape))
    storage = np.zeros(count * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -storage.ctypes.data % _ALIGNMENT
    flat = storage[start : start + count * dtype.itemsize].view(dtype)
    if fill.startswith("map:"):
        flat[:] = np.frombuffer(bytes(values[fill.removeprefix("map:")]), dtype)  # type: ignore[arg-type]
    else:
        flat[:] = np.arange(count) if fill == "range" else float(fill)
    return flat.reshape(shape)


def _tensor_map(text: str, values: dict[str, Argument]) -> TensorMap:
    tensor, *options = text.split(",")
    given = dict(option.split(":") for option in options)
    box = tuple(int(size) for size in given.pop("box").split("x"))
    return TensorMap.encode_tiled(values[tensor], box=box, **given)  # type: ignore[arg-type]


def _launch(module: Module, settings: dict[str, str], values: dict[str, Argument]) -> Launch:
    kernel: Kernel = module[settings.get("kernel", "kernel")]
    scalars = {name: int(value, 0) for name, value in settings.items() if name not in _SETTINGS}
    args = [{**values, **scalars}[parameter.name] for parameter in kernel.params]
    number = {name: int(settings.get(name, 0)) for name in ("smem", "rank", "pdl", "registers")}
    extra = {"rank": number["rank"]} if number["rank"] else {}
    return Launch(
        kernel,
        _dims(settings["grid"]),
        _dims(settings["block"]),
        args,
        cluster=_dims(settings.get("cluster", "1")),
        dynamic_smem_bytes=number["smem"],
        programmatic_dependent=bool(number["pdl"]),
        registers=number["registers"],
        **extra,
    )


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))
