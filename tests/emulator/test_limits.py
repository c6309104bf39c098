"""Small texts that would need much memory or time: refused, with a line."""

from __future__ import annotations

import resource
import time

import pytest

from pykernels.emulator import Module, PtxError

HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"
KERNEL = HEADER + ".visible .entry kernel()\n{{\n{}\nret;\n}}\n"
MAX_SECONDS = 60  # of a busy machine
MAX_BYTES = 1 << 30
REFUSALS = r"too large|too much|too many|more (than|initial)"


def many(count: int, text: str, separator: str = "\n") -> str:
    return separator.join(text.replace("#", str(i)) for i in range(count))


def nested_calls(body: str) -> str:
    """Each function calls the one before ten times: ten to the power of twelve calls."""
    functions = [f".func f0() {{ {body} }}"]
    functions += [f".func f{i}() {{\n" + f"call f{i - 1};\n" * 10 + "ret;\n}" for i in range(1, 13)]
    return HEADER + "\n".join(functions) + "\n.visible .entry kernel()\n{\ncall f12;\nret;\n}\n"


LABELS = many(4000, "L#: ret;\n")
LIST = "T: .branchtargets " + many(4000, "L#", ", ") + ";\n"

TEXTS = {
    "many variables": HEADER + many(200, ".global .b8 a#[67108864];"),
    "many initialised variables": HEADER + many(200, ".global .b8 a#[67108864] = {1};"),
    "many shared variables": KERNEL.format(
        many(80, ".shared .b8 a#[67108864];") + ".reg .b32 r;\n" + many(80, "mov.u32 r, a#;")
    ),
    "much local memory": KERNEL.format(many(200, ".local .b8 a#[67108864];")),
    "many parameters": HEADER
    + ".visible .entry kernel("
    + many(80, ".param .b8 a#[67108864]", ",")
    + ") { ret; }",
    "many call parameters": KERNEL.format(
        many(80, ".param .b8 a#[67108864];")
        + ".reg .b32 r;\n"
        + many(80, "st.param.b32 [a#], r;")
        + many(80, "ld.param.b32 r, [a#];")
    ),
    "many calls": nested_calls("ret;"),
    "many calls of nothing": nested_calls(""),
    "many calls with registers": nested_calls(".reg .b32 r<5000>;\n" + many(500, "mov.b32 r#, 0;")),
    "many kernels": HEADER
    + ".func f() {\n.reg .b32 r;\n"
    + "mov.b32 r, 0;\n" * 20000
    + "ret;\n}\n"
    + many(2000, ".visible .entry k#() { call f; ret; }"),
    "addresses beyond a variable": HEADER
    + ".global .b8 b;\n.extern .global .b64 a[64] = {"
    + ", ".join(["b"] * 64)
    + "};\n.global .b8 a[1];\n",
    "many branch targets": KERNEL.format(
        ".reg .b32 r;\n" + LIST + LABELS + "brx.idx r, T;\n" * 4000
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_grows_without_bound_is_refused(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(PtxError, match=REFUSALS) as caught:
        Module.from_ptx(TEXTS[name])
    assert caught.value.line >= 1
    assert time.monotonic() - start < MAX_SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MAX_BYTES


MANY_KERNELS = HEADER + many(16000, ".entry k#() { ret; }")
MANY_GLOBALS = (
    HEADER
    + many(4000, ".global .b32 g#;\n.shared .b32 s#;")
    + many(4000, ".entry k#() { .reg .b64 d; mov.u64 d, g#; ret; }")
)


@pytest.mark.parametrize("text", [MANY_KERNELS, MANY_GLOBALS], ids=["kernels", "variables"])
def test_many_kernels_load_in_linear_time(text: str) -> None:
    start = time.process_time()
    Module.from_ptx(text)
    assert time.process_time() - start < 10


def test_a_kernel_that_is_too_long_is_refused_while_it_is_read() -> None:
    text = KERNEL.format(".reg .b32 r;\n" + "mov.b32 r, 0;\n" * 700_000 + "this is no PTX")
    with pytest.raises(PtxError, match="the program is too large"):
        Module.from_ptx(text)
