"""The command line: the demo on a real model, and the doctor."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from pykernels import bert, cli, demo
from pykernels.demo import Measurement


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pykernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


def test_bert_equals_transformers() -> None:
    """Hidden states of the public implementation, pooled as the model's card says."""
    from transformers import BertModel

    folder = demo.model_folder()
    model, unused = bert.load(folder)
    assert unused == ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"]
    ids, mask = demo.tokenize(folder, ["One sentence.", "Another one that is longer than that."])
    with torch.no_grad():
        result = model(ids, mask)
        public = BertModel.from_pretrained(str(folder), local_files_only=True).eval()
        hidden = public(ids, attention_mask=mask.long()).last_hidden_state
    weight = mask[:, :, None].float()
    expected = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    assert torch.allclose(result, expected, rtol=0, atol=1e-6)


def test_demo_runs_every_linear_on_kernels() -> None:
    result = run("demo", "PTX on a CPU.")
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if "fp8_gemm_nt_" in line]
    assert len(rows) == 36
    assert "PTX on a CPU." in result.stdout
    assert "pooler.dense.weight" in result.stdout


def plain_row(**changes: object) -> Measurement:
    fields: dict[str, object] = {"layer": "0 query", "instructions": 5}
    return Measurement(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "cosine", "problem"),
    [
        (plain_row(), 0.995, None),
        (plain_row(instructions=0, gpu_launches=1), 0.995, None),
        (plain_row(instructions=0), 0.995, "0 query: no kernel has computed it"),
        (plain_row(findings=2), 0.995, "0 query: 2 findings"),
        (plain_row(), 0.989, "sentence 1: cosine similarity 0.9890, must be above 0.99"),
        (plain_row(), math.nan, "sentence 1: cosine similarity nan, must be above 0.99"),
    ],
)
def test_what_makes_the_demo_fail(row: Measurement, cosine: float, problem: str | None) -> None:
    expected = [] if problem is None else [problem]
    assert demo.find_problems([row], torch.tensor([cosine])) == expected


def test_demo_without_its_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "no_such_package")
    assert cli.main(["demo"]) == 1
    assert "pip install pykernels[demo]" in capsys.readouterr().err


def test_doctor() -> None:
    result = run("doctor")
    assert result.returncode == 0, result.stderr
    for what in ("torch", "driver", "toolkit", "extension", "kernels", "CUDA", "emulator"):
        assert what in result.stdout


def test_doctor_without_extension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pykernels import doctor

    def missing() -> None:
        raise RuntimeError("the extension is not built")

    monkeypatch.setattr(doctor, "native", missing)
    assert cli.main(["doctor"]) == 1
    assert "the extension is not built" in capsys.readouterr().out
