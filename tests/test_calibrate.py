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
        ("{}", "has no row with m, n, k, kernel, schedule and us"),
        ("[1, 2", "is neither JSON nor JSON lines"),
        (
            '[{"m": 1, "n": 8, "k": 16, "kernel": "other", "us": 1, "schedule": [1, 1, 1]}]',
            "has no",
        ),
    ],
)
def test_refused_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    assert main(["calibrate", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_refused_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "validation.json", measured_rows(0.0), None)
    assert main(["calibrate", str(path)]) == 1
    assert "is not told; --gpu must be one of H100, H100 PCIe" in capsys.readouterr().err
    assert main(["calibrate", str(path), "--gpu", "B300"]) == 1
    assert main(["calibrate", str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
