"""Who counts as whom in the race check, and since when: pairs of programs, one wrong, one right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from pykernels.emulator import EmulationError, Emulator, Finding
from pykernels.emulator.arguments import Argument
from tests.emulator.ptx_program import run_ptx

SCHEDULES = [(mode, seed) for mode in ("early", "late", "random") for seed in range(3)]


@dataclass(frozen=True)
class Case:
    """A program that must give one kind of finding, or none.

    Attributes:
        id: What it is about.
        body: As of `run_ptx`; `out`, `source` and `count` are arrays of words.
        finds: What the finding's message holds; None for no finding.
        kind: The finding's.
    """

    id: str
    body: str
    finds: str | None = None
    kind: str = "race"
    grid: Sequence[int] = field(default=(1,))
    block: Sequence[int] = field(default=(32,))
    cluster: Sequence[int] = field(default=(1,))

    def run(self, mode: str, seed: int) -> Sequence[Finding]:
        args: dict[str, Argument] = {
            "source": np.arange(256, dtype=np.uint32),
            "out": np.zeros(64, np.uint32),
            "count": np.zeros(4, np.uint32),
        }
        emulator = Emulator(seed=seed, async_completion=mode, num_threads=1)
        try:
            report = run_ptx(
                self.body,
                args,
                grid=self.grid,
                block=self.block,
                cluster=self.cluster,
                emulator=emulator,
            )
        except EmulationError as error:
            report = error.report
        return report.findings

    def check(self) -> None:
        for mode, seed in SCHEDULES:
            findings = self.run(mode, seed)
            where = f"{mode} completion, seed {seed}: {[str(finding) for finding in findings]}"
            if self.finds is None:
                assert not findings, where
                continue
            said = [finding for finding in findings if finding.kind != "init"]
            assert said, where
            for finding in said:
                assert finding.kind == self.kind, where
                assert self.finds in finding.message, where


# ---- dynamic instances of one instruction ----

SCATTER = """
    .reg .b32 at, place, i;
    .shared .align 128 .b8 buffer[512];
    mov.u32 at, buffer;
    mov.u32 i, 0;
    LOOP:
    {address}
    st.shared.u32 [place], lane;
    {other}
    {sync}
    add.u32 i, i, 1;
    setp.lt.u32 p0, i, 3;
    @p0 bra LOOP;
    bar.warp.sync -1;
    ld.shared.u32 r1, [at + 8];
    st.global.u32 [out], r1;
"""
SHIFTED = "add.u32 place, lane, i; shl.b32 place, place, 2; add.u32 place, place, at;"
ROTATED = (
    "add.u32 place, lane, i; and.b32 place, place, 31; shl.b32 place, place, 2;"
    "add.u32 place, place, at;"
)
OWN = "shl.b32 place, lane, 2; add.u32 place, place, at;"
ONE_WORD = "add.u32 place, at, 8;"
ANOTHER = "st.shared.u32 [at + 384], i;"


def scatter(address: str, sync: str = "", other: str = "") -> str:
    return SCATTER.format(address=address, sync=sync, other=other)


INSTANCES = [
    Case("a store that runs again, shifted by a lane", scatter(SHIFTED), "write"),
    Case("a store that runs again, rotated", scatter(ROTATED), "write"),
    Case("two stores that run again", scatter(ROTATED, other=ANOTHER), "write"),
    Case("with bar.warp.sync between", scatter(ROTATED, "bar.warp.sync -1;", ANOTHER)),
    Case("each lane its own word", scatter(OWN)),
    Case("lanes of one instruction on one word", scatter(ONE_WORD, "bar.warp.sync -1;")),
]


CASES = [*INSTANCES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case) -> None:
    case.check()
