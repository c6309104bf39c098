"""``python -m pykernels bench gemm``, ``grouped`` and ``cast`` without a GPU."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pykernels import cli
from pykernels.bench import answer, contest, counts, harness, listing, plot
from pykernels.bench.gemm_bench import Shape
from pykernels.bench.grouped_bench import GroupedShape, routed_rows
from pykernels.bench.problem import Problem

SIZES = ["--n", "264", "--k", "400"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one. The host path has tests of its own, and takes seconds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(answer, "_host_path", lambda console: None)


def run(*arguments: str) -> int:
    return cli.main(["bench", "gemm", *arguments])


def run_cast(*arguments: str) -> int:
    return cli.main(["bench", "cast", *arguments])


def run_grouped(*arguments: str) -> int:
    return cli.main(["bench", "grouped", *arguments])


def test_everything_is_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, drawn = tmp_path / "row.json", tmp_path / "row.png"
    assert run("--m", "65", *SIZES, "--json", str(written), "--plot", str(drawn)) == 0
    printed = capsys.readouterr().out
    for text in (
        "no Hopper GPU here, nothing below is measured",
        "By the datasheet of the H200 at least",
        "Machine code: ours assembled by ptxas",
        "DeepGEMM FP8 1d2d 128x128",
        "Counted in the emulator on 65x264x400: no times",
        "Model of the H200, not a measurement",
        "triton_m128n128, compiled here",
    ):
        assert text in printed
    result = json.loads(written.read_text())
    assert not result["measured"]
    (row,) = result["rows"]
    assert row["listing"]["name"] == row["kernel"] == row["model"][0]["kernel"]
    assert row["listing"]["local_accesses"] == 0
    ratios = row["emulator"]["ratios"]
    assert ratios["global_bytes_written"] == 1.0
    assert 1.0 <= ratios["global_footprint_bytes_read"] <= 1.05  # whole sectors of 32 bytes
    assert ratios["global_bytes_read"] >= ratios["global_footprint_bytes_read"]
    assert ratios["tensor_multiply_adds"] >= 1.0
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_sweep_over_m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, drawn = tmp_path / "rows.json", tmp_path / "rows.png"
    options = ["--num-sms", "100", "--batch-invariant", "--device", "H20"]
    outputs = ["--json", str(written), "--plot", str(drawn)]
    assert run("--m", "1,16,256", *SIZES, *options, *outputs) == 0
    assert "Over m: model, not a measurement" in capsys.readouterr().out
    rows = json.loads(written.read_text())["rows"]
    assert [row["m"] for row in rows] == [1, 16, 256]
    for row in rows:
        assert (row["num_sms"], row["batch_invariant"], row["gpu"]) == (100, True, "H20")
        assert row["schedule"][2] == 1
    assert drawn.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "grouped_fp8_gemm_nt ragged 3x65 rows, 264x400"),
        (["--indexed"], "grouped_fp8_gemm_nt indexed 3x65 rows, 264x400"),
        (["--masked"], "grouped_fp8_gemm_nt_masked masked 3x65 rows, 264x400"),
        (["--skew"], "grouped_fp8_gemm_nt ragged 3x65 rows up to "),
    ],
)
def test_grouped(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, drawn = tmp_path / "row.json", tmp_path / "row.png"
    outputs = ["--json", str(written), "--plot", str(drawn)]
    assert run_grouped("--num-groups", "3", "--m", "65", *SIZES, *options, *outputs) == 0
    printed = capsys.readouterr().out
    for text in (
        named,
        "no Hopper GPU here, nothing below is measured",
        "DeepGEMM FP8 1d2d 128x128",
        "CUTLASS example 68 grouped",
        "triton_grouped_m128n128",
        ": no times",
        "Model of the H200, not a measurement",
    ):
        assert text in printed
    (row,) = json.loads(written.read_text())["rows"]
    assert row["listing"]["name"] == row["kernel"] == row["model"][0]["kernel"]
    assert row["kernel"].startswith("grouped_fp8_gemm_nt_")
    assert sum(row["rows"]) == 3 * row["m"] == 195
    assert row["rows"] == list(routed_rows(195, 1, 3)) if options == ["--skew"] else [65] * 3
    ratios = row["emulator"]["ratios"]
    assert ratios["global_bytes_written"] == 1.0
    assert 1.0 <= ratios["global_footprint_bytes_read"] <= 1.05
    assert drawn.exists()


def test_grouped_sweep_over_m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "rows.json"
    options = ["--num-sms", "100", "--device", "H20", "--json", str(written)]
    assert run_grouped("--num-groups", "2", "--m", "1,16", *SIZES, *options) == 0
    assert "Over m: model, not a measurement" in capsys.readouterr().out
    rows = json.loads(written.read_text())["rows"]
    assert [(row["m"], row["num_sms"], row["gpu"]) for row in rows] == [
        (1, 100, "H20"),
        (16, 100, "H20"),
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["silu_mul_quantize_1x128"], "SwiGLU and cast of 9 rows, i 272"),
        (["silu_mul_quantize_1x128", "--capacity=40"], "SwiGLU and cast of 9 in 40 rows, i 272"),
        (
            ["silu_mul_quantize_1x128", "--capacity=40", "--num-groups=3"],
            "SwiGLU and cast of masked 3x9 in 40 rows, i 272",
        ),
        (["quantize_1x128"], "1x128 cast of 9x272"),
        (["quantize_128x128"], "128x128 cast of 9x272"),
    ],
)
def test_cast(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No model, no peers, no counts of tensor cores."""
    written = tmp_path / "row.json"
    assert run_cast(*options, "--m=9,17", "--columns=272", "--json", str(written)) == 0
    printed = capsys.readouterr().out
    for text in (
        f"{options[0]} {named}",
        "no Hopper GPU here, nothing below is measured",
        "(memory)",
        ": no times",
    ):
        assert text in printed
    assert ("triton_silu_mul_quantize" in printed) == options[0].startswith("silu_mul")
    for text in ("DeepGEMM", "not a measurement", "WGMMA instructions", "bytes of TMA"):
        assert text not in printed
    rows = json.loads(written.read_text())["rows"]
    assert [row["emulator"]["ratios"]["global_bytes_written"] for row in rows] == [1.0, 1.0]


