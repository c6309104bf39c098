"""ldmatrix, stmatrix, movmatrix and mma.sync against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pykernels.emulator import EmulationError, PtxError
from tests.emulator.ptx_program import run_ptx

_SHARED = ".shared .align 16 .b8 tile[1024];"


def _aligned(array: np.ndarray) -> np.ndarray:
    storage = np.zeros(array.nbytes + 16, dtype=np.uint8)
    view = storage[-storage.ctypes.data % 16 :][: array.nbytes].view(array.dtype)
    view[:] = array.reshape(-1)
    return view


def _registers(count: int, first: int = 10) -> str:
    return "{" + ", ".join(f"r{first + i}" for i in range(count)) + "}"


_FILL = """
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, 16, r0;
    mad.wide.u32 rd1, tid, 16, source;
    ld.global.v4.u32 {r2, r3, r4, r5}, [rd1];
    st.shared.v4.u32 [r1], {r2, r3, r4, r5};
    bar.warp.sync -1;
"""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("order", ["m8n8.x{}{}.shared", "x{}{}.m8n8.shared::cta"])
def test_ldmatrix(count: int, transposed: bool, order: str) -> None:
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    source = _aligned(matrices)
    out = np.zeros((count, 32), dtype=np.uint32)
    form = order.format(count, ".trans" if transposed else "")
    stores = "\n".join(f"st.global.u32 [rd2+{128 * i}], r{10 + i};" for i in range(count))
    run_ptx(
        f"""{_FILL}
    ldmatrix.sync.aligned.{form}.b16 {_registers(count)}, [r1];
    mad.wide.u32 rd2, tid, 4, out;
    {stores}""",
        {"source": source, "out": out},
        module=_SHARED,
    ).raise_if_findings()
    for i in range(count):
        matrix = matrices[i].T if transposed else matrices[i]
        assert np.array_equal(out[i].view(np.uint16).reshape(8, 8), matrix)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count: int, transposed: bool) -> None:
    matrices = np.arange(1, 64 * count + 1, dtype=np.uint16).reshape(count, 8, 8)
    source = _aligned(matrices)
    out = _aligned(np.zeros(64 * count, dtype=np.uint16))
    form = f"m8n8.x{count}{'.trans' if transposed else ''}.shared::cta"
    loads = "\n".join(f"ld.global.u32 r{10 + i}, [rd1+{128 * i}];" for i in range(count))
    run_ptx(
        f"""
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, 16, r0;
    mad.wide.u32 rd1, tid, 4, source;
    {loads}
    stmatrix.sync.aligned.{form}.b16 [r1], {_registers(count)};
    bar.warp.sync -1;
    setp.ge.u32 p1, tid, {8 * count};
    @p1 bra END;
    ld.shared.v4.u32 {{r2, r3, r4, r5}}, [r1];
    mad.wide.u32 rd2, tid, 16, out;
    st.global.v4.u32 [rd2], {{r2, r3, r4, r5}};
