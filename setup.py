"""Drives CMake, which puts ``pykernels._C``, the kernels and the PTX headers into the package."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """``build_ext`` by CMake and ninja, in ``build/``; in place for an editable install."""

    def run(self) -> None:
        """Configure, build, and install into the package's folder."""
        in_place = self.inplace or self.editable_mode
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / "pykernels"
        binary = ROOT / "build" / str(sys.implementation.cache_tag)
        self._cmake("-S", str(ROOT), "-B", str(binary), "-G", "Ninja", *self._definitions())
        self._cmake("--build", str(binary), *self._jobs())
        _remove_stale(package / "kernels", binary / "kernels")
        _remove_stale(package / "include" / "pykernels" / "ptx", ROOT / "ptx")
        self._cmake("--install", str(binary), "--prefix", str(package))

    def _definitions(self) -> list[str]:
        import pybind11

        definitions = {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "PYKERNELS_KERNELS_DIR": os.environ.get("PYKERNELS_KERNELS_DIR", ""),
        }
        return [f"-D{name}={value}" for name, value in definitions.items()]

    def _jobs(self) -> list[str]:
        if "CMAKE_BUILD_PARALLEL_LEVEL" in os.environ:
            return []
        return ["--parallel", str(len(os.sched_getaffinity(0)))]

    def _cmake(self, *arguments: str) -> None:
        # cmake and ninja stand on the PATH or beside this Python (an environment not activated).
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        status = subprocess.run(
            ["cmake", *arguments], check=False, env={**os.environ, "PATH": path}
        )
        if status.returncode != 0:
            raise SystemExit(f"setup.py: cmake {' '.join(arguments)} failed, see above")


def _remove_stale(installed: Path, built: Path) -> None:
    """Remove installed files that the build no longer makes."""
    for path in installed.iterdir() if installed.is_dir() else ():
        if not (built / path.name).exists():
            path.unlink()


setup(
    ext_modules=[Extension("pykernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
