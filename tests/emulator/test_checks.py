"""What the checks memory, init and sync report, on the guilty instruction, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import EmulationError, Emulator, Finding, Report
from pykernels.emulator.arguments import Argument
from tests.emulator.ptx_program import run_ptx

Words = npt.NDArray[np.uint32]


def zeros(count: int = 32) -> Words:
    return np.zeros(count, dtype=np.uint32)


def run(body: str, args: Mapping[str, Argument] | None = None, **kwargs: object) -> Report:
    return run_ptx(body, args or {}, **kwargs)  # type: ignore[arg-type]


def only_finding(report: Report) -> Finding:
    assert len(report.findings) == 1, report
    return report.findings[0]


@dataclass(frozen=True)
class Case:
    """A program with one fault: the finding's text and its statement."""

    body: str
    message: str
    statement: str
    threads: int = 32
    args: Mapping[str, Argument] = field(default_factory=dict)


# ---- init ----

INIT = {
    "register": Case(
        "add.u32 r1, r0, 1;", "register r0 is read before it is written", "add.u32 r1, r0, 1"
    ),
    "register of some lanes": Case(
        "setp.lt.u32 p0, lane, 4; @p0 mov.u32 r0, 1; add.u32 r1, r0, 1;",
        "register r0 is read before it is written (and in 27 more lanes)",
        "add.u32 r1, r0, 1",
    ),
    "guard": Case("@p0 mov.u32 r0, 1;", "register p0 is read", "@p0 mov.u32 r0, 1"),
    "predicate operand": Case("not.pred p1, p0;", "register p0 is read", "not.pred p1, p0"),
    "64-bit register": Case("add.u64 rd1, rd0, 1;", "register rd0 is read", "add.u64 rd1, rd0, 1"),
    "moved value": Case(
        "mov.u32 r1, r0; mov.u32 r2, r1; add.u32 r3, r2, 1;",
        "register r2 is read before it is written",
        "add.u32 r3, r2, 1",
    ),
    "lane of a shuffle": Case(
        "setp.eq.u32 p0, lane, 0; @p0 mov.u32 r0, 7; shfl.sync.idx.b32 r1|p1, r0, 3, 31, -1;",
        "register r0 is read before it is written",
        "shfl.sync.idx.b32 r1|p1, r0, 3, 31, -1",
    ),
    "shuffle in place": Case(
        "shfl.sync.bfly.b32 r0|p1, r0, 1, 31, -1;",
        "register r0 is read before it is written",
        "shfl.sync.bfly.b32 r0|p1, r0, 1, 31, -1",
    ),
    "pair of which neither is written": Case(
        "cvt.rn.bf16x2.f32 r1, f0, f1;", "register f0 is read", "cvt.rn.bf16x2.f32 r1, f0, f1"
    ),
    "shared word": Case(
        ".shared .align 4 .b8 x[8]; ld.shared.u32 r1, [x + 4];",
        "shared memory is read before it is written: 'x' + 4, in 4 bytes at offset 4",
        "ld.shared.u32 r1, [x+4]",
    ),
    "half of a shared word": Case(
        ".shared .align 4 .b32 x; cvt.u16.u32 h0, lane; st.shared.u16 [x], h0;"
        "bar.warp.sync -1; ld.shared.u32 r1, [x];",
        "shared memory is read before it is written: 'x' + 2",
        "ld.shared.u32 r1, [x]",
    ),
    "shared word through a generic address": Case(
        ".shared .align 4 .b32 x; cvta.shared.u64 rd0, x; ld.u32 r1, [rd0];",
        "shared memory is read before it is written: 'x' + 0",
        "ld.u32 r1, [rd0]",
    ),
    "atomic on a shared word": Case(
        ".shared .align 4 .b32 x; atom.shared.add.u32 r1, [x], 1;",
        "shared memory is read before it is written: 'x' + 0",
        "atom.shared.add.u32 r1, [x], 1",
    ),
}


@pytest.mark.parametrize("case", INIT)
def test_uninitialised_read_is_a_finding(case: str) -> None:
    fault = INIT[case]
    finding = only_finding(run(fault.body, fault.args, block=(fault.threads,)))
    assert finding.kind == "init"
    assert fault.message in finding.message
    assert finding.first is not None
    assert finding.first.ptx.replace(" + ", "+") == fault.statement


