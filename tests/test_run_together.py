"""Launches of several ranks that wait for one another, in the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pykernels
from pykernels import _C
from pykernels.device import _emulated_device
from pykernels.emulator import EmulationError, Emulator, Launch, Module, explore
from pykernels.native import native
from tests.emulator.ptx_program import ptx_program
from tests.registered_program import NAME, Program, RegisterProgram

Words = NDArray[np.uint32]

# A word goes to the window of the peer and is read there.
EXCHANGE = """
    st.global.u32 [theirs], value;
    mov.u32 r1, 1;
    st.release.{scope}.global.u32 [theirs + 4], r1;
SPIN:
    ld.acquire.{scope}.global.u32 r2, [mine + 4];
    setp.eq.u32 p0, r2, 0;
    @p0 bra SPIN;
    ld.global.u32 r3, [mine];
    st.global.u32 [out], r3;
"""


def zeros(count: int) -> Words:
    return np.zeros(count, np.uint32)


class Exchange:
    """Ranks in a ring, each with a window of a word and its flag."""

    def __init__(self, register: RegisterProgram, scope: str = "sys", num_ranks: int = 2) -> None:
        example = {"mine": zeros(1), "theirs": zeros(1), "out": zeros(1), "value": np.uint32(0)}
        self.program: Program = register(EXCHANGE.format(scope=scope), **example)
        self.windows = [zeros(2) for _ in range(num_ranks)]
        self.outs = [zeros(1) for _ in range(num_ranks)]

    def launch(self, index: int, **options: Any) -> _C.Launch:
        peer = (index + 1) % len(self.windows)
        args = self.windows[index], self.windows[peer], self.outs[index], np.uint32(100 + index)
        return self.program.launch(*args, **{"rank": index, **options})

    def launches(self, **options: Any) -> list[_C.Launch]:
        return [self.launch(index, **options) for index in range(len(self.windows))]

    @property
    def received(self) -> list[int]:
        return [int(out[0]) for out in self.outs]


def findings_of(device: _C.EmulatedDevice) -> Sequence[dict[str, Any]]:
    ((name, report),) = device.reports
    assert name == NAME
    found: Sequence[dict[str, Any]] = report["findings"]
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_ranks", [2, 5])
def test_ranks_exchange_words(register_program: RegisterProgram, num_ranks: int, seed: int) -> None:
    exchange = Exchange(register_program, num_ranks=num_ranks)
    device = native().EmulatedDevice(seed=seed)
    device.run_together(exchange.launches())
    assert findings_of(device) == []
    assert exchange.received == [100 + (rank - 1) % num_ranks for rank in range(num_ranks)]


@pytest.mark.parametrize("seed", range(3))
def test_gpu_scope_ends_at_the_rank(register_program: RegisterProgram, seed: int) -> None:
    """What is enough on one GPU is a race between two."""
    together = Exchange(register_program, "gpu")
    device = native().EmulatedDevice(seed=seed)
    device.run_together(together.launches(rank=3))
    assert findings_of(device) == []
    apart = Exchange(register_program, "gpu")
    device = native().EmulatedDevice(seed=seed)
    device.run_together(apart.launches())
    findings = findings_of(device)
    assert {finding["kind"] for finding in findings} == {"race"}
    assert all({site["rank"] for site in finding["sites"]} == {0, 1} for finding in findings)
    assert any("on rank 1" in finding["message"] for finding in findings)


def test_each_rank_has_all_sms_of_its_own(register_program: RegisterProgram) -> None:
    """One SM holds the CTA of one rank; two launches of one rank do not get past each other."""
    apart = Exchange(register_program, num_ranks=4)
    large = {"dynamic_shared_bytes": 200 * 1024}
    native().EmulatedDevice(num_sms=1).run_together(apart.launches(**large))
    assert apart.received == [103, 100, 101, 102]
    together = Exchange(register_program)
    with pytest.raises(EmulationError, match="deadlock") as caught:
        native().EmulatedDevice(num_sms=1).run_together(together.launches(rank=2, **large))
    assert "of launch 0 on rank 2" in str(caught.value)


MEET = """
    atom.relaxed.sys.global.add.u32 r1, [counter], 1;
