"""Bulk copies and reductions, and the groups of all bulk operations."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, PtxError, TensorMap
from tests.emulator.isa.bulk_copy_program import (
    INIT,
    MODES,
    SHARED,
    WAIT,
    copy_in,
    copy_out,
    sample,
)
from tests.emulator.ptx_program import run_ptx


@pytest.mark.parametrize("mode", MODES)
def test_bulk_copy_there_and_back(mode: str) -> None:
    source = sample((256,), np.uint32)
    out = np.zeros_like(source)
    report = run_ptx(
        f"""{INIT}
    mov.u32 r2, 1024;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], r2;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r1], [source], r2, [r0];
    {WAIT}
    cp.async.bulk.global.shared::cta.bulk_group [out], [r1], r2;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;""",
        {"source": source, "out": out},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=1024,
        emulator=Emulator(async_completion=mode),
    )
    report.raise_if_findings()
    assert np.array_equal(out, source)


def test_copy_to_a_peer() -> None:
    source = sample((64,), np.uint32)
    out = np.zeros_like(source)
    run_ptx(
        f"""{INIT}
    .reg .b32 rank;
    mov.u32 rank, %cluster_ctarank;
    setp.eq.u32 p2, rank, 0;
    @!p2 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 256;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    @!p2 bra RECEIVE;
    {copy_in(64)}
    mapa.shared::cluster.u32 r3, r1, 1;
    mapa.shared::cluster.u32 r4, r0, 1;
    cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [r3], [r1], 256, [r4];
    bra END;
RECEIVE:
    {WAIT}{copy_out(64)}
