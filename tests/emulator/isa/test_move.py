"""Copies, packing, special registers and addresses of variables."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import Emulator, Module, PtxError
from tests.emulator.ptx_program import ptx_program, run_ptx

from .lanewise_program import evaluate, integers


@pytest.mark.parametrize(
    "kind", ["b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"]
)
def test_copy(kind: str) -> None:
    (a,) = integers(f"u{int(kind[1:]) // 8}", count=1)
    np.testing.assert_array_equal(evaluate(f"mov.{kind} {{d}}, {{a}};", a.dtype, a), a)


@pytest.mark.parametrize(
    ("literal", "kind", "bits"),
    [
        ("-1", "u32", 0xFFFFFFFF),
        ("-2", "s16", 0xFFFE),
        ("0x1F", "b32", 31),
        ("0b101", "b32", 5),
        ("017", "u32", 15),
        ("4294967295U", "u32", 0xFFFFFFFF),
        ("0f3F800000", "f32", 0x3F800000),
        ("0f3F800000", "b32", 0x3F800000),
        ("-0f3F800000", "f32", 0xBF800000),
        ("1.5", "f32", 0x3FC00000),
        ("1.5", "f64", 0x3FF8000000000000),
        ("0d3FF8000000000000", "f64", 0x3FF8000000000000),
        ("-9223372036854775808", "s64", 1 << 63),
        ("WARP_SZ", "u32", 32),
    ],
)
def test_literals(literal: str, kind: str, bits: int) -> None:
    dtype = f"u{int(kind[1:]) // 8}"
    got = evaluate(f"mov.{kind} {{d}}, {literal};", dtype, np.zeros(1, np.uint32))
    assert got.tolist() == [bits]


def test_packing() -> None:
    (a,) = integers(np.uint64, count=1)
    code = """
        .reg .b32 x<2>;
        .reg .b16 y<4>;
        mov.b64 {{x0, x1}}, {a};
        mov.b32 {{y0, y1}}, x0;
        mov.b32 {{y2, y3}}, x1;
        mov.b64 {d}, {{y3, y2, y1, y0}};
    """
    swapped = a.view(np.uint16).reshape(-1, 4)[:, ::-1].copy().view(np.uint64).ravel()
    np.testing.assert_array_equal(evaluate(code, np.uint64, a), swapped)


def test_sinks_and_literals_in_vectors() -> None:
    (a,) = integers(np.uint32, count=1)
    code = ".reg .b16 y; mov.b32 {{_, y}}, {a}; mov.b32 {d}, {{y, 7}};"
    np.testing.assert_array_equal(evaluate(code, np.uint32, a), a >> 16 | 7 << 16)


def test_128_bits() -> None:
    a, b = integers(np.uint64)
    code = """
        .reg .b128 w<2>;
        .reg .b64 x<2>;
        mov.b128 w0, {{ {a}, {b} }};
        mov.b128 w1, w0;
        mov.b128 {{ x0, x1 }}, w1;
        sub.u64 {d}, x1, x0;
    """
    np.testing.assert_array_equal(evaluate(code, np.uint64, a, b), b - a)


def special(name: str, *, wide: bool = False, **launch: object) -> list[int]:
    """The register's value in every thread of the launch, in order of CTA and thread."""
    grid, block = launch.get("grid", (1,)), launch.get("block", (32,))
    out = np.zeros(int(np.prod(grid)) * int(np.prod(block)), np.uint64)
    body = f"""
        .reg .b32 x<12>;
        mov.u32 x0, %ctaid.y;
        mad.lo.u32 x0, x0, %nctaid.x, %ctaid.x;
        mov.u32 x1, %tid.z;
        mad.lo.u32 x1, x1, %ntid.y, %tid.y;
        mad.lo.u32 x1, x1, %ntid.x, %tid.x;
        mov.u32 x2, {int(np.prod(block))};
        mad.lo.u32 x1, x0, x2, x1;
        mad.wide.u32 rd1, x1, 8, out;
        {f"mov.u64 rd2, {name};" if wide else f"mov.u32 x3, {name}; cvt.u64.u32 rd2, x3;"}
        st.global.u64 [rd1], rd2;
    """
    run_ptx(body, {"out": out}, emulator=Emulator(num_sms=4), **launch).raise_if_findings()
    return out.tolist()