SPIN:
    ld.relaxed.sys.global.u32 r1, [counter];
    setp.lt.u32 p0, r1, wanted;
    @p0 bra SPIN;
"""


@pytest.mark.parametrize("schedule", ["random", "priority"])
def test_ranks_fill_their_sms_at_the_same_time(
    register_program: RegisterProgram, schedule: str
) -> None:
    """All CTAs of three ranks meet that have an SM for each; a rank's two launches share them."""
    counter = zeros(1)
    program = register_program(MEET, counter=counter, wanted=np.uint32(0))
    device = native().EmulatedDevice(num_sms=4, schedule=schedule)
    grids = [(0, 4), (1, 1), (1, 3), (2, 4)]
    device.run_together(
        [
            program.launch(
                counter, np.uint32(12), grid=grid, rank=rank, dynamic_shared_bytes=200 * 1024
            )
            for rank, grid in grids
        ]
    )
    assert counter[0] == 12


def test_what_has_not_started_is_named_with_its_rank() -> None:
    """The CTA that is resident waits at a barrier for a warp that does not exist."""
    kernel = Module.from_ptx(ptx_program("bar.sync 0, 64;", {}))["kernel"]
    launches = [
        Launch(kernel, (grid,), (32,), dynamic_smem_bytes=200 * 1024, rank=rank)
        for rank, grid in ((0, 1), (7, 1), (7, 2))
    ]
    with pytest.raises(EmulationError) as caught:
        Emulator(num_sms=1).launch_concurrent(launches)
    assert "kernel of launch 2 on rank 7: 2 of 2 clusters have not started" in str(caught.value)


def test_an_error_that_ends_the_run_names_the_rank(register_program: RegisterProgram) -> None:
    outs = zeros(1), zeros(1)
    program = register_program("st.global.u32 [out], 1;", out=outs[0])
    launches = [program.launch(out, rank=rank) for out, rank in ((outs[0], 5), (None, 6))]
    with pytest.raises(EmulationError, match=r"CTA \(0, 0, 0\) of launch 1 on rank 6, thread 0"):
        native().EmulatedDevice().run_together(launches)


def test_programmatic_dependents_of_other_streams_do_not_wait(
    register_program: RegisterProgram,
) -> None:
    """Each is the dependent of a launch before it, not of its neighbour in the list."""
    exchange = Exchange(register_program)
    device = native().EmulatedDevice()
    device.run_together(exchange.launches(rank=0, programmatic_dependent=True))
    assert exchange.received == [101, 100]


def test_a_dependent_waits_for_the_launch_of_its_rank() -> None:
    """Not for the last one of another rank, which waits for it."""
    flag, data = zeros(1), zeros(2)
    bodies = {
        0: "mov.u32 r1, 7; st.global.u32 [data], r1; griddepcontrol.launch_dependents;",
        1: """
        SPIN:
            ld.relaxed.sys.global.u32 r1, [flag];
            setp.eq.u32 p0, r1, 0;
            @p0 bra SPIN;
        """,
        2: """
            griddepcontrol.wait;
            ld.global.u32 r1, [data];
            st.global.u32 [data + 4], r1;
            mov.u32 r1, 1;
            st.relaxed.sys.global.u32 [flag], r1;
        """,
    }
    args = {"flag": flag, "data": data}
    launches = []
    for index, rank in ((0, 0), (1, 1), (2, 0)):
        kernel = Module.from_ptx(ptx_program(bodies[index], args))["kernel"]
        launches.append(
            Launch(kernel, (1,), (1,), [flag, data], rank=rank, programmatic_dependent=index == 2)
        )
    Emulator().launch_concurrent(launches).raise_if_findings()
    assert data.tolist() == [7, 7]


def test_at_least_one_launch() -> None:
    with pytest.raises(ValueError, match="launches must be at least one, got none"):
        native().EmulatedDevice().run_together([])


def test_launches_show_their_rank(register_program: RegisterProgram) -> None:
    launch = Exchange(register_program).launch(1, programmatic_dependent=True)
    assert launch.rank == 1
    assert launch.programmatic_dependent
    assert not launch.awaits_others
    shown = "programmatic_dependent=True, awaits_others=False, rank=1, argument_bytes=28"
    assert shown in repr(launch)
    assert [name for _, _, name in launch.memory] == ["mine_param", "theirs_param", "out_param"]


