"""Shuffles, votes, matches, reductions, elect.sync, activemask: partial masks, wrong use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from pykernels.emulator import EmulationError, Report
from tests.emulator.ptx_program import run_ptx

Words = npt.NDArray[np.uint32]

STORE = """
    mul.wide.u32 rd0, tid, 4;
    add.u64 rd0, out, rd0;
    st.global.u32 [rd0], {};
"""


def values(seed: int = 0) -> Words:
    return np.random.default_rng(seed).integers(0, 2**32, 32, dtype=np.uint32)


def run_lanes(body: str, source: Words | None = None, result: str = "r1") -> Words:
    """Runs one warp; ``r0`` holds the lane's element of `source`, ``result`` is returned."""
    out = np.zeros(32, dtype=np.uint32)
    load = "mul.wide.u32 rd0, tid, 4; add.u64 rd0, source, rd0; ld.global.u32 r0, [rd0];"
    report = run_ptx(
        load + body + STORE.format(result),
        {"out": out, "source": values() if source is None else source},
    )
    report.raise_if_findings()
    return out


# ---- shfl.sync ----

SHUFFLES = {
    "up": lambda lane, b: lane - b,
    "down": lambda lane, b: lane + b,
    "bfly": lambda lane, b: lane ^ b,
    "idx": lambda lane, b: b,
}


def expected_shuffle(mode: str, b: int, width: int) -> tuple[list[int], list[bool]]:
    """Source lane and range predicate of every lane, as CUDA documents its `width`."""
    sources = []
    valid = []
    for lane in range(32):
        start = lane // width * width
        source = start + b % width if mode == "idx" else SHUFFLES[mode](lane, b)
        inside = {
            "up": source >= start,
            "down": source < start + width,
            "bfly": source < start + width,
            "idx": True,
        }[mode]
        sources.append(source if inside else lane)
        valid.append(inside)
    return sources, valid


