"""PTX modules and their kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pykernels import _C

if TYPE_CHECKING:
    import os


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel.

    Attributes:
        name: As in the PTX.
        type: PTX type, for example ``"u64"``; ``"b8"`` for by-value structs.
        offset: In the parameter block, bytes.
        bytes: Its size.
        alignment: In bytes.
    """

    name: str
    type: str
    offset: int
    bytes: int
    alignment: int


class Kernel:
    """An entry point of a module.

    Attributes:
        name: As in the PTX.
        params: Its parameters, in their order.
        static_shared_bytes: Shared memory that the kernel declares itself.
        required_threads: Threads of a CTA by ``.reqntid``, 0 if there is none.
        max_threads: Threads of a CTA by ``.maxntid``, 0 if there is none.
        required_cluster: CTAs of a cluster by ``.reqnctapercluster``, (x, y, z), None if there is
            none.
        max_cluster_rank: CTAs of a cluster by ``.maxclusterrank``, 0 if there is none.
    """

    def __init__(self, native: _C.emulator.Kernel) -> None:
        self.native = native
        self.name = native.name
        self.params = tuple(Parameter(*values) for values in native.params)
        self.static_shared_bytes = native.static_shared_bytes
        self.required_threads = native.required_threads
        self.max_threads = native.max_threads
        self.required_cluster = native.required_cluster if all(native.required_cluster) else None
        self.max_cluster_rank = native.max_cluster_rank

    def __repr__(self) -> str:
        params = ", ".join(f"{p.name}: {p.type}" for p in self.params)
        return f"Kernel({self.name}({params}))"


class Module:
    """A PTX module, parsed and resolved: every instruction is known."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = MappingProxyType(dict(kernels))

    @classmethod
    def from_ptx(cls, text: str) -> Module:
        """Load a module.

        Args:
            text: PTX for sm_90a, as nvcc, Triton, Numba or a person writes it.

        Raises:
            PtxError: the text is malformed or uses a form that the emulator does not know.
            ValueError: ``text`` is no string.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {type(text).__name__}")
        # What is no text (in a comment, a path) is replaced; anywhere else the parser refuses it.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return cls({native.name: Kernel(native) for native in _C.emulator.load_module(text)})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Module:
        """Load a module from a ``.ptx`` file; see :meth:`from_ptx`."""
        return cls.from_ptx(Path(path).read_text(encoding="utf-8", errors="replace"))

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """The kernels by name, in the order of the text."""
        return self._kernels

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._kernels:
            raise KeyError(f"no kernel {name!r}; the module has {list(self._kernels)}")
        return self._kernels[name]

    def __repr__(self) -> str:
        return f"Module({list(self._kernels)})"
