"""Registers of WGMMA: touched while it is in flight, or without the fence that orders them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from pykernels.emulator import Emulator, Finding, Report
from tests.emulator.ptx_program import run_ptx

# A warpgroup with 4 KiB of operands in shared memory; rd1 and rd2 are their descriptors. f0.. hold
# values; f8.. do not.
SETUP = """
    .shared .align 1024 .b8 tile[4096];
    mov.u32 r60, tile;
    mad.lo.u32 r61, tid, 32, r60;
    mov.u32 r62, 0;
    st.shared.v4.u32 [r61], {r62, r62, r62, r62};
    st.shared.v4.u32 [r61 + 16], {r62, r62, r62, r62};
    fence.proxy.async.shared::cta;
    bar.sync 0;
    and.b32 r60, r60, 0x3ffff;
    shr.u32 r60, r60, 4;
    cvt.u64.u32 rd1, r60;
    or.b64 rd1, rd1, 0x0000000800040000;  // no swizzle: 64 and 128 bytes between the parts
    mov.b64 rd2, rd1;
    setp.eq.u32 p1, r62, 0;
    cvt.rn.f32.u32 f0, tid;
    cvt.rn.f32.u32 f1, tid;
    cvt.rn.f32.u32 f2, tid;
    cvt.rn.f32.u32 f3, tid;
    mov.u32 r0, tid;
    mov.u32 r1, tid;
    mov.u32 r2, tid;
    mov.u32 r3, tid;
"""
FENCE = "wgmma.fence.sync.aligned;"
D = "{f0, f1, f2, f3}"
A = "{r0, r1, r2, r3}"
FORM = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16"
MMA = f"{FORM} {D}, rd1, rd2, p1, 1, 1, 0, 0;"
FRAGMENT_MMA = f"{FORM} {D}, {A}, rd2, p1, 1, 1, 0;"
WIDE = (
    "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {f0, f1, f2, f3, f4, f5, f6, f7}, rd1, "
    "rd2, p1, 1, 1, 0, 0;"
)
COMMIT = "wgmma.commit_group.sync.aligned;"
WAIT = COMMIT + "wgmma.wait_group.sync.aligned 0;"
FILL_WIDE = "".join(f"mov.f32 f{i}, f0;" for i in range(4, 8))


def run(body: str, mode: str = "late", checks: object = ("memory", "init", "sync")) -> Report:
    emulator = Emulator(async_completion=mode, checks=checks)  # type: ignore[arg-type]
    return run_ptx(SETUP + body, {"out": np.zeros(512, np.float32)}, block=(128,),
                   emulator=emulator)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A program with one fault: what the finding says, its instruction and the other one."""

    body: str
    message: str
    first: str
    second: str = FORM


