"""Exploration: finds what only rare schedules show, reduces it, and shows it again."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import pykernels
from pykernels.emulator import (
    EmulationError,
    Emulator,
    Exploration,
    Failure,
    Finding,
    Launch,
    Module,
    Trace,
    explore,
)
from pykernels.emulator.explore import SCHEDULES
from tests.emulator.ptx_program import ptx_program
from tests.emulator.test_machine import SWAP, Words, zeros

RANDOM = tuple(pair for pair in SCHEDULES if pair[0] == "random")

# A thread of each CTA works for a while, then adds one to a word.
WORK = """
    mov.u32 r5, 0;
LOOP:
    add.u32 r5, r5, 1;
    setp.lt.u32 p0, r5, 400;
    @p0 bra LOOP;
"""
LOST_UPDATE = (
    WORK
    + """
    ld.relaxed.gpu.global.u32 r1, [out];
    add.u32 r1, r1, 1;
    st.relaxed.gpu.global.u32 [out], r1;
"""
)
RIGHT_UPDATE = WORK + "atom.relaxed.gpu.global.add.u32 r1, [out], 1;"


def launch_of(body: str, args: dict[str, Any], *, grid: int = 1, block: int = 1) -> Launch:
    kernel = Module.from_ptx(ptx_program(body, args))["kernel"]
    return Launch(kernel, (grid,), (block,), list(args.values()))


def explored(launch: Any, **options: Any) -> Exploration:
    return explore(launch, **{"checks": (), "progress": False, **options})


# ---- a bug of rare schedules ----


def test_a_lost_update_is_found_reduced_and_replayed() -> None:
    out = zeros(1)
    out[0] = 5
    launch = launch_of(LOST_UPDATE, {"out": out}, grid=2)
    assert explored(launch, seeds=20, schedules=RANDOM).failures == ()

    exploration = explored(launch, seeds=20)
    (failure,) = exploration.failures
    assert out[0] == 5  # as before
    (finding,) = failure.findings
    assert finding.kind == "schedule"
    assert "out_param[0] is 0x00000006, 0x00000007 in the first run" in finding.message
    assert failure.error is None
    assert failure.order == ((0,),)

    # The shortest schedule: one CTA stops between its load and its store.
    assert failure.trace is not None
    assert failure.trace.num_switches <= 2
    assert 1 <= len(failure.trace.runs[0]) <= 4
    for trace in (failure.trace, Trace.from_json(failure.trace.to_json())):
        emulators = failure.emulator(), Emulator(trace=trace, checks=())
        reports = []
        for emulator in emulators:
            out[0] = 5
            reports.append(emulator.launch_concurrent([launch]))
            assert out[0] == 6
        assert reports[0] == reports[1]


def test_reduction_ends_at_the_number_of_runs() -> None:
    launch = launch_of(LOST_UPDATE, {"out": zeros(1)}, grid=2)
    exploration = explored(launch, seeds=20, max_reduction_runs=0)
    (failure,) = exploration.failures
    assert exploration.reduction_runs == 0
    assert failure.trace is None
    report = failure.emulator().launch_concurrent([launch])
    assert report.seed == failure.options["seed"]
    assert launch.args[0][0] == 1  # type: ignore[index]


def test_the_least_seed_and_the_fewest_change_points() -> None:
    """Warps that take different turns at once need no change point."""
    out = zeros(8)
    body = "atom.global.add.u32 r1, [out], 1; mov.u32 r2, %ctaid.x; mad.wide.u32 rd0, r2, 4, out;"
    launch = launch_of(body + "st.global.u32 [rd0 + 4], r1;", {"out": out}, grid=4)
    schedules = [("random", "late"), ("priority", "late")]
    (failure,) = explored(launch, seeds=[40, 41], schedules=schedules).failures
    assert failure.options["num_change_points"] == 0
    assert failure.options["seed"] < 16


def test_a_right_program_passes() -> None:
    out = zeros(1)
    exploration = explored(launch_of(RIGHT_UPDATE, {"out": out}, grid=2), seeds=10, checks="all")
    assert exploration.failures == ()
    assert exploration.runs == 10 * len(SCHEDULES)
    assert exploration.reduction_runs == 0
    assert str(exploration) == "no failure in 60 runs"
    exploration.raise_if_findings()
    assert out[0] == 0


COPY = """
    .shared .align 16 .b8 stage[128];
    .shared .align 8 .b8 full[8];
    mov.u32 r1, stage;
    mov.u32 r2, full;
    setp.ne.u32 p0, tid, 0;
    @p0 bra SHARE;
    mbarrier.init.shared::cta.b64 [r2], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r2], 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r1], [x], 128, [r2];