def test_measured_casts_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have one kernel, so no candidates, and no operations of tensor cores."""
    as_measured(monkeypatch)
    cast = {"kernel": "quantize_1x128", "schedule": [], "tflops": 0.0, "candidates": []}
    for name, value in cast.items():
        monkeypatch.setitem(MEASURED, name, value)
    assert run_cast("quantize_1x128", "--m=9,17", "--columns=272") == 0
    printed = capsys.readouterr().out
    for text in ("1x128 cast of 9x272: quantize_1x128\n", "50% of the memory bound", "x other"):
        assert text in printed
    assert "model us" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["quantize_1x128", "--capacity=40"], "quantize_1x128 has no groups"),
        (["silu_mul_quantize_1x128", "--num-groups=2"], "--num-groups needs --capacity"),
        (["silu_mul_quantize_1x128", "--capacity=8"], "must be at least m = 9, got 8"),
    ],
)
def test_wrong_room(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cast(*options, "--m=9", "--columns=272") == 1
    assert message in capsys.readouterr().err


def test_published_figures_are_shown_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counts, "_MAX_MULTIPLY_ADDS", 2**28)
    shape = ["--num-groups", "4", "--m", "256", "--n", "4096", "--k", "7168", "--masked"]
    assert run_grouped(*shape) == 0
    printed = capsys.readouterr().out
    assert "Counted in the emulator on masked 4x256 rows, 2048x896" in printed
    assert "Published: other machines, measured otherwise" in printed
    assert "DeepGEMM's README: 932 TFLOPS" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-groups=0"], "--num-groups: num_groups must be at least 1, got 0"),
        (["--num-groups=2", "--batch-invariant"], "unrecognized arguments: --batch-invariant"),
        (["--num-groups=2", "--masked", "--indexed"], "not allowed with argument --masked"),
        ([], "the following arguments are required: --num-groups"),
    ],
)
def test_wrong_groups(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_grouped("--m", "64", *SIZES, *options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "GTX"], "known GPUs are"),
        (["--device", "cuda"], "torch finds no GPU"),
        (["--json", "no/such/row.json"], "--json: there is no folder no/such"),
        (["--plot", "no/such/row.png"], "--plot: there is no folder no/such"),
        (["--json", "."], "--json: . is a folder"),
        (["--plot", "row"], " or .webp, got row\n"),
        (["--plot", "row.docx"], "--plot must end in ."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_before_any_work(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*arguments: Any, **_: Any) -> Any:
        raise AssertionError("refused too late")

    for name in ("_compiled", "_static_row", "_measured_row", "_host_path"):
        monkeypatch.setattr(answer, name, work)
    monkeypatch.chdir(tmp_path)
    assert run("--m", "64", *SIZES, *arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("pykernels bench: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--m=0", "--m: m must be at least 1, got 0"),
        ("--m=-1,4", "--m: m must be at least 1, got -1"),
        ("--m=1,2147483648", "--m: m must be at most 2147483647, got 2147483648"),
        ("--m=many", "--m: must be a size or a list like 1,16,64, got 'many'"),
        ("--m=1,", "--m: must be a size or a list like 1,16,64, got '1,'"),
        ("--m=", "--m: must be a size or a list like 1,16,64, got ''"),
        ("--n=0", "--n: n must be at least 1, got 0"),
        ("--n=7", "--n: n (rows of b) must be a multiple of 8, got 7"),
        ("--n=8,16", "--n: must be a size, got '8,16'"),
        ("--k=0", "--k: k must be at least 1, got 0"),
        ("--k=-16", "--k: k must be at least 1, got -16"),
        ("--k=100", "--k: k (columns of a and b) must be a multiple of 16, got 100"),
        ("--num-sms=0", "--num-sms: num_sms must be at least 1, got 0"),
        ("--num-sms=2147483648", "--num-sms: num_sms must be at most 2147483647, got 2147483648"),
        ("--num-sms=all", "--num-sms: must be a size, got 'all'"),
    ],
)
def test_wrong_sizes(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--m", "64", *SIZES, option)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_json_survives_a_plot_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(rows: list[dict[str, Any]], path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    as_measured(monkeypatch)
    monkeypatch.setattr(plot, "draw", draw)
    written, drawn = tmp_path / "rows.json", tmp_path / "rows.png"
    assert run("--m", "64", *SIZES, "--json", str(written), "--plot", str(drawn)) == 1
    assert capsys.readouterr().err == (
        f"pykernels bench: [Errno 28] No space left on device: '{drawn}'\n"
    )
    assert json.loads(written.read_text())["measured"]


@pytest.mark.parametrize(
    ("package", "what"), [("rich", "rich"), ("matplotlib", "pykernels[bench]")]
)
def test_a_missing_package_names_what_installs_it(
    package: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = builtins.__import__

    def importing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", importing)
    assert run("--m", "8", *SIZES, "--plot", "x.png") == 1
    error = capsys.readouterr().err
    assert package in error
    assert f"pip install {what}`" in error


def test_missing_nvdisasm_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    monkeypatch.setattr(listing.shutil, "which", lambda name: None)
    listing._disassemble.cache_clear()
    assert run("--m", "8", *SIZES) == 1
    error = capsys.readouterr().err
    assert "nvidia-cuda-nvdisasm" in error
    assert "pip install pykernels[bench]" in error


def test_large_shapes_are_counted_on_smaller_ones() -> None:
    assert counts.emulated_problem(Shape(64, 7168, 2048)) == Shape(64, 7168, 2048)
    large = (Shape(8192, 32768, 512), Shape(8192, 7168, 16384), Shape(1, 2**20, 2**17))
    grouped = [
        GroupedShape((rows,) * groups, 4096, 7168) for rows, groups in ((8192, 4), (128, 256))
    ]
    problems: list[Problem[Any]] = [
        *large,
        *grouped,
        GroupedShape((2**17,), 4096, 7168, "masked_m"),
    ]
    for problem in problems:
        smaller = counts.emulated_problem(problem)
        assert smaller.flops / 2 <= 2**34
        assert smaller.sizes["k"] % 128 == smaller.sizes["n"] % 128 == 0
        assert smaller.flops / 2 > 2**31
    assert counts.emulated_problem(grouped[1]).rows[:1] == (128,)  # groups stay as they are


MEASURED = {
    "op": "fp8_gemm_nt", "shape": "64x264x400",
    "m": 64, "n": 264, "k": 400, "num_sms": None, "batch_invariant": False,
    "kernel": "fp8_gemm_nt_m64n64c1", "schedule": [1, 1, 1],
    "us": 4.0, "us_p10": 3.9, "us_p90": 4.1, "warm_l2_us": 3.5, "tflops": 3.4, "gbps": 40.0,
    "bound": "memory", "roofline_share": 0.5,
    "baselines": {
        "other": {
            "us": 6.0, "us_p10": 5.9, "us_p90": 6.1, "ratio": 1.5,
            "warm_l2_us": 5.0, "warm_l2_ratio": 1.43, "note": "less work",
        },
        "absent": {"unavailable": "not installed"},
    },
    "candidates": [
        {
            "kernel": "fp8_gemm_nt_m64n64c1", "schedule": [1, 1, 1], "us": 4.0,
            "model": {"total_us": 3.0},
        }
    ],
}  # fmt: skip


def as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the rows come from contest, whose own tests make one."""
    monkeypatch.setattr(answer, "_has_hopper", lambda: True)
    monkeypatch.setattr(harness, "copy_bandwidth", lambda: 4000.0)
    monkeypatch.setattr(harness, "environment", dict)
    monkeypatch.setattr(contest, "measure", lambda problem, *_, **__: MEASURED | problem.row())


def test_measured_rows_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_measured(monkeypatch)
    written, drawn = tmp_path / "rows.json", tmp_path / "rows.png"
    assert run("--m", "64,128", *SIZES, "--json", str(written), "--plot", str(drawn)) == 0
    printed = capsys.readouterr().out
    for text in ("Measured in turns", "1.50", "less work", "not installed", "x other", "model us"):
        assert text in printed
    assert "not a measurement" not in printed
    result = json.loads(written.read_text())
    assert result["measured"]
    assert result["copy_gbps"] == 4000.0
    assert [row["m"] for row in result["rows"]] == [64, 128]
