"""Every fence, barrier, wait, arrive and commit of the kernels is needed: without it, a finding."""

from __future__ import annotations

import random
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from tests.mutants.harmless import HARMLESS, READ_BY_THE_HOST, reason
from tests.mutants.hunt import KERNELS, Hunter
from tests.mutants.mutate import mutants

SAMPLE = 12  # of each kernel, where it has so many
PARTS = 6  # of the long hunt, so that workers share it
hunter_of = lru_cache(Hunter)


def commit() -> str:
    """The commit that is tested; without git, always the same."""
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return head.stdout.strip() or "no commit"


def check(hunter: Hunter, chosen: list[int]) -> None:
    """Those of the list survive, all others do not."""
    wrong = []
    for index in chosen:
        outcome = hunter.hunt(hunter.mutants[index])
        print(f"{outcome.mutant.id}: {outcome.caught_by}")
        listed = reason(hunter.kernel, outcome.mutant)
        if outcome.caught_by is None and listed is None:
            wrong.append(f"{outcome.mutant.id} survived {outcome.runs} runs")
        elif outcome.caught_by is not None and listed is not None:
            wrong.append(f"{outcome.mutant.id} is listed as harmless: {outcome.caught_by}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sample_is_caught(kernel: str) -> None:
    """Another one with each commit."""
    hunter = hunter_of(kernel)
    choice = random.Random(commit())
    count = min(SAMPLE, len(hunter.mutants))
    check(hunter, sorted(choice.sample(range(len(hunter.mutants)), count)))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_mutant_is_caught(kernel: str, part: int) -> None:
    hunter = hunter_of(kernel)
    check(hunter, list(range(part, len(hunter.mutants), PARTS)))


def test_hardly_any_is_harmless() -> None:
    """A twentieth, beside what only the host could notice."""
    made = [(kernel, mutant) for kernel in KERNELS for mutant in hunter_of(kernel).mutants]
    harmless = [
        mutant.id
        for kernel, mutant in made
        if reason(kernel, mutant) not in (None, READ_BY_THE_HOST)
    ]
    assert len(harmless) <= 0.05 * len(made), f"{len(harmless)} of {len(made)}: {harmless}"
    unused = [e for e in HARMLESS if not any(e.covers(kernel, m) for kernel, m in made)]
    assert not unused
    assert all(entry.because for entry in HARMLESS)


PROGRAM = """.file 1 "a.cuh"
.visible .entry k()
{
    .loc 1 7 3
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [%r1], %r2;
    mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1], %r3;
    .loc 1 8 3
    @%p1 bar.warp.sync -1;
    fence.mbarrier_init.release.cluster;
    wgmma.wait_group.sync.aligned 1;
    cp.async.bulk.wait_group 0;
    barrier.cluster.arrive.aligned;
    fence.acq_rel.sys;
    @!%p1 red.release.gpu.global.add.u32 [%rd1], 1;
    st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r1], %r2, [%r3];
    add.s32 %r1, %r1, 1;
    mov.b32 %r9, 1;
    mbarrier.init.shared::cta.b64 [%r1], %r9;
    mbarrier.init.shared::cta.b64 [%r1], %r8;
    fence.proxy.async.shared::cta;
    bar.sync %r4, %r5;
}
"""
WEAKENED = [
    (5, "removed", "setp.eq.u32 %p, 0, 0;"),
    (5, "tried once",
     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [%r1], %r2; "
     "setp.eq.u32 %p, 0, 0;"),
    (5, "the other parity",
     "{ .reg .b32 changed; xor.b32 changed, %r2, 1; mbarrier.try_wait.parity.acquire.cluster"
     ".shared::cta.b64 %p, [%r1], changed; }"),
    (5, "of the next barrier",
     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [%r1+8], %r2;"),
    (5, "acquire relaxed",
     "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 %p, [%r1], %r2;"),
    (5, "cluster narrowed to cta",
     "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p, [%r1], %r2;"),
    (6, "removed", ""),
    (6, "expect_tx removed", "mbarrier.arrive.release.cta.shared::cta.b64 _, [%r1];"),
    (6, "half the bytes",
     "{ .reg .b32 changed; shr.b32 changed, %r3, 1; mbarrier.arrive.expect_tx.release.cta"
     ".shared::cta.b64 _, [%r1], changed; }"),
    (6, "of the next barrier",
     "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r1+8], %r3;"),
    (6, "release relaxed", "mbarrier.arrive.expect_tx.relaxed.cta.shared::cta.b64 _, [%r1], %r3;"),
    (8, "removed", ""),
    (9, "removed", ""),
    (10, "removed", ""),
    (10, "one group more", "wgmma.wait_group.sync.aligned 2;"),
    (11, "removed", ""),
    (11, "one group more", "cp.async.bulk.wait_group 1;"),
    (12, "removed", ""),
    (12, "relaxed", "barrier.cluster.arrive.relaxed.aligned;"),
    (13, "removed", ""),
    (13, "sys narrowed to gpu", "fence.acq_rel.gpu;"),
    (14, "release relaxed", "@!%p1 red.relaxed.gpu.global.add.u32 [%rd1], 1;"),
    (14, "gpu narrowed to cta", "@!%p1 red.release.cta.global.add.u32 [%rd1], 1;"),
    (19, "one arrival fewer",
     "{ .reg .b32 changed; sub.u32 changed, %r8, 1; "
     "mbarrier.init.shared::cta.b64 [%r1], changed; }"),
    (20, "removed", ""),
    (20, "of the other space", "fence.proxy.async.global;"),
    (20, "not of the proxy", "fence.acq_rel.cta;"),
    (21, "removed", ""),
    (21, "a warp fewer",
     "{ .reg .b32 changed; sub.u32 changed, %r5, 32; bar.sync %r4, changed; }"),
]  # fmt: skip


def test_each_instruction_is_removed_and_weakened() -> None:
    made = list(mutants(PROGRAM))
    assert [(m.ptx_line, m.change, m.ptx.splitlines()[m.ptx_line - 1].strip()) for m in made] == [
        *WEAKENED
    ]
    assert [m.source for m in made[10:12]] == ["a.cuh:7", "a.cuh:8"]
    unchanged = PROGRAM.splitlines()
    for mutant in made:
        changed = mutant.ptx.splitlines()
        assert [i + 1 for i, line in enumerate(unchanged) if line != changed[i]] == [
            mutant.ptx_line
        ]