SHARE:
    bar.sync 0;
WAIT:
    {wait}
    mad.lo.u32 r3, tid, 4, r1;
    ld.shared.u32 r4, [r3];
    mad.wide.u32 rd0, tid, 4, out;
    st.global.u32 [rd0], r4;
"""
WAITS = "mbarrier.try_wait.parity.shared::cta.b64 p1, [r2], 0; @!p1 bra WAIT;"


@pytest.mark.parametrize("wait", [WAITS, ""], ids=["right", "missing"])
def test_a_missing_wait_that_early_completion_hides(wait: str) -> None:
    x = np.arange(1, 33, dtype=np.uint32)
    launch = launch_of(COPY.replace("{wait}", wait), {"x": x, "out": zeros(32)}, block=32)
    hidden = explored(launch, schedules=[("random", "early"), ("priority", "early")])
    assert hidden.failures == ()
    exploration = explored(launch, schedules=SCHEDULES[::-1])  # the right bits need not come first
    if wait:
        assert exploration.failures == ()
        return
    (failure,) = exploration.failures
    assert failure.findings[0].kind in ("schedule", "sync")
    with pytest.raises(EmulationError, match="1 failures in"):
        exploration.raise_if_findings()


def test_errors_and_findings_are_failures_each_once() -> None:
    body = """
        atom.global.add.u32 r1, [counter], 1;
        setp.eq.u32 p0, r1, 0;
        mov.u32 r2, %ctaid.x;
        setp.eq.and.u32 p1, r2, 1, p0;
        @p1 trap;
    """
    counter = zeros(1)
    launch = launch_of(body, {"counter": counter}, grid=2)
    exploration = explored(launch, seeds=20, stop_at_first=False)
    (failure,) = exploration.failures
    assert exploration.runs == 20 * len(SCHEDULES)
    assert 1 < failure.occurrences < exploration.runs
    assert failure.error is not None
    assert "executed trap" in str(failure.error)
    with pytest.raises(EmulationError) as again:
        failure.emulator().launch_concurrent([launch])
    assert again.value.report.findings == failure.error.report.findings
    counter[0] = 0
    first = explored(launch, seeds=20)
    assert len(first.failures) == 1
    assert first.runs < exploration.runs


def test_a_failure_in_words() -> None:
    launch = launch_of(LOST_UPDATE, {"out": zeros(1)}, grid=2)
    text = str(explored(launch, seeds=20))
    assert text.startswith("1 failures in ")
    assert "checks=(), " in text
    assert "schedule='priority'" in text
    assert "the result depends on the schedule" in text
    assert "replayed by a trace: 132 SMs, seed " in text


# ---- several launches ----

FIRST = "mov.u32 r1, 7; st.global.u32 [data], r1;"
SECOND = "ld.global.u32 r1, [data]; st.global.u32 [out], r1;"


def pair() -> tuple[Sequence[Launch], Words]:
    data, out = zeros(1), zeros(1)
    launches = [
        launch_of(FIRST, {"data": data}),
        launch_of(SECOND, {"data": data, "out": out}),
    ]
    return launches, out


def test_pairs_run_one_after_the_other_in_both_orders() -> None:
    launches, out = pair()
    only_serial = explored(launches, seeds=1, schedules=[("random", "late")])
    (failure,) = only_serial.failures
    assert only_serial.runs in (2, 3)
    assert len(failure.order) == 2 or failure.trace is not None
    assert "launch 1 out_param[0]" in failure.findings[0].message
    if len(failure.order) == 2:
        assert "launches, one after the other: " in str(failure)
    emulator = failure.emulator()
    expected = 7 if failure.findings[0].message.find("is 0x00000007") > 0 else 0
    for group in failure.order:
        emulator.launch_concurrent([launches[i] for i in group])
    assert out[0] == expected


def test_a_dependent_launch_keeps_its_place() -> None:
    data, out = zeros(1), zeros(1)
    first = launch_of(FIRST, {"data": data})
    second = launch_of("griddepcontrol.wait;" + SECOND, {"data": data, "out": out})
    second = Launch(second.kernel, (1,), (1,), second.args, programmatic_dependent=True)
    exploration = explored([first, second], seeds=3, checks="all")
    assert exploration.failures == ()
    assert exploration.runs == 3 * len(SCHEDULES) * 3  # together, in order, on two SMs


def test_launches_that_wait_for_each_other_must_run_together() -> None:
    flags = zeros(4), zeros(4)
    launches = [
        launch_of(SWAP, {"mine": mine, "theirs": theirs}) for mine, theirs in (flags, flags[::-1])
    ]
    options: dict[str, Any] = {"same_bits": False, "seeds": 2, "max_warp_instructions": 50_000}
    together = explored(launches, serial=False, **options)
    assert together.failures == ()
    assert together.runs == 2 * len(SCHEDULES) * 2  # with 132 SMs and with two
    (failure,) = explored(launches, **options).failures
    assert failure.order == ((0,), (1,))
    assert failure.error is not None
    assert "max_warp_instructions" in str(failure.error)


# ---- memory ----


def test_every_run_starts_from_the_same_memory() -> None:
    """Behind a pointer too, and in a row of a larger array."""
    array = torch.arange(40, dtype=torch.int32).reshape(4, 10)
    row, hidden = array[1:3, 2:6], torch.zeros(1, dtype=torch.int32)
    pointers = torch.tensor([hidden.data_ptr()])
    body = """
        ld.global.u64 rd1, [pointers];
        atom.global.add.u32 r1, [rd1], 3;
        ld.global.u32 r2, [row];
        add.u32 r2, r2, 1;
        st.global.u32 [row], r2;
        st.global.u32 [row + 40], r1;
    """
    launch = launch_of(body, {"row": row, "pointers": pointers})
    before = array.clone()
    assert explored(launch, arrays=[hidden]).failures == ()
    assert torch.equal(array, before)
    assert hidden[0] == 0


def test_the_element_that_differs_is_named() -> None:
    array = np.zeros((3, 4), dtype=np.uint16)
    body = """
        mov.u32 r2, %ctaid.x;
        cvt.u16.u32 h0, r2;
        st.relaxed.gpu.global.u16 [out + 12], h0;
    """
    launch = launch_of(body, {"out": array[:, :3]}, grid=4)
    (failure,) = explored(launch, seeds=8).failures
    assert "out_param[1, 2] is 0x000" in failure.findings[0].message
    assert "(1 elements differ)" in failure.findings[0].message


# ---- ops ----


def test_ops_are_explored_through_a_function() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    exploration = explore(lambda: pykernels.quantize_1x128(x), seeds=1, progress=False)
    exploration.raise_if_findings()
    assert exploration.runs == len(SCHEDULES)


def test_results_of_a_function_are_compared() -> None:
    x = torch.zeros(1, 128, dtype=torch.bfloat16)

    def launching(result: object) -> object:
        pykernels.quantize_1x128(x)
        return result

    calls = iter(range(100))
    (failure,) = explored(lambda: launching({"x": [torch.full((2,), next(calls))]})).failures
    assert "result['x'][0][0] is 0x" in failure.findings[0].message
    sizes = iter(range(1, 100))
    grows = explored(lambda: launching(torch.zeros(next(sizes))), max_reduction_runs=0)
    (failure,) = grows.failures
    assert "result has 8 bytes, 4 in the first run" in failure.findings[0].message


def test_other_exceptions_of_a_function_pass_through() -> None:
    out = zeros(1)

    def fail() -> None:
        out[0] = 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        explored(fail, arrays=[out])
    assert out[0] == 0


def test_a_function_that_launches_nothing_under_emulate() -> None:
    launch = launch_of("trap;", {})
    for function in (lambda: None, lambda: Emulator().launch_concurrent([launch])):
        with pytest.raises(ValueError, match=r"launched nothing under pykernels\.emulate"):
            explored(function)


def test_a_function_whose_first_launch_fails_is_explored() -> None:
    x = torch.zeros(1, 128, dtype=torch.bfloat16)
    (failure,) = explored(lambda: pykernels.quantize_1x128(x), max_warp_instructions=3).failures
    assert failure.error is not None


# Two CTAs, a slice each where several threads run them, write to one word.
RACE = """
    mov.u32 r1, %ctaid.x;
    ld.global.u32 r2, [out];
    mad.lo.u32 r2, r2, 3, r1;
    st.global.u32 [out], r2;
