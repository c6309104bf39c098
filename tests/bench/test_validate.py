"""bench/validate_gpu.sh and its parts, as far as they go without a GPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pykernels.bench import bits, contest, harness, validate
from pykernels.bench.problem import Problem
from pykernels.bench.resume import read_outcomes
from pykernels.native import KERNELS_DIR, kernel_metadata

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "validate_gpu.sh"


def run_script(*arguments: object, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    """Hides the GPU where there is one."""
    command = ["bash", str(script), *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def folders(tmp_path: Path) -> list[object]:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    out = tmp_path / "out"
    arguments = ["--wheels", wheels, "--kernels", KERNELS_DIR, "--out", out]
    return [*arguments, "--python", sys.executable]


def mark_as_done(out: Path, stage: str) -> None:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    (out / "stamps").mkdir(parents=True)
    (out / "stamps" / stage).write_text(f"{commit or 'unknown'}\n")


def test_dry_run_ends_where_a_gpu_is_needed(folders: list[object], tmp_path: Path) -> None:
    """Environment and requirements for real; the build has a stamp, as after an interruption."""
    out = tmp_path / "out"
    mark_as_done(out, "build")
    result = run_script(*folders)
    assert result.returncode == validate.EXIT_NO_GPU, result.stdout + result.stderr
    assert "== build: done before" in result.stdout
    assert "validate_gpu: no GPU" in (out / "validate.log").read_text()
    assert (out / "stamps" / "requirements").exists()
    assert not (out / "stamps" / "gpu").exists()
    again = run_script(*folders)
    assert again.returncode == validate.EXIT_NO_GPU
    assert "== environment: done before" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_dry_run_of_a_fresh_checkout(folders: list[object], tmp_path: Path) -> None:
    """Nothing done before: the extension is built too, and runs a kernel in the emulator."""
    checkout = tmp_path / "checkout"
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached"]
    files = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
    result = run_script(*folders, script=checkout / "bench" / "validate_gpu.sh")
    assert result.returncode == validate.EXIT_NO_GPU, result.stdout + result.stderr
    assert "quantize_1x128 runs in the emulator" in result.stdout
    assert "== gpu: stopped with status 3" in result.stdout
    assert list((checkout / "pykernels").glob("_C*.so"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--wheels", "/nonexistent"], "--wheels /nonexistent is no folder"),
        (["--kernels", "/nonexistent"], "--kernels /nonexistent is no folder"),
        (["--baselines", "/nonexistent"], "--baselines /nonexistent is no folder"),
        (["--python", "/nonexistent"], "--python names no program"),
        (["--speed", "1"], "unknown argument --speed"),
        (["--budget"], "--budget needs a value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(folders: list[object], change: list[str], message: str) -> None:
    result = run_script(*folders, *change)
    assert result.returncode == validate.EXIT_ENVIRONMENT
    assert message in result.stderr


def test_python_without_torch(folders: list[object], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        ["bash", str(SCRIPT), *map(str, folders), "--python", str(bare / "bin" / "python")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == validate.EXIT_ENVIRONMENT
    assert "torch 2.6 or newer is needed" in result.stdout + result.stderr


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


FLOAT32_ULP = 2.0**-23


@pytest.mark.parametrize(
    ("found", "wanted", "kinds"),
    [
        (floats(1.0, math.nan), floats(1.0, math.nan), {}),
        (floats(1.0 + FLOAT32_ULP), floats(1.0), {"1 ulp": 1}),
        (floats(1.0 + 16 * FLOAT32_ULP), floats(1.0), {"2 to 16 ulp": 1}),
        (floats(1.0 + 17 * FLOAT32_ULP), floats(1.0), {"more than 16 ulp": 1}),
        (floats(2.0**-149), floats(-(2.0**-149)), {"2 to 16 ulp": 1}),
        (floats(-0.0), floats(0.0), {"sign of zero": 1}),
        (floats(math.inf), floats(1.0), {"infinity": 1}),
        (floats(math.nan), floats(1.0), {"NaN on one side": 1}),
        (floats(math.nan), -floats(math.nan), {"NaN payload or sign": 1}),
        (floats(1.0).bfloat16() * 1.0078125, floats(1.0).bfloat16(), {"1 ulp": 1}),
        (
            torch.tensor([0x09, 0x7F, 0xFF], dtype=torch.uint8).view(torch.float8_e4m3fn),
            torch.tensor([0x08, 0x7F, 0x7F], dtype=torch.uint8).view(torch.float8_e4m3fn),
            {"1 ulp": 1, "NaN payload or sign": 1},
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_differences_by_class(found: Tensor, wanted: Tensor, kinds: dict[str, int]) -> None:
    assert bits.classify(found, wanted) == Counter(kinds)


def test_bits_of_the_emulator_against_itself() -> None:
    """A small launch of each family through the code that compares with a GPU."""
    families: dict[str, bits.Case] = {}
    for case in bits.cases():
        families.setdefault(case.name.split("/")[0], case)
    kernels = {path.stem for path in KERNELS_DIR.glob("*.json")}
    # Approximate functions are bounded, not given bit by bit; a plan computes with integers only.
    # Kernels of MLA have tests of their own that run on a GPU, too.
    others = {name for name in kernels if name.startswith("mla_")} | {"silu_mul_quantize_1x128"}
    assert families.keys() | others == kernels
    assert not families.keys() & others
    for case in families.values():
        row = bits.compare(case, bits.emulator(), bits.emulator())
        assert row["differences"] == {}
        assert row["elements"] > 0


def test_bits_cover_kernels_and_schedules() -> None:
    """Both directions of a cluster, clusters and splits of swapped operands; a bounded number."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for candidate in bits.candidates():
        found.setdefault(candidate.kernel, set()).add(tuple(candidate.schedule.values()))
    gemms = [kernel for kernel in kernel_metadata() if "grouped" in kernel["config"]]
    assert found.keys() == {kernel["name"] for kernel in gemms}
    for kernel in gemms:
        schedules, config = found[kernel["name"]], kernel["config"]
        if config["swap_ab"]:
            assert (1, 1, 1) in schedules
            assert any(split_k > 1 for _, _, split_k in schedules) != config["grouped"]
            assert config["block_m"] < 16 or any(cluster_n > 1 for _, cluster_n, _ in schedules)
        else:
            assert schedules == ({(1, 1, 1)}, {(2, 1, 1), (1, 2, 1)})[config["cluster"] - 1]
    cases = [case.name for case in bits.cases()]
    assert len(set(cases)) == len(cases)
    assert len(cases) <= 4 * sum(map(len, found.values())) + 100
    for name, schedules in found.items():
        for schedule in schedules if name.startswith("grouped") else ():
            prefix = f"{name}/{'x'.join(map(str, schedule))}/"
            layouts = [case.removeprefix(prefix).split()[0] for case in cases if prefix in case]
            assert layouts == ["ragged", "indexed", "masked"]


