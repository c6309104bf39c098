"""From a generated source to PTX, cubin and metadata; or from prebuilt files to the same."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from kernel_build import assembler, ptx, toolkit
from kernel_build.errors import BuildError
from kernel_build.manifest import Kernel

SUFFIXES = (".ptx", ".cubin", ".json")
NVCC_FLAGS = (
    "-std=c++20",
    "-fmad=false",
    "-lineinfo",
    "-arch=compute_90a",
    "-ptx",
    "-Werror=all-warnings",
)
PTXAS_FLAGS = ("-arch=sm_90a", "-lineinfo", "-v")


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where a build reads and writes.

    Attributes:
        repository: what the includes ``core/...`` (below csrc) and ``ptx/...`` are relative to.
        generated: the entry points' sources.
        output: the finished kernels.
    """

    repository: Path
    generated: Path
    output: Path


def generate(kernels: list[Kernel], folders: Folders) -> None:
    """Write every kernel's source, leaving files that already say the same untouched."""
    folders.generated.mkdir(parents=True, exist_ok=True)
    for kernel in kernels:
        _write_if_changed(folders.generated / f"{kernel.name}.cu", kernel.source())
    _remove_unknown(kernels, folders.generated, {".cu"})


def compile_kernel(kernel: Kernel, folders: Folders, depfile: Path) -> None:
    """Compile one generated source to PTX, assemble that PTX, write the metadata.

    Args:
        kernel: the manifest's entry.
        folders: where to read and write.
        depfile: gets, in make's syntax, the files that the PTX was made from.

    Raises:
        BuildError: a tool fails, or the PTX or the cubin is not what the library ships.
    """
    nvcc = toolkit.find_nvcc()
    binaries = toolkit.find_binaries(nvcc)
    ptxas = toolkit.find_ptxas(binaries)
    folders.output.mkdir(parents=True, exist_ok=True)
    ptx_path, cubin_path, json_path = (folders.output / (kernel.name + s) for s in SUFFIXES)
    scratch = folders.generated / f"{kernel.name}.ptx"
    include = [f"-I{folders.repository}", f"-I{folders.repository / 'csrc'}"]
    files = [str(folders.generated / f"{kernel.name}.cu"), "-o", str(scratch)]
    depend = ["-MD", "-MF", str(depfile), "-MT", str(ptx_path)]
    toolkit.run([str(nvcc), *NVCC_FLAGS, *include, *depend, *files])
    text = ptx.relative_paths(scratch.read_text(), _roots(folders, binaries))
    unrounded = ptx.unrounded(text)
    if unrounded:
        raise BuildError(
            f"{scratch}: floating-point operations that ptxas may fuse, write __fadd_rn, "
            f"__fmul_rn or fmaf: {', '.join(unrounded)}"
        )
    tools = {"nvcc": toolkit.release(nvcc), "ptxas": toolkit.release(ptxas)}
    text = ptx.stamped(text, tools["ptxas"])
    ptx_path.write_text(text)
    log = toolkit.run([str(ptxas), *PTXAS_FLAGS, str(ptx_path), "-o", str(cubin_path)])
    try:
        registers = assembler.registers(log)
    except BuildError as error:
        raise BuildError(f"{kernel.name}: {error}") from error
    metadata = _metadata(kernel, text, registers) | tools
    json_path.write_text(json.dumps(metadata, indent=2) + "\n")


def copy_prebuilt(kernels: list[Kernel], source: Path, folders: Folders) -> None:
    """Copy finished kernels from a folder, instead of compiling them.

    Raises:
        BuildError: a file is missing, or was built for another config.
    """
    folders.output.mkdir(parents=True, exist_ok=True)
    for kernel in kernels:
        for suffix in SUFFIXES:
            if not (source / (kernel.name + suffix)).is_file():
                raise BuildError(f"PYKERNELS_KERNELS_DIR={source} has no {kernel.name}{suffix}")
        built = json.loads((source / f"{kernel.name}.json").read_text()).get("config")
        if built != kernel.config:
            raise BuildError(
                f"PYKERNELS_KERNELS_DIR={source}: {kernel.name} was built for the config {built}, "
                f"the manifest has {kernel.config}"
            )
        for suffix in SUFFIXES:
            shutil.copyfile(
                source / (kernel.name + suffix), folders.output / (kernel.name + suffix)
            )


def remove_stale(kernels: list[Kernel], folders: Folders) -> None:
    """Remove finished kernels that the manifest no longer lists."""
    if folders.output.is_dir():
        _remove_unknown(kernels, folders.output, set(SUFFIXES))


def _metadata(kernel: Kernel, text: str, registers: int) -> dict[str, object]:
    return {
        "name": kernel.name,
        "family": kernel.family,
        "config": kernel.config,
        "threads": ptx.threads(text, kernel.name),
        "registers": registers,
        "dynamic_shared_bytes": ptx.shared_bytes(text, kernel.name),
        "param_bytes": ptx.param_bytes(text, kernel.name),
        "ptx_version": ptx.version(text),
    }


def _roots(folders: Folders, binaries: Path) -> dict[Path, str]:
    return {
        folders.generated.resolve(): "generated",
        folders.repository.resolve(): "",
        binaries.resolve().parent: "cuda",
    }


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def _remove_unknown(kernels: list[Kernel], folder: Path, suffixes: set[str]) -> None:
    known = {kernel.name for kernel in kernels}
    for path in folder.iterdir():
        if path.suffix in suffixes and path.stem not in known:
            path.unlink()