# ---- a rank that never comes ----

# Polls a flag until it is set or the time is over; leaves whether it came, and the time it took.
WAIT = """
    mov.u64 rd0, %globaltimer;
SPIN:
    ld.acquire.sys.global.u32 r1, [flag];
    setp.ne.u32 p0, r1, 0;
    @p0 bra CAME;
    mov.u64 rd1, %globaltimer;
    sub.u64 rd2, rd1, rd0;
    setp.lt.u64 p0, rd2, timeout;
    @p0 bra SPIN;
    mov.u32 r1, 2;
CAME:
    st.global.u32 [record], r1;
"""


@pytest.mark.parametrize("schedule", ["random", "priority"])
@pytest.mark.parametrize("present", [[0], [0, 1], [0, 1, 2]], ids=str)
def test_waits_for_an_absent_rank_end_by_time(
    register_program: RegisterProgram, present: list[int], schedule: str
) -> None:
    """All that run poll for longer than what is reported as a deadlock without a clock."""
    flag, records = zeros(1), [zeros(1) for _ in range(3)]
    example = {"flag": flag, "record": records[0], "timeout": np.uint64(0)}
    program = register_program(WAIT, **example)
    device = native().EmulatedDevice(schedule=schedule)
    timeout = np.uint64(4_000_000)
    device.run_together([program.launch(flag, records[r], timeout, rank=r) for r in present])
    assert findings_of(device) == []
    assert [int(record[0]) for record in records] == [2 if r in present else 0 for r in range(3)]


def test_time_leaps_where_nothing_else_happens(register_program: RegisterProgram) -> None:
    """Thirty seconds are over long before as many billions of instructions."""
    flag, record = zeros(1), zeros(1)
    timeout = np.uint64(30 * 10**9)
    program = register_program(WAIT, flag=flag, record=record, timeout=timeout)
    device = native().EmulatedDevice(checks=())
    device.run_together([program.launch(flag, record, timeout, rank=rank) for rank in (0, 1)])
    assert record[0] == 2


# ---- exploration ----


def emulated() -> _C.EmulatedDevice:
    device = _emulated_device.get()
    assert device is not None
    return device


def test_exploration(register_program: RegisterProgram) -> None:
    """A function that runs ranks together is explored, and what fails is replayed."""
    exchange = Exchange(register_program)
    arrays = exchange.windows + exchange.outs
    explored = explore(
        lambda: emulated().run_together(exchange.launches()), arrays=arrays, seeds=2, progress=False
    )
    assert explored.failures == ()
    assert explored.runs == 12

    racing = Exchange(register_program, "gpu")
    arrays = racing.windows + racing.outs

    def run() -> None:
        emulated().run_together(racing.launches())

    (failure,) = explore(run, arrays=arrays, seeds=1, progress=False).failures
    assert failure.trace is not None
    assert failure.trace.runs
    for array in arrays:
        array[:] = 0
    with pykernels.emulate(**failure.options) as report:
        run()
    assert [f.message for f in report.findings] == [f.message for f in failure.findings]


def test_more_ranks_than_sms_are_explored() -> None:
    """The exploration with an SM for each CTA counts those of a rank."""
    flags = [zeros(1), zeros(1)]
    body = """
        mov.u32 r1, 1;
        st.release.sys.global.u32 [theirs], r1;
    SPIN:
        ld.acquire.sys.global.u32 r1, [mine];
        setp.eq.u32 p0, r1, 0;
        @p0 bra SPIN;
    """
    launches = []
    for rank in (0, 1):
        args = {"mine": flags[rank], "theirs": flags[1 - rank]}
        kernel = Module.from_ptx(ptx_program(body, args))["kernel"]
        launches.append(Launch(kernel, (1,), (1,), list(args.values()), rank=rank))
    explored = explore(launches, serial=False, seeds=1, progress=False, num_sms=2)
    assert explored.failures == ()
    assert explored.runs == 12  # with 2 SMs, and with 1