def test_thread_identity() -> None:
    shape = {"grid": (3, 2), "block": (4, 3, 5)}
    threads = [(x, y, z) for z in range(5) for y in range(3) for x in range(4)]
    for axis in range(3):
        assert special(f"%tid.{'xyz'[axis]}", **shape)[:60] == [t[axis] for t in threads]
        assert set(special(f"%ntid.{'xyz'[axis]}", **shape)) == {(4, 3, 5)[axis]}
        assert set(special(f"%nctaid.{'xyz'[axis]}", **shape)) == {(3, 2, 1)[axis]}
    assert special("%ctaid.x", **shape)[::60] == [0, 1, 2, 0, 1, 2]
    assert special("%ctaid.y", **shape)[::60] == [0, 0, 0, 1, 1, 1]
    assert special("%warpid", **shape)[:60] == [0] * 32 + [1] * 28


def test_lane_registers() -> None:
    lanes = range(32)
    assert special("%laneid") == list(lanes)
    assert special("%lanemask_eq") == [1 << i for i in lanes]
    assert special("%lanemask_lt") == [(1 << i) - 1 for i in lanes]
    assert special("%lanemask_le") == [(2 << i) - 1 for i in lanes]
    assert special("%lanemask_gt") == [0xFFFFFFFF & ~((2 << i) - 1) for i in lanes]
    assert special("%lanemask_ge") == [0xFFFFFFFF & ~((1 << i) - 1) for i in lanes]


def test_cluster_registers() -> None:
    shape = {"grid": (4, 2), "cluster": (2, 2)}
    assert special("%cluster_ctaid.x", **shape)[::32] == [0, 1, 0, 1] * 2
    assert special("%cluster_ctaid.y", **shape)[::32] == [0] * 4 + [1] * 4
    assert special("%clusterid.x", **shape)[::32] == [0, 0, 1, 1] * 2
    assert special("%cluster_ctarank", **shape)[::32] == [0, 1, 0, 1, 2, 3, 2, 3]
    for name, value in {
        "%nclusterid.x": 2, "%nclusterid.y": 1, "%cluster_nctaid.x": 2, "%cluster_nctarank": 4,
        "%is_explicit_cluster": 1, "%nsmid": 4, "%gridid": 0, "%envreg2": 0,
    }.items():  # fmt: skip
        assert set(special(name, **shape)) == {value}, name


def test_sizes_of_shared_memory() -> None:
    assert set(special("%dynamic_smem_size", dynamic_smem_bytes=96)) == {96}
    assert set(special("%total_smem_size", dynamic_smem_bytes=96)) == {96}


def test_clocks_advance() -> None:
    out = np.zeros(32, np.int64)
    body = """
        mov.u64 rd1, %clock64;
        mov.u64 rd2, %globaltimer;
        mov.u64 rd3, %clock64;
        sub.s64 rd3, rd3, rd1;
        mad.wide.u32 rd4, lane, 8, out;
        st.global.s64 [rd4], rd3;
    """
    run_ptx(body, {"out": out})
    assert (out > 0).all()


def test_special_registers_as_operands() -> None:
    got = evaluate("add.u32 {d}, %laneid, %ntid.x;", np.uint32, np.zeros(32, np.uint32))
    np.testing.assert_array_equal(got, np.arange(32) + 32)


def test_shared_addresses_hold_the_rank() -> None:
    out = np.zeros(4, np.uint32)
    body = """
        mov.u32 r1, buffer;
        mov.u32 r2, buffer+4;
        sub.u32 r3, r2, r1;
        shr.u32 r4, r1, 24;
        mad.lo.u32 r5, r4, 16, r3;
        mov.u32 r6, %ctaid.x;
        mad.wide.u32 rd1, r6, 4, out;
        st.global.u32 [rd1], r5;
    """
    run_ptx(body, {"out": out}, module=".shared .align 4 .b8 buffer[8];", grid=(4,), cluster=(2,))
    assert out.tolist() == [4, 20, 4, 20]


@pytest.mark.parametrize(
    "body",
    [
        "mov.u32 r1, rd1;",
        "mov.u64 rd1, 0f3F800000;",
        "mov.u32 r1, nowhere;",
        "mov.b16 h1, %tid.x;",
        "mov.u32 r1, %tid;",
        "mov.u32 r1, %tidx;",
        "mov.b64 rd1, {r1, r2, r3};",
        "mov.pred p1, r1;",
    ],
)
def test_wrong_form_is_an_error_at_load(body: str) -> None:
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(ptx_program(body, {"unused": 0}))
    assert body in caught.value.source_line
