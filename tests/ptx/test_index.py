"""The PTX wrappers keep the rules of CONTRIBUTING.md, and ptx/README.md lists exactly them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from kernel_build import ptx_index, toolkit, wgmma_forms

REPOSITORY = Path(__file__).resolve().parents[2]
WRAPPERS = ptx_index.read_all(REPOSITORY)
HEADERS = sorted((REPOSITORY / "ptx").glob("*.cuh"))


def test_index_is_up_to_date() -> None:
    assert (REPOSITORY / "ptx" / "README.md").read_text() == ptx_index.render(WRAPPERS), (
        "run `PYTHONPATH=csrc python -m kernel_build.ptx_index`"
    )


def test_generated_wrappers_are_up_to_date() -> None:
    command = "run `PYTHONPATH=csrc python -m kernel_build.wgmma_forms`"
    for name, text in (("e4m3", wgmma_forms.render()), ("bf16", wgmma_forms.render_bf16())):
        assert (REPOSITORY / "ptx" / f"wgmma_{name}.cuh").read_text() == text, command


def test_every_inline_assembly_is_in_the_index() -> None:
    """A wrapper whose comment does not open with its form would be missing."""
    for header in HEADERS:
        statements = len(re.findall(r"\basm\b", _code(header.read_text())))
        indexed = [
            wrapper
            for wrapper in WRAPPERS
            if wrapper.header == header.stem and "asm" in wrapper.body
        ]
        assert statements == len(indexed), header.name


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.name)
def test_wrapper_is_one_instruction_form(wrapper: ptx_index.Wrapper) -> None:
    if "asm" not in wrapper.body:
        assert wrapper.name == "cvta_to_shared"  # the compiler's intrinsic
        return
    text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', wrapper.body))
    assert wrapper.opcode in text, "the comment's form is not the one assembled"
    assert not re.search(r"\b(for|while|do|goto)\b|#if|\bbra\b", wrapper.body), (
        "no loops, no labels"
    )
    signature = wrapper.body.partition("{")[0]
    assert "=" not in signature, "no default arguments"


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.name)
def test_wrapper_has_handler_and_test(wrapper: ptx_index.Wrapper) -> None:
    handlers = REPOSITORY / "csrc" / "emulator" / "isa"
    assert (handlers / f"{wrapper.handler_stem}.cpp").is_file()
    tests = REPOSITORY / "tests" / "emulator" / "isa"
    assert (tests / f"test_{wrapper.handler_stem}.py").is_file()


def test_inline_assembly_stands_in_ptx_only() -> None:
    """Elsewhere only the empty statement that holds a register's uses back."""
    for source in [*(REPOSITORY / "csrc").rglob("*.cuh"), *(REPOSITORY / "csrc").rglob("*.cu")]:
        for statement in re.findall(r"\basm\b[^;]*;", _code(source.read_text())):
            assert 'asm volatile("" :' in statement, f"{source}: {statement}"


def test_headers_need_no_host_headers(tmp_path: Path) -> None:
    """As under NVRTC: every header compiles with nothing before it; none names standard headers."""
    source = tmp_path / "headers.cu"
    includes = "".join(f'#include "ptx/{header.name}"\n' for header in HEADERS)
    source.write_text(includes)
    for header in HEADERS:
        system = re.findall(r"#include <(\w+)>", header.read_text())
        assert system == (["cstdint"] if header.stem == "types" else []), header.name
    command = [str(toolkit.find_nvcc()), "-std=c++20", "-arch=compute_90a", "-ptx"]
    files = ["-I", str(REPOSITORY), str(source), "-o", str(tmp_path / "headers.ptx")]
    subprocess.run([*command, *files], check=True, timeout=120)


def _code(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)
