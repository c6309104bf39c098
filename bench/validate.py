"""The stages of validate_gpu.sh that are Python. Each keeps its result in the output folder.

``python -m bench.validate STAGE --out FOLDER``; see README.md. Exit statuses: 0, 1 a stage found a
failure, 2 the environment lacks something, 3 there is no Hopper GPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .problem import Problem

ROOT = Path(__file__).resolve().parents[1]
EXIT_FAILURE, EXIT_ENVIRONMENT, EXIT_NO_GPU = 1, 2, 3
ROW_LIMIT_S = 600.0  # of one row: beyond it a kernel hangs, and the stage ends
MIN_PYTHON, MIN_TORCH = (3, 10), (2, 6)
# Without these nothing can be built or tested; without another requirement only its tests fail.
ESSENTIAL = ("numpy", "setuptools", "pybind11", "cmake", "ninja", "pytest", "pytest-timeout")


def check_environment() -> int:
    """Python and torch as found; torch is never installed."""
    if sys.version_info < MIN_PYTHON:
        return _refuse(EXIT_ENVIRONMENT, f"Python 3.10 or newer is needed, this is {sys.version}")
    try:
        found = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return _refuse(EXIT_ENVIRONMENT, f"torch 2.6 or newer is needed; {sys.executable} has none")
    if tuple(int(part) for part in found.split(".")[:2]) < MIN_TORCH:
        return _refuse(EXIT_ENVIRONMENT, f"torch 2.6 or newer is needed, found {found}")
    print(f"Python {sys.version.split()[0]}, torch {found}")
    return 0


def _refuse(status: int, message: str) -> int:
    print(f"validate_gpu: {message}", file=sys.stderr)
    return status


def missing(requirements: str, *, essential: bool) -> list[str]:
    """Names of requirements that this Python lacks; versions are taken as found."""
    names = [re.split(r"[\s\[<>=!~;]", line)[0] for line in requirements.splitlines() if line]
    names = [*ESSENTIAL, *names] if essential else names
    lacking = []
    for name in dict.fromkeys(names):
        if (name in ESSENTIAL) != essential or name == "torch":
            continue
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(name)
    return lacking


def print_missing(arguments: argparse.Namespace) -> int:
    """For pip: what to install from the folder of wheels."""
    command = [sys.executable, str(ROOT / ".ci" / "requirements.py")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(*missing(listed, essential=arguments.essential), sep="\n")
    return 0


def check_build() -> int:
    """The extension loads and a kernel runs in the emulator: no GPU is needed so far."""
    import torch

    import pykernels

    x = torch.randn(3, 256)
    with pykernels.emulate() as report:
        emulated = pykernels.quantize_1x128(x)
    report.raise_if_findings()
    pairs = zip(emulated, pykernels.quantize_1x128(x), strict=True)
    if not all(torch.equal(found.float(), wanted.float()) for found, wanted in pairs):
        return _refuse(EXIT_FAILURE, "quantize_1x128 in the emulator differs from torch")
    print(f"built: {pykernels.native.native().__file__}; quantize_1x128 runs in the emulator")
    return 0


def check_gpu() -> int:
    """A Hopper GPU that torch and our driver path can use."""
    import torch

    from pykernels.native import native

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: a build for CPUs"
        return _refuse(
            EXIT_NO_GPU,
            f"no GPU: torch {torch.__version__} (CUDA {built}) finds none. All steps before this "
            "one have passed; run the same command on a machine with an H100 or H200",
        )
    try:
        properties = native().CudaDevice(torch.cuda.current_device(), 0).properties
    except RuntimeError as error:
        return _refuse(EXIT_NO_GPU, str(error))
    print(f"GPU: {properties.name}, {properties.num_sms} SMs")
    return 0


def run_tests(out: Path) -> int:
    """All tests with ``--device cuda``; those that passed before an interruption are left out."""
    command = [sys.executable, "-m", "pytest", "tests", "--device", "cuda", "-p", "bench.resume"]
    command += ["--outcomes", str(out / "tests.jsonl"), "-q", "--tb=short", "-o", "addopts="]
    # A thread ends the process: no signal interrupts a call that waits for a hanging kernel.
    command += ["--import-mode=importlib", "--strict-markers", "-o", "timeout_method=thread"]
    if not missing("pytest-xdist", essential=False):
        command += ["-n", str(min(8, len(os.sched_getaffinity(0))))]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    outcomes = _read_outcomes(out)
    failed = sorted(test for test, outcome in outcomes.items() if outcome != "passed")
    result = {
        "pytest_status": status,
        "counts": dict(Counter(outcomes.values())),
        "failed": failed,
    }
    _write(out, "tests", result)
    return EXIT_FAILURE if failed or status not in (0, 5) else 0  # 5: none left to run


def _read_outcomes(out: Path) -> dict[str, str]:
    from .resume import read_outcomes

    return read_outcomes(out / "tests.jsonl")


def run_bits(out: Path, *, against_emulator: bool) -> int:
    """Emulator and GPU on the same launches; the emulator against itself only tests this stage."""
    from . import bits

    actual = bits.emulator() if against_emulator else bits.gpu()
    cases = {case.name: case for case in bits.cases()}

    def row(name: str) -> dict[str, Any]:
        return bits.compare(cases[name], bits.emulator(), actual)

    rows = _resume_rows(out / "bits.jsonl", list(cases), row)
    total: Counter[str] = Counter()
    for result in rows:
        total += Counter(result["differences"])
    different = [result["case"] for result in rows if result["differences"]]
    summary = {"cases": len(rows), "different": different, "differences": dict(total)}
    _write(out, "bits", summary)
    print(f"bits: {len(rows)} launches, {len(different)} differ")
    for kind, count in total.most_common():
        print(f"  {kind}: {count} elements")
    return EXIT_FAILURE if different else 0


def run_bench(out: Path, budget_s: float) -> int:
    """Calls in the order of interest until the budget is spent."""
    from . import contest, harness

    copy_gbps = harness.copy_bandwidth()
    problems = {str(problem): problem for problem in bench_problems()}

    def row(name: str) -> dict[str, Any]:
        try:
            measured = contest.measure(problems[name], copy_gbps, every_kernel=True)
        except AssertionError as error:  # a wrong result must not keep the others from being seen
            print(f"{name}: {error}", flush=True)
            return {"case": name, "error": str(error)}
        print(_bench_line(name, measured), flush=True)
        return {"case": name} | measured

    rows = _resume_rows(out / "bench.jsonl", list(problems), row, budget_s)
    left = sorted(problems.keys() - {result["case"] for result in rows})
    result = {"copy_gbps": copy_gbps, "rows": rows, "not_measured": left}
    _write(out, "bench", result | {"host_path": _host_path()})
    return EXIT_FAILURE if any("error" in result for result in rows) else 0


def bench_problems() -> list[Problem[Any]]:
    """Products, casts, decodes and MoE calls in turn, each in its order of interest."""
    from . import cast_bench, gemm_bench, grouped_bench, mla_bench, moe_bench

    kinds: list[Iterable[Problem[Any]]] = [
        gemm_bench.shapes(),
        grouped_bench.cases(),
        cast_bench.shapes(),
        mla_bench.cases(),
        moe_bench.cases(),
    ]
    turns = itertools.zip_longest(*kinds)
    return [problem for turn in turns for problem in turn if problem is not None]


def _bench_line(name: str, measured: dict[str, Any]) -> str:
    """Our time, and the baselines' over it."""
    ratios = [
        f"{baseline} x{found['ratio']:.2f}"
        for baseline, found in measured["baselines"].items()
        if "ratio" in found
    ]
    rates = [f"{measured['us']:.1f} us"]
    if measured["tflops"] > 0:
        rates.append(f"{measured['tflops']:.0f} TFLOPS")
    if measured["bound"] == "memory":
        share = f"{measured['roofline_share']:.0%} of a long copy's"
        rates += [f"{measured['gbps']:.0f} GB/s", share]
    return f"{name}: {'; '.join([', '.join(rates), *ratios])}"