def test_bits_cover_the_exchanges() -> None:
    """Every MoE kernel that moves rows with 2, 4 and 8 ranks, and all of its calls."""
    cases = [case.name for case in bits.cases() if case.name.startswith("moe_")]
    for kernel in ("moe_dispatch", "moe_dispatch_quantise", "moe_combine", "moe_layout"):
        named = [name for name in cases if name.startswith(f"{kernel}/")]
        assert {name.split(" of ")[1][0] for name in named} == {"2", "4", "8"}
    combines = {name.split("/")[1].split(" of ")[0] for name in cases if "moe_combine/" in name}
    assert combines == {"combine", "low-latency combine"}


def test_the_exchanges_that_are_compared_are_no_zeros() -> None:
    """What arrives and comes home, of one call of each kernel."""
    for case in bits.cases():
        if case.name.startswith("moe_") and " of 2 x " in case.name:
            outputs = case.run(bits.emulator())
            assert all(bool(each.float().any()) for each in outputs), case.name


def test_rows_of_no_group_stay_as_they_are() -> None:
    """In the launches that are compared there are some, of each kind."""
    for case in bits.cases():
        if case.name.startswith("grouped_fp8_gemm_nt_m64n64c1/1x1x1/"):
            (out,) = case.run(bits.emulator())
            untouched = (out.reshape(-1, out.size(-1)) == 0).all(dim=1)
            assert untouched.any() == ("ragged" not in case.name)


