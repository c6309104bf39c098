"""Bad input once more, many times as often, in a build with AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"{sys.implementation.cache_tag}-sanitized"
CASES = 800  # of each of the sixteen properties in test_bad_input.py: 12,800
SANITIZERS = {
    # Memory without bound ends the process too; torch and Python leak on purpose.
    "ASAN_OPTIONS": "detect_leaks=0:max_allocation_size_mb=4096:hard_rss_limit_mb=12288",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


def run(*command: str | Path, **environment: str) -> str:
    # cmake and ninja stand on the PATH or beside this Python (an environment not activated).
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    result = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
    return result.stdout


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of a process that loads the sanitised extension, which is built first."""
    definitions = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "PYKERNELS_SANITIZE": "address,undefined",
        "PYKERNELS_WERROR": "OFF",  # instrumented code has warnings of its own
    }
    defined = [f"-D{name}={value}" for name, value in definitions.items()]
    run("cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *defined)
    run("cmake", "--build", BUILD, "--target", "_C", "--parallel", "2")
    (extension,) = BUILD.glob("_C*.so")
    # Python links no libstdc++, in which the runtime looks for what throws exceptions.
    libraries = ("libasan.so", "libstdc++.so")
    runtimes = [run("c++", f"-print-file-name={library}").strip() for library in libraries]
    return {
        "LD_PRELOAD": " ".join(runtimes),
        "PYKERNELS_SANITIZED": str(extension),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "csrc")]),
        **SANITIZERS,
    }


def pytest_in(environment: dict[str, str], *arguments: str) -> str:
    plugins = ("-p", "tests.emulator.sanitized", "-p", "no:cacheprovider", "-q", "--capture=sys")
    return run(sys.executable, "-m", "pytest", *plugins, *arguments, **environment)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_build_is_instrumented(environment: dict[str, str]) -> None:
    symbols = run("nm", "-D", environment["PYKERNELS_SANITIZED"])
    assert "__asan_report_load8" in symbols
    assert "__ubsan_handle" in symbols


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_bad_input_under_sanitizers(environment: dict[str, str]) -> None:
    output = pytest_in(
        {**environment, "BAD_INPUT_CASES": str(CASES)},
        "tests/emulator/test_bad_input.py",
        "--timeout=3600",
    )
    (passed,) = re.findall(r"^(\d+) passed", output, re.MULTILINE)
    assert int(passed) * CASES >= 10_000


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_good_programs_under_sanitizers(environment: dict[str, str]) -> None:
    files = ("test_machine", "test_schedules", "test_program", "isa/test_tables")
    pytest_in(environment, *(f"tests/emulator/{name}.py" for name in files), "--timeout=3600")
