"""mbarriers: every form, phases, counts, transaction bytes, remote arrivals, wrong use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import EmulationError, Emulator, PtxError, Report
from tests.emulator.ptx_program import run_ptx

Words = npt.NDArray[np.uint32]

BARRIER = ".shared .align 8 .b64 bar;\n.shared .align 4 .b32 word;"
# Thread 0 initialises, all see it.
INIT = """
    setp.eq.u32 p9, tid, 0;
    mov.u32 r10, bar;
    @p9 mbarrier.init.shared::cta.b64 [r10], {count};
    bar.sync 0;
"""
WAIT = """
{label}:
    mbarrier.try_wait.parity.shared::cta.b64 p8, [r10], {parity};
    @!p8 bra {label};
"""
STORE = """
    mul.wide.u32 rd0, tid, 4;
    add.u64 rd0, out, rd0;
    st.global.u32 [rd0], r1;
"""


def run_threads(body: str, threads: int = 64, *, seed: int = 0) -> Words:
    out = np.zeros(threads, dtype=np.uint32)
    run_report(body + STORE, threads, seed=seed, out=out).raise_if_findings()
    return out


def run_report(body: str, threads: int = 32, *, seed: int = 0, out: Words | None = None) -> Report:
    args = {} if out is None else {"out": out}
    return run_ptx(body, args, module=BARRIER, block=(threads,), emulator=Emulator(seed=seed))


def wait(parity: int, label: str = "WAIT") -> str:
    return WAIT.format(label=label, parity=parity)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("space", ["", ".shared", ".shared::cta"])
@pytest.mark.parametrize("order", ["", ".release.cta", ".release.cluster", ".relaxed.cta"])
def test_arrivals_complete_the_phase(space: str, order: str, seed: int) -> None:
    address = "[rd10]" if space == "" else "[r10]"
    body = f"""
        {INIT.format(count=32)}
        mov.u32 r1, 0;
        mov.u32 r11, 5;
        cvt.u64.u32 rd10, r10;
        cvta.shared.u64 rd10, rd10;
        setp.ge.u32 p0, tid, 32;
        @p0 bra CONSUMER;
        @p9 st.shared.u32 [word], r11;
        {"fence.acq_rel.cta;" if "relaxed" in order else ""}
        mbarrier.arrive{order}{space}.b64 _, {address};
        bra DONE;
    CONSUMER:
        {wait(0)}
        ld.shared.u32 r1, [word];
    DONE:
    """
    assert run_threads(body, seed=seed).tolist() == [0] * 32 + [5] * 32


@pytest.mark.parametrize("order", ["", ".acquire.cta", ".acquire.cluster", ".relaxed.cta"])
@pytest.mark.parametrize("form", ["try_wait", "test_wait"])
def test_waits_by_state_and_by_parity(form: str, order: str) -> None:
    hint = ", 1000" if form == "try_wait" else ""
    body = (
        INIT.format(count=64)
        + f"""
        mbarrier.arrive.shared::cta.b64 rd1, [r10];
    LOOP:
        mbarrier.{form}{order}.shared::cta.b64 p0, [r10], rd1{hint};
        @!p0 bra LOOP;
        mbarrier.arrive.shared::cta.b64 rd1, [r10];
    LOOP2:
        mbarrier.{form}.parity{order}.shared::cta.b64 p0, [r10], 1{hint};
        @!p0 bra LOOP2;
        mov.u32 r1, 3;
    """
    )
    assert set(run_threads(body)) == {3}


def test_parity_of_the_phase_before_is_done_at_once() -> None:
    body = (
        INIT.format(count=1)
        + """
        mbarrier.test_wait.parity.shared::cta.b64 p0, [r10], 1;
        mbarrier.test_wait.parity.shared::cta.b64 p1, [r10], 0;
        selp.u32 r1, 1, 0, p0;
        selp.u32 r2, 2, 0, p1;
        add.u32 r1, r1, r2;
    """
    )
    assert set(run_threads(body)) == {1}


def test_counts_and_states() -> None:
    body = (
        INIT.format(count=10)
        + """
        mov.u32 r1, 0;
        @!p9 bra DONE;
        mbarrier.arrive.shared::cta.b64 rd1, [r10], 4;
        mbarrier.arrive.noComplete.shared::cta.b64 rd2, [r10], 5;
        mbarrier.pending_count.b64 r2, rd1;
        mbarrier.pending_count.b64 r3, rd2;
        mbarrier.arrive.shared::cta.b64 rd3, [r10], 1;
        mbarrier.pending_count.b64 r4, rd3;
        mbarrier.test_wait.shared::cta.b64 p0, [r10], rd1;
        selp.u32 r1, 1, 0, p0;
        mad.lo.u32 r1, r1, 100, r2;
        mad.lo.u32 r1, r1, 100, r3;
        mad.lo.u32 r1, r1, 100, r4;
    DONE:
    """
    )
    assert run_threads(body)[0] == 1_10_06_01


def test_arrive_drop_lowers_the_count_of_later_phases() -> None:
    body = (
        INIT.format(count=2)
        + """
        mov.u32 r1, 0;
        @!p9 bra DONE;
        mbarrier.arrive_drop.shared::cta.b64 _, [r10];
        mbarrier.arrive.shared::cta.b64 _, [r10];
        mbarrier.arrive.shared::cta.b64 _, [r10];
        mbarrier.test_wait.parity.shared::cta.b64 p0, [r10], 1;
        selp.u32 r1, 1, 0, p0;
    DONE:
    """
    )
    assert run_threads(body)[0] == 1


@pytest.mark.parametrize("expect_first", [True, False])
def test_transaction_bytes_hold_the_phase(expect_first: bool) -> None:
    """complete_tx may run ahead of expect_tx: the count goes below zero and the phase stays."""
    expect = "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [r10], 512;"
    complete = "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [r10], 512;"
    steps = [expect, complete] if expect_first else [complete, expect]
    test = "mbarrier.test_wait.parity.shared::cta.b64 p{0}, [r10], 0; selp.u32 r{1}, 1, 0, p{0};"
    body = (
        INIT.format(count=1)
        + f"""
        mov.u32 r1, 0;
        @!p9 bra DONE;
        {steps[0]}
        mbarrier.arrive.shared::cta.b64 _, [r10];
        {test.format(1, 2)}
        {steps[1]}
        {test.format(2, 3)}
        mad.lo.u32 r1, r2, 10, r3;
    DONE:
    """
    )
    assert run_threads(body)[0] == 1


def test_arrive_expect_tx_expects_before_it_arrives() -> None:
    body = (
        INIT.format(count=1)
        + """
        mov.u32 r1, 0;
        @!p9 bra DONE;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 64;
        mbarrier.test_wait.parity.shared::cta.b64 p0, [r10], 0;
        mbarrier.complete_tx.shared::cta.b64 [r10], 64;
        mbarrier.test_wait.parity.shared::cta.b64 p1, [r10], 0;
        selp.u32 r1, 1, 0, p0;
        selp.u32 r2, 1, 0, p1;
        mad.lo.u32 r1, r1, 10, r2;
    DONE:
    """
    )
    assert run_threads(body)[0] == 1


@pytest.mark.parametrize("seed", range(5))
def test_remote_arrival_reaches_the_peer(seed: int) -> None:
    out = np.zeros(2, dtype=np.uint32)
    body = (
        INIT.format(count=1)
        + """
        barrier.cluster.arrive;
        barrier.cluster.wait;
        mov.u32 r4, %cluster_ctarank;
        xor.b32 r5, r4, 1;
        mapa.shared::cluster.u32 r6, r10, r5;
        @p9 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r6];
    LOOP:
        mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p0, [r10], 0;
        @!p0 bra LOOP;
        add.u32 r1, r4, 40;
        barrier.cluster.arrive;
        barrier.cluster.wait;
        mul.wide.u32 rd0, r4, 4;
        add.u64 rd0, out, rd0;
        @p9 st.global.u32 [rd0], r1;
    """
    )
    run_ptx(
        body,
        {"out": out},
        module=BARRIER,
        grid=(2,),
        block=(64,),
        cluster=(2,),
        emulator=Emulator(seed=seed),
    ).raise_if_findings()
    assert out.tolist() == [40, 41]


def test_each_lane_waits_on_its_own_mbarrier() -> None:
    module = ".shared .align 8 .b8 bars[256];"
    out = np.zeros(32, dtype=np.uint32)
    body = """
        mov.u32 r10, bars;
        mad.lo.u32 r10, lane, 8, r10;
        mbarrier.init.shared::cta.b64 [r10], 1;
        and.b32 r2, lane, 1;
        setp.eq.u32 p0, r2, 0;
        @p0 mbarrier.arrive.shared::cta.b64 _, [r10];
        mbarrier.try_wait.parity.shared::cta.b64 p1, [r10], 0;
        selp.u32 r1, 1, 0, p1;
    """
    run_ptx(body + STORE, {"out": out}, module=module).raise_if_findings()
    assert out.tolist() == [1, 0] * 16


def test_guarded_wait_does_not_hold_the_lane_that_must_arrive() -> None:
    body = (
        INIT.format(count=1)
        + """
        setp.ne.u32 p0, lane, 0;
        mov.pred p1, 0;
        mov.u32 r1, 1;
    LOOP:
        @p0 mbarrier.try_wait.parity.shared::cta.b64 p1, [r10], 0;
        @!p0 bra ARRIVE;
        @!p1 bra LOOP;
        bra DONE;
    ARRIVE:
        mbarrier.arrive.shared::cta.b64 _, [r10];
    DONE:
    """
    )
    assert set(run_threads(body, 32)) == {1}


def test_try_wait_fails_spuriously_under_some_seed() -> None:
    body = f"""
        {INIT.format(count=32)}
        mov.u32 r1, 7;
        setp.lt.u32 p0, tid, 32;
        @p0 bra ARRIVE;
        mbarrier.try_wait.parity.shared::cta.b64 p1, [r10], 0;
        selp.u32 r1, 1, 0, p1;
        bra DONE;
    ARRIVE:
        mbarrier.arrive.shared::cta.b64 _, [r10];
    DONE:
    """
    results = {int(run_threads(body, 64, seed=seed)[63]) for seed in range(60)}
    assert results == {0, 1}


def test_inval_frees_the_place() -> None:
    body = (
        INIT.format(count=1)
        + """
        mov.u32 r1, 0;
        @!p9 bra DONE;
        mbarrier.inval.shared::cta.b64 [r10];
        mbarrier.init.shared::cta.b64 [r10], 1;
        mbarrier.arrive.shared::cta.b64 _, [r10];
        mbarrier.test_wait.parity.shared::cta.b64 p0, [r10], 0;
        selp.u32 r1, 1, 0, p0;
    DONE:
    """
    )
    assert run_threads(body)[0] == 1


# ---- wrong use ----

MISUSE = {
    "arrival without init": (
        "mov.u32 r10, bar; mbarrier.arrive.shared::cta.b64 _, [r10];",
        "no mbarrier has been initialised at 'bar' + 0",
    ),
    "wait without init": (
        "mov.u32 r10, bar; mbarrier.try_wait.parity.shared::cta.b64 p0, [r10], 0;",
        "no mbarrier has been initialised at 'bar' + 0",
    ),
    "second init": (
        INIT.format(count=1) + "@p9 mbarrier.init.shared::cta.b64 [r10], 1;",
        "initialised again without mbarrier.inval",
    ),
    "arrival after the last": (
        INIT.format(count=1)
        + "@p9 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 16;"
        + "@p9 mbarrier.arrive.shared::cta.b64 _, [r10];"
        + "@p9 mbarrier.complete_tx.shared::cta.b64 [r10], 16;",
        "more arrivals than the phase has pending",
    ),
    "count above those pending": (
        INIT.format(count=3) + "@p9 mbarrier.arrive.shared::cta.b64 _, [r10], 4;",
        "more arrivals than the phase has pending",
    ),
    "noComplete that completes": (
        INIT.format(count=1) + "@p9 mbarrier.arrive.noComplete.shared::cta.b64 _, [r10], 1;",
        "an arrival .noComplete would complete the phase",
    ),
    "too many bytes": (
        INIT.format(count=1) + "@p9 mbarrier.expect_tx.shared::cta.b64 [r10], 0x7fffffff;",
        "the transaction bytes must lie in 0 .. 2^20 - 1",
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_a_finding(case: str) -> None:
    body, message = MISUSE[case]
    report = run_report(body)
    assert [finding.kind for finding in report.findings] == ["sync"]
    assert message in report.findings[0].message


FATAL = {
    "count 0": (
        INIT.format(count=0),
        "the count of an mbarrier must lie in 1 .. 2\\^20 - 1, got 0",
    ),
    "count too large": (INIT.format(count=1 << 20), "the count of an mbarrier must lie in"),
    "misaligned": (
        "mov.u32 r10, bar; mbarrier.init.shared::cta.b64 [r10 + 4], 1;",
        "not a multiple of 8",
    ),
    "outside": (
        "mov.u32 r10, 0x100000; mbarrier.init.shared::cta.b64 [r10], 1;",
        "outside of the CTA's",
    ),
    "below the window": (
        "mov.u32 r10, 0; mbarrier.init.shared::cta.b64 [r10], 1;",
        "outside of the CTA's",
    ),
    "global address": ("mov.u64 rd1, 4096; mbarrier.init.b64 [rd1], 1;", "is not in shared memory"),
    "no such rank": (
        "mov.u32 r10, 0x5000400; mbarrier.arrive.shared::cluster.b64 _, [r10];",
        "names rank 5 in a cluster of 1",
    ),
}


@pytest.mark.parametrize("case", FATAL)
def test_impossible_object_ends_the_launch(case: str) -> None:
    body, message = FATAL[case]
    with pytest.raises(EmulationError, match=message):
        run_report(body)


def test_wait_for_ever_is_a_deadlock_that_names_phase_arrivals_and_bytes() -> None:
    body = (
        INIT.format(count=2)
        + """
        @p9 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 4096;
    """
        + wait(0)
    )
    with pytest.raises(EmulationError) as caught:
        run_report(body, 64)
    message = str(caught.value)
    assert "mbarrier at 'bar' + 0, the phase of parity 0" in message
    assert "1 of 2 arrivals pending, 4096 transaction bytes outstanding" in message
    assert "warps 0-1" in message
    finding = caught.value.report.findings[-1]
    assert finding.kind == "deadlock"
    assert finding.first is not None
    assert "mbarrier.try_wait" in finding.first.ptx


@pytest.mark.parametrize(
    "statement",
    [
        "mbarrier.init.shared::cta.b64 [r10];",
        "mbarrier.init.shared::cluster.b64 [r10], 1;",
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10];",
        "mbarrier.arrive.shared::cluster.b64 rd1, [r10];",
        "mbarrier.test_wait.parity.shared::cta.b64 p0, [r10], 0, 100;",
        "mbarrier.try_wait.parity.shared::cluster.b64 p0, [r10], 0;",
        "mbarrier.try_wait.parity.shared::cta.b32 p0, [r10], 0;",
    ],
)
def test_wrong_form_is_an_error_at_load(statement: str) -> None:
    with pytest.raises(PtxError):
        run_report(statement)