def _host_path() -> dict[str, Any]:
    """Microseconds of a call before its kernel runs, by part."""
    try:
        from . import host_path

        return host_path.measure()
    except (ImportError, RuntimeError) as error:  # rich is missing; or no reason to lose the rows
        return {"error": str(error)}


def _resume_rows(
    path: Path,
    names: list[str],
    make_row: Callable[[str], dict[str, Any]],
    budget_s: float = float("inf"),
) -> list[dict[str, Any]]:
    """One line a case; good ones of an earlier run are kept, others made while time is left.

    A row that takes longer than ``ROW_LIMIT_S`` ends the process with a traceback and status 1.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if "error" not in row]
    known = {row["case"] for row in rows}
    deadline = time.monotonic() + budget_s
    for name in names:
        if name in known:
            continue
        if time.monotonic() > deadline:
            break
        faulthandler.dump_traceback_later(ROW_LIMIT_S, exit=True)
        rows.append(make_row(name))
        faulthandler.cancel_dump_traceback_later()
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def _write(out: Path, stage: str, result: dict[str, Any]) -> None:
    (out / f"{stage}.json").write_text(json.dumps(result, indent=1) + "\n")


def write_report(out: Path) -> int:
    """Everything in one file, ``validation.json``."""
    from . import harness

    result: dict[str, Any] = {"environment": harness.environment()}
    for stage in ("tests", "bits", "bench"):
        path = out / f"{stage}.json"
        result[stage] = json.loads(path.read_text()) if path.exists() else None
    _write(out, "validation", result)
    failed = len(result["tests"]["failed"]) if result["tests"] else "not run"
    different = len(result["bits"]["different"]) if result["bits"] else "not run"
    measured = len(result["bench"]["rows"]) if result["bench"] else "not run"
    print(f"failed tests: {failed}; launches that differ: {different}; shapes measured: {measured}")
    print(f"written: {out / 'validation.json'}")
    return 0 if failed == 0 and different == 0 else EXIT_FAILURE


def main() -> int:
    """Run one stage; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.validate", description=__doc__)
    stages = ("environment", "missing", "build", "gpu", "tests", "bits", "bench", "report")
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--out", type=Path, default=Path("validation"))
    parser.add_argument("--budget", type=float, default=1200.0, help="seconds of the bench stage")
    parser.add_argument("--essential", action="store_true", help="missing: what cannot be left out")
    parser.add_argument("--against-emulator", action="store_true", help="bits: no GPU, a self-test")
    arguments = parser.parse_args()
    stage: dict[str, Callable[[], int]] = {
        "environment": check_environment,
        "missing": lambda: print_missing(arguments),
        "build": check_build,
        "gpu": check_gpu,
        "tests": lambda: run_tests(arguments.out),
        "bits": lambda: run_bits(arguments.out, against_emulator=arguments.against_emulator),
        "bench": lambda: run_bench(arguments.out, arguments.budget),
        "report": lambda: write_report(arguments.out),
    }
    return stage[arguments.stage]()


if __name__ == "__main__":
    sys.exit(main())