INITIALISED = {
    "undefined value that is only moved": "mov.u32 r1, r0; mov.u32 r2, r1;",
    "value of one lane that a shuffle gives to all": """
        setp.eq.u32 p0, lane, 0;
        @p0 mov.u32 r0, 7;
        shfl.sync.idx.b32 r1|p1, r0, 0, 31, -1;
        add.u32 r2, r1, 1;
    """,
    "one value converted as a pair": "mov.f32 f1, 0f3F800000; cvt.rn.bf16x2.f32 r1, f0, f1;"
    "cvt.u16.u32 h0, r1; add.u16 h1, h0, h0;",
    "value of the lanes that wrote it": """
        setp.lt.u32 p0, lane, 4;
        @p0 mov.u32 r0, 1;
        @p0 add.u32 r1, r0, 1;
    """,
    "register written in both branches": """
        setp.lt.u32 p0, lane, 4;
        @p0 bra LOW;
        mov.u32 r0, 1;
        bra DONE;
    LOW:
        mov.u32 r0, 2;
    DONE:
        add.u32 r1, r0, 1;
    """,
    "shared word written by bytes": """
        .shared .align 4 .b32 x;
        cvt.u16.u32 h0, lane;
        setp.eq.u32 p0, tid, 0;
        @p0 st.shared.u8 [x], h0;
        @p0 st.shared.u8 [x + 1], h0;
        @p0 st.shared.u16 [x + 2], h0;
        bar.sync 0;
        ld.shared.u32 r1, [x];
    """,
    "shared word written by another warp": """
        .shared .align 4 .b8 x[256];
        mov.u32 r2, x;
        mad.lo.u32 r3, tid, 4, r2;
        st.shared.u32 [r3], tid;
        bar.sync 0;
        xor.b32 r4, tid, 32;
        mad.lo.u32 r3, r4, 4, r2;
        ld.shared.u32 r1, [r3];
    """,
}


@pytest.mark.parametrize("case", INITIALISED)
def test_initialised_read_is_none(case: str) -> None:
    run(INITIALISED[case], block=(64,)).raise_if_findings()


def test_a_finding_is_listed_once_and_counted() -> None:
    body = ".shared .align 4 .b8 x[4096]; mad.lo.u32 r2, tid, 4, 0x400; ld.shared.u32 r1, [r2];"
    body += ".reg .b32 keep; mov.u32 keep, x;"
    finding = only_finding(run(body, block=(128,)))
    assert finding.occurrences == 128


# ---- memory ----

FATAL = {
    "beyond the end": Case(
        "ld.global.u32 r1, [data + 128];",
        "read of 4 bytes at global address .*: begins 0 bytes after the end of 'data_param'",
        "ld.global.u32 r1, [data + 128]",
    ),
    "across the end": Case(
        "add.u64 rd0, data, 124; ld.global.v2.u32 {r1, r2}, [rd0];",
        "4 bytes beyond the end of 'data_param' \\(0x[0-9a-f]+, 128 bytes\\)",
        "ld.global.v2.u32 {r1, r2}, [rd0]",
    ),
    "before the begin": Case(
        "mov.u32 r1, 0; st.global.u32 [data + -4], r1;",
        "write of 4 bytes at global address 0x[0-9a-f]+",
        "st.global.u32 [data-4], r1",
    ),
    "one lane alone": Case(
        "mad.wide.u32 rd0, tid, 4, data; ld.global.u32 r1, [rd0 + 4];",
        "begins 0 bytes after the end of 'data_param'",
        "ld.global.u32 r1, [rd0 + 4]",
    ),
    "null pointer": Case(
        "mov.u64 rd0, 0; ld.global.u32 r1, [rd0];", "a null pointer", "ld.global.u32 r1, [rd0]"
    ),
    "shared": Case(
        ".shared .align 4 .b8 x[64]; mov.u32 r2, x; ld.shared.u32 r1, [r2 + 64];",
        "read of 4 bytes at shared offset 64 .* outside of the CTA's 64 bytes",
        "ld.shared.u32 r1, [r2+64]",
    ),
    "below the shared window": Case(
        ".shared .align 4 .b8 x[64]; mov.u32 r2, x; ld.shared.u32 r1, [0];",
        "read of 4 bytes at shared offset -1024",
        "ld.shared.u32 r1, [0]",
    ),
    "local": Case(
        ".local .align 4 .b8 x[64]; mov.u32 r2, x; ld.local.u32 r1, [r2 + 4096];",
        "read of 4 bytes at local offset",
        "ld.local.u32 r1, [r2+4096]",
    ),
    "rank of another CTA": Case(
        ".shared .align 4 .b8 x[64]; mov.u32 r2, x; or.b32 r2, r2, 0x1000000;"
        "ld.shared.u32 r1, [r2];",
        "shared::cta access by the CTA of rank 0 to address 0x1000400, which is of rank 1",
        "ld.shared.u32 r1, [r2]",
    ),
    "address of no window": Case(
        "mov.u64 rd0, 0xf000000000000000; ld.u32 r1, [rd0];",
        "far from every allocation",
        "ld.u32 r1, [rd0]",
    ),
}


