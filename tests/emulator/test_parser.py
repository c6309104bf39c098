"""The syntax that compilers write, and errors that name the line on anything malformed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykernels.emulator import Emulator, Module, PtxError

HEADER = ".version 9.0\n.target sm_90a, debug\n.address_size 64\n"

# One of everything that the parser knows; stores 42 through its first parameter.
PROGRAM = """//
.version 8.7
.target sm_90a
.address_size 64
/* a block
   comment */
.file 1 "dir/kernel.cu"
.extern .shared .align 1024 .b8 dynamic[];
.weak .shared .align 8 .b8 fixed[16];
.visible .global .align 8 .u32 table[2][2] = {{1, 2}, {3, 4}};
.global .align 8 .u64 pointers[2] = {table, generic(table)+8};
.const .f32 numbers[] = {0f3F800000, -1.5, 2.5e1};
.common .global .b32 shared_name;
.extern .func (.param .b32 retval) vprintf (.param .b64 a, .param .b64 b);
.func (.param .b32 result) forty(.param .b32 two);
.visible .entry kernel(
    .param .u64 .ptr .global .align 4 out_param,
    .param .align 64 .b8 block[128])
.maxntid 128, 1, 1
.minnctapersm 1
.maxclusterrank 8
.pragma "nounroll";
{
    .reg .pred %p<3>, odd;
    .reg .b32 %r<10>, lo, hi;
    .reg .b64 %rd<4>;
    .loc 1 3 5
    ld.param.u64 %rd1, [out_param];
    cvta.to.global.u64 %rd2, %rd1; mov.u32 %r1, %tid.x;
    .loc 1 4 5, function_name $info, inlined_at 1 9 3
    setp.ne.and.u32 %p1|%p2, %r1, 0x0, !odd;
    @!%p2 bra $L_end;
    { .reg .b32 %r<4>; mov.b32 %r1, -1; { .reg .b32 %r1; mov.b32 %r1, 0b11; } }
    {
        .param .b32 two;
        .param .b32 back;
        st.param.b32 [two+0], 2;
        call.uni (back), forty, (two);
        ld.param.b32 %r2, [back];
    }
    .pragma "nounroll";
    { mov.b64 {lo, hi}, %rd1; }
    st.global.v2.u32 [%rd2+0], {%r2, %r2};
$L_end:
    ret;
}
.func (.param .b32 result) forty(.param .b32 two)
{
    .reg .b32 %r1;
    ld.param.b32 %r1, [two];
    add.s32 %r1, %r1, 40U;
    st.param.b32 [result], %r1;
    ret;
}
.section .debug_str { $info: .b8 102, 0
.b32 .debug_line }
"""


def body(text: str) -> str:
    return f"{HEADER}.visible .entry kernel(.param .u64 out)\n{{\n{text}\n}}\n"


def test_the_whole_syntax() -> None:
    kernel = Module.from_ptx(PROGRAM.replace("!odd", "0"))["kernel"]
    assert [(p.name, p.type, p.offset, p.bytes) for p in kernel.params] == [
        ("out_param", "u64", 0, 8),
        ("block", "b8", 64, 128),
    ]
    assert kernel.max_threads == 128
    assert kernel.params[1].alignment == 64
    out = np.zeros(2, np.uint32)
    text = PROGRAM.replace("setp.ne.and.u32 %p1|%p2, %r1, 0x0, !odd;", "setp.eq.u32 %p2, %r1, %r1;")
    kernel = Module.from_ptx(text)["kernel"]
    Emulator().launch(kernel, (1,), (1,), [out, bytes(128)]).raise_if_findings()
    assert out.tolist() == [42, 42]


def test_scopes_hide_names() -> None:
    out = np.zeros(1, np.uint32)
    text = body("""
        .reg .b32 x, y; .reg .pred p; .reg .b64 rd;
        mov.u32 x, 1;
        { .reg .b32 x; mov.u32 x, 2; LOOP: mov.u32 y, x; setp.eq.u32 p, x, 9; @p bra LOOP;
          bra DONE; }
        { LOOP: mov.u32 y, 7; setp.eq.u32 p, x, 9; @p bra LOOP; }
    DONE:
        mad.lo.u32 y, y, 10, x;
        ld.param.u64 rd, [out];
        st.global.u32 [rd], y;
        ret;
    """)
    Emulator().launch(Module.from_ptx(text)["kernel"], (1,), (1,), [out]).raise_if_findings()
    assert out[0] == 21


@pytest.mark.parametrize(
    "order",
    ["ld.global.relaxed.gpu.u32", "ld.relaxed.gpu.global.u32", "ld.gpu.global.relaxed.u32"],
)
def test_modifiers_in_any_order(order: str) -> None:
    Module.from_ptx(body(f".reg .b32 r; .reg .b64 rd; {order} r, [rd]; ret;"))


def test_initial_values() -> None:
    out = np.zeros(8, np.uint64)
    text = PROGRAM.split(".visible .entry")[0] + body("""
        .reg .b64 o, rd<4>; .reg .b32 r<8>; .reg .f32 f;
        ld.param.u64 o, [out];
        ld.global.u32 r1, [table+12];
        st.global.u32 [o], r1;
        ld.global.u64 rd1, [pointers];
        ld.u32 r2, [rd1+4];
        st.global.u32 [o+8], r2;
        ld.global.u64 rd2, [pointers+8];
        ld.u32 r3, [rd2];
        st.global.u32 [o+16], r3;
        ld.const.f32 f, [numbers+4];
        st.global.f32 [o+24], f;
        ld.global.u32 r4, [shared_name];
        st.global.u32 [o+32], r4;
        ret;
    """).removeprefix(HEADER)
    Emulator().launch(Module.from_ptx(text)["kernel"], (1,), (1,), [out]).raise_if_findings()
    assert out[:5].tolist() == [4, 2, 3, 0xBFC00000, 0]


MALFORMED = {
    "no version": (".target sm_90a\n", 1),
    "no target": (".version 9.0\n.address_size 64\n", 2),
    "32-bit addresses": (".version 9.0\n.target sm_90\n.address_size 32\n", 3),
    "unknown directive": (HEADER + ".strange;\n", 4),
    "unknown attribute": (HEADER + ".entry k() .fast { ret; }\n", 4),
    "unfinished comment": (HEADER + "/* never\n", 4),
    "unfinished string": (HEADER + '.file 1 "name\n', 4),
    "unknown character": (body("mov.u32 #1;"), 6),
    "unknown register": (body(".reg .b32 %r<3>;\nmov.u32 %r3, 1;"), 7),
    "unknown guard": (body("@%p bra L;"), 6),
    "guard of another type": (body(".reg .b32 r;\n@r ret;"), 7),
    "unknown label": (body("ret;\nbra L;"), 7),
    "label of another scope": (body("{ L: }\nbra L;"), 7),
    "label twice": (body("L:\nL:\nret;"), 7),
    "register twice": (body(".reg .b32 r;\n.reg .b64 r;"), 7),
    "variable twice": (HEADER + ".global .u32 a;\n.global .u32 a;\n", 5),
    "function twice": (HEADER + ".entry k() { ret; }\n.entry k() { ret; }\n", 5),
    "missing semicolon": (body("ret\n}"), 7),
    "missing operand": (body(".reg .b32 r;\nmov.u32 r,;"), 7),
    "missing bracket": (body(".reg .b32 r; .reg .b64 d;\nld.u32 r, [d;"), 7),
    "too large a number": (body(".reg .b32 r;\nmov.u32 r, 0x1FFFFFFFFFFFFFFFF;"), 7),
    "short pattern": (body(".reg .f32 f;\nmov.f32 f, 0f3F80;"), 7),
    "malformed number": (body(".reg .b32 r;\nmov.u32 r, 12ab;"), 7),
    "huge array": (HEADER + ".global .b8 a[9999999999999];\n", 4),
    "odd alignment": (HEADER + ".global .align 3 .b8 a;\n", 4),
    "too many values": (HEADER + ".global .b8 a[1] = {1, 2};\n", 4),
    "predicate in memory": (HEADER + ".global .pred a;\n", 4),
    "no type": (HEADER + ".global a;\n", 4),
    "deep constants": (body(".reg .b32 r;\nmov.u32 r, " + "(" * 5000), 7),
    "many signs": (body(".reg .b32 r;\nmov.u32 r, " + "-" * 5000 + "1;"), 7),
    "deep scopes": (body("{" * 5000), 6),
    "deep vectors": (body("mov.u32 " + "{" * 5000), 6),
    "deep initialiser": (HEADER + ".global .b8 a[1] = " + "{" * 5000 + "\n", 4),
    "end in a function": (body("ret;")[:-3], 6),
    "vector registers": (body(".reg .v4 .b32 r;"), 6),
    "huge block": (HEADER + ".entry k() .maxntid 1000000, 1000000 { ret; }\n", 4),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_text(name: str) -> None:
    text, line = MALFORMED[name]
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(text)
    assert caught.value.line == line
    assert caught.value.source_line == (text.split("\n")[line - 1])
    assert re.match(rf"PTX line {line}: ", str(caught.value))


CONSTANTS = {
    "4*8": 32,
    "(4*8)+1": 33,
    "-(-3)": 3,
    "- -3": 3,
    "2+3*4": 14,
    "20-5-3": 12,
    "-7/2": -3,
    "-7 % 3": -1,
    "1<<4|1": 17,
    "-16>>2": -4,
    "0xF0 & ~0x30": 0xC0,
    "6^3": 5,
    "3<4": 1,
    "4<=3": 0,
    "2 == 2 && 1 != 1": 0,
    "0 || 5": 1,
    "!0 + 1": None,
    "(!0) + 1": 2,
    "1 ? 7 : 8": 7,
    "-1 < 1U": 0,
    "(.s64)-1 < 1": 1,
    "WARP_SZ*2": 64,
}


@pytest.mark.parametrize("text", CONSTANTS)
def test_constant_expressions(text: str) -> None:
    out = np.zeros(2, np.int32)
    program = body(f"""
        .reg .b32 r; .reg .b64 rd;
        ld.param.u64 rd, [out];
        mov.u32 r, {text};
        st.global.u32 [rd], r;
        ld.global.u32 r, [table];
        st.global.u32 [rd + 4], r;
        ret;
    """).replace(".visible", f".global .u32 table[1] = {{ {text} }};\n.visible", 1)
    if CONSTANTS[text] is None:  # an operand that begins with '!' is a predicate
        with pytest.raises(PtxError):
            Module.from_ptx(program)
        return
    Emulator().launch(Module.from_ptx(program)["kernel"], (1,), (1,), [out]).raise_if_findings()
    assert out.tolist() == [CONSTANTS[text]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4/0", "division by zero"),
        ("(4", "expected"),
        ("4 +", "operand"),
        ("1 + 0f3F800000", "int"),
    ],
)
def test_malformed_constant_expressions(text: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        Module.from_ptx(body(f".reg .b32 r;\nmov.u32 r, {text};\nret;"))


def load(text: str) -> None:
    """Loads, or says in which line it cannot."""
    lines = text.count("\n") + 1
    try:
        Module.from_ptx(text)
    except PtxError as error:
        line = error.line
    else:
        return
    assert 1 <= line <= lines


def test_truncation_at_every_character() -> None:
    for end in range(len(PROGRAM)):
        load(PROGRAM[:end])


FRAGMENTS = [
    *"{}()[];,@!|<>-+:\"_\n\0", "/*", "//", "0f", "0d12", "0x", "999999999", "99999999999999999999",
    ".reg", ".b32", ".b128", ".pred", ".param", ".shared", ".align 0", ".loc", ".branchtargets",
    "bra", "call", "%r1", "%tid.x",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(PROGRAM)), st.integers(0, 12), st.sampled_from(["", *FRAGMENTS])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_mutated_programs(edits: list[tuple[int, int, str]]) -> None:
    text = PROGRAM
    for position, length, replacement in edits:
        text = text[:position] + replacement + text[position + length :]
    load(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from(list('{}()[];,.@!|<>-+:"/*%_ar0x9 \n')), max_size=200))
def test_noise(noise: str) -> None:
    load(body(noise))