END:""",
        {"source": source, "out": out},
        module=_SHARED,
    ).raise_if_findings()
    expected = matrices.transpose(0, 2, 1) if transposed else matrices
    assert np.array_equal(out.reshape(count, 8, 8), expected)


def test_64_bit_addresses() -> None:
    source = _aligned(np.arange(256, dtype=np.uint16))
    out = np.zeros(32, dtype=np.uint32)
    run_ptx(
        f"""{_FILL}
    cvt.u64.u32 rd5, r1;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{r10}}, [rd5];
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [rd5+128], {{r10}};
    bar.warp.sync -1;
    mad.lo.u32 r6, tid, 4, r0;
    ld.shared.u32 r7, [r6+128];
    mad.wide.u32 rd2, tid, 4, out;
    st.global.u32 [rd2], r7;""",
        {"source": source, "out": out},
        module=_SHARED,
    ).raise_if_findings()
    assert np.array_equal(out.view(np.uint16), np.arange(64))


def test_movmatrix() -> None:
    source = np.arange(64, dtype=np.uint16)
    out = np.zeros(64, dtype=np.uint16)
    run_ptx(
        """
    mad.wide.u32 rd1, tid, 4, source;
    mad.wide.u32 rd2, tid, 4, out;
    ld.global.u32 r1, [rd1];
    movmatrix.sync.aligned.m8n8.trans.b16 r1, r1;
    st.global.u32 [rd2], r1;""",
        {"source": source, "out": out},
    )
    assert np.array_equal(out.reshape(8, 8), source.reshape(8, 8).T)


def test_bank_conflicts_of_rows() -> None:
    """Rows 128 bytes apart meet in the same banks: eight wavefronts for one."""
    report = run_ptx(
        """
    mov.u32 r0, tile;
    and.b32 r1, tid, 7;
    mad.lo.u32 r1, r1, 128, r0;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [r1], {tid};""",
        {},
        module=_SHARED,
    )
    assert report.counters.shared_bank_conflicts == 7


def _fragments(matrix: np.ndarray, halves: int) -> np.ndarray:
    """The 32-bit registers of an operand: [register][lane], for rows of 4-byte groups along k."""
    rows, _ = matrix.shape
    words = np.ascontiguousarray(matrix).view(np.uint32).reshape(rows, -1)
    parts = words.shape[1] // 4
    registers = np.zeros((parts * halves, 32), dtype=np.uint32)
    for part in range(parts):
        for half in range(halves):
            for lane in range(32):
                registers[part * halves + half, lane] = words[
                    8 * half + lane // 4, 4 * part + lane % 4
                ]
    return registers


_MMA_TYPES = {
    "f16": (np.float16, "f32"),
    "bf16": (ml_dtypes.bfloat16, "f32"),
    "tf32": (np.float32, "f32"),
    "e4m3": (ml_dtypes.float8_e4m3fn, "f32"),
    "e5m2": (ml_dtypes.float8_e5m2, "f32"),
    "s8": (np.int8, "s32"),
    "u8": (np.uint8, "s32"),
}


@pytest.mark.parametrize("depth_bytes", [16, 32])
@pytest.mark.parametrize("kind", list(_MMA_TYPES))
def test_mma(kind: str, depth_bytes: int) -> None:
    """Small integers: exact in every model of the accumulation."""
    dtype, accumulator = _MMA_TYPES[kind]
    rng = np.random.default_rng(11)
    depth = depth_bytes // np.dtype(dtype).itemsize
    low = 0 if kind == "u8" else -4
    a = rng.integers(low, 5, (16, depth)).astype(dtype)
    b = rng.integers(low, 5, (8, depth)).astype(dtype)
    c = rng.integers(-9, 9, (16, 8)).astype(np.int32 if accumulator == "s32" else np.float32)
    a_registers, b_registers = _fragments(a, 2), _fragments(b, 1)
    c_lanes = np.zeros((4, 32), dtype=c.dtype)
    for lane in range(32):
        for i in range(4):
            c_lanes[i, lane] = c[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2]
    out = np.zeros_like(c_lanes)
    operands = [("a", len(a_registers), 10), ("b", len(b_registers), 20), ("c", 4, 30)]
    loads = "\n".join(
        f"mad.wide.u32 rd1, tid, 4, {name};\n"
        + "\n".join(f"ld.global.b32 r{first + i}, [rd1+{128 * i}];" for i in range(count))
        for name, count, first in operands
    )
    stores = "\n".join(f"st.global.b32 [rd2+{128 * i}], r{40 + i};" for i in range(4))
    report = run_ptx(
        f"""
    {loads}
    mma.sync.aligned.m16n8k{depth}.row.col.{accumulator}.{kind}.{kind}.{accumulator}
        {_registers(4, 40)}, {_registers(len(a_registers), 10)}, {_registers(len(b_registers), 20)},
        {_registers(4, 30)};
    mad.wide.u32 rd2, tid, 4, out;
    {stores}""",
        {"a": a_registers, "b": b_registers, "c": c_lanes, "out": out},
    )
    report.raise_if_findings()
    product = c + a.astype(np.float64) @ b.astype(np.float64).T
    for lane in range(32):
        for i in range(4):
            expected = product[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2]
            assert out[i, lane] == expected
    assert report.counters.tensor_multiply_adds == 16 * 8 * depth
    assert bool(report.notes) == (accumulator == "f32")


def test_f16_accumulator() -> None:
    a = np.ones((16, 16), dtype=np.float16)
    b = np.full((8, 16), 2, dtype=np.float16)
    a_registers, b_registers = _fragments(a, 2), _fragments(b, 1)
    out = np.zeros((2, 32), dtype=np.uint32)
    run_ptx(
        f"""
    mov.b32 r10, {a_registers[0, 0]};
    mov.b32 r20, {b_registers[0, 0]};
    mov.b32 r30, 0x3C003C00;
    mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {{r40, r41}}, {{r10, r10, r10, r10}},
        {{r20, r20}}, {{r30, r30}};
    mad.wide.u32 rd2, tid, 4, out;
    st.global.b32 [rd2], r40;
    st.global.b32 [rd2+128], r41;""",
        {"out": out},
    )
    assert (out.view(np.float16) == 33).all()


def test_satfinite_saturates() -> None:
    out = np.zeros(64, dtype=np.int32)
    run_ptx(
        """
    mov.b32 r10, 0x7F7F7F7F;
    mov.b32 r30, 0x7FFFFFFF;
    mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {r40, r41, r42, r43},
        {r10, r10, r10, r10}, {r10, r10}, {r30, r30, r30, r30};
    mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {r50, r51, r52, r53},
        {r10, r10, r10, r10}, {r10, r10}, {r30, r30, r30, r30};
    mad.wide.u32 rd2, tid, 4, out;
    st.global.b32 [rd2], r40;
    st.global.b32 [rd2+128], r50;""",
        {"out": out},
    )
    assert (out[:32] == 2**31 - 1).all()
    assert (out[32:] == np.int32(2**31 - 1 + 32 * 127 * 127 - 2**32)).all()


def test_an_incomplete_warp_ends_the_launch() -> None:
    with pytest.raises(EmulationError, match="32 lanes"):
        run_ptx(
            "mov.u32 r0, tile;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {r1}, [r0];",
            {},
            module=_SHARED,
            block=(16,),
        )


@pytest.mark.parametrize(
    "statement",
    [
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {r1, r2, r3}, [r0];",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r1}, [r0];",
        "ldmatrix.sync.aligned.m8n8.x1.global.b16 {r1}, [rd0];",
        "mma.sync.aligned.m16n8k64.row.col.f32.f16.f16.f32 {r1}, {r1}, {r1}, {r1};",
        "mma.sync.aligned.m16n8k16.col.row.f32.f16.f16.f32 {r1, r2, r3, r4}, {r1, r2, r3, r4},"
        " {r1, r2}, {r1, r2, r3, r4};",
        "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32 {r1}, {r1}, {r1}, {r1};",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {r1}, {r1}, {r1}, {r1};",
    ],
)
def test_unknown_forms_are_errors_at_load(statement: str) -> None:
    with pytest.raises(PtxError):
        run_ptx(statement, {})