IN_FLIGHT = "of a WGMMA in flight: no wgmma.wait_group has waited for that"
NO_FENCE = "no wgmma.fence between this instruction and the last access to register"
FAULTS = {
    "accumulator read before the wait": Fault(
        f"{FENCE} {MMA} {COMMIT} add.f32 f8, f1, f1; wgmma.wait_group.sync.aligned 0;",
        f"register f1 is read while it is an accumulator {IN_FLIGHT}",
        "add.f32 f8, f1, f1",
    ),
    "accumulator moved before the wait": Fault(
        f"{FENCE} {MMA} {COMMIT} mov.f32 f8, f2; wgmma.wait_group.sync.aligned 0;",
        f"register f2 is read while it is an accumulator {IN_FLIGHT}",
        "mov.f32 f8, f2",
    ),
    "accumulator written before the wait": Fault(
        f"{FENCE} {MMA} {COMMIT} mov.f32 f3, 0f00000000; wgmma.wait_group.sync.aligned 0;",
        f"register f3 is written while it is an accumulator {IN_FLIGHT}",
        "mov.f32 f3, 0f00000000",
    ),
    "a wait that leaves the group pending": Fault(
        f"{FENCE} {MMA} {COMMIT} wgmma.wait_group.sync.aligned 1; add.f32 f8, f0, f0;"
        "wgmma.wait_group.sync.aligned 0;",
        f"register f0 is read while it is an accumulator {IN_FLIGHT}",
        "add.f32 f8, f0, f0",
    ),
    "a group that was not committed": Fault(
        f"{FENCE} {MMA} wgmma.wait_group.sync.aligned 0; add.f32 f8, f0, f0; {WAIT}",
        f"register f0 is read while it is an accumulator {IN_FLIGHT}",
        "add.f32 f8, f0, f0",
    ),
    "accumulator stored by one lane": Fault(
        f"{FENCE} {MMA} {COMMIT} setp.eq.u32 p0, tid, 37; @p0 st.global.f32 [out], f0;"
        "wgmma.wait_group.sync.aligned 0;",
        f"register f0 is read while it is an accumulator {IN_FLIGHT}",
        "@p0 st.global.f32 [out], f0",
    ),
    "fragment written before the wait": Fault(
        f"{FENCE} {FRAGMENT_MMA} {COMMIT} add.u32 r2, r0, 1; wgmma.wait_group.sync.aligned 0;",
        f"register r2 is written while it is a fragment of A {IN_FLIGHT}",
        "add.u32 r2, r0, 1",
    ),
    "accumulators of another shape before the wait": Fault(
        f"{FILL_WIDE} {FENCE} {MMA} {WIDE} {WAIT}",
        "register f0 is accumulated into while it is an accumulator, in another shape, of a WGMMA",
        WIDE,
    ),
    "accumulators of another shape after the wait": Fault(
        f"{FILL_WIDE} {FENCE} {MMA} {WAIT} {WIDE} {WAIT}",
        "no wgmma.fence between this instruction and a WGMMA of another shape that has register f0",
        WIDE,
    ),
    "accumulator changed after the fence": Fault(
        f"{FENCE} add.f32 f2, f2, f2; {MMA} {WAIT}",
        f"{NO_FENCE} f2, an accumulator of it",
        MMA,
        "add.f32 f2, f2, f2",
    ),
    "accumulator changed and moved after the fence": Fault(
        f"{FENCE} add.f32 f2, f2, f2; mov.f32 f2, f2; {MMA} {WAIT}",
        f"{NO_FENCE} f2, an accumulator of it",
        MMA,
        "add.f32 f2, f2, f2",
    ),
    "accumulator read after the wait, without another fence": Fault(
        f"{FENCE} {MMA} {WAIT} add.f32 f8, f1, f1; {MMA} {WAIT}",
        f"{NO_FENCE} f1, an accumulator of it",
        MMA,
        "add.f32 f8, f1, f1",
    ),
    "accumulator moved after the wait, without another fence": Fault(
        f"{FENCE} {MMA} {WAIT} mov.f32 f1, 0f00000000; {MMA} {WAIT}",
        f"{NO_FENCE} f1, an accumulator of it",
        MMA,
        "mov.f32 f1, 0f00000000",
    ),
    "fragment written after the fence": Fault(
        f"{FENCE} add.u32 r3, r3, 1; {FRAGMENT_MMA} {WAIT}",
        f"{NO_FENCE} r3, a fragment of A of it",
        FRAGMENT_MMA,
        "add.u32 r3, r3, 1",
    ),
    "no fence at all": Fault(
        f"{MMA} {MMA} {WAIT}",
        "no wgmma.fence between the kernel's start and this instruction",
        MMA,
        "",
    ),
}


def squeezed(text: str) -> str:
    return text.replace(" ", "").rstrip(";")


def only_finding(report: Report) -> Finding:
    assert len(report.findings) == 1, report
    return report.findings[0]


@pytest.mark.parametrize("mode", ["early", "late"])
@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_a_finding_that_names_both_instructions(case: str, mode: str) -> None:
    fault = FAULTS[case]
    finding = only_finding(run(fault.body, mode))
    assert finding.kind == "sync"
    assert fault.message in finding.message
    assert finding.first is not None
    assert squeezed(finding.first.ptx).startswith(squeezed(fault.first)[:40])
    if not fault.second:
        assert finding.second is None
        return
    assert finding.second is not None
    assert squeezed(finding.second.ptx).startswith(squeezed(fault.second)[:40])


def test_the_lane_that_touches_the_register_is_named() -> None:
    finding = only_finding(run(FAULTS["accumulator stored by one lane"].body))
    assert finding.first is not None
    assert finding.first.thread == 37
    assert finding.occurrences == 1


