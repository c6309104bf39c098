"""Loading: literals and names bound, registers packed, variables placed, calls expanded."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import Emulator, Module, PtxError

from .ptx_program import ptx_program, run_ptx

HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"


def test_parameters_are_aligned() -> None:
    kernel = Module.from_ptx(
        HEADER
        + ".entry k(.param .u8 a, .param .align 4 .b8 b[6], .param .u64 c, .param .f32 d) { ret; }"
    )["k"]
    assert [p.offset for p in kernel.params] == [0, 4, 16, 24]


def test_kernels_hold_only_the_shared_memory_that_they_name() -> None:
    text = (
        HEADER
        + """
        .shared .align 4 .b8 first[4];
        .shared .align 16 .b8 second[32];
        .extern .shared .align 16 .b8 dynamic[];
        .func helper() { .reg .b32 r; ld.shared.u32 r, [second]; ret; }
        .entry none() { ret; }
        .entry one() { .reg .b32 r; ld.shared.u32 r, [first]; ret; }
        .entry both() { .reg .b32 r; ld.shared.u32 r, [first]; call helper; ret; }
        .entry own() { .shared .align 8 .b8 mine[24]; .reg .b32 r; mov.u32 r, mine; ret; }
    """
    )
    module = Module.from_ptx(text)
    sizes = {name: module[name].static_shared_bytes for name in ("none", "one", "both", "own")}
    assert sizes == {"none": 0, "one": 4, "both": 48, "own": 24}


def test_dynamic_shared_memory_follows_at_1024_bytes() -> None:
    out = np.zeros(3, np.uint32)
    module = """
        .shared .align 4 .b8 fixed[4];
        .extern .shared .align 16 .b8 one[];
        .extern .shared .align 16 .b8 two[];
    """
    body = """
        mov.u32 r1, one;
        mov.u32 r2, two;
        mov.u32 r3, fixed;
        and.b32 r4, r1, 1023;
        sub.u32 r5, r2, r1;
        sub.u32 r6, r1, r3;
        st.global.u32 [out], r4;
        st.global.u32 [out+4], r5;
        st.global.u32 [out+8], r6;
    """
    report = run_ptx(body, {"out": out}, module=module, dynamic_smem_bytes=64)
    report.raise_if_findings()
    assert out.tolist() == [0, 0, 1024]
    assert any("dynamic_shared_alignment" in note for note in report.notes)


def test_module_variables_keep_their_values_between_launches() -> None:
    out = np.zeros(1, np.uint32)
    text = ptx_program(
        "atom.global.add.u32 r1, [counter], 5; st.global.u32 [out], r1;",
        {"out": out},
        module=".global .u32 counter = 1;",
    )
    kernel = Module.from_ptx(text)["kernel"]
    for expected in (1, 6, 11):
        Emulator().launch(kernel, (1,), (1,), [out]).raise_if_findings()
        assert out[0] == expected


def test_many_values_alive_at_once_and_many_short_lived_ones() -> None:
    """Registers share slots of the register file only where no value is lost."""
    count = 200
    out = np.zeros(32, np.uint32)
    lines = [".reg .b32 v<1000>; .reg .b32 s;"]
    lines += [f"add.u32 v{i}, lane, {i};" for i in range(count)]
    for i in range(count):
        lines.append(
            f"mul.lo.u32 v{count + i}, v{i}, 3; sub.u32 v{2 * count + i}, v{count + i}, v{i};"
        )
    lines += ["mov.u32 s, 0;", *(f"add.u32 s, s, v{2 * count + i};" for i in range(count))]
    lines += [f"add.u32 s, s, v{i};" for i in range(count)]
    lines += ["mad.wide.u32 rd1, lane, 4, out;", "st.global.u32 [rd1], s;"]
    run_ptx("\n".join(lines), {"out": out}).raise_if_findings()
    expected = [sum(3 * (lane + i) for i in range(count)) for lane in range(32)]
    assert out.tolist() == expected


def test_a_value_that_lives_round_a_loop_keeps_its_register() -> None:
    out = np.zeros(32, np.uint32)
    body = """
        .reg .b32 v<20>; .reg .pred q;
        mov.u32 v0, 5;
        mov.u32 v1, 0;
        mov.u32 v2, 100;
    again:
        add.u32 v3, v2, lane;
        add.u32 v4, v3, 1;
        setp.ge.u32 q, v1, lane;
        @q bra skip;
        mov.u32 v2, v4;
    skip:
        add.u32 v5, v0, 1;
        mov.u32 v0, v5;
        add.u32 v1, v1, 1;
        setp.lt.u32 q, v1, 10;
        @q bra again;
        mad.lo.u32 v6, v0, 1000, v2;
        mad.wide.u32 rd1, lane, 4, out;
        st.global.u32 [rd1], v6;
    """
    run_ptx(body, {"out": out}).raise_if_findings()
    assert out.tolist() == [15000 + 100 + min(lane, 10) * (lane + 1) for lane in range(32)]


def test_predicated_writes_keep_the_old_value() -> None:
    out = np.zeros(32, np.uint32)
    body = """
        .reg .b32 a, b, c; .reg .pred q;
        setp.lt.u32 q, lane, 16;
        mov.u32 a, 3;
        @q mov.u32 a, 4;
        add.u32 b, lane, 1;
        add.u32 c, b, a;
        mad.wide.u32 rd1, lane, 4, out;
        st.global.u32 [rd1], c;
    """
    run_ptx(body, {"out": out}).raise_if_findings()
    assert out.tolist() == [lane + (5 if lane < 16 else 4) for lane in range(32)]


def test_reads_of_unwritten_registers_are_found() -> None:
    out = np.zeros(32, np.uint32)
    body = """
        .reg .b32 never, sometimes; .reg .pred q;
        setp.lt.u32 q, lane, 16;
        @q mov.u32 sometimes, 1;
        add.u32 r1, never, 1;
        @q add.u32 r2, sometimes, 1;
        add.u32 r3, sometimes, 1;
        st.global.u32 [out], lane;
    """
    findings = run_ptx(body, {"out": out}).findings
    assert [finding.kind for finding in findings] == ["init", "init"]
    assert ["never" in findings[0].message, "sometimes" in findings[1].message] == [True, True]


@pytest.mark.parametrize(
    ("body", "fused"),
    [
        ("mul.f32 f1, f2, f3; add.f32 f4, f1, f2;", True),
        ("mul.ftz.f32 f1, f2, f3; sub.ftz.f32 f4, f2, f1;", True),
        ("mul.f64 fd1, 0d3FF0000000000000, 1.5; add.f64 fd2, fd1, fd1;", True),
        ("mul.rn.f32 f1, f2, f3; add.f32 f4, f1, f2;", False),
        ("mul.f32 f1, f2, f3; add.rn.f32 f4, f1, f2;", False),
        ("mul.f32 f1, f2, f3; add.f32 f4, f2, f3;", False),
        ("fma.rn.f32 f1, f2, f3, f2; add.f32 f4, f1, f2;", False),
    ],
)
def test_arithmetic_that_ptxas_may_fuse_is_noted(body: str, fused: bool) -> None:
    setup = "mov.f32 f2, 1.0; mov.f32 f3, 2.0;"
    report = run_ptx(setup + body, {"unused": 0})
    assert any("fuse" in note or "contract" in note for note in report.notes) == fused


def test_variables_without_memory_are_an_error_only_where_they_are_named() -> None:
    module = ".extern .global .u32 elsewhere;"
    Module.from_ptx(ptx_program("ret;", {"unused": 0}, module=module))
    with pytest.raises(PtxError, match="elsewhere"):
        Module.from_ptx(ptx_program("ld.global.u32 r1, [elsewhere];", {"unused": 0}, module=module))


def test_calls_that_multiply_without_end_are_refused() -> None:
    module = ".func level0() { .reg .b32 r; mov.u32 r, 1; ret; }\n"
    for level in range(1, 12):
        module += f".func level{level}() {{ {f'call level{level - 1};' * 10} ret; }}\n"
    with pytest.raises(PtxError, match="too large"):
        Module.from_ptx(ptx_program("call level11;", {"unused": 0}, module=module))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.u32 r1, r2;", "unknown instruction form 'frobnicate.u32'"),
        ("add.u32.fast r1, r2, r3;", "unknown instruction form"),
        ("add.u32 r1, r2;", "3 operands"),
        ("add.u32 rd1, r2, r3;", "rd1 has 64 bits"),
        ("add.u32 r1, p1, r3;", "p1 is a predicate"),
        ("add.u32 r1, [rd1], r3;", "register or a literal"),
        ("add.u32 5, r1, r3;", "register must stand"),
        ("ld.global.u32 r1, rd1;", "address"),
        ("ld.global.u32 r1, [h1];", "32 or 64 bits"),
        ("ld.global.u32 r1, [f_unknown];", "unknown variable"),
    ],
)
def test_unknown_forms_name_their_line(body: str, message: str) -> None:
    text = ptx_program(f"mov.u32 r2, 1;\n{body}", {"unused": 0})
    with pytest.raises(PtxError, match=message) as caught:
        Module.from_ptx(text)
    assert caught.value.source_line == body
    assert text.split("\n")[caught.value.line - 1] == body
