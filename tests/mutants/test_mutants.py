"""Every wait, arrive, commit and expect_tx of the kernels is needed, and its absence is noticed."""

from __future__ import annotations

import pytest

from tests.mutants.hunt import SHAPES, hunt
from tests.mutants.mutate import mutants


@pytest.mark.parametrize("kernel", SHAPES)
def test_every_mutant_is_caught(kernel: str) -> None:
    outcomes = list(hunt(kernel))
    for outcome in outcomes:
        print(f"{outcome.mutant.id} {outcome.mutant.change}: {outcome.caught_by}")
    survivors = [outcome.mutant.id for outcome in outcomes if outcome.caught_by is None]
    assert not survivors, f"survived {outcomes[0].runs} and more runs: {survivors}"
    assert len(outcomes) >= 20


def test_a_removed_try_wait_leaves_its_predicate_true() -> None:
    ptx = """.file 1 "a.cuh"
.visible .entry k()
{
    .loc 1 7 3
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%r1], %r2;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], %r3;
    add.s32 %r1, %r1, 1;
}
"""
    made = list(mutants(ptx))
    assert [(m.change, m.source, m.ptx_line) for m in made] == [
        ("removed", "a.cuh:7", 5),
        ("removed", "a.cuh:7", 6),
        ("expect_tx removed", "a.cuh:7", 6),
    ]
    assert "setp.eq.u32 %p, 0, 0;" in made[0].ptx
    assert "mbarrier.arrive.shared::cta.b64 _, [%r1];" in made[2].ptx
    assert all(m.ptx.count("add.s32") == 1 for m in made)
