"""``emulate-check``: every statement that is refused, not only the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pykernels import cli
from pykernels.emulator.load_check import Refusal, check_file, check_path, refused_forms

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"
GOOD = HEADER + ".visible .entry k()\n{\n.reg .b32 r<3>;\nadd.s32 r0, r1, r2;\nret;\n}\n"
# Line 5 is the function's statement, which two calls expand; lines 10, 11 and 13 are wrong, too.
BAD = (
    HEADER
    + """.func helper() {
.reg .b32 r<3>; texture.none r0, r1;
ret; }
.visible .entry k()
{
.reg .b32 r<3>;  .reg .b64 rd<3>;
add.s32.wide r0, r1, r2;
add.s32 r0, r1, rd2;
call helper, ();
mov.u32 r0, rd1;
call helper, ();
ret;
}
"""
)


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.ptx").write_text(text)
    return folder


def test_a_file_that_loads(tmp_path: Path) -> None:
    check = check_file(write(tmp_path, good=GOOD) / "good.ptx")
    assert (check.kernels, check.instructions, check.refusals) == (1, 2, ())
    assert check.forms == {"add.s32": 1, "ret": 1}


def test_every_refused_statement_is_listed_once(tmp_path: Path) -> None:
    check = check_file(write(tmp_path, bad=BAD) / "bad.ptx")
    found = sorted((refusal.line, refusal.form) for refusal in check.refusals)
    assert found == [
        (5, "texture.none"), (10, "add.s32.wide"), (11, "add.s32"), (13, "mov.u32"),
    ]  # fmt: skip
    assert all(f"line {refusal.line}" in refusal.reason for refusal in check.refusals)
    assert refused_forms([check, check])["texture.none"] == 2


def test_malformed_text_has_one_refusal(tmp_path: Path) -> None:
    check = check_file(write(tmp_path, torn=GOOD[:-3]) / "torn.ptx")
    (refusal,) = check.refusals
    assert refusal.form == ""
    assert check.kernels == 0


def test_folders_are_walked(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", b=GOOD)
    write(tmp_path, a=GOOD)
    (tmp_path / "c.txt").write_text("not PTX")
    names = [Path(check.path).name for check in check_path(tmp_path)]
    assert names == ["a.ptx", "b.ptx"]


def test_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["emulate-check", str(tmp_path)]) == 1
    assert cli.main(["emulate-check", str(tmp_path / "absent")]) == 1
    errors = capsys.readouterr().err
    assert "holds no .ptx file" in errors
    assert "neither a file nor a folder" in errors


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.ptx"
    path.write_bytes(b"\x7fELF\xff\xfe\x00junk")
    assert len(check_file(path).refusals) == 1
    path.write_bytes(GOOD.encode().replace(b"add.s32", b"// \xff\nadd.s32"))
    assert check_file(path).refusals == ()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, good=GOOD)
    assert cli.main(["emulate-check", str(tmp_path)]) == 0
    write(tmp_path, bad=BAD)
    assert cli.main(["emulate-check", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "texture.none" in printed
    assert "bad.ptx: PTX line 11" in printed


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, good=GOOD, bad=BAD)
    assert cli.main(["emulate-check", "--json", str(tmp_path)]) == 1
    result = json.loads(capsys.readouterr().out)
    bad, good = result["files"]
    assert good["refusals"] == []
    assert {"texture.none", "mov.u32"} <= set(result["refused_forms"])
    assert Refusal(**bad["refusals"][0]).line == 10


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (refusal,) = check_file(tmp_path / "absent.ptx").refusals
    assert "absent.ptx" in refusal.reason
