"""What the sync check says of barriers, setmaxnreg and griddepcontrol, and of what CTAs leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, Finding, Launch, Module, Report
from tests.emulator.ptx_program import ptx_program, run_ptx

SHARED = ".shared .align 8 .b64 bar;\n.shared .align 16 .b8 tile[512];"
# Thread 0 initialises the mbarrier, all see it.
INIT = """
    setp.eq.u32 p9, tid, 0;
    mov.u32 r10, bar;
    @p9 mbarrier.init.shared::cta.b64 [r10], {count};
    bar.sync 0;
"""
WAIT = "{label}: mbarrier.try_wait.parity.shared::cta.b64 p8, [r10], {parity}; @!p8 bra {label};"
ARRIVE = "mbarrier.arrive.shared::cta.b64 _, [r10];"
ARRIVE_EXPECT = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 64;"
INVALIDATE = "mbarrier.inval.shared::cta.b64 [r10];"


def run(body: str, threads: int = 64, seed: int = 0) -> Report:
    return run_ptx(body, {}, module=SHARED, block=(threads,), emulator=Emulator(seed=seed))


def only_finding(report: Report) -> Finding:
    assert len(report.findings) == 1, report
    return report.findings[0]


def statement(finding: Finding, second: bool = False) -> str:
    site = finding.second if second else finding.first
    assert site is not None
    return site.ptx.strip()


def deadlock(body: str, threads: int = 64) -> str:
    with pytest.raises(EmulationError) as caught:
        run(body, threads)
    assert caught.value.report.findings[-1].kind == "deadlock"
    return str(caught.value)


@dataclass(frozen=True)
class Fault:
    """A program with one fault: the finding's text, its instruction and the other one."""

    body: str
    message: str
    first: str
    second: str | None = None
    threads: int = 64


# ---- .aligned instructions ----

GUARD = "an .aligned instruction is executed under a guard that differs in the warp"
HALF = "setp.lt.u32 p0, lane, 16;"
ALIGNED = {
    "setmaxnreg": Fault(
        f"{HALF} @p0 setmaxnreg.dec.sync.aligned.u32 24;",
        GUARD,
        "@p0 setmaxnreg.dec.sync.aligned.u32 24",
        threads=128,
    ),
    "arrival at the cluster": Fault(
        f"{HALF} @p0 barrier.cluster.arrive.aligned; @!p0 barrier.cluster.arrive;"
        "barrier.cluster.wait;",
        GUARD,
        "@p0 barrier.cluster.arrive.aligned",
    ),
}


@pytest.mark.parametrize("case", ALIGNED)
def test_guard_that_differs_in_a_warp_is_a_finding(case: str) -> None:
    fault = ALIGNED[case]
    finding = only_finding(run(fault.body, fault.threads))
    assert (finding.kind, finding.message) == ("sync", fault.message)
    assert statement(finding) == fault.first
    assert finding.first is not None
    assert finding.first.thread % 32 == 16


