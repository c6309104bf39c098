"""Barriers of CTAs and clusters: every form, counts, divergence, exited threads, wrong use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import EmulationError, Emulator, PtxError
from tests.emulator.ptx_program import run_ptx

Words = npt.NDArray[np.uint32]

STORE = """
    mul.wide.u32 rd0, tid, 4;
    add.u64 rd0, out, rd0;
    st.global.u32 [rd0], r1;
"""
SYNC_FORMS = [
    "bar.sync 0",
    "bar.cta.sync 0",
    "bar.sync 3, 128",
    "barrier.sync 0",
    "barrier.sync.aligned 15",
    "barrier.cta.sync 2, 128",
    "barrier.cta.sync.aligned 2, 128",
]


def run_threads(body: str, threads: int = 128, *, seed: int = 0, module: str = "") -> Words:
    out = np.zeros(threads, dtype=np.uint32)
    report = run_ptx(
        body + STORE,
        {"out": out},
        block=(threads,),
        module=module,
        emulator=Emulator(seed=seed),
    )
    report.raise_if_findings()
    return out


# Thread t writes word t and reads the one of thread n - 1 - t, in another warp.
EXCHANGE = """
    mov.u32 r2, words;
    mad.lo.u32 r3, tid, 4, r2;
    mul.lo.u32 r4, tid, 3;
    st.shared.u32 [r3], r4;
    {sync};
    mov.u32 r5, %ntid.x;
    sub.u32 r5, r5, tid;
    mad.lo.u32 r3, r5, 4, r2;
    ld.shared.u32 r1, [r3 + -4];
