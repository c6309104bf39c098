"""Address conversions between windows, and between the CTAs of a cluster."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import Module, PtxError
from tests.emulator.ptx_program import ptx_program, run_ptx

MODULE = """
    .shared .align 16 .b8 buffer[16];
    .global .align 8 .u32 counter = 5;
    .const .align 4 .f32 scale = 0f40000000;
"""


def run(body: str, *, block: int = 1, **launch: object) -> list[int]:
    """Thread 0 of each CTA stores rd9."""
    grid = launch.get("grid", (1,))
    out = np.zeros(grid[0], np.uint64)
    store = """
        mov.u32 r60, %ctaid.x;
        mad.wide.u32 rd60, r60, 8, out;
        st.global.u64 [rd60], rd9;
    """
    run_ptx(body + store, {"out": out}, module=MODULE, block=(block,), **launch).raise_if_findings()
    return out.tolist()


def test_shared_memory_through_a_generic_address() -> None:
    body = """
        mov.u64 rd1, buffer;
        cvta.shared.u64 rd2, rd1;
        st.u32 [rd2+4], 7;
        ld.shared.u32 r1, [buffer+4];
        cvta.to.shared.u64 rd3, rd2;
        ld.shared.u32 r2, [rd3+4];
        mad.lo.u32 r3, r1, 16, r2;
        cvt.u64.u32 rd9, r3;
    """
    assert run(body) == [0x77]


def test_a_symbol_in_cvta() -> None:
    body = """
        cvta.global.u64 rd1, counter;
        ld.u32 r1, [rd1];
        cvta.const.u64 rd2, scale;
        ld.f32 f1, [rd2];
        cvt.rni.u32.f32 r2, f1;
        mad.lo.u32 r3, r1, 16, r2;
        cvt.u64.u32 rd9, r3;
    """
    assert run(body) == [0x52]


def test_local_memory_through_a_generic_address() -> None:
    body = """
        .local .align 8 .b8 depot[16];
        mov.u64 rd1, depot;
        cvta.local.u64 rd2, rd1;
        st.u64 [rd2+8], 11;
        ld.local.u64 rd3, [depot+8];
        cvta.to.local.u64 rd4, rd2;
        ld.local.u64 rd5, [rd4+8];
        mad.lo.u64 rd9, rd3, 16, rd5;
    """
    assert run(body) == [0xBB]


@pytest.mark.parametrize(
    ("space", "holds"),
    [
        ("shared", 1),
        ("shared::cta", 1),
        ("shared::cluster", 1),
        ("local", 2),
        ("param", 4),
        ("global", 8),
    ],
)
def test_isspacep(space: str, holds: int) -> None:
    body = f"""
        .local .align 8 .b8 depot[16];
        cvta.shared.u64 rd1, buffer;
        cvta.local.u64 rd2, depot;
        mov.b64 rd3, out_param;
        cvta.param.u64 rd3, rd3;
        isspacep.{space} p1, rd1;
        isspacep.{space} p2, rd2;
        isspacep.{space} p3, rd3;
        isspacep.{space} p4, out;
        selp.u64 rd9, 1, 0, p1;
        @p2 add.u64 rd9, rd9, 2;
        @p3 add.u64 rd9, rd9, 4;
        @p4 add.u64 rd9, rd9, 8;
    """
    assert run(body) == [holds]


def test_mapa_names_the_same_variable_of_another_cta() -> None:
    body = """
        mov.u32 r1, %cluster_ctarank;
        st.shared.u32 [buffer], r1;
        barrier.cluster.arrive.aligned;
        barrier.cluster.wait.aligned;
        xor.b32 r2, r1, 1;
        mov.u32 r3, buffer;
        mapa.shared::cluster.u32 r4, r3, r2;
        ld.shared::cluster.u32 r5, [r4];
        cvta.shared.u64 rd1, buffer;
        mapa.u64 rd2, rd1, r2;
        ld.u32 r6, [rd2];
        getctarank.shared::cluster.u32 r7, r4;
        getctarank.u64 r8, rd2;
        mad.lo.u32 r9, r5, 16, r6;
        mad.lo.u32 r9, r9, 16, r7;
        mad.lo.u32 r9, r9, 16, r8;
        cvt.u64.u32 rd9, r9;
        isspacep.shared::cta p1, rd2;
        @p1 add.u64 rd9, rd9, 0x10000;
        isspacep.shared::cluster p1, rd2;
        @p1 add.u64 rd9, rd9, 0x20000;
        barrier.cluster.arrive.aligned;
        barrier.cluster.wait.aligned;
    """
    assert run(body, block=32, grid=(2,), cluster=(2,)) == [0x21111, 0x20000]


def test_parameters_by_address() -> None:
    body = """
        mov.b64 rd1, out_param;
        ld.param.u64 rd2, [rd1];
        cvta.param.u64 rd3, rd1;
        ld.u64 rd4, [rd3];
        sub.u64 rd9, rd2, out;
        sub.u64 rd5, rd4, out;
        add.u64 rd9, rd9, rd5;
    """
    assert run(body) == [0]


@pytest.mark.parametrize(
    "body",
    [
        "cvta.shared.u64 r1, rd1;",
        "cvta.texture.u64 rd1, rd2;",
        "isspacep.shared r1, rd1;",
        "ld.global.u32 r1, [buffer];",
        "ld.shared.u32 r1, [nothing];",
        "mapa.u32 r1, r2;",
    ],
)
def test_wrong_form_is_an_error_at_load(body: str) -> None:
    with pytest.raises(PtxError) as caught:
        Module.from_ptx(ptx_program(body, {"unused": 0}, module=MODULE))
    assert body in caught.value.source_line