END:
    barrier.cluster.arrive;
    barrier.cluster.wait;""",
        {"source": source, "out": out},
        module=SHARED,
        block=(1,),
        grid=(2,),
        cluster=(2,),
        dynamic_smem_bytes=256,
    ).raise_if_findings()
    assert np.array_equal(out, source)


@pytest.mark.parametrize(
    ("form", "dtype", "function"),
    [
        (".add.u32", np.uint32, np.add),
        (".max.s32", np.int32, np.maximum),
        (".or.b64", np.uint64, np.bitwise_or),
        (".add.f32", np.float32, np.add),
        (".add.noftz.f16", np.float16, np.add),
        (".min.f16", np.float16, np.minimum),
    ],
)
def test_bulk_reduce_to_global(form: str, dtype: type, function: np.ufunc) -> None:
    source = sample((32,), dtype)
    out = sample((40,), dtype)[8:].copy()
    expected = function(out, source)
    run_ptx(
        f"""{INIT}{copy_in(source.nbytes // 4)}
    cp.reduce.async.bulk.global.shared::cta.bulk_group{form} [out], [r1], {source.nbytes};
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;""",
        {"source": source, "out": out},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=source.nbytes,
    ).raise_if_findings()
    assert np.array_equal(out, expected)


@pytest.mark.parametrize(("form", "expected"), [("add.u32", 12), ("min.s32", 5), ("xor.b32", 2)])
def test_bulk_reduce_into_a_peer(form: str, expected: int) -> None:
    """Rank 0 combines its sevens with the fives of rank 1."""
    out = np.zeros(4, dtype=np.uint32)
    run_ptx(
        f"""{INIT}
    .reg .b32 rank;
    mov.u32 rank, %cluster_ctarank;
    setp.eq.u32 p2, rank, 0;
    selp.b32 r6, 7, 5, p2;
    st.shared.v4.b32 [r1], {{r6, r6, r6, r6}};
    fence.proxy.async.shared::cta;
    @!p2 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 16;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    @!p2 bra RECEIVE;
    mapa.shared::cluster.u32 r3, r1, 1;
    mapa.shared::cluster.u32 r4, r0, 1;
    cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.{form}
        [r3], [r1], 16, [r4];
    bra END;
RECEIVE:
    {WAIT}{copy_out(4)}
END:
    barrier.cluster.arrive;
    barrier.cluster.wait;""",
        {"out": out},
        module=SHARED,
        block=(1,),
        grid=(2,),
        cluster=(2,),
        dynamic_smem_bytes=16,
    ).raise_if_findings()
    assert (out == expected).all()


def test_prefetches_change_nothing() -> None:
    tensor = sample((8, 32), np.uint8)
    tensor_map = TensorMap.encode_tiled(tensor, box=(8, 32))
    report = run_ptx(
        """
    mov.b64 rd1, 0x1000000000000000;
    cp.async.bulk.prefetch.L2.global [tensor], 256;
    cp.async.bulk.prefetch.tensor.2d.L2.global.tile [map, {0, 0}];
    cp.async.bulk.prefetch.tensor.2d.L2.global.L2::cache_hint [map, {0, 8}], rd1;
    prefetch.tensormap [map];""",
        {"tensor": tensor, "map": tensor_map},
    )
    report.raise_if_findings()
    assert report.counters.tma_bytes_loaded == 0


def test_a_missing_wait_reads_poison() -> None:
    tensor = sample((8, 32), np.uint8)
    tensor_map = TensorMap.encode_tiled(tensor, box=(8, 32))
    out = np.zeros(256, dtype=np.uint8)
    report = run_ptx(
        f"""{INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 256;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [map, {{0, 0}}], [r0];
    {copy_out(64)}{WAIT}""",
        {"map": tensor_map, "out": out},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=256,
    )
    assert (out == 0xFF).all()
    assert {finding.kind for finding in report.findings} == {"init", "race"}


def test_wait_group_read_lets_the_source_be_reused() -> None:
    source = sample((64,), np.uint32)
    out = np.zeros_like(source)
    body = f"""{INIT}{copy_in(64)}
    cp.async.bulk.global.shared::cta.bulk_group [out], [r1], 256;
    cp.async.bulk.commit_group;
    WAIT_READ
    st.shared.u32 [r1], 0;
    cp.async.bulk.wait_group 0;"""
    for wait, expected in (("cp.async.bulk.wait_group.read 0;", source[0]), ("", 0)):
        run_ptx(
            body.replace("WAIT_READ", wait),
            {"source": source, "out": out},
            module=SHARED,
            block=(1,),
            dynamic_smem_bytes=256,
        )
        assert out[0] == expected
        assert np.array_equal(out[1:], source[1:])


def test_wait_group_keeps_the_newest() -> None:
    source = sample((32,), np.uint32)
    out = np.zeros((2, 32), dtype=np.uint32)
    seen = np.zeros((2, 32), dtype=np.uint32)
    copy = """
    LOOP:
    ld.global.u32 r5, [rd1];
    st.global.u32 [rd2], r5;
    add.u64 rd1, rd1, 4;
    add.u64 rd2, rd2, 4;
    add.u32 r6, r6, 1;
    setp.lt.u32 p1, r6, 64;
    @p1 bra LOOP;
    """
    run_ptx(
        f"""{INIT}{copy_in(32)}
    cp.async.bulk.global.shared::cta.bulk_group [out], [r1], 128;
    cp.async.bulk.commit_group;
    add.u64 rd3, out, 128;
    cp.async.bulk.global.shared::cta.bulk_group [rd3], [r1], 128;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 1;
    mov.u64 rd1, out;
    mov.u64 rd2, seen;
    mov.u32 r6, 0;
    {copy}
    cp.async.bulk.wait_group 0;""",
        {"source": source, "out": out, "seen": seen},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=128,
    )
    assert np.array_equal(seen[0], source)
    assert not seen[1].any()
    assert np.array_equal(out[1], source)


def test_uninitialised_barrier_is_a_finding() -> None:
    source = np.zeros(16, dtype=np.uint8)
    report = run_ptx(
        """
    mov.u32 r0, barrier;
    mov.u32 r1, tile;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r1], [source], 16, [r0];""",
        {"source": source},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=16,
    )
    assert "sync" in {finding.kind for finding in report.findings}


@pytest.mark.parametrize("offset", [0, 8, 16])
def test_a_copy_over_an_mbarrier_is_a_finding(offset: int) -> None:
    """On a GPU the bytes replace the barrier's state."""
    report = run_ptx(
        f"""{INIT}
    mov.u32 r2, 1024;
    add.u32 r3, r1, {offset};
    mbarrier.init.shared::cta.b64 [r3], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 16;
    add.u32 r4, r1, 16;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r4], [source], 16, [r0];
    {WAIT}""",
        {"source": sample((4,), np.uint32)},
        module=SHARED,
        block=(1,),
        dynamic_smem_bytes=1024,
    )
    messages = [finding.message for finding in report.findings]
    assert len(messages) == (1 if offset == 16 else 0)
    assert all("overwrites the mbarrier at 'tile' + 16" in message for message in messages)


LOAD = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.global.shared::cta.bulk_group"
PEER = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (f"{LOAD} [r1], [source], 24, [r0];", "the size of a bulk copy must be a multiple of 16"),
        (
            f"{LOAD} [r1+8], [source], 16, [r0];",
            "the destination's shared address .* multiple of 16",
        ),
        (f"{LOAD} [r1], [source+8], 16, [r0];", "the source's global address .* multiple of 16"),
        (f"{LOAD} [r1], [source], 16, [r0+4];", "the mbarrier's shared address .* multiple of 8"),
        (f"{LOAD} [r1+64], [source], 16, [r0];", "the destination: write of 16 bytes at shared"),
        (f"{STORE} [source+8], [r1], 16;", "the destination's global address .* multiple of 16"),
        (f"{STORE} [source], [r1+4], 16;", "the source's shared address .* multiple of 16"),
        (f"{STORE} [source], [r1+64], 16;", "the source: read of 16 bytes at shared offset"),
        (f"{PEER} [r1+8], [r1], 16, [r0];", "the destination's shared address .* multiple of 16"),
        (f"{PEER} [r1], [r1+8], 16, [r0];", "the source's shared address .* multiple of 16"),
    ],
)
def test_a_wrong_operand_is_named(copy: str, message: str) -> None:
    with pytest.raises(EmulationError, match=message):
        run_ptx(
            INIT + copy,
            {"source": np.zeros(64, dtype=np.uint8)},
            module=SHARED,
            block=(1,),
            dynamic_smem_bytes=64,
        )


@pytest.mark.parametrize(
    "statement",
    [
        "cp.async.bulk.tensor.2d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
        " [r1], [out, {r2, r3}], [r0], {r4};",
        "cp.async.bulk.tensor.6d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [r1], [out, {r2, r3}], [r0];",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        " [r1], [out, {r2}], [r0];",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r1], [out], r2;",
        "cp.async.bulk.wait_group r2;",
        "cp.async.bulk.shared::cta.global.bulk_group [out], [r1], r2;",
        "cp.async.bulk.tensor.1d.shared::cta.global.bulk_group [out, {r2}], [r1];",
    ],
)
def test_unknown_forms_are_errors_at_load(statement: str) -> None:
    with pytest.raises(PtxError):
        run_ptx(statement, {"out": np.zeros(128, np.uint8)})