@pytest.mark.parametrize("checks", ["all", ()])
@pytest.mark.parametrize("case", FATAL)
def test_access_outside_ends_the_launch(case: str, checks: str) -> None:
    fault = FATAL[case]
    with pytest.raises(EmulationError, match=fault.message) as caught:
        run(fault.body, {"data": zeros()}, emulator=Emulator(checks=checks))
    finding = caught.value.report.findings[-1]
    assert finding.kind == "memory"
    assert finding.first is not None
    assert finding.first.ptx.replace(" + ", "+") == fault.statement.replace(" + ", "+")


def test_one_array_does_not_reach_into_the_next() -> None:
    memory = zeros(64)
    with pytest.raises(EmulationError, match="after the end of 'a_param'"):
        run(
            "ld.global.u32 r1, [a + 64]; ld.global.u32 r2, [b];",
            {"a": memory[:16], "b": memory[48:]},
        )


def test_overlapping_arrays_are_one() -> None:
    memory = zeros(64)
    body = "ld.global.u32 r1, [a + 128]; ld.global.u32 r2, [b + -64];"
    run(body, {"a": memory[:32], "b": memory[16:]}).raise_if_findings()


def test_writing_a_read_only_array_ends_the_launch() -> None:
    memory = zeros()
    memory.flags.writeable = False
    run("ld.global.u32 r1, [data];", {"data": memory}).raise_if_findings()
    with pytest.raises(EmulationError, match="'data_param' is read-only"):
        run("mov.u32 r1, 5; st.global.u32 [data], r1;", {"data": memory})
    assert not memory.any()


@pytest.mark.parametrize("offset", [1, 2])
def test_misaligned_access_is_a_finding(offset: int) -> None:
    data = zeros()
    finding = only_finding(run(f"ld.global.u32 r1, [data + {offset}];", {"data": data}))
    assert finding.kind == "memory"
    assert "which is not a multiple of 4" in finding.message


# ---- sync ----

TRANSFER = """
    .shared .align 8 .b64 bar;
    .shared .align 16 .b8 buffer[128];
    mov.u32 r10, bar;
    mov.u32 r11, buffer;
    setp.ne.u32 p0, tid, 0;
    @p0 bra DONE;
    mbarrier.init.shared::cta.b64 [r10], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r10], 128;
    mov.u32 r12, 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r11], [data], r12, [r10];
    {wait}
    ld.shared.u32 r1, [r11];
DONE:
"""
WAIT = """
LOOP:
    mbarrier.try_wait.parity.shared::cta.b64 p1, [r10], 0;
    @!p1 bra LOOP;
"""


@pytest.mark.parametrize("mode", ["early", "late", "random"])
def test_a_waited_copy_has_no_finding(mode: str) -> None:
    emulator = Emulator(async_completion=mode)
    run(TRANSFER.format(wait=WAIT), {"data": zeros()}, emulator=emulator).raise_if_findings()


def test_a_missing_wait_is_an_uninitialised_read_and_an_unfinished_copy() -> None:
    report = run(TRANSFER.format(wait=""), {"data": zeros()})
    assert {finding.kind for finding in report.findings} == {"init", "race", "sync"}
    unfinished = next(finding for finding in report.findings if finding.kind == "sync")
    assert "the CTA has ended while this was in flight: copy of 128 bytes" in unfinished.message
    assert unfinished.first is not None
    assert unfinished.first.ptx.startswith("cp.async.bulk.shared::cluster")


def test_a_cta_that_has_ended_cannot_be_reached() -> None:
    body = """
        .shared .align 4 .b32 x;
        mov.u32 r2, x;
        st.shared.u32 [r2], r2;
        mov.u32 r3, %cluster_ctarank;
        setp.eq.u32 p0, r3, 1;
        @p0 exit;
        mov.u32 r4, 0;
    LOOP:
        add.u32 r4, r4, 1;
        setp.lt.u32 p1, r4, 50000;
        @p1 bra LOOP;
        mapa.shared::cluster.u32 r5, r2, 1;
        ld.shared::cluster.u32 r1, [r5];
    """
    with pytest.raises(EmulationError, match="the CTA of rank 1, which has ended"):
        run(body, grid=(2,), cluster=(2,))


OVERWRITE = """
    .shared .align 16 .b8 tile[64];
    mov.u32 r10, tile;
    cvt.u64.u32 rd10, r10;
    cvta.shared.u64 rd10, rd10;
    setp.eq.u32 p0, tid, 0;
    mov.u32 r1, 0;
    mov.u32 r12, 16;
    @p0 mbarrier.init.shared::cta.b64 [r10+24], 1;
    @p0 mbarrier.init.shared::cta.b64 [r10+40], 1;
    bar.sync 0;
"""