def test_one_finding_tells_of_all_registers_of_an_operation() -> None:
    body = f"{FENCE} {MMA} {COMMIT}" + "".join(f"add.f32 f{8 + i}, f{i}, f{i};" for i in range(4))
    finding = only_finding(run(body + "wgmma.wait_group.sync.aligned 0;"))
    assert finding.first is not None
    assert squeezed(finding.first.ptx) == "add.f32f8,f0,f0"
    assert finding.occurrences == 4  # warps


OTHER = MMA.replace(D, "{f4, f5, f6, f7}")
CORRECT = {
    "read after the wait": f"{FENCE} {MMA} {WAIT} add.f32 f8, f0, f1;",
    "chain of one shape": f"{FENCE} {MMA} {MMA} {MMA} {WAIT}",
    "chain across a wait, registers untouched": f"{FENCE} {MMA} {WAIT} {MMA} {WAIT}",
    "fence after the wait": f"{FENCE} {MMA} {WAIT} add.f32 f0, f0, f0; {FENCE} {MMA} {WAIT}",
    "moved into place after the fence": f"{FENCE} mov.f32 f1, 0f00000000; mov.f32 f2, f8; "
    + f"mov.f32 f2, f3; {MMA} {WAIT}",
    "another shape after wait and fence": f"{FILL_WIDE} {FENCE} {MMA} {WAIT} {FENCE} {WIDE} {WAIT}",
    "registers of an older group": f"{FILL_WIDE} {FENCE} {MMA} {COMMIT} {OTHER} {COMMIT} "
    "wgmma.wait_group.sync.aligned 1; add.f32 f8, f0, f1; wgmma.wait_group.sync.aligned 0;",
    "two groups in flight, one refilled": f"{FILL_WIDE} {FENCE} {MMA} {COMMIT} {OTHER} {COMMIT} "
    f"wgmma.wait_group.sync.aligned 1; add.f32 f0, f0, f1; {FENCE} {MMA} {COMMIT} "
    "wgmma.wait_group.sync.aligned 0;",
    "fragment read in flight": f"{FENCE} {FRAGMENT_MMA} {COMMIT} add.u32 r8, r0, r1; "
    "wgmma.wait_group.sync.aligned 0;",
    "fragment of two operations": f"{FENCE} {FRAGMENT_MMA} {FRAGMENT_MMA} {WAIT}",
    "fragment written between wait and fence": f"{FENCE} {FRAGMENT_MMA} {WAIT} add.u32 r1, r1, 1; "
    f"{FENCE} {FRAGMENT_MMA} {WAIT}",
    "instruction that no lane executes": f"{FENCE} {MMA} {COMMIT} setp.gt.u32 p0, tid, 999; "
    "@p0 add.f32 f8, f0, f0; wgmma.wait_group.sync.aligned 0;",
}


@pytest.mark.parametrize("mode", ["early", "late", "random"])
@pytest.mark.parametrize("case", CORRECT)
def test_correct_idiom_has_no_finding(case: str, mode: str) -> None:
    run(CORRECT[case], mode, "all").raise_if_findings()


@pytest.mark.parametrize("case", FAULTS)
def test_without_the_sync_check_there_is_no_finding(case: str) -> None:
    run(FAULTS[case].body, checks=()).raise_if_findings()


def test_with_the_sync_check_alone_there_is_one() -> None:
    body = FAULTS["accumulator read before the wait"].body
    assert "f1 is read" in only_finding(run(body, checks={"sync"})).message


# ---- accumulators without values ----


def test_accumulator_that_was_never_written_is_a_finding_where_it_is_read() -> None:
    finding = only_finding(run(f"{FENCE} {OTHER} {WAIT}"))
    assert finding.kind == "init"
    assert finding.message.startswith("register f4 is read before it is written")


def test_accumulators_of_a_zeroed_product_need_no_values() -> None:
    body = f"setp.ne.u32 p2, r62, 0; {FENCE} {OTHER.replace('p1', 'p2')} {OTHER} {WAIT}"
    run(body + "add.f32 f8, f4, f5;").raise_if_findings()
