"""Grids whose clusters cannot notice one another: on several threads, with one result."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType

import numpy as np
import pytest
import torch

import pykernels
from pykernels.emulator import EmulationError, Emulator, Report
from pykernels.testing import gemm_operands
from tests.emulator.ptx_program import run_ptx

_THREADS = [1, 2, 5]

# Lanes leave the loop one by one: splits of a warp and their turns, which are drawn from the seed.
_DIVERGING = """
    mov.u32 r0, %ctaid.x;
    mad.lo.u32 r1, r0, 32, lane;
    mov.u32 r2, 0;
LOOP:
    add.u32 r2, r2, 1;
    setp.le.u32 p0, r2, r1;
    @p0 bra LOOP;
    mad.wide.u32 rd0, r1, 4, out;
    st.global.u32 [rd0], r2;
"""


def _state(report: Report) -> tuple[object, ...]:
    """All that a report says."""
    return report.findings, report.counters, report.notes, report.checks, report.seed


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_result_does_not_depend_on_the_number_of_threads(seed: int) -> None:
    outputs, states = [], []
    out = np.zeros(40 * 32, np.uint32)
    for num_threads in _THREADS:
        out.fill(0)
        emulator = Emulator(seed=seed, async_completion="random", num_threads=num_threads)
        states.append(_state(run_ptx(_DIVERGING, {"out": out}, grid=(40,), emulator=emulator)))
        outputs.append(out.copy())
    np.testing.assert_array_equal(outputs[0], np.arange(1, 40 * 32 + 1))
    assert all(np.array_equal(out, outputs[0]) for out in outputs)
    assert all(state == states[0] for state in states)


@pytest.mark.parametrize("seed", [0, 3])
def test_gemm_does_not_depend_on_the_number_of_threads(seed: int) -> None:
    a, b = gemm_operands(200, 264, 512)
    products, states = [], []
    for num_threads in _THREADS:
        with pykernels.emulate(
            seed=seed, async_completion="random", num_threads=num_threads
        ) as report:
            products.append(pykernels.fp8_gemm_nt(a, b))
        states.append((report.findings, report.counters))
    assert all(torch.equal(product, products[0]) for product in products)
    assert all(state == states[0] for state in states)
    assert states[0][1].tensor_multiply_adds >= 200 * 264 * 512


def test_many_clusters_share_a_machine() -> None:
    """More clusters than slices: some slices have several, for any number of threads."""
    num_ctas = 2500
    out = np.zeros(num_ctas * 32, np.uint32)
    counters = []
    for num_threads in _THREADS:
        out.fill(0)
        body = """
            mov.u32 r0, %ctaid.x;
            mad.lo.u32 r1, r0, 32, lane;
            mad.wide.u32 rd0, r1, 4, out;
            st.global.u32 [rd0], r1;
        """
        emulator = Emulator(num_threads=num_threads)
        counters.append(run_ptx(body, {"out": out}, grid=(num_ctas,), emulator=emulator).counters)
        np.testing.assert_array_equal(out, np.arange(num_ctas * 32))
    assert counters[0].global_bytes_written == num_ctas * 128
    # An array that begins off a multiple of 32 bytes reaches into one more sector.
    assert counters[0].global_footprint_bytes_written in (num_ctas * 128, num_ctas * 128 + 32)
    assert all(count == counters[0] for count in counters)


def test_findings_of_all_clusters_are_counted_together() -> None:
    body = "mov.u32 r0, %ctaid.x; add.u32 r2, r1, r0;"
    reports = [
        run_ptx(body, {}, grid=(6,), emulator=Emulator(num_threads=num_threads))
        for num_threads in _THREADS
    ]
    (finding,) = reports[0].findings
    assert finding.kind == "init"
    assert finding.occurrences == 6
    assert finding.first is not None
    assert finding.first.ctaid == (0, 0, 0)
    assert all(_state(report) == _state(reports[0]) for report in reports)


# ---- which grids ----

# Each CTA leaves its flag and, before its end, waits for the one of the other: both have to run.
_MEETING = """
    mov.u32 r0, %ctaid.x;
    xor.b32 r1, r0, 1;
    mad.wide.u32 rd0, r0, 4, flags;
    mad.wide.u32 rd1, r1, 4, flags;
    mov.u32 r2, 1;
    {store} [rd0], r2;