"""


def test_explorations_run_on_one_thread() -> None:
    """So do their replays: what a race leaves in memory would differ from call to call."""
    out = zeros(64)
    launch = launch_of(RACE, {"out": out}, grid=200)
    (failure,) = explored(launch, seeds=2, max_reduction_runs=0).failures
    assert failure.options["num_threads"] == 1
    results = set()
    for _ in range(8):
        out[:] = 0
        failure.emulator().launch_concurrent([launch])
        results.add(out.tobytes())
    assert len(results) == 1


def test_many_seeds_take_no_memory() -> None:
    launch = launch_of("trap;", {})
    tracemalloc.start()
    try:
        exploration = explored(launch, seeds=2**31, max_reduction_runs=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert exploration.runs == 1
    assert peak < 5e6


def test_schedules_and_seeds_may_be_iterators() -> None:
    schedules = (pair for pair in SCHEDULES[:2])
    checks = (name for name in ("sync", "race"))
    exploration = explored(
        launch_of("", {}),
        seeds=iter([3, 4]),
        schedules=schedules,
        checks=checks,
    )
    assert exploration.runs == 4


def test_arrays_of_which_the_memory_is_replaced() -> None:
    x = torch.zeros(1, 128, dtype=torch.bfloat16)
    hidden = torch.zeros(4)

    def function() -> None:
        pykernels.quantize_1x128(x)
        hidden.untyped_storage().resize_(0)

    with pytest.raises(ValueError, match=r"arrays\[0\] must lie within its storage"):
        explored(function, arrays=[hidden])


def test_a_failure_of_many_findings_is_printed_in_part() -> None:
    finding = Finding("race", "one")
    failure = Failure((finding,) * 30 + (Finding("sync", "other"),) * 2, None, {}, (), None)
    text = str(Exploration(40, 0, (failure,) * 30))
    assert text.startswith("30 failures in 40 runs")
    assert text.count("and 12 more: 10 race, 2 sync") == 20
    assert text.endswith("and 10 more failures")


def test_failures_can_be_pickled() -> None:
    launch = launch_of(LOST_UPDATE, {"out": zeros(1)}, grid=2)
    exploration = explored(launch, seeds=20)
    assert str(pickle.loads(pickle.dumps(exploration))) == str(exploration)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"launch": 3}, "launch must be a Launch, a sequence of Launches or a function, got 3"),
        ({"launch": []}, "launch must be a Launch"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": "12"}, "seeds must be a number or integers"),
        ({"seeds": []}, "seeds must be a number or integers, at least one"),
        ({"seeds": [-1]}, "seeds must be at least 0"),
        ({"schedules": []}, "schedules must be pairs"),
        ({"schedules": [("random", "never")]}, "schedules must be pairs"),
        ({"schedules": 7}, "schedules must be pairs"),
        ({"schedules": [("random", "late"), "late"]}, "schedules must be pairs .*got 'late'"),
        ({"schedules": iter(())}, "schedules must be pairs .*at least one"),
        ({"checks": "\udc00"}, r"checks must be .*got '\\udc00'"),
        ({"num_sms": 0}, "num_sms must be at least 1"),
        ({"checks": 3}, 'checks must be "all" or a set'),
        ({"num_change_points": None}, "num_change_points must be an integer"),
        ({"max_reduction_runs": -1}, "max_reduction_runs must be at least 0"),
        ({"arrays": zeros(3)}, "arrays must be a sequence of arrays, got ndarray"),
        ({"arrays": [3]}, r"arrays\[0\] must be a torch CPU tensor or a NumPy array"),
    ],
)
def test_arguments_of_no_use(changes: dict[str, Any], message: str) -> None:
    arguments = {"launch": launch_of("", {}), **changes}
    with pytest.raises(ValueError, match=message):
        explored(**arguments)
