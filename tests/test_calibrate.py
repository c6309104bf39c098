"""The calibration: it must find the constants that synthetic times were made with."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from pykernels import calibrate
from pykernels.cli import main
from pykernels.native import kernel_metadata, native
from tests.gemm_family import BFLOAT16_BYTES, WEIGHTS, gpu

# As far from the table's as measurements may turn out to be.
TRUE = {
    "hbm_share": 0.8,
    "l2_bytes_per_clock": 3800.0,
    "tensor_share": 0.75,
    "sm_bytes_per_clock": 52.0,
    "split_wait_us": 1.8,
    "epilogue_clocks": 700.0,
    "launch_us": 1.6,
}
CONFIGS = {
    kernel["name"]: kernel["config"]
    for kernel in kernel_metadata()
    if kernel["family"] == "fp8_gemm_nt"
}


def measured_rows(noise: float, *, outliers: int = 0) -> list[dict[str, Any]]:
    """Rows as bench/validate_gpu.sh writes them, from the model with other constants."""
    draw = random.Random(0)
    truth = gpu("H200", **TRUE)
    rows: list[dict[str, Any]] = []
    for m in (1, 16, 64, 128, 512, 4096):
        for n, k in WEIGHTS:
            ranked = native().explain_fp8_gemm_nt(m, n, k, BFLOAT16_BYTES, truth, configs=CONFIGS)
            candidates = [
                {
                    "kernel": candidate.kernel,
                    "schedule": list(candidate.schedule),
                    "us": candidate.cost["total_us"] * math.exp(draw.gauss(0, noise)),
                }
                for candidate in ranked[:8] + ranked[8::12]
            ]
            rows.append({"m": m, "n": n, "k": k, "num_sms": None, **candidates[0]})
            rows[-1]["candidates"] = candidates[1:]
    for row in draw.sample(rows, outliers):
        row["us"] *= 5
    return rows


def write(path: Path, rows: list[dict[str, Any]], name: str | None = "NVIDIA H200") -> Path:
    environment = {} if name is None else {"gpu": name}
    path.write_text(json.dumps({"environment": environment, "bench": {"rows": rows}}))
    return path


@pytest.mark.parametrize(
    ("noise", "outliers", "tolerance"), [(0.0, 0, 0.01), (0.02, 0, 0.05), (0.02, 4, 0.05)]
)
def test_fit_finds_the_constants(
    tmp_path: Path, noise: float, outliers: int, tolerance: float
) -> None:
    rows = measured_rows(noise, outliers=outliers)
    times, name = calibrate.read_results(write(tmp_path / "validation.json", rows))
    assert name == "NVIDIA H200"
    assert len(times) == 36
    found = calibrate.fit(gpu("H200"), times)
    constants = found.after.constants
    for constant, value in TRUE.items():
        assert constants[constant] == pytest.approx(value, rel=tolerance), constant
    untouched = constants.keys() - TRUE.keys()
    assert {c: constants[c] for c in untouched} == {c: gpu().constants[c] for c in untouched}
    before, after = abs(found.errors_before), abs(found.errors_after)
    assert sorted(after)[len(after) // 2] <= max(1.2 * noise, 1e-3)
    assert sorted(before)[len(before) // 2] > 0.05
    if noise == 0:
        losses = [calibrate.choices(model, times)[0].loss for model in (found.before, found.after)]
        assert losses[0] > 1e-3
        assert losses[1] == pytest.approx(0)


def test_untold_constants_stay(tmp_path: Path) -> None:
    """Of large shapes alone: nothing there waits for a split."""
    rows = [row for row in measured_rows(0.0) if row["m"] == 4096]
    for row in rows:
        row["candidates"] = [c for c in row["candidates"] if c["schedule"][2] == 1]
    times, _ = calibrate.read_results(write(tmp_path / "validation.json", rows))
    found = calibrate.fit(gpu("H200"), times).after.constants
    assert found["split_wait_us"] == pytest.approx(gpu().constants["split_wait_us"])
    assert found["tensor_share"] == pytest.approx(TRUE["tensor_share"], rel=0.02)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured_rows(0.02)
    rows[0]["us"] *= 3  # its choice now loses
    lines = "\n".join(json.dumps(row) for row in rows)
    path = tmp_path / "bench.jsonl"
    path.write_text(lines)
    assert main(["calibrate", str(path), "--gpu", "h200"]) == 0
    printed = capsys.readouterr().out
    assert "before" in printed
    fitted = re.search(r"gpu\.hbm_share = ([0-9.]+);  // fitted to 648 times", printed)
    assert fitted
    assert float(fitted[1]) == pytest.approx(TRUE["hbm_share"], rel=0.05)
    assert "lost choices" in printed
    assert "1x2112x7168" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "has no row with m, n, k, kernel, schedule and us"),
        (b"5", "has no row"),
        (b"[1, 2", "is neither JSON nor JSON lines: line 1"),
        (b'{"m": 1}\n{"m":', "is neither JSON nor JSON lines: line 2"),
        (b"\x93NUMPY\x01", "is not text"),
        (b"[[1]]", "row 1: must be an object"),
        (b'{"environment": [], "rows": []}', "environment must be an object"),
        (b'{"environment": {"gpu": 5}, "rows": []}', "environment.gpu must be a string"),
        (b'{"bench": 5}', "bench must be an object or a list"),
        (b'{"bench": {"rows": {}}}', "rows must be a list"),
        (
            b'[{"m": 1, "n": 8, "k": 16, "kernel": "other", "us": 1, "schedule": [1, 1, 1]}]',
            "has no row",
        ),
    ],
)
def test_refused_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_bytes(content)
    assert main(["calibrate", str(path)]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert str(path) in printed


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"m": "1"}, "m must be an integer, got '1'"),
        ({"m": True}, "m must be an integer, got True"),
        ({"m": 0}, "m must be at least 1, got 0"),
        ({"m": 2**31}, "m must be at most"),
        ({"n": 7}, "n (rows of b) must be a multiple of 8, got 7"),
        ({"k": 8}, "k (columns of a and b) must be a multiple of 16, got 8"),
        ({"num_sms": 0}, "num_sms must be at least 1, got 0"),
        ({"num_sms": "78"}, "num_sms must be an integer, got '78'"),
        ({"us": None}, "us must be a positive number, got None"),
        ({"us": "3"}, "us must be a positive number, got '3'"),
        ({"us": 0.0}, "us must be a positive number, got 0.0"),
        ({"us": -1}, "us must be a positive number, got -1"),
        ({"us": True}, "us must be a positive number, got True"),
        ({"us": math.inf}, "us must be a positive number, got inf"),
        ({"us": math.nan}, "us must be a positive number, got nan"),
        ({"us": 10**400}, "us must be a positive number"),
        ({"kernel": ["a"]}, "kernel must be a string"),
        ({"schedule": 1}, "schedule must be three positive integers, got 1"),
        ({"schedule": [1, 1]}, "schedule must be three positive integers, got [1, 1]"),
        ({"schedule": [1, 1, 0]}, "schedule must be three positive integers"),
        ({"schedule": [1, 1, 1.0]}, "schedule must be three positive integers"),
        ({"schedule": {"0": 1}}, "schedule must be three positive integers"),
        ({"candidates": None}, "candidates must be a list, got None"),
        ({"candidates": {"us": 1}}, "candidates must be a list"),
        ({"candidates": [5]}, "candidate 1: must be an object, got 5"),
    ],
)
@pytest.mark.parametrize("lines", [False, True])
def test_refused_rows(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoilt: dict[str, Any],
    message: str,
    lines: bool,
) -> None:
    rows = measured_rows(0.0)
    rows[3] |= spoilt
    path = write(tmp_path / "validation.json", rows)
    if lines:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    assert main(["calibrate", str(path), "--gpu", "H200"]) == 1
    printed = capsys.readouterr().err
    assert f"{path}: row 4" in printed
    assert message in printed


def test_refused_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured_rows(0.0)
    rows[3]["candidates"][1]["us"] = math.inf
    path = write(tmp_path / "validation.json", rows)
    assert main(["calibrate", str(path)]) == 1
    assert f"{path}: row 4, candidate 2: us must be a" in capsys.readouterr().err


def test_rows_without_times_are_left_out(tmp_path: Path) -> None:
    """Of other ops, of kernels that are not built, and of runs that timed nothing."""
    rows = measured_rows(0.0)[:1]
    count = len(rows[0]["candidates"]) + 1
    model = {name: rows[0][name] for name in ("m", "n", "k", "kernel", "schedule")}
    others = [{"m": 1, "k": 128, "us": 1.0}, model, rows[0] | {"m": 2, "kernel": "other", "us": 1}]
    del others[2]["candidates"]
    others.append(rows[0] | {"m": 3, "num_groups": 4, "kernel": "grouped_fp8_gemm_nt_m64n64c1"})
    del others[3]["candidates"]
    times, _ = calibrate.read_results(write(tmp_path / "validation.json", rows + others))
    assert [len(ways) for ways in times.values()] == [count]


@pytest.mark.parametrize("count", [1, len(calibrate.FITTED) - 1])
def test_too_few_times(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    rows = measured_rows(0.0)[:1]
    rows[0]["candidates"] = rows[0]["candidates"][: count - 1]
    path = write(tmp_path / "validation.json", rows)
    assert main(["calibrate", str(path)]) == 1
    printed = capsys.readouterr().err
    assert str(path) in printed
    assert f"{count} of its times are of candidates that the model knows; 7 constants" in printed
    rows = measured_rows(0.0)[:1]
    rows[0]["candidates"] = rows[0]["candidates"][: len(calibrate.FITTED) - 1]
    assert main(["calibrate", str(write(path, rows))]) == 0


def test_refused_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "validation.json", measured_rows(0.0), None)
    assert main(["calibrate", str(path)]) == 1
    assert "is not told; --gpu must be one of H100, H100 PCIe" in capsys.readouterr().err
    assert main(["calibrate", str(path), "--gpu", "B300"]) == 1
    assert main(["calibrate", str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
