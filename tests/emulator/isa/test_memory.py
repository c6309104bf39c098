"""Loads and stores: every space, width, vector and extension, and what is wrong with addresses."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, PtxError
from tests.emulator.ptx_program import run_ptx

_SHARED = ".shared .align 16 .b8 tile[4096];"


def _pattern(count: int, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(7)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("kind", ["u", "s", "b"])
@pytest.mark.parametrize("space", [".global", ""])
def test_scalar_copy(bits: int, kind: str, space: str) -> None:
    source = _pattern(32, np.dtype(f"u{bits // 8}").type)
    out = np.zeros_like(source)
    register = {8: "h0", 16: "h0", 32: "r0", 64: "rd0"}[bits]
    run_ptx(
        f"""
    mad.wide.u32 rd1, tid, {bits // 8}, source;
    mad.wide.u32 rd2, tid, {bits // 8}, out;
    ld{space}.{kind}{bits} {register}, [rd1];
    st{space}.{kind}{bits} [rd2], {register};""",
        {"source": source, "out": out},
    ).raise_if_findings()
    assert np.array_equal(out, source)


@pytest.mark.parametrize(
    ("type_name", "source_type", "register", "out_type"),
    [
        ("u8", np.uint8, "h", np.uint16),
        ("s8", np.int8, "h", np.int16),
        ("u8", np.uint8, "r", np.uint32),
        ("s8", np.int8, "r", np.int32),
        ("s8", np.int8, "rd", np.int64),
        ("u16", np.uint16, "r", np.uint32),
        ("s16", np.int16, "r", np.int32),
        ("s16", np.int16, "rd", np.int64),
        ("u32", np.uint32, "rd", np.uint64),
        ("s32", np.int32, "rd", np.int64),
    ],
)
def test_load_extends_to_the_register(
    type_name: str, source_type: type, register: str, out_type: type
) -> None:
    source = _pattern(32, source_type)
    out = np.zeros(32, dtype=out_type)
    bits = 8 * out.itemsize
    run_ptx(
        f"""
    mad.wide.u32 rd1, tid, {source.itemsize}, source;
    mad.wide.u32 rd2, tid, {out.itemsize}, out;
    ld.global.{type_name} {register}5, [rd1];
    st.global.b{bits} [rd2], {register}5;""",
        {"source": source, "out": out},
    ).raise_if_findings()
    assert np.array_equal(out, source.astype(out_type))


@pytest.mark.parametrize("type_name", ["u8", "u16", "u32"])
def test_store_truncates_a_64_bit_register(type_name: str) -> None:
    dtype = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32}[type_name]
    source = _pattern(32, np.uint64)
    out = np.zeros(32, dtype=dtype)
    run_ptx(
        f"""
    mad.wide.u32 rd1, tid, 8, source;
    mad.wide.u32 rd2, tid, {out.itemsize}, out;
    ld.global.u64 rd3, [rd1];
    st.global.{type_name} [rd2], rd3;""",
        {"source": source, "out": out},
    )
    assert np.array_equal(out, source.astype(dtype))


@pytest.mark.parametrize("space", ["global", "shared", "local"])
@pytest.mark.parametrize(
    ("vector", "kind", "registers"),
    [
        ("v2", "b32", "r0, r1"),
        ("v4", "b32", "r0, r1, r2, r3"),
        ("v2", "f32", "f0, f1"),
        ("v4", "f32", "f0, f1, f2, f3"),
        ("v2", "u64", "rd10, rd11"),
        ("v2", "f64", "fd0, fd1"),
        ("v4", "u16", "h0, h1, h2, h3"),
        ("v2", "u8", "h0, h1"),
        ("v4", "u8", "r0, r1, r2, r3"),
    ],
)
def test_vectors(space: str, vector: str, kind: str, registers: str) -> None:
    bytes_per_lane = int(vector[1]) * int(kind[1:]) // 8
    source = _pattern(32 * bytes_per_lane)
    out = np.zeros_like(source)
    moves = {
        "global": "mov.b64 rd3, rd2;",
        "shared": f"mov.u32 r10, tile; mad.lo.u32 r10, tid, {bytes_per_lane}, r10;"
        "cvt.u64.u32 rd3, r10;",
        "local": "mov.u64 rd3, scratch;",
    }[space]
    through = (
        ""
        if space == "global"
        else f"st.{space}.{vector}.{kind} [rd3], {{{registers}}};"
        f"ld.{space}.{vector}.{kind} {{{registers}}}, [rd3];"
    )
    run_ptx(
        f"""
    .local .align 16 .b8 scratch[16];
    mad.wide.u32 rd1, tid, {bytes_per_lane}, source;
    mad.wide.u32 rd2, tid, {bytes_per_lane}, out;
    {moves}
    ld.global.{vector}.{kind} {{{registers}}}, [rd1];
    {through}
    st.global.{vector}.{kind} [rd2], {{{registers}}};""",
        {"source": source, "out": out},
        module=_SHARED,
    ).raise_if_findings()
    assert np.array_equal(out, source)


def test_braces_around_one_register() -> None:
    source = _pattern(32, np.uint32)
    out = np.zeros_like(source)
    run_ptx(
        """
    mad.wide.u32 rd1, tid, 4, source;
    mad.wide.u32 rd2, tid, 4, out;
    ld.global.b32 {r0}, [rd1];
    st.global.b32 [rd2], {r0};""",
        {"source": source, "out": out},
    )
    assert np.array_equal(out, source)


def test_128_bit_scalar() -> None:
    source = _pattern(512)
    out = np.zeros_like(source)
    run_ptx(
        """
    mad.wide.u32 rd1, tid, 16, source;
    mad.wide.u32 rd2, tid, 16, out;
    ld.relaxed.sys.global.b128 q0, [rd1];
    st.relaxed.sys.global.b128 [rd2], q0;""",
        {"source": source, "out": out},
    )
    assert np.array_equal(out, source)


def test_sink_in_a_vector() -> None:
    source = _pattern(32 * 16)
    out = np.zeros(32, dtype=np.uint32)
    run_ptx(
        """
    mad.wide.u32 rd1, tid, 16, source;
    mad.wide.u32 rd2, tid, 4, out;
    ld.global.v4.b32 {_, _, r2, _}, [rd1];
    st.global.b32 [rd2], r2;""",
        {"source": source, "out": out},
    )
    assert np.array_equal(out, source.view(np.uint32)[2::4])


@pytest.mark.parametrize(
    "load",
    [
        "ld.volatile.global.u32",
        "ld.relaxed.gpu.global.u32",
        "ld.relaxed.sys.global.L1::no_allocate.b32",
        "ld.acquire.cta.b32",
        "ld.acquire.gpu.global.s32",
        "ld.acquire.sys.u32",
        "ld.mmio.relaxed.sys.global.u32",
        "ld.global.nc.u32",
        "ld.global.nc.L1::evict_last.L2::256B.s32",
        "ld.L1::no_allocate.global.nc.L2::128B.f32",
        "ld.global.ca.u32",
        "ld.cs.u32",
        "ldu.global.u32",
        "ld.weak.global.u32",
    ],
)
def test_semantics_and_hints_of_loads(load: str) -> None:
    source = _pattern(32, np.uint32)
    out = np.zeros_like(source)
    register = "f0" if load.endswith("f32") else "r0"
    run_ptx(
        f"""
    mad.wide.u32 rd1, tid, 4, source;
    mad.wide.u32 rd2, tid, 4, out;
    {load} {register}, [rd1];
    st.global.b32 [rd2], {register};""",
        {"source": source, "out": out},
    ).raise_if_findings()
    assert np.array_equal(out, source)


@pytest.mark.parametrize(
    "store",
    [
        "st.volatile.global.u32",
        "st.relaxed.gpu.global.L1::no_allocate.b32",
        "st.release.gpu.global.L1::no_allocate.b32",
        "st.release.sys.global.s32",
        "st.mmio.relaxed.sys.global.b32",
        "st.weak.cs.b32",
        "st.global.wt.u32",
        "st.release.cta.b32",
    ],
)
def test_semantics_and_hints_of_stores(store: str) -> None:
    out = np.zeros(32, dtype=np.uint32)
    run_ptx(
        f"""
    mad.wide.u32 rd2, tid, 4, out;
    {store} [rd2], tid;""",
        {"out": out},
    ).raise_if_findings()
    assert np.array_equal(out, np.arange(32))


def test_cache_policy_operands() -> None:
    source = _pattern(128, np.int32)
    out = np.zeros_like(source)
    run_ptx(
        """
    createpolicy.fractional.L2::evict_last.b64 rd9, 1.0;
    mad.wide.u32 rd1, tid, 16, source;
    mad.wide.u32 rd2, tid, 16, out;
    prefetch.global.L2 [rd1];
    ld.L1::no_allocate.L2::cache_hint.global.nc.v4.s32 {r0, r1, r2, r3}, [rd1], rd9;
    st.global.L2::cache_hint.v4.b32 [rd2], {r0, r1, r2, r3}, rd9;""",
        {"source": source, "out": out},
    ).raise_if_findings()
    assert np.array_equal(out, source)


def test_offsets_of_both_signs_and_immediates() -> None:
    source = _pattern(34, np.uint32)
    out = np.zeros(64, dtype=np.uint32)
    run_ptx(
        """
    mad.wide.u32 rd1, tid, 4, source;
    add.s64 rd1, rd1, 4;
    mad.wide.u32 rd2, tid, 8, out;
    ld.global.u32 r0, [rd1+4];
    ld.global.u32 r1, [rd1+-4];
    sub.u32 r0, r0, r1;
    st.global.u32 [rd2], r0;
    st.global.u32 [rd2+4], 77;""",
        {"source": source, "out": out},
    )
    assert np.array_equal(out[::2], source[2:] - source[:-2])
    assert (out[1::2] == 77).all()


def test_parameters_by_symbol_offset_and_register() -> None:
    out = np.zeros(4, dtype=np.uint64)
    args = {"out": out, "number": 0x80000001, "ratio": np.float32(1.5), "blob": bytes(range(16))}
    from pykernels.emulator import Module

    text = """.version 8.7
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 out, .param .u32 number, .param .f32 ratio,
                       .param .align 8 .b8 blob[16])
{
    .reg .b64 rd<8>;
    .reg .b32 r<8>;
    .reg .f32 f<2>;
    ld.param.u64 rd0, [out];
    ld.param.s32 rd1, [number];
    st.global.u64 [rd0], rd1;
    ld.param.f32 f0, [ratio];
    st.global.f32 [rd0+8], f0;
    mov.b64 rd2, blob;
    ld.param.u32 r0, [rd2+4];
    ld.param.v2.u8 {r1, r2}, [blob+14];
    st.global.v2.u32 [rd0+16], {r0, r1};
    st.global.u32 [rd0+24], r2;
    ret;
}
"""
    Emulator().launch(Module.from_ptx(text)["kernel"], 1, 1, list(args.values()))
    assert out[0] == 0xFFFFFFFF80000001
    assert out.view(np.float32)[2] == 1.5
    assert out.view(np.uint32)[4:7].tolist() == [0x07060504, 14, 15]


def test_constant_and_module_variables() -> None:
    out = np.zeros(3, dtype=np.uint32)
    run_ptx(
        """
    ld.const.u32 r0, [table+4];
    ld.const.u8 r1, [table];
    ld.global.u32 r2, [counter];
    add.u32 r2, r2, 1;
    st.global.u32 [counter], r2;
    st.global.u32 [out], r0;
    st.global.u32 [out+4], r1;
    st.global.u32 [out+8], r2;""",
        {"out": out},
        module=".const .align 4 .u32 table[2] = {258, 99};\n.global .align 4 .u32 counter = 41;",
        block=(1,),
    )
    assert out.tolist() == [99, 2, 42]


def test_shared_memory_of_a_peer() -> None:
    out = np.zeros(64, dtype=np.uint32)
    run_ptx(
        """
    .reg .b32 rank;
    mov.u32 rank, %cluster_ctarank;
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, 4, r0;
    mad.lo.u32 r2, rank, 1000, tid;
    st.shared.u32 [r1], r2;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    xor.b32 r3, rank, 1;
    mapa.shared::cluster.u32 r4, r1, r3;
    ld.shared::cluster.u32 r5, [r4];
    mad.lo.u32 r6, rank, 32, tid;
    mad.wide.u32 rd1, r6, 4, out;
    st.global.u32 [rd1], r5;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;""",
        {"out": out},
        module=_SHARED,
        grid=(2,),
        cluster=(2,),
    ).raise_if_findings()
    assert np.array_equal(out[:32], 1000 + np.arange(32))
    assert np.array_equal(out[32:], np.arange(32))


def test_store_to_a_peer_through_a_generic_address() -> None:
    out = np.zeros(2, dtype=np.uint32)
    run_ptx(
        """
    .reg .b32 rank;
    mov.u32 rank, %cluster_ctarank;
    mov.u32 r0, tile;
    cvt.u64.u32 rd1, r0;
    cvta.shared.u64 rd1, rd1;
    xor.b32 r1, rank, 1;
    mapa.u64 rd2, rd1, r1;
    add.u32 r2, rank, 50;
    barrier.cluster.arrive.relaxed;
    barrier.cluster.wait;
    st.u32 [rd2], r2;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    ld.u32 r3, [rd1];
    mad.wide.u32 rd3, rank, 4, out;
    st.global.u32 [rd3], r3;""",
        {"out": out},
        module=_SHARED,
        block=(1,),
        grid=(2,),
        cluster=(2,),
    ).raise_if_findings()
    assert out.tolist() == [51, 50]


def test_another_ctas_address_in_the_own_window() -> None:
    with pytest.raises(EmulationError) as raised:
        run_ptx(
            """
    mov.u32 r0, tile;
    mapa.shared::cluster.u32 r1, r0, 1;
    st.shared.u32 [r1], tid;""",
            {},
            module=_SHARED,
            grid=(2,),
            cluster=(2,),
        )
    assert raised.value.report.findings[-1].kind == "memory"


def test_discard_and_hints() -> None:
    storage = np.ones(96, dtype=np.uint32)
    data = storage[-storage.ctypes.data % 128 // 4 :][:64]
    run_ptx(
        """
    prefetch.global.L1 [data];
    prefetchu.L1 [data];
    applypriority.global.L2::evict_normal [data], 128;
    discard.global.L2 [data], 128;""",
        {"data": data},
        block=(1,),
    ).raise_if_findings()
    assert (data[:32] == 0xFFFFFFFF).all()
    assert (data[32:] == 1).all()


@pytest.mark.parametrize(
    ("stride", "vector", "conflicts"),
    [(1, 1, 0), (2, 1, 1), (32, 1, 31), (0, 1, 0), (1, 4, 0), (33, 1, 0), (2, 2, 2), (8, 4, 28)],
)
def test_bank_conflicts(stride: int, vector: int, conflicts: int) -> None:
    """Lane i accesses element i * stride of `vector` words."""
    registers = ", ".join(f"r{10 + i}" for i in range(vector))
    values = registers if vector == 1 else f"{{{registers}}}"
    kind = "b32" if vector == 1 else f"v{vector}.b32"
    sets = "\n".join(f"mov.u32 r{10 + i}, 1;" for i in range(vector))
    report = run_ptx(
        f"""
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, {4 * vector * stride}, r0;
    {sets}
    st.shared.{kind} [r1], {values};""",
        {},
        module=".shared .align 16 .b8 tile[8192];",
    )
    assert report.counters.shared_bank_conflicts == conflicts
    assert report.counters.shared_bytes_written == 128 * vector


def test_counts_bytes() -> None:
    data = np.zeros(64, dtype=np.uint32)
    report = run_ptx(
        """
    mad.wide.u32 rd1, tid, 4, data;
    ld.global.u32 r0, [rd1];
    setp.lt.u32 p0, tid, 8;
    @p0 st.global.u32 [rd1], r0;""",
        {"data": data},
    )
    assert report.counters.global_bytes_read == 128
    assert report.counters.global_bytes_written == 32


def test_out_of_bounds_ends_the_launch() -> None:
    out = np.zeros(40, dtype=np.uint32)[:31]
    with pytest.raises(EmulationError) as raised:
        run_ptx("mad.wide.u32 rd1, tid, 4, out;\nst.global.u32 [rd1], tid;", {"out": out})
    finding = raised.value.report.findings[-1]
    assert finding.kind == "memory"
    assert "out" in finding.message
    assert finding.first is not None
    assert finding.first.thread == 31
    assert "st.global.u32" in finding.first.ptx


def test_null_pointer_ends_the_launch() -> None:
    with pytest.raises(EmulationError):
        run_ptx("st.global.u32 [out], tid;", {"out": None})


def test_read_only_array() -> None:
    data = np.zeros(32, dtype=np.uint32)
    data.flags.writeable = False
    with pytest.raises(EmulationError):
        run_ptx("st.global.u32 [data], tid;", {"data": data})


def test_misaligned_access_is_a_finding() -> None:
    data = np.zeros(32, dtype=np.uint32)
    report = run_ptx("ld.global.u32 r0, [data+2];", {"data": data}, block=(1,))
    assert [finding.kind for finding in report.findings] == ["memory"]


def test_unwritten_shared_memory_is_a_finding() -> None:
    report = run_ptx("ld.shared.u32 r0, [tile+16];", {}, module=_SHARED)
    assert [finding.kind for finding in report.findings] == ["init"]


def test_shared_memory_out_of_bounds() -> None:
    with pytest.raises(EmulationError):
        run_ptx("st.shared.u32 [tile+4096], tid;", {}, module=_SHARED)


def test_st_async_signals_its_barrier() -> None:
    out = np.zeros(2, dtype=np.uint64)
    run_ptx(
        """
    mov.u32 r0, barrier;
    mov.u32 r1, tile;
    mbarrier.init.shared::cta.b64 [r0], 1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 16;
    mov.b64 rd1, 7;
    mov.b64 rd2, 9;
    st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.s64 [r1], {rd1, rd2}, [r0];
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p0, [r0], 0;
    @!p0 bra WAIT;
    ld.shared.v2.u64 {rd3, rd4}, [r1];
    st.global.v2.u64 [out], {rd3, rd4};""",
        {"out": out},
        module=_SHARED + "\n.shared .align 8 .b64 barrier;",
        block=(1,),
    ).raise_if_findings()
    assert out.tolist() == [7, 9]


@pytest.mark.parametrize(
    "statement",
    [
        "ld.global.u33 r0, [out];",
        "ld.global.sideways.u32 r0, [out];",
        "ld.global.v4.u64 {rd0, rd1, rd2, rd3}, [out];",
        "ld.global.v2.u32 {r0, r1, r2}, [out];",
        "ld.global.u64 r0, [out];",
        "ld.release.gpu.global.u32 r0, [out];",
        "st.acquire.gpu.global.u32 [out], r0;",
        "st.const.u32 [out], r0;",
        "ld.global.u32 r0;",
        "st.global.u32 [out], r0, r1;",
    ],
)
def test_unknown_forms_are_errors_at_load(statement: str) -> None:
    out = np.zeros(8, dtype=np.uint32)
    with pytest.raises(PtxError) as raised:
        run_ptx(statement, {"out": out})
    assert statement in raised.value.source_line
    assert raised.value.line > 0
