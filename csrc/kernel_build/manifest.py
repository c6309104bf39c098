"""The manifest: which kernels there are, and the CUDA source of each one's entry point."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from kernel_build.errors import BuildError

_TEXT_FIELDS = ("name", "family", "header", "body", "config_type", "params")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_SOURCE = """\
// {name}, family {family}: generated from csrc/manifest.json.
#include "{header}"

namespace {{

constexpr {config_type} kConfig{{{initializers}}};

}}  // namespace

extern "C" __device__ const unsigned int {name}_shared_bytes = {body}_shared_bytes<kConfig>();

extern "C" __global__ void __launch_bounds__(kConfig.num_threads(), {ctas_per_sm})
    {name}(const __grid_constant__ {params} params) {{
  {body}<kConfig>(params);
}}
"""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One entry of the manifest.

    Attributes:
        name: the entry point, and the stem of the kernel's files.
        family: which host function chooses among the kernels that share it.
        header: include path of the header that defines the body.
        body: qualified name of the function template ``body<kConfig>(const Params&)``; the header
            also defines ``body_shared_bytes<kConfig>()``, the dynamic shared memory in bytes.
        config_type: qualified name of the config struct, with ``constexpr num_threads()``.
        config: the config's fields in the order of their declaration. A field ``ctas_per_sm``
            bounds the registers, so that an SM holds so many CTAs; without it they may fill the SM.
        params: qualified name of the one by-value parameter struct.
    """

    name: str
    family: str
    header: str
    body: str
    config_type: str
    params: str
    config: dict[str, int]

    def source(self) -> str:
        """Return the CUDA source of the entry point."""
        fields = dataclasses.asdict(self)
        initializers = [f".{field} = {_literal(value)}" for field, value in self.config.items()]
        bound = "kConfig.ctas_per_sm" if "ctas_per_sm" in self.config else "1"
        return _SOURCE.format(**fields, initializers=", ".join(initializers), ctas_per_sm=bound)


def _literal(value: int) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def load(path: Path) -> list[Kernel]:
    """Read the manifest.

    Raises:
        BuildError: a field is missing, unknown or of the wrong type, or a name stands twice.
    """
    try:
        entries = json.loads(path.read_text())["kernels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{path}: not a manifest with a list 'kernels': {error!r}") from error
    kernels = [_kernel(path, entry) for entry in entries]
    names = [kernel.name for kernel in kernels]
    for name in names:
        if names.count(name) > 1:
            raise BuildError(f"{path}: kernel {name} is listed {names.count(name)} times")
    return kernels


def _kernel(path: Path, entry: dict[str, object]) -> Kernel:
    if set(entry) != {*_TEXT_FIELDS, "config"}:
        wanted = ", ".join((*_TEXT_FIELDS, "config"))
        raise BuildError(f"{path}: an entry must have the fields {wanted}, got {', '.join(entry)}")
    texts = {field: entry[field] for field in _TEXT_FIELDS}
    for field, text in texts.items():
        if not isinstance(text, str) or not text:
            raise BuildError(f"{path}: {field} must be a text, got {text!r}")
    name, config = str(texts["name"]), entry["config"]
    if not _IDENTIFIER.fullmatch(name):
        raise BuildError(f"{path}: name must be an identifier, got {name!r}")
    if not isinstance(config, dict) or not all(isinstance(v, int) for v in config.values()):
        raise BuildError(f"{path}: config of {name} must map names to integers, got {config!r}")
    return Kernel(config=config, **{field: str(text) for field, text in texts.items()})


def select(kernels: list[Kernel], name: str) -> Kernel:
    """Return the kernel of this name, or raise a BuildError that lists the known ones."""
    for kernel in kernels:
        if kernel.name == name:
            return kernel
    raise BuildError(f"no kernel {name}; known: {', '.join(k.name for k in kernels)}")
