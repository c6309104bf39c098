"""The wheel holds everything, built from a copy of the sources with no network and no nvcc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "pykernels" / "kernels"
SOURCES = ("bench", "csrc", "cmake", "ptx", "pykernels")  # pykernels/bench is a link to bench
FILES = ("CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


def copy_sources(folder: Path) -> None:
    ignore = shutil.ignore_patterns("_C*.so", "kernels", "include", "__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore, symlinks=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel with prebuilt kernels, made without network and without nvcc."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    copy_sources(sources)
    hidden = ("CUDACXX", "CUDA_HOME", "CUDA_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = "/usr/bin:/bin"
    environment["PYKERNELS_KERNELS_DIR"] = str(BUILT)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--wheel-dir", str(folder), str(sources)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("pykernels-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_holds_the_package_and_nothing_else(wheel_names: set[str]) -> None:
    expected = {f"pykernels/kernels/{path.name}" for path in BUILT.iterdir()}
    expected |= {f"pykernels/include/pykernels/ptx/{p.name}" for p in (ROOT / "ptx").glob("*.cuh")}
    sources = [path for path in (ROOT / "pykernels").rglob("*") if path.suffix in {".py", ".pyi"}]
    expected |= {str(path.relative_to(ROOT)) for path in sources}
    bench = [path for path in (ROOT / "bench").rglob("*") if path.suffix in {".py", ".cu"}]
    expected |= {f"pykernels/{path.relative_to(ROOT)}" for path in bench}
    expected.add("pykernels/bench/peers.json")
    expected.add("pykernels/py.typed")
    extension = {name for name in wheel_names if name.startswith("pykernels/_C.") and ".so" in name}
    assert len(extension) == 1
    package = {name for name in wheel_names if ".dist-info/" not in name}
    assert package - extension == expected
