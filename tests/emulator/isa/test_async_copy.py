"""cp.async: sizes, zero fill, groups, arrival on mbarriers, in every completion mode."""

from __future__ import annotations

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, PtxError
from tests.emulator.ptx_program import run_ptx

_MODES = ["early", "late", "random"]
_SHARED = ".shared .align 16 .b8 tile[1024];\n.shared .align 8 .b64 barrier;"
_WAIT_ALL = {
    "wait_group": "cp.async.commit_group;\ncp.async.wait_group 0;",
    "wait_all": "cp.async.wait_all;",
}


def _source() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, 1024, dtype=np.uint8)


def _aligned(array: np.ndarray) -> np.ndarray:
    storage = np.zeros(array.nbytes + 16, dtype=np.uint8)
    view = storage[-storage.ctypes.data % 16 :][: array.nbytes].view(array.dtype)
    view[:] = array
    return view


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("wait", list(_WAIT_ALL))
@pytest.mark.parametrize(
    ("form", "size"),
    [
        ("cp.async.ca.shared.global", 4),
        ("cp.async.ca.shared::cta.global.L2::128B", 8),
        ("cp.async.ca.shared.global", 16),
        ("cp.async.cg.shared.global", 16),
    ],
)
def test_copy(form: str, size: int, wait: str, mode: str) -> None:
    source = _aligned(_source()[: 32 * size])
    out = np.zeros(32 * size // 4, dtype=np.uint32)
    loop = "\n".join(
        f"ld.shared.u32 r5, [r1+{at}]; st.global.u32 [rd2+{at}], r5;" for at in range(0, size, 4)
    )
    run_ptx(
        f"""
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, {size}, r0;
    mad.wide.u32 rd1, tid, {size}, source;
    mad.wide.u32 rd2, tid, {size}, out;
    {form} [r1], [rd1], {size};
    {_WAIT_ALL[wait]}
    {loop}""",
        {"source": source, "out": out},
        module=_SHARED,
        emulator=Emulator(async_completion=mode),
    ).raise_if_findings()
    assert np.array_equal(out.view(np.uint8), source)


def test_source_size_fills_with_zeros() -> None:
    source = _aligned(_source()[:512])
    out = _aligned(np.zeros(128, dtype=np.uint32))
    run_ptx(
        """
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, 16, r0;
    mad.wide.u32 rd1, tid, 16, source;
    mad.wide.u32 rd2, tid, 16, out;
    and.b32 r2, tid, 1;
    mul.lo.u32 r2, r2, 12;
    createpolicy.fractional.L2::evict_last.b64 rd5, 1.0;
    cp.async.cg.shared.global.L2::cache_hint.L2::256B [r1], [rd1], 16, r2, rd5;
    cp.async.wait_all;
    ld.shared.v4.u32 {r4, r5, r6, r7}, [r1];
    st.global.v4.u32 [rd2], {r4, r5, r6, r7};""",
        {"source": source, "out": out},
        module=_SHARED,
    ).raise_if_findings()
    expected = source.reshape(32, 16).copy()
    expected[0::2] = 0
    expected[1::2, 12:] = 0
    assert np.array_equal(out.view(np.uint8).reshape(32, 16), expected)


@pytest.mark.parametrize("ignored", [False, True])
def test_ignored_source(ignored: bool) -> None:
    source = _aligned(np.arange(1, 5, dtype=np.uint32))
    out = _aligned(np.zeros(4, dtype=np.uint32))
    run_ptx(
        f"""
    mov.u32 r0, tile;
    setp.eq.u32 p1, tid, {0 if ignored else 1};
    cp.async.ca.shared.global [r0], [source], 16, p1;
    cp.async.wait_all;
    ld.shared.v4.u32 {{r4, r5, r6, r7}}, [r0];
    st.global.v4.u32 [out], {{r4, r5, r6, r7}};""",
        {"source": source, "out": out},
        module=_SHARED,
        block=(1,),
    ).raise_if_findings()
    assert out.tolist() == ([0] * 4 if ignored else [1, 2, 3, 4])


def test_zero_source_size_reads_nothing() -> None:
    """An address out of bounds is fine where src-size is 0, as in attention's gathers."""
    out = _aligned(np.full(4, 9, dtype=np.uint32))
    run_ptx(
        """
    mov.u32 r0, tile;
    mov.u64 rd1, 0;
    mov.u32 r2, 0;
    cp.async.cg.shared.global [r0], [rd1], 16, r2;
    cp.async.wait_all;
    ld.shared.v4.u32 {r4, r5, r6, r7}, [r0];
    st.global.v4.u32 [out], {r4, r5, r6, r7};""",
        {"out": out},
        module=_SHARED,
        block=(1,),
    ).raise_if_findings()
    assert not out.any()


def test_a_missing_wait_reads_poison() -> None:
    source = np.arange(32, dtype=np.uint32)
    out = np.zeros(32, dtype=np.uint32)
    report = run_ptx(
        """
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, 4, r0;
    mad.wide.u32 rd1, tid, 4, source;
    mad.wide.u32 rd2, tid, 4, out;
    cp.async.ca.shared.global [r1], [rd1], 4;
    cp.async.commit_group;
    ld.shared.u32 r2, [r1];
    st.global.u32 [rd2], r2;
    cp.async.wait_group 0;""",
        {"source": source, "out": out},
        module=_SHARED,
    )
    assert (out == 0xFFFFFFFF).all()
    assert {finding.kind for finding in report.findings} == {"init", "race"}


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize(("noinc", "count"), [(".noinc", 32), ("", 1)])
def test_arrival_on_a_barrier(noinc: str, count: int, mode: str) -> None:
    """.noinc counts against the expected arrivals; without it only the last plain arrive does."""
    source = np.arange(32, dtype=np.uint32)
    out = np.zeros(32, dtype=np.uint32)
    plain = "" if noinc else "@p1 mbarrier.arrive.shared::cta.b64 _, [r3];"
    run_ptx(
        f"""
    mov.u32 r0, tile;
    mov.u32 r3, barrier;
    setp.eq.u32 p1, tid, 0;
    @p1 mbarrier.init.shared::cta.b64 [r3], {count};
    bar.warp.sync -1;
    mad.lo.u32 r1, tid, 4, r0;
    mad.wide.u32 rd1, tid, 4, source;
    cp.async.ca.shared.global [r1], [rd1], 4;
    cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [r3];
    bar.warp.sync -1;
    {plain}
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 p0, [r3], 0;
    @!p0 bra WAIT;
    xor.b32 r4, r1, 4;
    ld.shared.u32 r2, [r4];
    mad.wide.u32 rd2, tid, 4, out;
    st.global.u32 [rd2], r2;
    cp.async.wait_all;""",
        {"source": source, "out": out},
        module=_SHARED,
        emulator=Emulator(async_completion=mode),
    ).raise_if_findings()
    assert np.array_equal(out, source ^ 1)


def test_source_out_of_bounds_ends_the_launch() -> None:
    source = np.zeros(31, dtype=np.uint32)
    with pytest.raises(EmulationError, match="source"):
        run_ptx(
            """
    mov.u32 r0, tile;
    mad.lo.u32 r1, tid, 4, r0;
    mad.wide.u32 rd1, tid, 4, source;
    cp.async.ca.shared.global [r1], [rd1], 4;
    cp.async.wait_all;""",
            {"source": source},
            module=_SHARED,
        )


@pytest.mark.parametrize(
    "statement",
    [
        "cp.async.cg.shared.global [r1], [source], 8;",
        "cp.async.ca.shared.global [r1], [source], 12;",
        "cp.async.ca.global.shared [source], [r1], 4;",
        "cp.async.wait_group;",
        "cp.async.ca.shared.global [r1], [source];",
    ],
)
def test_unknown_forms_are_errors_at_load(statement: str) -> None:
    with pytest.raises(PtxError):
        run_ptx(statement, {"source": np.zeros(8, np.uint32)})
