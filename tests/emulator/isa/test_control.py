"""Branches, calls, the end of threads, traps and printing."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Module, PtxError
from tests.emulator.ptx_program import ptx_program, run_ptx

STORE = """
    mad.wide.u32 rd60, tid, 4, out;
    st.global.u32 [rd60], r9;
"""


def run(body: str, *, module: str = "", count: int = 32) -> list[int]:
    """Every thread stores r9."""
    out = np.zeros(count, np.uint32)
    run_ptx(body + STORE, {"out": out}, module=module, block=(count,)).raise_if_findings()
    return out.tolist()


def test_divergent_loop() -> None:
    """Each lane goes round as often as its number says."""
    body = """
        mov.u32 r9, 0;
        mov.u32 r1, 0;
    again:
        setp.ge.u32 p1, r1, lane;
        @p1 bra done;
        add.u32 r9, r9, r1;
        add.u32 r1, r1, 1;
        bra.uni again;
    done:
    """
    assert run(body) == [sum(range(i)) for i in range(32)]


def test_guards() -> None:
    body = """
        mov.u32 r9, 1;
        setp.lt.u32 p1, lane, 7;
        @p1 mov.u32 r9, 2;
        @!p1 add.u32 r9, r9, lane;
    """
    assert run(body) == [2 if i < 7 else 1 + i for i in range(32)]


@pytest.mark.parametrize("uniform", ["", ".uni"])
def test_computed_branch(uniform: str) -> None:
    index = "mov.u32 r1, 2;" if uniform else "and.b32 r1, lane, 3;"
    body = f"""
        {index}
        mov.u32 r9, 0;
    targets: .branchtargets zero, one, two, zero;
        brx.idx{uniform} r1, targets;
    one:
        add.u32 r9, r9, 1;
    two:
        add.u32 r9, r9, 10;
    zero:
        add.u32 r9, r9, 100;
    """
    expected = [100, 111, 110, 100]
    assert run(body) == [expected[2] if uniform else expected[i % 4] for i in range(32)]


def test_computed_branch_beyond_its_targets() -> None:
    body = """
    targets: .branchtargets one, two;
        brx.idx lane, targets;
    one:
    two:
    """
    with pytest.raises(EmulationError, match=r"brx.idx has no target 2\n.*brx.idx") as caught:
        run(body)
    (finding,) = caught.value.report.findings
    assert finding.first is not None
    assert finding.first.thread == 2


def test_exit_of_some_lanes() -> None:
    body = "setp.ge.u32 p1, lane, 20; @p1 exit; mov.u32 r9, 3;"
    assert run(body) == [3] * 20 + [0] * 12


FUNCTIONS = """
.func (.param .b32 result) triangle(.param .b32 n)
{
    .reg .pred p;
    .reg .b32 r<4>;
    ld.param.u32 r1, [n];
    mov.u32 r2, 0;
again:
    setp.eq.u32 p, r1, 0;
    @p bra done;
    add.u32 r2, r2, r1;
    sub.u32 r1, r1, 1;
    bra again;
done:
    st.param.b32 [result], r2;
    ret;
}
.func (.param .b32 result) both(.param .align 4 .b8 pair[8])
{
    .reg .b32 r<8>;
    ld.param.b32 r1, [pair];
    ld.param.b32 r2, [pair+4];
    {
        .param .b32 argument;
        .param .b32 returned;
        st.param.b32 [argument], r1;
        call.uni (returned), triangle, (argument);
        ld.param.b32 r3, [returned];
    }
    {
        .param .b32 argument;
        .param .b32 returned;
        st.param.b32 [argument], r2;
        call.uni (returned), triangle, (argument);
        ld.param.b32 r4, [returned];
    }
    mad.lo.u32 r5, r4, 1000, r3;
    st.param.b32 [result], r5;
    ret;
}
.func (.reg .b32 twice) double(.reg .b32 value)
{
    add.u32 twice, value, value;
    ret;
}
"""


def test_calls_with_parameters_in_memory() -> None:
    body = """
        {
            .param .align 4 .b8 pair[8];
            .param .b32 returned;
            st.param.b32 [pair], lane;
            st.param.b32 [pair+4], 5;
            call (returned), both, (pair);
            ld.param.b32 r9, [returned];
        }
    """
    assert run(body, module=FUNCTIONS) == [15000 + i * (i + 1) // 2 for i in range(32)]


def test_calls_with_parameters_in_registers() -> None:
    body = "call.uni (r1), double, (lane); call.uni (r9), double, (r1);"
    assert run(body, module=FUNCTIONS) == [4 * i for i in range(32)]


def test_predicated_call() -> None:
    body = """
        mov.u32 r9, 7;
        setp.lt.u32 p1, lane, 4;
        @p1 call (r9), double, (lane);
    """
    assert run(body, module=FUNCTIONS) == [0, 2, 4, 6] + [7] * 28


def test_return_of_some_lanes() -> None:
    module = """
    .func (.reg .b32 d) clamped(.reg .b32 v)
    {
        .reg .pred p;
        mov.u32 d, v;
        setp.lt.u32 p, v, 10;
        @p ret;
        mov.u32 d, 10;
    }
    """
    assert run("call (r9), clamped, (lane);", module=module) == [min(i, 10) for i in range(32)]


def test_static_shared_memory_of_a_function_exists_once() -> None:
    """Two calls that are expanded at two places share it, as one function does on the GPU."""
    module = """
    .func (.reg .b32 d) keep(.reg .b32 amount, .reg .b32 fresh)
    {
        .shared .align 4 .u32 sum;
        .reg .pred p;
        setp.ne.u32 p, fresh, 0;
        @p st.shared.u32 [sum], 0;
        bar.sync 0;
        atom.shared.add.u32 d, [sum], amount;
        bar.sync 0;
        ld.shared.u32 d, [sum];
        bar.sync 0;
        ret;
    }
    """
    body = """
        mov.u32 r1, 1;
        mov.u32 r2, 0;
        call (r3), keep, (r1, r1);
        call (r9), keep, (r1, r2);
    """
    assert run(body, module=module) == [64] * 32


def test_trap_ends_the_launch() -> None:
    with pytest.raises(EmulationError, match="trap") as caught:
        run("setp.eq.u32 p1, lane, 3; @p1 trap; mov.u32 r9, 0;")
    (finding,) = caught.value.report.findings
    assert finding.kind == "trap"
    assert finding.first.thread == 3
    assert "trap" in finding.first.ptx


PRINT = """
.extern .func (.param .b32 status) vprintf(.param .b64 format, .param .b64 arguments);
.global .align 1 .b8 text[] = {37, 100, 32, 37, 53, 46, 50, 102, 32, 37, 115, 32,
                               37, 108, 108, 120, 10, 0};