@pytest.mark.parametrize("width", [32, 16, 8, 1])
@pytest.mark.parametrize("b", [0, 1, 5, 16, 31])
@pytest.mark.parametrize("mode", SHUFFLES)
def test_shuffle_reads_the_lane_that_cuda_documents(mode: str, b: int, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    source = values()
    out = run_lanes(f"shfl.sync.{mode}.b32 r1|p1, r0, {b}, {clamp}, -1;", source)
    sources, valid = expected_shuffle(mode, b, width)
    np.testing.assert_array_equal(out, source[sources])
    out = run_lanes(
        f"shfl.sync.{mode}.b32 r1|p1, r0, {b}, {clamp}, -1; selp.u32 r2, 1, 0, p1;", source, "r2"
    )
    np.testing.assert_array_equal(out, np.array(valid, dtype=np.uint32))


def test_shuffle_takes_registers_in_every_operand() -> None:
    source = values()
    out = run_lanes(
        "xor.b32 r2, lane, 9; mov.u32 r3, 31; mov.u32 r4, -1;shfl.sync.idx.b32 r1, r0, r2, r3, r4;",
        source,
    )
    np.testing.assert_array_equal(out, source[np.arange(32) ^ 9])


def test_shuffle_in_place() -> None:
    source = values()
    out = run_lanes("shfl.sync.bfly.b32 r0, r0, 1, 31, -1;", source, "r0")
    np.testing.assert_array_equal(out, source[np.arange(32) ^ 1])


def test_half_warps_shuffle_in_different_branches() -> None:
    source = values()
    out = run_lanes(
        """
        setp.lt.u32 p0, lane, 16;
        @p0 bra LOW;
        shfl.sync.bfly.b32 r1, r0, 2, 31, 0xffff0000;
        bra DONE;
    LOW:
        shfl.sync.bfly.b32 r1, r0, 1, 31, 0xffff;
    DONE:
        """,
        source,
    )
    lanes = np.arange(32)
    np.testing.assert_array_equal(out, source[np.where(lanes < 16, lanes ^ 1, lanes ^ 2)])


def test_converged_halves_give_their_own_membermask() -> None:
    out = run_lanes(
        "setp.lt.u32 p0, lane, 16; selp.b32 r2, 0xffff, 0xffff0000, p0;"
        "and.b32 r3, lane, 3; setp.eq.u32 p1, r3, 0; vote.sync.ballot.b32 r1, p1, r2;"
    )
    assert set(out[:16]) == {0x1111}
    assert set(out[16:]) == {0x11110000}


def test_reading_an_absent_lane_is_a_finding() -> None:
    out = np.zeros(32, dtype=np.uint32)
    report = run_ptx(
        """
        setp.ge.u32 p0, lane, 16;
        @p0 bra DONE;
        shfl.sync.idx.b32 r1, lane, 20, 31, 0xffff;
        mul.wide.u32 rd0, tid, 4;
        add.u64 rd0, out, rd0;
        st.global.u32 [rd0], r1;
    DONE:
        """,
        {"out": out},
    )
    assert only_finding(report) == ("sync", "reads lane 20, which does not take part")


# ---- vote.sync, match.sync, redux.sync ----


def expected_vote(mode: str, votes: npt.NDArray[np.bool_]) -> int:
    ballot = sum(1 << lane for lane in range(32) if votes[lane])
    return {
        "all": int(votes.all()),
        "any": int(votes.any()),
        "uni": int(votes.all() or not votes.any()),
        "ballot": ballot,
    }[mode]


@pytest.mark.parametrize("bits", [0, 0xFFFFFFFF, 1, 0x80000000, 0x5A5A1234])
@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("mode", ["all", "any", "uni", "ballot"])
def test_vote(mode: str, negated: bool, bits: int) -> None:
    source = np.array([bits >> lane & 1 for lane in range(32)], dtype=np.uint32)
    sign = "!" if negated else ""
    vote = (
        f"vote.sync.ballot.b32 r1, {sign}p0, -1;"
        if mode == "ballot"
        else f"vote.sync.{mode}.pred p1, {sign}p0, -1; selp.u32 r1, 1, 0, p1;"
    )
    out = run_lanes("setp.ne.u32 p0, r0, 0;" + vote, source)
    assert set(out.tolist()) == {expected_vote(mode, (source != 0) ^ negated)}


def test_match_any_gives_each_lane_its_equals() -> None:
    source = values() % 5
    out = run_lanes("match.any.sync.b32 r1, r0, -1;", source)
    expected = [sum(1 << j for j in range(32) if source[j] == source[i]) for i in range(32)]
    np.testing.assert_array_equal(out, np.array(expected, dtype=np.uint32))


def test_match_any_of_64_bits_looks_at_the_upper_half() -> None:
    out = run_lanes("and.b32 r2, lane, 1; mov.b64 rd1, {7, r2}; match.any.sync.b64 r1, rd1, -1;")
    np.testing.assert_array_equal(out, np.where(np.arange(32) % 2, 0xAAAAAAAA, 0x55555555))


@pytest.mark.parametrize(("same", "mask"), [(True, 0xFFFFFFFF), (False, 0)])
@pytest.mark.parametrize("bits", [32, 64])
def test_match_all(bits: int, same: bool, mask: int) -> None:
    source = np.full(32, 7, dtype=np.uint32)
    source[9] = 7 if same else 8
    operand = "r0" if bits == 32 else "rd1"
    body = f"mov.b64 rd1, {{r0, r0}}; match.all.sync.b{bits} r1|p1, {operand}, -1;"
    assert set(run_lanes(body, source)) == {mask}
    assert set(run_lanes(body + "selp.u32 r2, 1, 0, p1;", source, "r2")) == {int(same)}


REDUCTIONS: dict[str, Callable[[Words], int]] = {
    "add.u32": lambda x: int(x.astype(np.uint64).sum()),
    "add.s32": lambda x: int(x.view(np.int32).astype(np.int64).sum()),
    "min.u32": lambda x: int(x.min()),
    "max.u32": lambda x: int(x.max()),
    "min.s32": lambda x: int(x.view(np.int32).min()),
    "max.s32": lambda x: int(x.view(np.int32).max()),
    "and.b32": lambda x: int(np.bitwise_and.reduce(x)),
    "or.b32": lambda x: int(np.bitwise_or.reduce(x)),
    "xor.b32": lambda x: int(np.bitwise_xor.reduce(x)),
}


@pytest.mark.parametrize("form", REDUCTIONS)
def test_redux(form: str) -> None:
    source = values(3) | np.uint32(0x100)
    out = run_lanes(f"redux.sync.{form} r1, r0, -1;", source)
    assert set(out.tolist()) == {REDUCTIONS[form](source) % 2**32}


def test_redux_of_some_lanes() -> None:
    source = values(4)
    out = run_lanes(
        "mov.u32 r1, 0; setp.ge.u32 p0, lane, 5; @p0 bra DONE;"
        "redux.sync.max.u32 r1, r0, 0x1f; DONE:",
        source,
    )
    assert out.tolist() == [int(source[:5].max())] * 5 + [0] * 27


# ---- elect.sync, activemask ----


@pytest.mark.parametrize("first", [0, 7, 31])
def test_elect_takes_the_lowest_lane(first: int) -> None:
    mask = 0xFFFFFFFF << first & 0xFFFFFFFF
    body = f"""
        mov.u32 r1, 99;
        mov.u32 r2, 0;
        setp.lt.u32 p0, lane, {first};
        @p0 bra DONE;
        elect.sync r1|p1, {mask};
        @p1 mov.u32 r2, 1;
    DONE:
    """
    assert run_lanes(body).tolist() == [99] * first + [first] * (32 - first)
    assert np.flatnonzero(run_lanes(body, result="r2")).tolist() == [first]


def test_elect_without_the_lane_number() -> None:
    out = run_lanes("mov.u32 r1, 0; elect.sync _|p1, -1; @p1 mov.u32 r1, 1;")
    assert out.tolist() == [1] + [0] * 31


def test_activemask_is_that_of_the_branch() -> None:
    out = run_lanes(
        "activemask.b32 r1; setp.lt.u32 p0, lane, 4; @!p0 bra DONE; activemask.b32 r1; DONE:"
    )
    assert set(out[:4]) == {0xF}
    assert set(out[4:]) == {0xFFFFFFFF}


def test_lanes_that_do_not_exist_are_not_waited_for() -> None:
    out = np.zeros(20, dtype=np.uint32)
    report = run_ptx(
        "setp.eq.u32 p0, lane, lane; vote.sync.ballot.b32 r1, p0, -1;" + STORE.format("r1"),
        {"out": out},
        block=(20,),
    )
    report.raise_if_findings()
    assert set(out) == {0xFFFFF}


# ---- bar.warp.sync, wrong use ----


def test_bar_warp_sync_makes_lanes_wait() -> None:
    out = run_lanes(
        """
        .shared .align 4 .b32 word;
        setp.ne.u32 p0, lane, 31;
        @p0 bra WAIT;
        mov.u32 r2, 0;
    LOOP:
        add.u32 r2, r2, 1;
        setp.lt.u32 p1, r2, 5000;
        @p1 bra LOOP;
        st.shared.u32 [word], r2;
    WAIT:
        bar.warp.sync -1;
        ld.shared.u32 r1, [word];
        """
    )
    assert set(out) == {5000}


def test_bar_warp_sync_meets_across_branches() -> None:
    out = run_lanes(
        """
        setp.lt.u32 p0, lane, 16;
        @p0 bra LOW;
        bar.warp.sync -1;
        mov.u32 r1, 2;
        bra DONE;
    LOW:
        bar.warp.sync -1;
        mov.u32 r1, 1;
    DONE:
        """
    )
    assert out.tolist() == [1] * 16 + [2] * 16


def only_finding(report: Report) -> tuple[str, str]:
    assert len(report.findings) == 1, report
    return report.findings[0].kind, report.findings[0].message


def test_lane_outside_its_membermask_is_a_finding() -> None:
    report = run_ptx("vote.sync.ballot.b32 r1, 1, 0xffff;", {})
    assert only_finding(report) == ("sync", "the lane is not in the membermask 0xffff")
    assert report.findings[0].first is not None
    assert report.findings[0].first.thread == 16


def test_guarded_off_member_is_a_finding() -> None:
    report = run_ptx("setp.lt.u32 p0, lane, 8; @p0 bar.warp.sync -1;", {})
    kind, message = only_finding(report)
    assert kind == "sync"
    assert "24 lanes whose guard keeps them out" in message


def test_members_in_another_loop_are_a_deadlock_that_names_both() -> None:
    with pytest.raises(EmulationError) as caught:
        run_ptx(
            """
            setp.lt.u32 p0, lane, 8;
            @p0 bra LOW;
            bar.sync 0;
            bra DONE;
        LOW:
            shfl.sync.idx.b32 r1, lane, 0, 31, -1;
        DONE:
            """,
            {},
        )
    message = str(caught.value)
    assert "warp 0 lanes 0-7 waits for lanes 8-31 of the warp to arrive here" in message
    assert "warp 0 lanes 8-31 waits for lanes 0-7 of the warp to arrive here" in message
    assert "bar.sync 0" in message