WAIT:
    {load} r3, [rd1];
    setp.eq.u32 p0, r3, 0;
    @p0 bra WAIT;
"""


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(
    ("store", "load"),
    [
        ("st.release.gpu.global.u32", "ld.acquire.gpu.global.u32"),
        ("st.relaxed.gpu.u32", "ld.relaxed.gpu.u32"),
        ("st.volatile.global.u32", "ld.volatile.global.u32"),
        ("red.release.gpu.global.add.u32", "ld.acquire.gpu.global.u32"),
    ],
)
def test_clusters_that_can_wait_for_one_another_run_together(
    store: str, load: str, num_threads: int
) -> None:
    flags = np.zeros(2, np.uint32)
    body = _MEETING.format(store=store, load=load)
    emulator = Emulator(num_threads=num_threads, max_warp_instructions=10_000_000)
    run_ptx(body, {"flags": flags}, grid=(2,), block=(1,), emulator=emulator)
    assert flags.tolist() == [1, 1]


def test_atomics_of_clusters_run_together() -> None:
    """The order of the CTAs of one machine, which is not that of their index for every seed."""
    body = """
        mov.u32 r0, %ctaid.x;
        mov.u32 r5, 0;
    LOOP:
        add.u32 r5, r5, 1;
        setp.lt.u32 p1, r5, 20000;
        @p1 bra LOOP;
        setp.eq.u32 p0, tid, 0;
        @p0 atom.global.add.u32 r1, [next], 1;
        mad.wide.u32 rd0, r0, 4, order;
        @p0 st.global.u32 [rd0], r1;
    """

    def order(num_threads: int) -> list[int]:
        args = {"next": np.zeros(1, np.uint32), "order": np.zeros(8, np.uint32)}
        run_ptx(body, args, grid=(8,), block=(64,), emulator=Emulator(num_threads=num_threads))
        return [int(place) for place in args["order"]]

    first = order(1)
    assert sorted(first) == list(range(8))
    assert all(order(num_threads) == first for num_threads in _THREADS for _ in range(3))


def test_float_sums_of_clusters_do_not_depend_on_the_number_of_threads() -> None:
    """red.add.f32: the order of additions shows in the bits."""
    body = """
        mov.u32 r0, %ctaid.x;
        mad.lo.u32 r1, r0, 32, lane;
        cvt.rn.f32.u32 f0, r1;
        rcp.rn.f32 f0, f0;
        red.global.add.f32 [sum], f0;
    """
    sums = []
    for num_threads in _THREADS * 2:
        out = np.zeros(1, np.float32)
        args = {"sum": out}
        body_of_all = body.replace("lane;", "lane; add.u32 r1, r1, 1;")
        run_ptx(body_of_all, args, grid=(16,), emulator=Emulator(num_threads=num_threads))
        sums.append(out.view(np.uint32)[0])
    assert len(set(sums)) == 1


def test_clocks_of_one_grid_are_one_clock() -> None:
    """Clusters that compare times: %globaltimer runs on from one CTA to the next."""
    out = np.zeros(4, np.uint64)
    body = """
        mov.u32 r0, %ctaid.x;
        mov.u64 rd1, %globaltimer;
        mad.wide.u32 rd0, r0, 8, out;
        st.global.u64 [rd0], rd1;
    """
    run_ptx(body, {"out": out}, grid=(4,), block=(1,), emulator=Emulator(num_threads=2))
    assert len(set(out.tolist())) == 4


# ---- ends ----


def test_the_error_of_the_first_cluster_counts() -> None:
    """CTAs 3 and later trap, the last ones first; the report is of CTAs 0 to 3."""
    body = """
        mov.u32 r0, %ctaid.x;
        mov.u32 r1, 0;
        sub.u32 r2, 12, r0;
        mul.lo.u32 r2, r2, 3000;
    LOOP:
        add.u32 r1, r1, 1;
        setp.lt.u32 p1, r1, r2;
        @p1 bra LOOP;
        setp.ge.u32 p0, r0, 3;
        @p0 trap;
    """
    errors = []
    for num_threads in _THREADS:
        with pytest.raises(EmulationError) as caught:
            run_ptx(body, {}, grid=(12,), emulator=Emulator(num_threads=num_threads))
        errors.append((str(caught.value), _state(caught.value.report)))
    assert "CTA (3, 0, 0)" in errors[0][0]
    assert all(error == errors[0] for error in errors)


def test_deadlocks_of_several_clusters() -> None:
    """The others come to their end; the message is the first one's and counts the rest."""
    body = """
        mov.u32 r2, %ctaid.x;
        and.b32 r3, r2, 1;
        setp.eq.u32 p0, r3, 1;
        @p0 bar.sync 1, 64;
        mov.u32 r3, 7;
        mad.wide.u32 rd1, r2, 4, out;
        st.global.u32 [rd1], r3;
    """
    errors = []
    out = np.zeros(8, np.uint32)
    for num_threads in _THREADS:
        out.fill(0)
        with pytest.raises(EmulationError, match="in 3 more clusters none can either") as caught:
            run_ptx(body, {"out": out}, grid=(8,), emulator=Emulator(num_threads=num_threads))
        assert out.tolist() == [7, 0] * 4
        errors.append((str(caught.value), _state(caught.value.report)))
    assert "CTA (1, 0, 0) warp 0 waits for barrier 1" in errors[0][0]
    assert all(error == errors[0] for error in errors)


