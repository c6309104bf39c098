"""The machine: divergence, scheduling, residency, dependent launches, deadlocks, interrupts."""

from __future__ import annotations

import signal
from types import FrameType

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import EmulationError, Emulator, Launch, Module
from tests.emulator.ptx_program import ptx_program, run_ptx

Words = npt.NDArray[np.uint32]

STORE = """
    mul.wide.u32 rd0, tid, 4;
    add.u64 rd0, out, rd0;
    st.global.u32 [rd0], r1;
"""
# Linear index of the thread in the grid, in r20, and the address of its word of `out`, in rd20.
GLOBAL_INDEX = """
    mov.u32 r20, %ctaid.x;
    mov.u32 r21, %ntid.x;
    mad.lo.u32 r20, r20, r21, tid;
    mul.wide.u32 rd20, r20, 4;
    add.u64 rd20, out, rd20;
"""


def zeros(count: int) -> Words:
    return np.zeros(count, dtype=np.uint32)


# ---- divergence ----


def test_loops_of_differing_length_meet_at_their_end() -> None:
    out = zeros(32)
    body = """
        mov.u32 r1, 0;
        mov.u32 r2, 0;
    LOOP:
        add.u32 r1, r1, r2;
        add.u32 r2, r2, 1;
        setp.le.u32 p0, r2, lane;
        @p0 bra LOOP;
        activemask.b32 r3;
        setp.ne.u32 p1, r3, -1;
        @p1 mov.u32 r1, -1;
    """
    run_ptx(body + STORE, {"out": out}).raise_if_findings()
    np.testing.assert_array_equal(out, [lane * (lane + 1) // 2 for lane in range(32)])


def test_nested_branches_meet_from_the_inside() -> None:
    out = zeros(32)
    body = """
        mov.u32 r1, 0;
        and.b32 r2, lane, 1;
        setp.eq.u32 p0, r2, 0;
        @p0 bra EVEN;
        and.b32 r3, lane, 2;
        setp.eq.u32 p1, r3, 0;
        @p1 bra ODD_LOW;
        add.u32 r1, r1, 100;
        bra ODD;
    ODD_LOW:
        add.u32 r1, r1, 200;
    ODD:
        activemask.b32 r4;
        popc.b32 r4, r4;
        add.u32 r1, r1, r4;
        bra DONE;
    EVEN:
        add.u32 r1, r1, 300;
    DONE:
        activemask.b32 r4;
        popc.b32 r4, r4;
        mad.lo.u32 r1, r4, 1000, r1;
    """
    run_ptx(body + STORE, {"out": out}).raise_if_findings()
    assert out.tolist() == [32300, 32216, 32300, 32116] * 8


def test_lanes_end_at_different_places() -> None:
    out = zeros(32)
    body = f"""
        add.u32 r1, lane, 1;
        setp.lt.u32 p0, lane, 8;
        @p0 exit;
        {STORE}
        setp.lt.u32 p1, lane, 16;
        @p1 bra LAST;
        ret;
    LAST:
        add.u32 r1, r1, 100;
    """
    run_ptx(body + STORE, {"out": out}).raise_if_findings()
    expected = (
        [0] * 8 + [lane + 101 for lane in range(8, 16)] + [lane + 1 for lane in range(16, 32)]
    )
    assert out.tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_a_spinning_lane_does_not_starve_the_one_it_waits_for(seed: int) -> None:
    out = zeros(2)
    body = """
        setp.eq.u32 p0, lane, 0;
        @p0 bra SET;
    SPIN:
        ld.relaxed.gpu.global.u32 r1, [out];
        setp.eq.u32 p1, r1, 0;
        @p1 bra SPIN;
        bra DONE;
    SET:
        mov.u32 r2, 9;
        st.relaxed.gpu.global.u32 [out], r2;
    DONE:
        bar.warp.sync -1;
        st.global.u32 [out + 4], r2;
    """
    emulator = Emulator(seed=seed, checks=("memory", "sync"))
    run_ptx(body, {"out": out}, emulator=emulator).raise_if_findings()
    assert out[0] == 9


# ---- one lane produces, the others wait ----

RING = """
    .shared .align 8 .b8 full[16];
    .shared .align 8 .b8 empty[16];
    .shared .align 4 .b8 stages[8];
    mov.u32 r30, full;
    mov.u32 r31, empty;
    mov.u32 r32, stages;
    setp.ne.u32 p9, tid, 0;
    @p9 bra READY;
    mbarrier.init.shared::cta.b64 [r30], 1;
    mbarrier.init.shared::cta.b64 [r30 + 8], 1;
    mbarrier.init.shared::cta.b64 [r31], 32;
    mbarrier.init.shared::cta.b64 [r31 + 8], 32;
READY:
    bar.sync 0;
    mov.u32 r1, 0;
    mov.u32 r2, 0;
    setp.ge.u32 p0, tid, 32;
    @p0 bra CONSUMER;
    elect.sync r3|p1, -1;
    @!p1 bra JOIN;
PRODUCE:
    and.b32 r4, r2, 1;
    shr.u32 r5, r2, 1;
    xor.b32 r5, r5, 1;
    mad.lo.u32 r6, r4, 8, r31;
EMPTY:
    mbarrier.try_wait.parity.shared::cta.b64 p2, [r6], r5;
    @!p2 bra EMPTY;
    mad.lo.u32 r7, r4, 4, r32;
    st.shared.u32 [r7], r2;
    mad.lo.u32 r6, r4, 8, r30;
    mbarrier.arrive.shared::cta.b64 _, [r6];
    add.u32 r2, r2, 1;
    setp.lt.u32 p3, r2, 50;
    @p3 bra PRODUCE;
JOIN:
    bar.warp.sync -1;
    bra DONE;
CONSUMER:
    and.b32 r4, r2, 1;
    shr.u32 r5, r2, 1;
    mad.lo.u32 r6, r4, 8, r30;
FULL:
    mbarrier.try_wait.parity.shared::cta.b64 p2, [r6], r5;
    @!p2 bra FULL;
    mad.lo.u32 r7, r4, 4, r32;
    ld.shared.u32 r8, [r7];
    add.u32 r1, r1, r8;
    mad.lo.u32 r6, r4, 8, r31;
    mbarrier.arrive.shared::cta.b64 _, [r6];
    add.u32 r2, r2, 1;
    setp.lt.u32 p3, r2, 50;
    @p3 bra CONSUMER;
DONE:
"""


@pytest.mark.parametrize("seed", range(8))
def test_an_elected_producer_feeds_a_ring(seed: int) -> None:
    out = zeros(64)
    run_ptx(
        RING + STORE, {"out": out}, block=(64,), emulator=Emulator(seed=seed)
    ).raise_if_findings()
    assert out.tolist() == [0] * 32 + [49 * 50 // 2] * 32


# ---- seeds ----

TICKETS = GLOBAL_INDEX + "atom.global.add.u32 r1, [counter], 1; st.global.u32 [rd20], r1;"


def tickets(seed: int, num_sms: int = 132) -> list[int]:
    out = zeros(8 * 64)
    run_ptx(
        TICKETS,
        {"out": out, "counter": zeros(1)},
        grid=(8,),
        block=(64,),
        emulator=Emulator(seed=seed, num_sms=num_sms),
    ).raise_if_findings()
    assert sorted(out.tolist()) == list(range(512))
    return [int(value) for value in out]


def test_the_seed_decides_the_order() -> None:
    assert tickets(1) == tickets(1)
    assert len({tuple(tickets(seed)) for seed in range(6)}) > 1


def test_same_seed_same_report() -> None:
    reports = [
        run_ptx(RING + STORE, {"out": zeros(64)}, block=(64,), emulator=Emulator(seed=5))
        for _ in range(2)
    ]
    assert reports[0] == reports[1]


# ---- residency ----

# Every CTA counts itself, then waits a bounded while for `wanted` of them; r1: whether they came.
MEET = (
    GLOBAL_INDEX
    + """
    .reg .b32 met;
    atom.global.add.u32 r2, [counter], 1;
    mov.u32 r3, 0;
SPIN:
    ld.relaxed.gpu.global.u32 met, [counter];
    setp.ge.u32 p0, met, wanted;
    add.u32 r3, r3, 1;
    setp.lt.u32 p1, r3, 100000;
    @p0 bra DONE;
    @p1 bra SPIN;
DONE:
    selp.u32 r1, 1, 0, p0;
    st.global.u32 [rd20], r1;
"""
)


def meet(wanted: int, *, grid: int, num_sms: int, shared: int = 0, cluster: int = 1) -> list[int]:
    out = zeros(grid)
    run_ptx(
        MEET,
        {"out": out, "counter": zeros(1), "wanted": np.uint32(wanted)},
        grid=(grid,),
        block=(1,),
        cluster=(cluster,),
        dynamic_smem_bytes=shared,
        emulator=Emulator(num_sms=num_sms),
    ).raise_if_findings()
    return [int(value) for value in out]


def test_all_ctas_that_fit_are_resident_together() -> None:
    assert meet(6, grid=6, num_sms=6, shared=200 * 1024) == [1] * 6


def test_no_more_ctas_are_resident_than_fit() -> None:
    result = meet(4, grid=6, num_sms=3, shared=200 * 1024)
    assert result[:3].count(1) < 3


def test_small_ctas_share_an_sm() -> None:
    assert meet(32, grid=32, num_sms=1) == [1] * 32
    assert meet(2, grid=2, num_sms=1, shared=100 * 1024) == [1] * 2
    assert meet(2, grid=2, num_sms=1, shared=120 * 1024)[0] == 0


def test_clusters_become_resident_whole() -> None:
    assert meet(4, grid=8, num_sms=5, shared=200 * 1024, cluster=4)[:4] == [1] * 4
    assert meet(8, grid=8, num_sms=7, shared=200 * 1024, cluster=4)[:4] == [0] * 4


def test_a_cluster_that_fits_nowhere_is_an_error() -> None:
    with pytest.raises(ValueError, match="a cluster of 4 CTAs does not fit 3 SMs"):
        meet(4, grid=4, num_sms=3, cluster=4)


# ---- several launches ----

SWAP = """
    mov.u32 r1, 1;
    st.release.gpu.global.u32 [mine], r1;
SPIN:
    ld.acquire.gpu.global.u32 r2, [theirs];
    setp.eq.u32 p0, r2, 0;
    @p0 bra SPIN;
    add.u32 r2, r2, 1;
    st.relaxed.gpu.global.u32 [mine], r2;
"""


def test_concurrent_launches_wait_for_each_other() -> None:
    flags = zeros(4), zeros(4)
    launches = []
    for mine, theirs in (flags, flags[::-1]):
        args = {"mine": mine, "theirs": theirs}
        kernel = Module.from_ptx(ptx_program(SWAP, args))["kernel"]
        launches.append(Launch(kernel, (1,), (1,), list(args.values())))
    Emulator(num_sms=2).launch_concurrent(launches).raise_if_findings()
    assert all(flag[0] >= 2 for flag in flags)


def test_concurrent_launches_share_the_sms() -> None:
    counter = zeros(1)
    outs = [zeros(8) for _ in range(4)]
    launches = []
    for out in outs:
        args = {"out": out, "counter": counter, "wanted": np.uint32(4 * 2)}
        kernel = Module.from_ptx(ptx_program(MEET, args))["kernel"]
        launches.append(
            Launch(kernel, (8,), (1,), list(args.values()), dynamic_smem_bytes=200 * 1024)
        )
    Emulator(num_sms=8).launch_concurrent(launches).raise_if_findings()
    assert all(out.tolist() == [1] * 8 for out in outs)


PRODUCER = """
    mov.u32 r3, 0;
    griddepcontrol.launch_dependents;
LOOP:
    add.u32 r3, r3, 1;
    setp.lt.u32 p0, r3, 20000;
    @p0 bra LOOP;
    st.global.u32 [data], r3;
"""
DEPENDENT = "{wait} ld.global.u32 r1, [data]; st.global.u32 [data + 4], r1;"


def run_dependent(wait: str, seed: int) -> tuple[Words, list[str]]:
    data = zeros(2)
    launches = []
    for body, dependent in ((PRODUCER, False), (DEPENDENT.format(wait=wait), True)):
        kernel = Module.from_ptx(ptx_program(body, {"data": data}))["kernel"]
        launches.append(Launch(kernel, (1,), (1,), [data], programmatic_dependent=dependent))
    report = Emulator(seed=seed).launch_concurrent(launches)
    return data, [finding.message for finding in report.findings]


@pytest.mark.parametrize("seed", range(4))
def test_a_dependent_launch_waits_for_the_writes_before_it(seed: int) -> None:
    data, messages = run_dependent("griddepcontrol.wait;", seed)
    assert data.tolist() == [20000, 20000]
    assert messages == []


def test_a_dependent_launch_that_does_not_wait_is_a_finding() -> None:
    messages = run_dependent("", 0)[1]
    assert len(messages) == 4
    assert all("is accessed before griddepcontrol.wait" in message for message in messages[:2])
    assert "none of its threads has executed griddepcontrol.wait" in messages[2]
    assert "of launch 0 on rank 0 is not ordered after the read by" in messages[3]


# ---- setmaxnreg ----


def test_registers_move_between_warpgroups() -> None:
    body = """
        setp.ge.u32 p0, tid, 128;
        @p0 bra CONSUMER;
        setmaxnreg.dec.sync.aligned.u32 24;
        bra DONE;
    CONSUMER:
        setmaxnreg.inc.sync.aligned.u32 240;
    DONE:
    """
    run_ptx(body, {}, block=(384,)).raise_if_findings()


def test_registers_that_no_one_gives_back_are_a_deadlock() -> None:
    with pytest.raises(EmulationError) as caught:
        run_ptx("setmaxnreg.inc.sync.aligned.u32 240;", {}, block=(384,))
    assert "registers: 240 a thread are wanted, 168 held" in str(caught.value)


# ---- deadlocks and endless loops ----


def test_deadlock_names_every_group_of_waiters() -> None:
    body = """
        setp.lt.u32 p0, tid, 40;
        @p0 bra FIRST;
        bar.sync 1, 128;
        bra DONE;
    FIRST:
        bar.sync 0;
    DONE:
    """
    with pytest.raises(EmulationError) as caught:
        run_ptx(body, {}, grid=(3,), cluster=(3,), block=(128,))
    message = str(caught.value)
    assert "CTA (0, 0, 0) warp 0 (and 2 more CTAs) waits for barrier 0" in message
    assert "32 of 128 threads have arrived; warps that have not: 1, 2, 3" in message
    assert (
        "warp 1 lanes 0-7 (and 2 more CTAs) waits for lanes 8-31 of the warp to arrive here"
        in message
    )
    assert "warps 2-3 (and 2 more CTAs) waits for barrier 1" in message
    (finding,) = caught.value.report.findings
    assert finding.kind == "deadlock"
    assert {site.ptx.strip() for site in finding.sites} == {"bar.sync 0", "bar.sync 1, 128"}


def test_deadlock_names_the_source_through_inlined_functions() -> None:
    module = '.file 1 "kernel.cu"\n.file 2 "wait.cuh"\n'
    module += ".shared .align 4 .b8 _ZN4tile5wordsE[64];"
    body = """
        .loc 1 40 3
        add.u32 r1, tid, 1;
        .loc 1 44 5, function_name names, inlined_at 1 40 3
        .loc 2 7 9, function_name names, inlined_at 1 44 5
        bar.sync 1, 64;
    """
    with pytest.raises(EmulationError) as caught:
        run_ptx(body, {}, module=module)
    assert "from wait.cuh:7, inlined at kernel.cu:44, kernel.cu:40\n" in str(caught.value)
    body = "mov.u32 r2, _ZN4tile5wordsE; ld.shared.u32 r1, [r2 + 8];"
    (finding,) = run_ptx(body, {}, module=module).findings
    assert "'tile::words' + 8" in finding.message


def test_deadlock_of_one_cluster_lets_the_others_end() -> None:
    out = zeros(4)
    body = """
        mov.u32 r2, %ctaid.x;
        mov.u32 r3, 7;
        setp.eq.u32 p0, r2, 1;
        @p0 bar.sync 1, 64;
        mad.wide.u32 rd1, r2, 4, out;
        st.global.u32 [rd1], r3;
    """
    with pytest.raises(EmulationError, match="barrier 1"):
        run_ptx(body, {"out": out}, grid=(4,))
    assert out.tolist() == [7, 0, 7, 7]


def test_an_endless_loop_can_be_interrupted() -> None:
    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Interrupt):
            run_ptx("mov.u32 r1, 0; LOOP: add.u32 r1, r1, 1; bra LOOP;", {})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_endless_loop_ends_after_the_most_instructions() -> None:
    body = """
        setp.lt.u32 p0, tid, 32;
        @p0 bra LOOP;
        bar.sync 0;
    LOOP:
        bra LOOP;
    """
    with pytest.raises(EmulationError) as caught:
        run_ptx(body, {}, block=(64,), emulator=Emulator(max_warp_instructions=100_000))
    message = str(caught.value)
    assert "warp instructions (max_warp_instructions); running are:" in message
    assert "bra LOOP" in message
    assert "warp 1 waits for barrier 0" in message


def test_trap_ends_the_launch() -> None:
    with pytest.raises(EmulationError, match="the kernel executed trap") as caught:
        run_ptx("setp.eq.u32 p0, tid, 37; @p0 trap;", {}, block=(64,))
    assert caught.value.report.findings[0].first is not None
    assert caught.value.report.findings[0].first.thread == 37


def test_the_clock_advances() -> None:
    out = zeros(1)
    body = """
        mov.u64 rd1, %clock64;
        mov.u64 rd2, %clock64;
        setp.lt.u64 p0, rd1, rd2;
        selp.u32 r1, 1, 0, p0;
        st.global.u32 [out], r1;
    """
    run_ptx(body, {"out": out}, block=(1,)).raise_if_findings()
    assert out[0] == 1


def test_counters_count_warps_and_threads() -> None:
    report = run_ptx("setp.lt.u32 p0, tid, 8; @p0 add.u32 r1, tid, 1;", {}, block=(64,))
    assert report.counters.warp_instructions["arithmetic"] == 1
    assert report.counters.warp_instructions["compare"] == 2
    # Two moves of the prologue, the comparison and the return in 64 threads, the sum in 8.
    assert report.counters.thread_instructions == 4 * 64 + 8