"""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", SYNC_FORMS)
def test_sync_hands_shared_memory_over(form: str, seed: int) -> None:
    out = run_threads(
        EXCHANGE.format(sync=form), seed=seed, module=".shared .align 4 .b8 words[512];"
    )
    np.testing.assert_array_equal(out, np.arange(128)[::-1] * 3)


def test_barrier_and_count_come_in_registers() -> None:
    sync = "mov.u32 r6, 7; mov.u32 r7, 128; bar.sync r6, r7"
    out = run_threads(EXCHANGE.format(sync=sync), module=".shared .align 4 .b8 words[512];")
    np.testing.assert_array_equal(out, np.arange(128)[::-1] * 3)


def test_barrier_is_reused_by_later_phases() -> None:
    body = """
        .shared .align 4 .b32 word;
        mov.u32 r1, 0;
        mov.u32 r2, 0;
    LOOP:
        setp.eq.u32 p0, tid, 0;
        @p0 st.shared.u32 [word], r2;
        bar.sync 0;
        ld.shared.u32 r3, [word];
        bar.sync 0;
        add.u32 r1, r1, r3;
        add.u32 r2, r2, 1;
        setp.lt.u32 p1, r2, 10;
        @p1 bra LOOP;
    """
    assert set(run_threads(body)) == {45}


@pytest.mark.parametrize("seed", range(3))
def test_arrive_does_not_wait_for_the_consumers(seed: int) -> None:
    body = """
        .shared .align 4 .b32 word;
        mov.u32 r1, 0;
        setp.ge.u32 p0, tid, 32;
        @p0 bra CONSUMER;
        mov.u32 r2, 77;
        st.shared.u32 [word], r2;
        bar.arrive 1, 64;
        bra DONE;
    CONSUMER:
        bar.sync 1, 64;
        ld.shared.u32 r1, [word];
    DONE:
    """
    assert run_threads(body, 64, seed=seed).tolist() == [0] * 32 + [77] * 32


@pytest.mark.parametrize("form", ["bar.red", "barrier.red", "barrier.cta.red.aligned"])
@pytest.mark.parametrize("limit", [0, 1, 50, 96])
def test_reductions_count_the_predicates(form: str, limit: int) -> None:
    body = f"""
        setp.lt.u32 p0, tid, {limit};
        {form}.popc.u32 r2, 1, p0;
        {form}.and.pred p1, 1, 96, p0;
        {form}.or.pred p2, 1, p0;
        {form}.popc.u32 r3, 1, !p0;
        selp.u32 r4, 1, 0, p1;
        selp.u32 r5, 1, 0, p2;
        mad.lo.u32 r1, r2, 1000, r3;
        mad.lo.u32 r1, r1, 10, r4;
        mad.lo.u32 r1, r1, 10, r5;
    """
    expected = (limit * 1000 + 96 - limit) * 100 + (limit == 96) * 10 + (limit > 0)
    assert set(run_threads(body, 96)) == {expected}


def test_threads_that_have_ended_are_not_waited_for() -> None:
    body = "mov.u32 r1, 1; setp.lt.u32 p0, tid, 40; @p0 exit; bar.sync 0; mov.u32 r1, 2;"
    out = run_threads(body, 96)
    assert out.tolist() == [0] * 40 + [2] * 56


def test_a_warp_with_fewer_lanes_counts_as_a_whole() -> None:
    assert set(run_threads("bar.sync 1, 64; mov.u32 r1, 5;", 40)) == {5}


def test_lanes_arrive_one_by_one_where_not_aligned() -> None:
    body = """
        setp.lt.u32 p0, lane, 7;
        @p0 bra LOW;
        barrier.sync 0;
        mov.u32 r1, 1;
        bra DONE;
    LOW:
        barrier.sync 0;
        mov.u32 r1, 2;
    DONE:
    """
    assert run_threads(body, 64).tolist() == ([2] * 7 + [1] * 25) * 2


def test_lanes_that_a_guard_keeps_out_do_not_wait() -> None:
    body = """
        .shared .align 4 .b32 word;
        setp.lt.u32 p0, tid, 16;
        mov.u32 r1, 0;
        @p0 barrier.sync 1, 32;
        setp.ge.u32 p1, tid, 16;
        @p1 barrier.sync 1, 32;
        mov.u32 r1, 4;
    """
    assert set(run_threads(body, 32)) == {4}


# ---- barrier.cluster ----

CLUSTER_FORMS = [
    ("barrier.cluster.arrive", "barrier.cluster.wait"),
    ("barrier.cluster.arrive.release", "barrier.cluster.wait.acquire"),
    (
        "fence.acq_rel.cluster; barrier.cluster.arrive.relaxed.aligned",
        "barrier.cluster.wait.aligned",
    ),
    ("barrier.cluster.arrive.aligned", "barrier.cluster.wait.acquire.aligned"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("arrive", "wait"), CLUSTER_FORMS)
def test_cluster_hands_distributed_shared_memory_over(arrive: str, wait: str, seed: int) -> None:
    out = np.zeros(256, dtype=np.uint32)
    body = f"""
        .shared .align 4 .b8 words[256];
        mov.u32 r2, words;
        mad.lo.u32 r3, tid, 4, r2;
        mov.u32 r4, %ctaid.x;
        mad.lo.u32 r5, r4, 100, tid;
        st.shared.u32 [r3], r5;
        {arrive};
        {wait};
        mov.u32 r6, %cluster_ctarank;
        add.u32 r6, r6, 1;
        and.b32 r6, r6, 1;
        mapa.shared::cluster.u32 r7, r3, r6;
        ld.shared::cluster.u32 r1, [r7];
        {arrive};
        {wait};
        mad.lo.u32 r8, r4, 64, tid;
        mul.wide.u32 rd0, r8, 4;
        add.u64 rd0, out, rd0;
        st.global.u32 [rd0], r1;
    """
    run_ptx(
        body, {"out": out}, grid=(4,), block=(64,), cluster=(2,), emulator=Emulator(seed=seed)
    ).raise_if_findings()
    peers = np.repeat([1, 0, 3, 2], 64)
    np.testing.assert_array_equal(out, peers * 100 + np.tile(np.arange(64), 4))


def test_cluster_barrier_does_not_wait_for_threads_that_have_ended() -> None:
    body = """
        mov.u32 r4, %cluster_ctarank;
        setp.eq.u32 p0, r4, 1;
        @p0 exit;
        barrier.cluster.arrive;
        barrier.cluster.wait;
    """
    run_ptx(body, {}, grid=(2,), cluster=(2,)).raise_if_findings()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("barrier.cluster.wait;", "barrier.cluster.wait without barrier.cluster.arrive before it"),
        (
            "barrier.cluster.arrive; barrier.cluster.arrive; barrier.cluster.wait;",
            "barrier.cluster.arrive a second time without barrier.cluster.wait",
        ),
    ],
)
def test_cluster_misuse_is_a_finding(body: str, message: str) -> None:
    report = run_ptx(body, {})
    assert [(f.kind, f.message) for f in report.findings] == [("sync", message)]


# ---- wrong use ----


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("bar.sync 16;", "there are barriers 0 to 15, got 16"),
        ("bar.sync 1, 33;", "the thread count of a barrier must be a multiple of 32 up to 1024"),
        ("bar.sync 1, 0x80000000;", "the thread count of a barrier must be a multiple of 32"),
        ("bar.sync lane;", "lanes of a warp give different barriers"),
    ],
)
def test_impossible_operand_ends_the_launch(body: str, message: str) -> None:
    with pytest.raises(EmulationError, match=message):
        run_ptx(body, {})


def test_differing_counts_are_a_finding() -> None:
    body = """
        setp.lt.u32 p0, tid, 32;
        @p0 bar.arrive 1, 64;
        @!p0 bar.sync 1, 96;
    """
    report = run_ptx(body, {}, block=(64,))
    assert [f.kind for f in report.findings] == ["sync"]
    assert "threads, and was given" in report.findings[0].message


def test_guard_that_differs_in_a_warp_is_a_finding_of_aligned_forms() -> None:
    report = run_ptx("setp.lt.u32 p0, lane, 8; @p0 bar.arrive 1, 32; @!p0 bar.arrive 1, 32;", {})
    assert {f.message for f in report.findings} == {
        "an .aligned barrier is executed under a guard that differs in the warp"
    }


@pytest.mark.parametrize(
    "statement", ["bar.arrive 1;", "bar.sync;", "bar.red.popc.u32 r1, 0;", "bar.sync 0, 32, 1;"]
)
def test_wrong_operands_are_an_error_at_load(statement: str) -> None:
    with pytest.raises(PtxError):
        run_ptx(statement, {})