.global .align 1 .b8 word[] = {119, 111, 114, 100, 0};
"""


def test_printf(capfd: pytest.CaptureFixture[str]) -> None:
    body = """
        .local .align 8 .b8 arguments[32];
        mov.u64 rd1, arguments;
        cvta.local.u64 rd2, rd1;
        sub.s32 r1, lane, 1;
        st.local.u32 [arguments], r1;
        cvt.rn.f64.u32 fd1, lane;
        st.local.f64 [arguments+8], fd1;
        cvta.global.u64 rd3, word;
        st.local.u64 [arguments+16], rd3;
        st.local.u64 [arguments+24], 0x123456789a;
        setp.lt.u32 p1, lane, 2;
        @!p1 bra skip;
        {
            .param .b64 param0;
            .param .b64 param1;
            .param .b32 retval0;
            cvta.global.u64 rd4, text;
            st.param.b64 [param0], rd4;
            st.param.b64 [param1], rd2;
            call.uni (retval0), vprintf, (param0, param1);
            ld.param.b32 r9, [retval0];
        }
    skip:
    """
    out = np.zeros(32, np.uint32)
    run_ptx(
        body + "mad.wide.u32 rd60, tid, 4, out; @p1 st.global.u32 [rd60], r9;",
        {"out": out},
        module=PRINT,
    )
    assert capfd.readouterr().out == "-1  0.00 word 123456789a\n0  1.00 word 123456789a\n"
    assert out[:3].tolist() == [4, 4, 0]


def test_assertion_ends_the_launch_with_its_text() -> None:
    module = """
    .extern .func __assertfail(
        .param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
    .global .align 1 .b8 message[] = {120, 62, 48, 0};
    .global .align 1 .b8 file[] = {107, 46, 99, 117, 0};
    """
    body = """
        {
            .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;
            cvta.global.u64 rd1, message;
            cvta.global.u64 rd2, file;
            st.param.b64 [a], rd1; st.param.b64 [b], rd2; st.param.b32 [c], 12;
            st.param.b64 [d], rd1; st.param.b64 [e], 1;
            call.uni __assertfail, (a, b, c, d, e);
        }
        mov.u32 r9, 0;
    """
    with pytest.raises(EmulationError, match=re.escape("k.cu:12: x>0: assertion `x>0` failed")):
        run(body, module=module)


def test_sleeping_and_performance_events_do_nothing() -> None:
    assert run("nanosleep.u32 100; nanosleep.u32 lane; pmevent 3; mov.u32 r9, 1;") == [1] * 32


@pytest.mark.parametrize(
    ("body", "module", "message"),
    [
        ("bra nowhere;", "", "label"),
        ("call nothing;", "", "unknown function"),
        ("call (r1), double, (r2, r3);", FUNCTIONS, "numbers of arguments"),
        ("call (r1), r2, (r3);", FUNCTIONS, "indirect"),
        ("call again;", ".func again() { call again; ret; }", "recursive"),
        ("call missing;", ".extern .func missing;", "no body"),
        (
            ".param .b64 a, b; call (a), malloc, (b);",
            ".extern .func (.param .b64 r) malloc(.param .b64 n);",
            "device malloc is not emulated",
        ),
        ("call rd1, P; P: .callprototype _ ();", "", "function pointers are not emulated"),
        ("setmaxnreg.inc.sync.aligned.u32 12;", "", "multiple of 8"),
        ("bra;", "", "operands"),
        ("exit 3;", "", "operands"),
    ],
)
def test_wrong_use_is_an_error_at_load(body: str, module: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        Module.from_ptx(ptx_program(body, {"unused": 0}, module=module))
