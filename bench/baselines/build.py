"""Compiles the CUTLASS baselines into shared libraries, once for each content.

``python -m bench.baselines.build [--out DIR]`` in a checkout; needs nvcc and the extra ``bench``.
A library, and beside it the cubin for its listing, is named by a hash of all that it depends on.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "build" / "baselines"
FOLDER_VARIABLE = "PYKERNELS_BASELINES_DIR"
_SOURCE = Path(__file__).with_name("cutlass_gemm.cu")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-gencode=arch=compute_90a,code=sm_90a",
    "--expt-relaxed-constexpr",
    "-shared",
    "-cudart=static",  # so that the library can be carried to a machine without a toolkit
    "-Xcompiler=-fPIC,-fvisibility=hidden",
)


BLOCKWISE, GROUPWISE, GROUPED = range(3)  # as there


@dataclasses.dataclass(frozen=True)
class Variant:
    """One instantiation of ``cutlass_gemm.cu``."""

    name: str
    variant: int
    block_m: int
    cluster_n: int

    @property
    def grouped(self) -> bool:
        return self.variant == GROUPED

    @property
    def definitions(self) -> list[str]:
        return [
            f"-DVARIANT={self.variant}",
            f"-DTILE_M={self.block_m}",
            f"-DCLUSTER_N={self.cluster_n}",
        ]


VARIANTS = (
    Variant("cutlass_groupwise_m128", GROUPWISE, 128, 2),
    Variant("cutlass_groupwise_m64", GROUPWISE, 64, 1),
    Variant("cutlass_blockwise_m128", BLOCKWISE, 128, 2),
    Variant("cutlass_grouped_m128", GROUPED, 128, 2),
    Variant("cutlass_grouped_m64", GROUPED, 64, 1),
)


def folder() -> Path:
    """Where the libraries are: ``PYKERNELS_BASELINES_DIR``, else the checkout's build folder."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)


def find(variant: Variant, suffix: str = ".so") -> Path | None:
    """The newest library (or cubin) of a variant in :func:`folder`; None if it is not built."""
    found = sorted(
        folder().glob(f"{variant.name}-*{suffix}"), key=lambda path: path.stat().st_mtime
    )
    return found[-1] if found else None


def cutlass_include() -> Path:
    """CUTLASS's headers, from the PyPI package nvidia-cutlass.

    Raises:
        RuntimeError: the package is not installed.
    """
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "the CUTLASS baselines need the package nvidia-cutlass; install it with "
            "`pip install pykernels[bench]`"
        )
    return Path(spec.origin).parent / "source" / "include"


def build(variant: Variant, out: Path) -> Path:
    """Compiles a variant unless ``out`` holds it already; returns the library.

    Raises:
        RuntimeError: nvcc or CUTLASS is missing, or it does not compile.
    """
    nvcc, nvcc_release = _nvcc()
    include = cutlass_include()
    version = importlib.metadata.version("nvidia-cutlass")
    parts = [_SOURCE.read_text(), *_FLAGS, *variant.definitions, nvcc_release, version]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    library = out / f"{variant.name}-{digest}.so"
    if library.exists() and library.with_suffix(".cubin").exists():
        return library
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        kept = Path(temporary)
        command = [str(nvcc), *_FLAGS, *variant.definitions, "-I", str(include)]
        command += ["-keep", "-keep-dir", str(kept), "-o", str(kept / "library.so"), str(_SOURCE)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{variant.name} does not compile:\n{result.stderr[-4000:]}")
        (kept / f"{_SOURCE.stem}.cubin").replace(library.with_suffix(".cubin"))
        (kept / "library.so").replace(library)
    return library


def _nvcc() -> tuple[Path, str]:
    """The compiler and its release, found as the package's own build finds it."""
    sys.path.insert(0, str(ROOT / "csrc"))
    try:
        from kernel_build.errors import BuildError
        from kernel_build.toolkit import find_nvcc, release
    except ImportError as error:
        raise RuntimeError("the CUTLASS baselines are built in a checkout") from error
    finally:
        sys.path.remove(str(ROOT / "csrc"))
    try:
        nvcc = find_nvcc()
        return nvcc, release(nvcc)
    except BuildError as error:
        raise RuntimeError(str(error)) from error


def main() -> int:
    """Build all variants, or those named."""
    parser = argparse.ArgumentParser(prog="bench.baselines.build", description=__doc__)
    parser.add_argument("names", nargs="*", help="of variants; all if none are given")
    parser.add_argument("--out", type=Path, default=folder())
    arguments = parser.parse_args()
    chosen = [v for v in VARIANTS if not arguments.names or v.name in arguments.names]
    try:
        for variant in chosen:
            print(build(variant, arguments.out), flush=True)
    except RuntimeError as error:
        print(f"bench.baselines.build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