LDMATRIX = "mov.u32 r2, tile; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {r1}, [r2];"
MISSING = {
    "lanes that have ended": (
        f"{HALF} @p0 exit; {LDMATRIX}",
        32,
        "a matrix instruction needs all 32 lanes, got 16: 16 do not run \\(lanes 0-15\\)",
    ),
    "lanes that a guard keeps out": (
        f"{HALF} {LDMATRIX.replace('ldmatrix', '@p0 ldmatrix')}",
        32,
        "a matrix instruction needs all 32 lanes, got 16: a guard keeps out lanes 16-31",
    ),
    "both": (
        f"{HALF} setp.eq.u32 p1, lane, 3; @p1 exit; {LDMATRIX.replace('ldmatrix', '@p0 ldmatrix')}",
        32,
        "got 15: 1 do not run \\(lane 3\\), and a guard keeps out lanes 16-31",
    ),
    "WGMMA of a warp with fewer lanes": (
        "wgmma.fence.sync.aligned;",
        120,
        "execute this .aligned instruction: 8 do not run \\(lanes 24-31\\)",
    ),
    "WGMMA of three warps": (
        "wgmma.fence.sync.aligned;",
        96,
        "WGMMA needs a warpgroup of four warps, and the CTA ends with warp 2",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_lanes_are_named(case: str) -> None:
    body, threads, message = MISSING[case]
    with pytest.raises(EmulationError, match=message) as caught:
        run(body, threads)
    assert caught.value.report.findings[-1].kind == "sync"


def test_deadlock_names_the_lanes_at_other_aligned_instructions() -> None:
    body = f"{HALF} @p0 bra LOW; bar.sync 1; bra DONE; LOW: bar.sync 2; DONE:"
    message = deadlock(body, 32)
    assert "warp 0 lanes 0-15 waits for lanes 16-31 of the warp to arrive here" in message
    assert "lanes 16-31 wait at PTX line" in message
    assert "warp 0 lanes 16-31 waits for lanes 0-15 of the warp to arrive here" in message


LATE = {
    "lanes of a branch come later": f"{HALF} @p0 bra LOW; add.u32 r1, tid, 1; LOW: bar.sync 1;",
    "a loop of differing length ends before it": """
        mov.u32 r1, 0;
    LOOP:
        add.u32 r1, r1, 1;
        setp.lt.u32 p0, r1, lane;
        @p0 bra LOOP;
        bar.sync 1;
    """,
    "lanes that have ended are not waited for": f"{HALF} @p0 exit; bar.sync 1;",
    "a guard that no lane of the other warp passes": "setp.lt.u32 p0, tid, 32; @p0 bar.sync 1, 32;",
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", LATE)
def test_lanes_that_come_later_are_no_fault(case: str, seed: int) -> None:
    run(LATE[case], seed=seed).raise_if_findings()


# Those that run past an instruction do what its lanes do behind it, and end.
PAST = "and have run past it and ended"
ODD = "and.b32 r1, lane, 1; setp.eq.u32 p0, r1, 0; mov.u32 r2, tile; @p0 bra TAIL;"
STORE = "TAIL: st.shared.u32 [r2], r1;"
RUN_PAST = {
    "a barrier": f"{ODD} bar.sync 0; {STORE}",
    "a barrier that gives a result": f"{ODD} bar.red.popc.u32 r1, 0, p0; {STORE}",
    "a barrier of the cluster": f"{ODD} barrier.cluster.arrive.aligned; {STORE}",
    "a shuffle": f"{ODD} shfl.sync.idx.b32 r1, r1, 1, 31, 0xffffffff; {STORE}",
    "a vote": f"{ODD} vote.sync.ballot.b32 r1, p0, 0xffffffff; {STORE}",
    "a reduction": f"{ODD} redux.sync.add.u32 r1, r1, 0xffffffff; {STORE}",
    "an election": f"{ODD} elect.sync _|p1, 0xffffffff; {STORE}",
    "lanes that wait for a warp": f"{ODD} bar.warp.sync 0xffffffff; {STORE}",
    "code of their own before that": f"""
        and.b32 r1, lane, 1; setp.eq.u32 p0, r1, 0; mov.u32 r2, tile; @p0 bra OTHER;
        elect.sync _|p1, 0xffffffff; bra TAIL;
        OTHER: add.u32 r1, r1, 5; st.shared.u32 [r2 + 8], r1;
        {STORE}
    """,
    "a loop that they have left": f"""
        mov.u32 r1, 0; mov.u32 r2, tile;
        AGAIN: add.u32 r1, r1, 1; shfl.sync.idx.b32 r3, r1, 1, 31, 0xffffffff;
        setp.le.u32 p0, r1, lane; @p0 bra AGAIN; {STORE}
    """,
}
EARLY_RETURNS = {
    "of lanes that do nothing": "setp.ge.u32 p0, lane, 20; @p0 bra DONE; bar.sync 0; DONE:",
    "at a return of their own": "setp.ge.u32 p0, lane, 20; @!p0 bra GO; ret; GO: bar.sync 0;",
    "with work of their own": """
        setp.ge.u32 p0, lane, 20; mov.u32 r2, tile; @!p0 bra GO; st.shared.u32 [r2], 1; ret;
        GO: shfl.sync.idx.b32 r1, lane, 2, 31, 0xffffffff; st.shared.u32 [r2 + 4], r1;
    """,
    "from a loop": """
        mov.u32 r1, 0;
        AGAIN: add.u32 r1, r1, 1; setp.gt.u32 p0, r1, lane; @p0 bra DONE;
        elect.sync _|p1, 0xffffffff; bra AGAIN; DONE:
    """,
    "after work in common": """
        mov.u32 r1, 0; mov.u32 r2, tile;
        AGAIN: add.u32 r1, r1, 1; @p2 st.shared.u32 [r2], r1; setp.gt.u32 p0, r1, lane; @p0 ret;
        elect.sync _|p1, 0xffffffff; bra AGAIN;
    """.replace("mov.u32 r1, 0;", "setp.ne.u32 p2, lane, lane; mov.u32 r1, 0;"),
    "of lanes that the mask leaves out": f"""
        {ODD} shfl.sync.idx.b32 r1, r1, 1, 31, 0xaaaaaaaa; {STORE}
    """,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", RUN_PAST)
def test_lanes_that_have_run_past_and_ended_are_a_finding(case: str, seed: int) -> None:
    findings = [f for f in run(RUN_PAST[case], 32, seed).findings if PAST in f.message]
    assert findings
    for finding in findings:
        assert finding.kind == "sync"
        assert statement(finding, second=True) == "ret"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", EARLY_RETURNS)
def test_lanes_that_leave_early_are_no_fault(case: str, seed: int) -> None:
    findings = run(EARLY_RETURNS[case], 32, seed).findings
    assert not [finding for finding in findings if finding.kind == "sync"]


# ---- mbarriers ----

WAITER = "setp.lt.u32 p0, tid, 32; @p0 bra WAITER; {other} bra DONE; WAITER: {wait} DONE:"
MBARRIERS = {
    "arrival of count 0": Fault(
        INIT.format(count=1) + "@p9 mbarrier.arrive.shared::cta.b64 _, [r10], 0;",
        "the count of an arrival must lie in 1 .. 2^20 - 1: mbarrier at 'bar' + 0",
        "@p9 mbarrier.arrive.shared::cta.b64 _, [r10], 0",
    ),
    "invalidated while bytes are outstanding": Fault(
        INIT.format(count=1) + f"@p9 {ARRIVE_EXPECT} bar.sync 0; @p9 {INVALIDATE}",
        "invalidated while transaction bytes are outstanding: mbarrier at 'bar' + 0, phase 0 "
        "(parity 0): 0 of 1 arrivals pending, 64 transaction bytes outstanding",
        "@p9 mbarrier.inval.shared::cta.b64 [r10]",
        "@p9 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 64",
    ),
    "used after it was invalidated": Fault(
        INIT.format(count=1) + f"@p9 {INVALIDATE} bar.sync 0; @p9 {ARRIVE}",
        "the mbarrier was invalidated at 'bar' + 0 of the CTA of rank 0",
        "@p9 mbarrier.arrive.shared::cta.b64 _, [r10]",
        "@p9 mbarrier.inval.shared::cta.b64 [r10]",
    ),
    "bytes that never come": Fault(
        INIT.format(count=2) + f"@p9 {ARRIVE_EXPECT}",
        "the CTA has ended and the transaction bytes of an mbarrier have not come out even: "
        "mbarrier at 'bar' + 0 of the CTA of rank 0, phase 0 (parity 0): 1 of 2 arrivals pending, "
        "64 transaction bytes outstanding",
        "@p9 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 64",
    ),
    "bytes expected apart that never come": Fault(
        INIT.format(count=2) + "@p9 mbarrier.expect_tx.shared::cta.b64 [r10], 32;",
        "2 of 2 arrivals pending, 32 transaction bytes outstanding",
        "@p9 mbarrier.expect_tx.shared::cta.b64 [r10], 32",
    ),
}


@pytest.mark.parametrize("case", MBARRIERS)
def test_mbarrier_misuse_is_a_finding(case: str) -> None:
    fault = MBARRIERS[case]
    finding = only_finding(run(fault.body, fault.threads))
    assert finding.kind == "sync"
    assert fault.message in finding.message
    assert statement(finding) == fault.first
    if fault.second is None:
        assert finding.second is None
    else:
        assert statement(finding, second=True) == fault.second


@pytest.mark.parametrize("seed", range(6))
def test_an_mbarrier_invalidated_under_a_waiter_is_a_finding_on_both(seed: int) -> None:
    body = INIT.format(count=1) + WAITER.format(
        other=INVALIDATE + "bar.sync 1, 32;", wait=WAIT.format(label="WAIT", parity=0)
    )
    body = body.replace(INVALIDATE, "setp.eq.u32 p1, lane, 0; @p1 " + INVALIDATE)
    finding = run(body, seed=seed).findings[0]
    assert finding.kind == "sync"
    names = {statement(finding), statement(finding, second=True)}
    assert names == {
        "@p1 mbarrier.inval.shared::cta.b64 [r10]",
        "mbarrier.try_wait.parity.shared::cta.b64 p8, [r10], 0",
    }


def test_an_mbarrier_that_is_done_with_may_be_invalidated() -> None:
    body = INIT.format(count=1) + f"@p9 {ARRIVE}" + WAIT.format(label="WAIT", parity=0)
    run(body + f"bar.sync 0; @p9 {INVALIDATE}").raise_if_findings()


def test_deadlock_names_the_phase_that_a_thread_has_missed() -> None:
    """Phases 1 and 2 complete before the second warp waits for phase 1."""
    wait = WAIT.format(label="FIRST", parity=0)
    body = f"{INIT.format(count=1)} @p9 {ARRIVE} {wait} bar.sync 0; @p9 {ARRIVE} @p9 {ARRIVE}"
    message = deadlock(body + "bar.sync 0;" + WAIT.format(label="LAPPED", parity=1))
    lapped = (
        "; for the thread phase 1 was the next, and the mbarrier has completed 2 since: a wait by "
        "parity cannot tell that phase from the present one"
    )
    assert message.count(lapped) == 1
    assert message.index("warp 1 waits for") < message.index(lapped)


# ---- named barriers ----


def test_deadlock_says_that_a_barrier_can_never_complete() -> None:
    body = "setp.ge.u32 p0, tid, 64; @p0 exit; bar.sync 1, 128;"
    message = deadlock(body, 128)
    assert "64 of 128 threads have arrived; warps that have not: 2 (ended), 3 (ended)" in message
    assert "it can never complete, the CTA has 0 more threads" in message


def test_deadlock_of_warps_beyond_the_count() -> None:
    """Three warps meet at a barrier of 64: two of them go on, one stays."""
    message = deadlock("bar.sync 1, 64;", 96)
    assert "barrier 1, generation 1: 32 of 64 threads have arrived" in message
    assert "it can never complete" in message


def test_a_barrier_that_others_may_complete_is_not_said_to_be_hopeless() -> None:
    body = "setp.lt.u32 p0, tid, 32; @p0 bra LOW; bar.sync 2, 64; bra DONE; LOW: bar.sync 1, 64;"
    message = deadlock(body + "DONE:", 64)
    assert "it can never complete" not in message


NAMED = {
    "an arrival that no one waits for": Fault(
        "setp.lt.u32 p0, tid, 32; @p0 bar.arrive 3, 64;",
        "the CTA has ended and at barrier 3 only 32 of 64 threads have arrived",
        "@p0 bar.arrive 3, 64",
    ),
    "more threads than it counts": Fault(
        "setp.eq.u32 p0, lane, 0; setp.lt.u32 p1, tid, 32; @!p1 bra MANY; @p0 barrier.arrive 3, 64;"
        "@p0 bra MORE; bra DONE; MORE: barrier.arrive 3, 64; bra DONE;"
        "MANY: @p0 barrier.arrive 3, 64; barrier.arrive 3, 64; DONE:",
        "barrier 3 counts 64 threads, of which",
        "barrier.arrive 3, 64",
        "barrier.arrive 3, 64",
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_named_barrier_misuse_is_a_finding(case: str) -> None:
    fault = NAMED[case]
    finding = run(fault.body, fault.threads).findings[0]
    assert finding.kind == "sync"
    assert fault.message in finding.message
    assert fault.first in statement(finding)
    if fault.second is not None:
        assert fault.second in statement(finding, second=True)


def test_differing_counts_name_both_instructions() -> None:
    body = "setp.lt.u32 p0, tid, 32; @p0 bar.arrive 1, 64; @!p0 bar.sync 1, 96;"
    finding = run(body).findings[0]
    assert {statement(finding), statement(finding, second=True)} == {
        "@p0 bar.arrive 1, 64",
        "@!p0 bar.sync 1, 96",
    }


@pytest.mark.parametrize("seed", range(6))
def test_counts_that_differ_are_one_finding(seed: int) -> None:
    """The first count stands; the sites are the instruction that gave it and one of the others.

    Where the two that agree meet first, the third waits for ever.
    """
    body = """
        setp.lt.u32 p0, tid, 32; @p0 bra FIRST; setp.lt.u32 p0, tid, 64; @p0 bra SECOND;
        bar.sync 1, 64; bra DONE; FIRST: bar.sync 1, 96; bra DONE; SECOND: bar.sync 1, 64; DONE:
    """
    try:
        findings = run(body, 96, seed).findings
    except EmulationError as error:
        findings = error.report.findings
        assert "barrier 1" in findings[-1].message
    found = [finding for finding in findings if finding.kind == "sync"]
    if not found and findings[-1].kind == "deadlock":
        assert "32 of 96 threads have arrived" in findings[-1].message
        return
    assert len(found) == 1, found
    names = {statement(found[0]), statement(found[0], second=True)}
    assert names == {"bar.sync 1, 96", "bar.sync 1, 64"}
    given = "96" if "was given 96" in found[0].message else "64"
    assert statement(found[0], second=True).endswith(given)


# ---- setmaxnreg ----


def test_deadlock_gives_the_sums_of_registers() -> None:
    body = """
        setp.ge.u32 p0, tid, 128;
        @p0 bra CONSUMER;
        setmaxnreg.dec.sync.aligned.u32 80;
        bra DONE;
    CONSUMER:
        setmaxnreg.inc.sync.aligned.u32 224;
    DONE:
    """
    message = deadlock(body, 384)
    assert "registers: 224 a thread are wanted, 168 held, and the CTA's pool has " in message
    assert "warps 0-3 (ended): 80" in message
    assert ": 224" in message


def test_deadlock_says_that_the_registers_can_never_be_enough() -> None:
    message = deadlock("setmaxnreg.inc.sync.aligned.u32 256;", 128 * 4)
    assert "where 4096 are needed; registers a thread of warps 0-15: 128" in message
    body = "setp.ge.u32 p0, tid, 128; @p0 exit; setmaxnreg.inc.sync.aligned.u32 240;"
    message = deadlock(body, 128 * 4)
    assert "; it can never be enough, the others can give back " in message


SETMAXNREG = {
    "by one warp of the four": Fault(
        "setp.lt.u32 p0, tid, 32; @p0 setmaxnreg.dec.sync.aligned.u32 24;",
        "setmaxnreg has not been executed by all warps of the warpgroup: warps 1, 2, 3 have ended "
        "without it",
        "@p0 setmaxnreg.dec.sync.aligned.u32 24",
        threads=128,
    ),
    "a different one in one warp": Fault(
        "setp.lt.u32 p0, tid, 32; @p0 setmaxnreg.dec.sync.aligned.u32 24;"
        "@!p0 setmaxnreg.dec.sync.aligned.u32 32;",
        "of one warpgroup execute different setmaxnreg: all must execute the same",
        "setmaxnreg.dec.sync.aligned.u32",
        "setmaxnreg.dec.sync.aligned.u32",
        threads=128,
    ),
}


@pytest.mark.parametrize("case", SETMAXNREG)
def test_setmaxnreg_of_a_part_of_a_warpgroup_is_a_finding(case: str) -> None:
    fault = SETMAXNREG[case]
    finding = run(fault.body, fault.threads).findings[0]
    assert finding.kind == "sync"
    assert fault.message in finding.message
    assert fault.first in statement(finding)
    if fault.second is not None:
        assert fault.second in statement(finding, second=True)
        assert statement(finding) != statement(finding, second=True)


def test_setmaxnreg_twice_by_each_warp_has_no_finding() -> None:
    body = "setmaxnreg.dec.sync.aligned.u32 24; bar.sync 0; setmaxnreg.inc.sync.aligned.u32 40;"
    run(body, 128).raise_if_findings()


# ---- griddepcontrol ----


def run_dependent(body: str, threads: int = 64, checks: str | set[str] = "all") -> Report:
    data = np.zeros(64, dtype=np.uint32)
    launches = []
    for text, dependent in (("griddepcontrol.launch_dependents;", False), (body, True)):
        kernel = Module.from_ptx(ptx_program(text, {"data": data}))["kernel"]
        launches.append(Launch(kernel, (2,), (threads,), [data], programmatic_dependent=dependent))
    return Emulator(checks=checks).launch_concurrent(launches)


def test_a_cta_that_ends_without_waiting_for_the_grid_is_a_finding() -> None:
    body = "mov.u32 r1, %ctaid.x; setp.eq.u32 p0, r1, 1; @p0 exit; griddepcontrol.wait;"
    finding = only_finding(run_dependent(body))
    assert finding.kind == "sync"
    assert "none of its threads has executed griddepcontrol.wait" in finding.message
    assert statement(finding) == "@p0 exit"
    assert finding.first is not None
    assert finding.first.ctaid == (1, 0, 0)


@pytest.mark.parametrize("checks", [{"sync"}, {"sync", "race"}])
@pytest.mark.parametrize("order", ["bar.sync 0;", "barrier.cluster.arrive; barrier.cluster.wait;"])
def test_threads_ordered_behind_one_that_waits_have_waited(order: str, checks: set[str]) -> None:
    body = f"""
        setp.lt.u32 p0, tid, 32; @p0 griddepcontrol.wait; {order} ld.global.u32 r1, [data];
    """
    run_dependent(body, checks=checks).raise_if_findings()


def test_a_thread_that_nothing_orders_behind_the_wait_is_a_finding() -> None:
    body = "setp.lt.u32 p0, tid, 32; @p0 griddepcontrol.wait; @!p0 ld.global.u32 r1, [data];"
    finding = only_finding(run_dependent(body))
    assert "'data_param' is accessed before griddepcontrol.wait" in finding.message


@pytest.mark.parametrize("access", ["ld.global.u32 r1, [other];", "st.global.u32 [other], 1;"])
@pytest.mark.parametrize(
    ("given", "writable", "reads", "writes"),
    [(True, True, True, True), (True, False, False, True), (False, True, False, False)],
)
def test_only_what_the_launch_before_may_touch_waits_for_it(
    access: str, given: bool, writable: bool, reads: bool, writes: bool
) -> None:
    """An argument of both launches, one that the first may only read, one of the second alone."""
    data, other = np.zeros(64, dtype=np.uint32), np.zeros(64, dtype=np.uint32)
    view = other.view()
    view.flags.writeable = writable
    first = {"data": data, **({"given": view} if given else {})}
    launches = []
    for text, args, dependent in (
        ("griddepcontrol.launch_dependents;", first, False),
        (f"setp.eq.u32 p0, tid, 0; @p0 {access} griddepcontrol.wait;", {"other": other}, True),
    ):
        kernel = Module.from_ptx(ptx_program(text, args))["kernel"]
        launch = Launch(kernel, (1,), (32,), list(args.values()), programmatic_dependent=dependent)
        launches.append(launch)
    report = Emulator(checks={"sync"}).launch_concurrent(launches)
    assert len(report.findings) == (writes if access.startswith("st") else reads), report


def test_a_lane_waits_for_itself_alone() -> None:
    body = "setp.eq.u32 p0, lane, 0; @p0 griddepcontrol.wait; ld.global.u32 r1, [data];"
    finding = only_finding(run_dependent(body, 32))
    assert "is accessed before griddepcontrol.wait" in finding.message


def test_threads_that_all_wait_have_no_finding() -> None:
    body = "griddepcontrol.wait; setp.eq.u32 p0, tid, 37; @p0 exit; ld.global.u32 r1, [data];"
    run_dependent(body).raise_if_findings()


# ---- launches that only poll ----

POLLS = {
    "a flag in global memory": (
        "SPIN: ld.acquire.gpu.u32 r1, [flag]; setp.eq.u32 p0, r1, 0; @p0 bra SPIN;",
        ("'flag_param' + 0 in global memory", "warps 0-1 polls"),
    ),
    "an element of shared memory": (
        "mov.u32 r2, tile; st.shared.u32 [r2 + 4], 0; bar.sync 0;"
        "SPIN: ld.volatile.shared.u32 r1, [r2 + 4]; setp.eq.u32 p0, r1, 0; @p0 bra SPIN;",
        ("'tile' + 4 in shared memory",),
    ),
    "an mbarrier": (
        INIT.format(count=1)
        + "SPIN: mbarrier.test_wait.parity.shared.b64 p0, [r10], 0; @!p0 bra SPIN;",
        ("the mbarrier at 'bar' + 0; it is in phase 0 (parity 0): 1 of 1 arrivals pending",),
    ),
    "two flags by lanes that have parted": (
        f"""{HALF} @p0 bra LOW;
        HIGH: ld.relaxed.gpu.u32 r1, [flag]; setp.eq.u32 p1, r1, 0; @p1 bra HIGH; bra DONE;
        LOW: ld.relaxed.gpu.u32 r1, [flag + 8]; setp.eq.u32 p1, r1, 0; @p1 bra LOW; DONE:""",
        ("'flag_param' + 0", "'flag_param' + 8", "warp 0 lanes 16-31"),
    ),
    "nothing at all": ("SPIN: bra SPIN;", ("bra SPIN",)),
}


def run_flag(body: str, **options: Any) -> Report:
    flag = np.zeros(4, dtype=np.uint32)
    emulator = Emulator(max_warp_instructions=1 << 24, **options)
    return run_ptx(body, {"flag": flag}, module=SHARED, block=(64,), emulator=emulator)


@pytest.mark.parametrize("schedule", ["random", "priority"])
@pytest.mark.parametrize("case", POLLS)
def test_a_launch_that_only_polls_ends_soon(case: str, schedule: str) -> None:
    body, texts = POLLS[case]
    with pytest.raises(EmulationError) as caught:
        run_flag(body, schedule=schedule)
    assert caught.value.report.findings[-1].kind == "deadlock"
    message = str(caught.value)
    assert "all that run only poll" in message
    for text in texts:
        assert text in message, message


def test_a_long_computation_is_no_poll() -> None:
    """One warp counts to a million without writing, the other polls for what it writes then."""
    body = """
        setp.lt.u32 p0, tid, 32; @p0 bra COUNT;
        SPIN: ld.relaxed.gpu.u32 r1, [flag]; setp.eq.u32 p1, r1, 0; @p1 bra SPIN; bra DONE;
        COUNT: mov.u32 r2, 0;
        AGAIN: add.u32 r2, r2, 1; setp.lt.u32 p1, r2, 1000000; @p1 bra AGAIN;
        st.relaxed.gpu.u32 [flag], r2; DONE:
    """
    run_flag(body, checks=()).raise_if_findings()


def test_steps_of_a_pipeline_without_data_are_no_poll() -> None:
    """Two warps hand an mbarrier to and fro: nothing is written, and one of them counts."""
    body = """
        setp.eq.u32 p9, tid, 0; mov.u32 r10, bar; mov.u32 r11, tile;
        @p9 mbarrier.init.shared::cta.b64 [r10], 1; @p9 mbarrier.init.shared::cta.b64 [r11], 1;
        bar.sync 0; setp.lt.u32 p0, tid, 32; setp.eq.u32 p1, lane, 0; mov.u32 r3, 0;
        mov.u32 r4, 0; @p0 bra PING;
        PONG: mbarrier.test_wait.parity.shared.b64 p2, [r10], r3; @!p2 bra PONG;
        @p1 mbarrier.arrive.shared.b64 _, [r11]; xor.b32 r3, r3, 1;
        add.u32 r4, r4, 1; setp.lt.u32 p2, r4, 40000; @p2 bra PONG; bra DONE;
        PING: @p1 mbarrier.arrive.shared.b64 _, [r10];
        BACK: mbarrier.test_wait.parity.shared.b64 p2, [r11], r3; @!p2 bra BACK;
        xor.b32 r3, r3, 1; add.u32 r4, r4, 1; setp.lt.u32 p2, r4, 40000; @p2 bra PING; DONE:
    """
    run_flag(body, checks=()).raise_if_findings()


# ---- what is not emulated, and says so ----


def test_cooperative_groups_are_named_in_the_note_and_in_the_trap() -> None:
    report = run("mov.u32 r1, %envreg2;")
    assert any("cooperative launches" in note for note in report.notes)
    with pytest.raises(EmulationError, match=r"executed trap .*grid\.sync.*not emulated"):
        run("mov.u32 r1, %envreg2; setp.ne.u32 p0, r1, 0; @!p0 trap;")


def test_access_to_a_rank_that_does_not_exist_names_the_thread() -> None:
    body = "mov.u32 r1, 0x1000400; setp.eq.u32 p0, tid, 7; @p0 ld.shared::cluster.u32 r2, [r1];"
    with pytest.raises(EmulationError, match="names rank 1 in a cluster of 1") as caught:
        run(body)
    site = caught.value.report.findings[-1].first
    assert site is not None
    assert site.thread == 7


# ---- where an instruction comes from ----


def test_a_finding_shows_the_functions_inlined_around_both_instructions() -> None:
    module = SHARED + '\n.file 1 "kernel.cu"\n.file 2 "barrier.cuh"\n'
    body = (
        INIT.format(count=1)
        + f"""
        .loc 1 40 3
        add.u32 r1, tid, 1;
        .loc 2 7 9, function_name names, inlined_at 1 40 3
        @p9 {INVALIDATE}
        bar.sync 0;
        .loc 1 41 3
        @p9 {ARRIVE}
    """
    )
    finding = only_finding(run_ptx(body, {}, module=module, block=(64,)))
    assert finding.first is not None
    assert finding.second is not None
    assert finding.first.source == "kernel.cu:41"
    assert (finding.second.cuda_file, finding.second.cuda_line) == ("barrier.cuh", 7)
    assert finding.second.source == "barrier.cuh:7, inlined at kernel.cu:40"
    lines = str(finding).splitlines()
    assert lines[2].strip() == "from kernel.cu:41"
    assert lines[4].strip() == "from barrier.cuh:7, inlined at kernel.cu:40"