def test_ops_are_measured_in_turn() -> None:
    names = [str(problem) for problem in validate.bench_problems()]
    assert names[:10] == [
        "64x2112x7168",
        "ragged 4x8192 rows, 4096x7168",
        "SwiGLU and cast of 4096 rows, i 2048",
        "128x4096 tokens, 16 heads, seqlen_q 1, BF16 in pages of 64",
        "dispatch of 8 x 4096 tokens x 7168, BF16, top 8 of 256, on one GPU",
        "64x24576x1536",
        "ragged 4x8192 rows, 7168x2048",
        "SwiGLU and cast of 4096 in 32768 rows, i 2048",
        "128x4096 tokens, 16 heads, seqlen_q 1, FP8 in pages of 64",
        "dispatch of 8 x 4096 tokens x 7168, FP8, top 8 of 256, on one GPU",
    ]
    assert len(set(names)) == len(names) == 66 + 26 + 15 + 50 + 33


def test_what_memory_bounds_is_told_by_its_bandwidth() -> None:
    measured: dict[str, Any] = {"us": 20.0, "tflops": 0.0, "gbps": 2100.0, "bound": "memory"}
    measured["roofline_share"] = 0.91
    measured["baselines"] = {"copy": {"ratio": 0.93}, "Triton": {"unavailable": "not installed"}}
    line = validate._bench_line("a cast", measured)
    assert line == "a cast: 20.0 us, 2100 GB/s, 91% of a long copy's; copy x0.93"
    line = validate._bench_line("a decode", measured | {"tflops": 63.4})
    assert line == "a decode: 20.0 us, 63 TFLOPS, 2100 GB/s, 91% of a long copy's; copy x0.93"
    line = validate._bench_line("a product", measured | {"tflops": 630.0, "bound": "compute"})
    assert line == "a product: 20.0 us, 630 TFLOPS; copy x0.93"


def test_rows_resume_within_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    made: list[str] = []

    def make_row(name: str) -> dict[str, str]:
        made.append(name)
        return {"case": name}

    assert validate._resume_rows(path, ["a", "b"], make_row, budget_s=0.0) == []
    assert validate._resume_rows(path, ["a"], make_row) == [{"case": "a"}]
    rows = validate._resume_rows(path, ["a", "b"], make_row)
    assert [row["case"] for row in rows] == ["a", "b"]
    assert made == ["a", "b"]


def test_a_wrong_shape_does_not_end_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def measure(problem: Problem[Any], *_: object, **__: object) -> dict[str, Any]:
        if wrong and str(problem) == wrong[0]:
            raise AssertionError("row 3 is off")
        times = {"us": 1.0, "tflops": 2.0, "bound": "compute"}
        return {**times, "baselines": {"other": {"ratio": 1.25}}}

    problems = validate.bench_problems()[:3]
    names = [str(problem) for problem in problems]
    wrong = [names[1]]
    monkeypatch.setattr(validate, "bench_problems", lambda: problems)
    monkeypatch.setattr(contest, "measure", measure)
    monkeypatch.setattr(harness, "copy_bandwidth", lambda: 4000.0)
    monkeypatch.setattr(validate, "_host_path", dict)
    assert validate.run_bench(tmp_path, 60.0) == validate.EXIT_FAILURE
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["case"] for row in rows] == names
    assert rows[1] == {"case": names[1], "error": "row 3 is off"}
    assert f"{names[0]}: 1.0 us, 2 TFLOPS; other x1.25" in capfd.readouterr().out
    wrong.clear()
    assert validate.run_bench(tmp_path, 60.0) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert sorted(row["case"] for row in rows) == sorted(names)
    assert not any("error" in row for row in rows)


HANGING_ROW = """
import ctypes, pathlib, sys
from bench import validate

validate.ROW_LIMIT_S = 0.5
libc = ctypes.PyDLL(None)  # keeps the GIL, as the worst of native calls would
validate._resume_rows(pathlib.Path(sys.argv[1]), ["case"], lambda name: libc.sleep(30) or {})
"""


