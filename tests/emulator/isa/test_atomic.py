"""Atomics and reductions: every operation and type against Python, scopes, vectors, wrong use."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import PtxError
from tests.emulator.ptx_program import run_ptx

_U32 = np.arange(1, 33, dtype=np.uint32) * 0x1234567


def _apply(operation: str, old: int, operand: int, bits: int) -> int:
    mask = (1 << bits) - 1
    return {
        "add": lambda: (old + operand) & mask,
        "min": lambda: min(old, operand),
        "max": lambda: max(old, operand),
        "and": lambda: old & operand,
        "or": lambda: old | operand,
        "xor": lambda: old ^ operand,
        "exch": lambda: operand,
        "inc": lambda: 0 if old >= operand else old + 1,
        "dec": lambda: operand if old == 0 or old > operand else old - 1,
    }[operation]()


@pytest.mark.parametrize("space", [".global", ".shared", ""])
@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("add", "u32"),
        ("add", "s32"),
        ("add", "u64"),
        ("min", "u32"),
        ("max", "u64"),
        ("min", "s32"),
        ("max", "s64"),
        ("and", "b32"),
        ("or", "b64"),
        ("xor", "b32"),
        ("exch", "b32"),
        ("exch", "b64"),
        ("inc", "u32"),
        ("dec", "u32"),
    ],
)
def test_all_lanes_on_one_word(space: str, operation: str, kind: str) -> None:
    bits = int(kind[1:])
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    operands = (_U32.astype(np.uint64) * (1 if bits == 32 else 0x100000001)).astype(dtype)
    initial = dtype.type(12345)
    word = np.array([initial])
    before = np.zeros(32, dtype=dtype)
    value = {32: "r1", 64: "rd10"}[bits]
    old = {32: "r2", 64: "rd11"}[bits]
    place = {
        ".global": "mov.b64 rd3, word;",
        "": "mov.b64 rd3, word;",
        ".shared": f"mov.u32 r5, tile; cvt.u64.u32 rd3, r5; ld.global.b{bits} {value}, [word];"
        f"st.shared.b{bits} [rd3], {value}; bar.warp.sync -1;",
    }[space]
    finish = (
        f"bar.warp.sync -1; ld.shared.b{bits} {value}, [rd3]; st.global.b{bits} [word], {value};"
    )
    run_ptx(
        f"""
    {place}
    mad.wide.u32 rd1, tid, {bits // 8}, operands;
    mad.wide.u32 rd2, tid, {bits // 8}, before;
    ld.global.b{bits} {value}, [rd1];
    atom{space}.{operation}.{kind} {old}, [rd3], {value};
    st.global.b{bits} [rd2], {old};
    {finish if space == ".shared" else ""}""",
        {"word": word, "before": before, "operands": operands},
        module=".shared .align 8 .b8 tile[16];",
    ).raise_if_findings()
    expected, current = [], int(initial)
    for operand in operands.tolist():
        expected.append(current)
        current = _apply(operation, current, operand, bits)
        if kind[0] == "s" and operation == "add":
            current = int(np.array([current & (2**bits - 1)], dtype=f"u{bits // 8}").view(dtype)[0])
    assert before.tolist() == expected
    assert int(word[0]) == current


@pytest.mark.parametrize(
    "form",
    [
        "atom.add.relaxed.cta.u32 r1, [word], 1;",
        "atom.add.release.gpu.global.s32 r1, [word], 1;",
        "atom.global.gpu.acq_rel.add.u32 r1, [word], 1;",
        "atom.sys.add.u32 r1, [word], 1;",
        "red.release.sys.global.add.s32 [word], 1;",
        "red.relaxed.gpu.global.add.u32 [word], 1;",
        "atom.global.add.u32 _, [word], 1;",
    ],
)
def test_scopes_and_semantics(form: str) -> None:
    word = np.zeros(1, dtype=np.uint32)
    run_ptx(form, {"word": word}).raise_if_findings()
    assert word[0] == 32


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_compare_and_swap(bits: int) -> None:
    """A lock-free increment by every lane."""
    word = np.zeros(1, dtype=f"u{bits // 8}")
    r = {16: "h", 32: "r", 64: "rd"}[bits]
    run_ptx(
        f"""
LOOP:
    ld.volatile.global.b{bits} {r}10, [word];
    add.u{bits} {r}11, {r}10, 1;
    atom.global.cas.b{bits} {r}12, [word], {r}10, {r}11;
    setp.ne.u{bits} p1, {r}12, {r}10;
    @p1 bra LOOP;""",
        {"word": word},
        block=(96,),
    ).raise_if_findings()
    assert word[0] == 96


def test_compare_and_swap_of_immediates_in_shared_memory() -> None:
    out = np.zeros(32, dtype=np.uint32)
    run_ptx(
        """
    mov.u32 r0, flag;
    setp.eq.u32 p1, tid, 0;
    @p1 st.shared.u32 [r0], 0;
    bar.warp.sync -1;
    atom.acquire.cta.shared::cta.cas.b32 r1, [r0], 0, 1;
    mad.wide.u32 rd1, tid, 4, out;
    st.global.u32 [rd1], r1;""",
        {"out": out},
        module=".shared .align 4 .u32 flag;",
    ).raise_if_findings()
    assert out.tolist() == [0] + [1] * 31


def test_128_bits() -> None:
    word = np.array([1, 2], dtype=np.uint64)
    out = np.zeros(4, dtype=np.uint64)
    aligned = np.zeros(4, dtype=np.uint64)
    start = (-aligned.ctypes.data % 16) // 8
    place = aligned[start : start + 2]
    place[:] = word
    run_ptx(
        """
    mov.b64 rd1, 1;
    mov.b64 rd2, 2;
    mov.b128 q0, {rd1, rd2};
    mov.b64 rd3, 8;
    mov.b128 q1, {rd3, rd3};
    atom.global.cas.b128 q2, [word], q0, q1;
    mov.b128 {rd4, rd5}, q2;
    st.global.u64 [out], rd4;
    st.global.u64 [out+8], rd5;
    atom.global.exch.b128 q3, [word], q0;
    mov.b128 {rd4, rd5}, q3;
    st.global.u64 [out+16], rd4;
    st.global.u64 [out+24], rd5;""",
        {"word": place, "out": out},
        block=(1,),
    ).raise_if_findings()
    assert out.tolist() == [1, 2, 8, 8]
    assert place.tolist() == [1, 2]


def test_f32_add_is_sequential_in_lane_order() -> None:
    values = np.linspace(0.1, 3.3, 32).astype(np.float32)
    word = np.zeros(1, dtype=np.float32)
    run_ptx(
        """
    mad.wide.u32 rd1, tid, 4, values;
    ld.global.f32 f0, [rd1];
    red.global.add.f32 [word], f0;""",
        {"word": word, "values": values},
    )
    expected = np.float32(0)
    for value in values:
        expected = np.float32(expected + value)
    assert word[0] == expected


@pytest.mark.parametrize(("space", "kept"), [("global", False), ("shared", True)])
def test_f32_add_and_subnormals(space: str, kept: bool) -> None:
    """PTX ISA: flushed in global memory, kept in shared memory."""
    tiny = np.float32(1e-40)
    word = np.array([tiny], dtype=np.float32)
    place = (
        "mov.b64 rd3, word;"
        if space == "global"
        else (
            "mov.u32 r5, tile; cvt.u64.u32 rd3, r5; ld.global.f32 f2, [word];"
            "st.shared.f32 [rd3], f2;"
        )
    )
    run_ptx(
        f"""
    {place}
    ld.global.f32 f0, [word];
    atom.{space}.add.f32 f1, [rd3], f0;
    ld.{space}.f32 f2, [rd3];
    st.global.f32 [word], f2;""",
        {"word": word},
        module=".shared .align 4 .b8 tile[4];",
        block=(1,),
    )
    assert word[0] == (np.float32(tiny + tiny) if kept else 0)


@pytest.mark.parametrize(
    ("form", "dtype", "count"),
    [
        ("atom.global.add.noftz.f16x2", np.float16, 2),
        ("red.global.add.noftz.f16x2", np.float16, 2),
        ("atom.global.add.v2.f32", np.float32, 2),
        ("atom.global.v4.f32.add", np.float32, 4),
        ("red.global.v2.f32.add", np.float32, 2),
        ("atom.global.add.f64", np.float64, 1),
    ],
)
def test_float_vectors(form: str, dtype: type, count: int) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    values = np.arange(1, count + 1).astype(dtype)
    storage = np.zeros(64, dtype=np.uint8)
    start = -storage.ctypes.data % 16
    word = storage[start : start + values.nbytes].view(dtype)
    word[:] = 10
    if "f16x2" in form:
        loads, value, old = "ld.global.b32 r1, [values];", "r1", "r2"
    elif bits == 64:
        loads, value, old = "ld.global.f64 fd1, [values];", "fd1", "fd2"
    else:
        names = ", ".join(f"f{i}" for i in range(count))
        loads = f"ld.global.v{count}.f32 {{{names}}}, [values];"
        value, old = f"{{{names}}}", "{" + ", ".join(f"f{10 + i}" for i in range(count)) + "}"
    target = "" if form.startswith("red") else f"{old}, "
    aligned = np.zeros(64, dtype=np.uint8)
    source = aligned[-aligned.ctypes.data % 16 :][: values.nbytes].view(dtype)
    source[:] = values
    run_ptx(
        f"{loads}\n{form} {target}[word], {value};",
        {"word": word, "values": source},
        block=(4,),
    ).raise_if_findings()
    assert np.array_equal(word, 10 + 4 * values)


def test_bf16x2_add() -> None:
    word = np.array([0x40404000], dtype=np.uint32)  # 3.0, 2.0
    body = "mov.b32 r1, 0x3F803F80; red.global.add.noftz.bf16x2 [word], r1;"
    run_ptx(body, {"word": word}, block=(1,))
    assert word[0] == 0x40804040  # 4.0, 3.0


@pytest.mark.parametrize(
    ("form", "expected"), [("add.u32", 42), ("add.u64", 42), ("max.s32", 40), ("inc.u32", 0)]
)
def test_red_async_signals_its_barrier(form: str, expected: int) -> None:
    out = np.zeros(1, dtype=np.uint64)
    operation, kind = form.split(".")
    bits = int(kind[1:])
    register = "rd" if bits == 64 else "r"
    run_ptx(
        f"""
    mov.u32 r0, barrier;
    mov.u32 r1, tile;
    mov.b{bits} {register}5, 40;
    mov.b{bits} {register}6, 2;
    st.shared.b{bits} [r1], {register}5;
    mbarrier.init.shared::cta.b64 [r0], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], {bits // 8};
    red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.{operation}.{kind}
        [r1], {register}6, [r0];
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p0, [r0], 0;
    @!p0 bra WAIT;
    ld.shared.u{bits} rd3, [r1];
    st.global.u64 [out], rd3;""",
        {"out": out},
        module=".shared .align 8 .b64 barrier;\n.shared .align 8 .b64 tile;",
        block=(1,),
    ).raise_if_findings()
    assert out[0] == expected


@pytest.mark.parametrize(
    "statement",
    [
        "atom.global.mul.u32 r1, [word], r2;",
        "atom.global.inc.s32 r1, [word], r2;",
        "atom.global.add.b32 r1, [word], r2;",
        "atom.const.add.u32 r1, [word], r2;",
        "atom.global.cas.b32 r1, [word], r2;",
        "atom.global.u32 r1, [word], r2;",
        "red.global.exch.b128 [word], r2;",
        "atom.global.min.f32 f1, [word], f2;",
        "atom.global.add.v2.u32 {r1, r2}, [word], {r3, r4};",
    ],
)
def test_unknown_forms_are_errors_at_load(statement: str) -> None:
    with pytest.raises(PtxError):
        run_ptx(statement, {"word": np.zeros(8, np.uint32)})
