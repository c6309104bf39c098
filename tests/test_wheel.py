"""The wheel holds everything, built from a copy of the sources with no network and no nvcc."""

from __future__ import annotations

import dataclasses
import json
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


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel and the copy of the sources that it was built from."""

    path: Path
    sources: Path

    def names(self) -> set[str]:
        return set(zipfile.ZipFile(self.path).namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """With prebuilt kernels, made without network and without nvcc."""
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
    (path,) = folder.glob("pykernels-*.whl")
    return Wheel(path, sources)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Wheel) -> None:
    root = wheel.sources
    expected = {f"pykernels/kernels/{path.name}" for path in BUILT.iterdir()}
    expected |= {f"pykernels/include/pykernels/ptx/{p.name}" for p in (root / "ptx").glob("*.cuh")}
    package = [path for path in (root / "pykernels").rglob("*") if path.suffix in {".py", ".pyi"}]
    expected |= {str(path.relative_to(root)) for path in package}
    bench = [path for path in (root / "bench").rglob("*") if path.suffix in {".py", ".cu"}]
    expected |= {f"pykernels/{path.relative_to(root)}" for path in bench}
    expected |= {"pykernels/bench/peers.json", "pykernels/py.typed"}
    names = wheel.names()
    extension = {name for name in names if name.startswith("pykernels/_C.") and ".so" in name}
    assert len(extension) == 1
    assert {name for name in names if ".dist-info/" not in name} - extension == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_line_works_outside_of_a_checkout(wheel: Wheel, tmp_path: Path) -> None:
    """The bench needs most of the package: kernels, emulator, cost model, listing, peers."""
    zipfile.ZipFile(wheel.path).extractall(tmp_path)
    command = [sys.executable, "-m", "pykernels", "bench", "gemm"]
    command += ["--m", "8", "--n", "136", "--k", "256", "--json", "row.json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (row,) = json.loads((tmp_path / "row.json").read_text())["rows"]
    assert row["emulator"]["shape"] == "8x136x256"