@pytest.mark.parametrize("num_threads", _THREADS)
def test_max_warp_instructions_holds_for_the_sum(num_threads: int) -> None:
    body = """
        mov.u32 r1, 0;
    LOOP:
        add.u32 r1, r1, 1;
        setp.lt.u32 p1, r1, 10000;
        @p1 bra LOOP;
    """

    def run(limit: int) -> None:
        emulator = Emulator(num_threads=num_threads, max_warp_instructions=limit)
        run_ptx(body, {}, grid=(10,), emulator=emulator)

    run(400_000)
    with pytest.raises(EmulationError, match=r"no end after .* warp instructions"):
        run(200_000)


@pytest.mark.parametrize("num_threads", _THREADS)
def test_ctrl_c_ends_all_threads(num_threads: int) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    body = "mov.u32 r1, 0; LOOP: add.u32 r1, r1, 1; bra LOOP;"  # it counts: no deadlock
    threads = threading.active_count()
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Interrupt):
            run_ptx(body, {}, grid=(7,), emulator=Emulator(num_threads=num_threads))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert threading.active_count() == threads


@pytest.mark.parametrize("num_threads", [0, -1, 1.5, "2"])
def test_bad_number_of_threads(num_threads: object) -> None:
    with pytest.raises(ValueError, match="num_threads"):
        Emulator(num_threads=num_threads)  # type: ignore[arg-type]


def test_cluster_shape_and_indices() -> None:
    """Special registers name the CTA's place in the whole grid."""
    names: Sequence[str] = ("%ctaid.x", "%ctaid.y", "%clusterid.x", "%nctaid.x", "%cluster_ctarank")
    loads = "".join(
        f"mov.u32 r1, {name}; st.global.u32 [rd0 + {4 * i}], r1;" for i, name in enumerate(names)
    )
    body = f"""
        mov.u32 r2, %ctaid.x;
        mov.u32 r3, %ctaid.y;
        mad.lo.u32 r2, r3, 4, r2;
        mad.wide.u32 rd0, r2, {4 * len(names)}, out;
        {loads}
    """
    out = np.zeros((12, len(names)), np.uint32)
    run_ptx(body, {"out": out}, grid=(4, 3), cluster=(2, 1), block=(1,))
    expected = [(x, y, x // 2, 4, x % 2) for y in range(3) for x in range(4)]
    np.testing.assert_array_equal(out, expected)