@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("st.shared.b32 [r10+24], r1;", "'tile' + 24"),
        ("st.shared.b8 [r10+31], r1;", "'tile' + 24"),
        ("st.shared.b64 [r10+40], 0;", "'tile' + 40"),
        ("st.shared.v4.b32 [r10+16], {r1, r1, r1, r1};", "'tile' + 24"),
        ("st.shared::cluster.b32 [r10+28], r1;", "'tile' + 24"),
        ("st.b16 [rd10+46], 0;", "'tile' + 40"),
        ("atom.shared.add.u32 r2, [r10+40], 1;", "'tile' + 40"),
        ("red.shared.add.u32 [r10+24], 1;", "'tile' + 24"),
        ("cp.async.ca.shared.global [r10+40], [data], 8; cp.async.wait_all;", "'tile' + 40"),
        ("st.shared.v4.b32 [r10], {r1, r1, r1, r1};", None),
        ("st.shared.b64 [r10+16], 0;", None),
        ("st.shared.b64 [r10+32], 0;", None),
        ("st.shared.v4.b32 [r10+48], {r1, r1, r1, r1};", None),
        ("mbarrier.inval.shared.b64 [r10+24]; st.shared.b64 [r10+24], 0;", None),
        ("ld.shared.b32 r2, [r10+24];", None),
    ],
)
def test_a_write_over_an_mbarrier_is_a_finding(statement: str, place: str | None) -> None:
    """On a GPU the bytes replace the barrier's state."""
    body = OVERWRITE + "@!p0 exit;\n" + statement
    report = run(body, {"data": zeros()})
    if place is None:
        report.raise_if_findings()
        return
    finding = only_finding(report)
    assert finding.kind == "sync"
    assert f"overwrites the mbarrier at {place} of the CTA of rank 0" in finding.message
    assert finding.first is not None
    assert finding.first.ptx.strip() == statement.split(";")[0]
    assert finding.first.thread == 0
    emulator = Emulator(checks={"memory", "init"})
    run(body, {"data": zeros()}, emulator=emulator).raise_if_findings()


def test_one_lane_of_a_warp_writes_over_an_mbarrier() -> None:
    """Lane 6 is the only one that does; matrices are stored by the rows' lanes."""
    for statement in (
        "mad.lo.u32 r11, tid, 4, r10; setp.lt.u32 p1, tid, 8; @p1 st.shared.b32 [r11], r1;",
        "mul.lo.u32 r11, tid, 16; and.b32 r11, r11, 31; add.u32 r11, r11, r10;"
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [r11], {r1};",
    ):
        finding = only_finding(run(OVERWRITE + statement, {"data": zeros()}))
        assert "overwrites the mbarrier at 'tile' + 24" in finding.message
        assert finding.first is not None
        assert finding.first.thread in (1, 6)


def test_a_write_over_the_mbarrier_of_a_peer() -> None:
    body = (
        OVERWRITE
        + """
    mov.u32 r3, %cluster_ctarank;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    setp.ne.u32 p2, r3, 1;
    mapa.shared::cluster.u32 r11, r10, 0;
    @p2 bra DONE;
    @p0 st.shared::cluster.b64 [r11+40], 0;
DONE:
    barrier.cluster.arrive;
    barrier.cluster.wait;"""
    )
    finding = only_finding(run(body, {"data": zeros()}, grid=(2,), cluster=(2,)))
    assert "overwrites the mbarrier at 'tile' + 40 of the CTA of rank 0" in finding.message
    assert finding.first is not None
    assert finding.first.ctaid == (1, 0, 0)


# ---- which checks run ----


def test_checks_can_be_chosen() -> None:
    body = """
        add.u32 r1, r0, 1;
        ld.global.u32 r2, [data + 2];
        st.global.u32 [data], lane;
        barrier.cluster.wait;
    """
    for checks in ({"memory"}, {"init"}, {"race"}, {"sync"}, {"init", "sync"}, set(), {"all"}):
        report = run(body, {"data": zeros()}, emulator=Emulator(checks=checks))
        names = {"memory", "init", "race", "sync"} if checks == {"all"} else checks
        assert {finding.kind for finding in report.findings} == names
        assert set(report.checks) == names


def test_findings_do_not_change_results() -> None:
    outs = []
    for checks in ("all", ()):
        out = zeros()
        body = """
            .shared .align 4 .b8 x[128];
            mov.u32 r2, x;
            mad.lo.u32 r3, tid, 4, r2;
            ld.shared.u32 r1, [r3];
            add.u32 r1, r1, tid;
            mad.wide.u32 rd0, tid, 4, out;
            st.global.u32 [rd0], r1;
        """
        run(body, {"out": out}, emulator=Emulator(checks=checks))
        outs.append(out)
    np.testing.assert_array_equal(outs[0], outs[1])
