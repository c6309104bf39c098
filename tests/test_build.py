"""What the build puts into the package: kernels, their metadata, the extension, the headers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_build import manifest, ptx

from tests.cubin import read_cubin

ROOT = Path(__file__).resolve().parent.parent
KERNELS = manifest.load(ROOT / "csrc" / "manifest.json")
BUILT = ROOT / "pykernels" / "kernels"
MAX_DENSE_GEMM_KERNELS = 40
MAX_KERNELS = 150

each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def read_metadata(kernel: manifest.Kernel) -> dict[str, object]:
    metadata = json.loads((BUILT / f"{kernel.name}.json").read_text())
    assert isinstance(metadata, dict)
    return metadata


def read_ptx(kernel: manifest.Kernel) -> str:
    return (BUILT / f"{kernel.name}.ptx").read_text()


def test_the_package_holds_the_kernels_of_the_manifest_and_no_others() -> None:
    expected = {
        f"{kernel.name}{suffix}" for kernel in KERNELS for suffix in (".ptx", ".cubin", ".json")
    }
    assert {path.name for path in BUILT.iterdir()} == expected


def test_the_number_of_kernels_is_within_the_budget() -> None:
    assert (
        len([kernel for kernel in KERNELS if kernel.family == "fp8_gemm_nt"])
        <= MAX_DENSE_GEMM_KERNELS
    )
    assert len(KERNELS) <= MAX_KERNELS


@each_kernel
def test_metadata_repeats_the_manifest(kernel: manifest.Kernel) -> None:
    metadata = read_metadata(kernel)
    assert (metadata["name"], metadata["family"]) == (kernel.name, kernel.family)
    assert metadata["config"] == kernel.config


@each_kernel
def test_metadata_agrees_with_the_machine_code(kernel: manifest.Kernel) -> None:
    metadata = read_metadata(kernel)
    cubin = read_cubin(BUILT / f"{kernel.name}.cubin")
    assert metadata["threads"] == cubin.threads
    assert metadata["registers"] == cubin.registers
    assert metadata["param_bytes"] == cubin.param_bytes


@each_kernel
def test_metadata_agrees_with_the_ptx(kernel: manifest.Kernel) -> None:
    metadata, text = read_metadata(kernel), read_ptx(kernel)
    assert f".version {metadata['ptx_version']}\n" in text
    assert f"{kernel.name}_shared_bytes" in text
    shared_bytes = metadata["dynamic_shared_bytes"]
    assert isinstance(shared_bytes, int)
    assert shared_bytes <= 232448  # what a CTA of sm_90 may have
    assert shared_bytes == 0 or f"{kernel.name}_shared_bytes = {shared_bytes};" in text


@each_kernel
def test_no_kernel_uses_local_memory(kernel: manifest.Kernel) -> None:
    assert read_cubin(BUILT / f"{kernel.name}.cubin").stack_bytes == 0
    assert not re.search(r"\.local\b", read_ptx(kernel))


@each_kernel
def test_floating_point_operations_that_could_fuse_name_their_rounding(
    kernel: manifest.Kernel,
) -> None:
    assert ptx.unrounded(read_ptx(kernel)) == []


@each_kernel
def test_source_paths_are_relative_to_the_repository(kernel: manifest.Kernel) -> None:
    paths = ptx.file_paths(read_ptx(kernel))
    assert f"generated/{kernel.name}.cu" in paths
    for path in paths:
        assert not Path(path).is_absolute()
        assert path.startswith(("generated/", "cuda/")) or (ROOT / path).is_file()
    assert str(ROOT) not in read_ptx(kernel)


def needed_libraries(library: Path) -> set[str]:
    listing = subprocess.run(
        ["readelf", "--dynamic", "--wide", str(library)], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"\(NEEDED\)\s+Shared library: \[([^\]]+)\]", listing.stdout))


def test_the_extension_links_only_the_language_runtime() -> None:
    (extension,) = (ROOT / "pykernels").glob("_C*.so")
    runtime = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libdl.so.2"}
    runtime |= {"libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert needed_libraries(extension) <= runtime


def host_and_device_sources() -> list[Path]:
    folders = (ROOT / "csrc", ROOT / "ptx")
    suffixes = {".h", ".cpp", ".cuh", ".cu"}
    return [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#include\s+[<"]([^">]+)[">]', path.read_text(), re.MULTILINE)


def test_no_source_includes_torch_or_cute() -> None:
    foreign = ("torch/", "ATen/", "c10/", "cute/", "cutlass/", "cuda_runtime")
    for path in host_and_device_sources():
        assert [name for name in includes(path) if name.startswith(foreign)] == [], path


LAYERS = {
    "ptx": 0,
    "core": 1,
    "quantize": 2,
    "gemm": 2,
    "mla": 2,
    "moe": 2,
    "emulator": 2,
    "bindings": 3,
}


def test_include_arrows_point_one_way() -> None:
    """Ptx <- core <- {quantize, gemm, mla, emulator} <- bindings; areas do not know each other."""
    wrong = []
    for path in host_and_device_sources():
        own = path.relative_to(ROOT).parts
        layer = own[0] if own[0] == "ptx" else own[1]
        for included in includes(path):
            other = included.split("/")[0]
            if other in LAYERS and other != layer and LAYERS[other] >= LAYERS[layer]:
                wrong.append(f"{path.relative_to(ROOT)} includes {included}")
    assert wrong == []


def test_the_ptx_headers_are_installed() -> None:
    installed = ROOT / "pykernels" / "include" / "pykernels" / "ptx"
    sources = {path.name: path.read_text() for path in (ROOT / "ptx").glob("*.cuh")}
    assert sources
    assert {path.name: path.read_text() for path in installed.iterdir()} == sources


def test_import_is_quick() -> None:
    """Under 0.5 s beyond torch's own import; the best of three, as other tests run beside it."""
    code = (
        "import time, torch; start = time.perf_counter(); import pykernels; "
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    times = [
        float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.5, times