def test_a_hanging_row_ends_the_stage(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGING_ROW, str(tmp_path / "rows.jsonl")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=25, check=False
    )
    assert result.returncode == validate.EXIT_FAILURE
    assert "Timeout" in result.stderr
    assert "_resume_rows" in result.stderr


def test_a_hanging_kernel_ends_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, a signal, would wait for the call that waits for the kernel."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert validate.run_tests(tmp_path) == 0
    assert "timeout_method=thread" in commands[0]


def test_missing_requirements() -> None:
    listed = (
        "torch>=2.6\nnumpy\nno-such-package==1.0\nother-missing[extra]>=2; python_version>'3'\n"
    )
    assert validate.missing(listed, essential=False) == ["no-such-package", "other-missing"]
    assert validate.missing(listed, essential=True) == []


def test_passed_tests_are_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(
        "import os\ndef test_good(): pass\ndef test_bad(): assert 'FIXED' in os.environ\n"
    )
    outcomes = tmp_path / "outcomes.jsonl"
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_two.py"), "-q", "-c"]
    command += [os.devnull, "-p", "bench.resume", "--outcomes", str(outcomes), "--rootdir"]
    command += [str(tmp_path), "-p", "no:cacheprovider"]

    def run(**environment: str) -> int:
        variables = {**os.environ, **environment}
        return subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, check=False
        ).returncode

    assert run() == 1
    assert list(read_outcomes(outcomes).values()) == ["passed", "failed"]
    assert run(FIXED="1") == 0
    entries = [json.loads(line)["test"] for line in outcomes.read_text().splitlines()]
    assert [entry.split("::")[1] for entry in entries] == ["test_good", "test_bad", "test_bad"]
    assert set(read_outcomes(outcomes).values()) == {"passed"}


def test_report_gathers_the_stages(tmp_path: Path) -> None:
    (tmp_path / "bits.json").write_text('{"cases": 1, "different": [], "differences": {}}')
    assert validate.write_report(tmp_path) == validate.EXIT_FAILURE  # the tests have not run
    (tmp_path / "tests.json").write_text('{"failed": [], "counts": {"passed": 3}}')
    assert validate.write_report(tmp_path) == 0
    written = json.loads((tmp_path / "validation.json").read_text())
    assert written["tests"]["counts"] == {"passed": 3}
    assert written["bench"] is None
    assert written["environment"]["torch"] == torch.__version__


def test_timing_percentiles() -> None:
    timing = harness.Timing.of([float(i) for i in range(1, 12)])
    assert (timing.p10_us, timing.median_us, timing.p90_us) == (2.0, 6.0, 10.0)


def test_replays_last_by_the_time_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes the host 100 us and the GPU 4: 500 of them fill a replay, not 20."""

    class Graph:
        def __init__(self, num_calls: int) -> None:
            self.num_calls = num_calls

        def replay(self) -> None:
            clock[0] += 4.0 * self.num_calls

    def event_us(call: harness.Call) -> float:
        before = clock[0]
        call()
        return clock[0] - before

    def host_call() -> None:
        clock[0] += 100.0

    clock = [0.0]
    captured: list[int] = []

    def capture(calls: list[harness.Call], rounds: int) -> Graph:
        captured.append(rounds)
        return Graph(rounds * len(calls))

    monkeypatch.setattr(harness, "_capture", capture)
    monkeypatch.setattr(harness, "_event_us", event_us)
    monkeypatch.setattr(harness, "_WARM_UP_S", 0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    timing = harness.time_calls([host_call] * 5, sample_s=0.01)
    assert captured == [1, 100]
    assert timing.median_us == pytest.approx(4.0)


def test_roofline() -> None:
    roofline = harness.Roofline(flops=1979e6, num_bytes=2e6, copy_gbps=1000.0, peak_tflops=1979.0)
    assert roofline.bound == "memory"
    row = roofline.row(harness.Timing(4.0, 4.0, 4.0, 1))
    assert row["roofline_share"] == pytest.approx(0.5)
    assert row["gbps"] == pytest.approx(500.0)
