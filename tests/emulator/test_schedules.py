"""Schedules: priorities, what is recorded of a run, and its replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import pykernels
from pykernels.emulator import EmulationError, Emulator, Launch, Module, Report, Trace, TraceStep
from tests.emulator.isa.bulk_copy_program import INIT, SHARED, WAIT
from tests.emulator.ptx_program import ptx_program, run_ptx
from tests.emulator.test_machine import MEET, RING, STORE, SWAP, TICKETS, Words, zeros

MODES = [
    (schedule, completion)
    for schedule in ("random", "priority")
    for completion in ("early", "late", "random")
]


def tickets(emulator: Emulator, *, grid: int = 6) -> tuple[list[int], Report]:
    """Which place each thread took."""
    out = zeros(grid * 64)
    args = {"out": out, "counter": zeros(1)}
    report = run_ptx(TICKETS, args, grid=(grid,), block=(64,), emulator=emulator)
    return [int(value) for value in out], report


def test_priorities_order_warps_of_all_clusters() -> None:
    """Without change points each warp runs through: 32 tickets in a row; CTAs are mixed."""
    orders = set()
    for seed in range(6):
        emulator = Emulator(seed=seed, schedule="priority", num_change_points=0)
        places, _ = tickets(emulator)
        firsts = [places[start] for start in range(0, len(places), 32)]
        assert sorted(firsts) == list(range(0, len(places), 32))
        orders.add(tuple(firsts))
    assert len(orders) == 6
    assert any(order[1] > order[2] for order in orders)


def test_same_seed_same_priorities() -> None:
    runs = []
    for _ in range(2):
        emulator = Emulator(seed=3, schedule="priority", expected_steps=12, record_trace=True)
        runs.append((tickets(emulator)[0], emulator.trace))
    assert runs[0] == runs[1]


def turns(trace: Trace) -> list[tuple[int, int]]:
    return [(step.cluster, step.warp) for step in trace.runs[0] if step.kind == "run"]


def test_a_change_point_takes_the_turn_from_the_running_warp() -> None:
    """Between two instructions that others can notice, in the middle of a turn."""
    body = """
        ld.global.u32 r1, [out];
        ld.global.u32 r2, [out];
        ld.global.u32 r3, [out];
        st.global.u32 [out], r3;
    """
    cut = set()
    for seed in range(20):
        emulator = Emulator(
            seed=seed,
            schedule="priority",
            num_change_points=1,
            expected_steps=20,
            record_trace=True,
            checks=(),
        )
        run_ptx(body, {"out": zeros(1)}, block=(128,), emulator=emulator)
        order = turns(emulator.trace)
        merged = [warp for i, warp in enumerate(order) if i == 0 or order[i - 1] != warp]
        assert len(merged) in (4, 5)  # one warp at most comes twice
        cut.add(len(merged))
    assert cut == {4, 5}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("body", [MEET, RING + STORE], ids=["flag", "ring"])
def test_spinning_warps_starve_no_one(body: str, seed: int) -> None:
    out = zeros(64)
    emulator = Emulator(seed=seed, schedule="priority", checks=("memory", "sync"))
    args = {"out": out, "counter": zeros(1), "wanted": np.uint32(1 if body != MEET else 4)}
    grid, block = ((4,), (1,)) if body == MEET else ((1,), (64,))
    run_ptx(body, args, grid=grid, block=block, emulator=emulator).raise_if_findings()
    assert out[:4].tolist() == [1] * 4 if body == MEET else out[63] == 1225


@pytest.mark.parametrize("completion", ["early", "late", "random"])
@pytest.mark.parametrize("seed", range(4))
def test_spinning_warps_starve_no_copy(seed: int, completion: str) -> None:
    """One CTA polls for what the other, none of whose warps can run, does behind its copy."""
    body = f"""
    mov.u32 r4, %ctaid.x;
    setp.eq.u32 p2, r4, 1;
    @p2 bra SPIN;
    {INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 16;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r1], [data], 16, [r0];
    {WAIT}
    st.relaxed.gpu.global.u32 [flag], 1;
    bra END;
SPIN:
    ld.relaxed.gpu.global.u32 r5, [flag];
    setp.eq.u32 p3, r5, 0;
    @p3 bra SPIN;
END:"""
    emulator = Emulator(seed=seed, schedule="priority", async_completion=completion)
    args = {"data": zeros(4), "flag": zeros(1)}
    shape = {"grid": (2,), "block": (1,), "dynamic_smem_bytes": 16}
    run_ptx(body, args, module=SHARED, emulator=emulator, **shape).raise_if_findings()


@pytest.mark.parametrize("seed", range(4))
def test_launches_that_wait_for_each_other_under_priorities(seed: int) -> None:
    flags = zeros(4), zeros(4)
    launches = []
    for mine, theirs in (flags, flags[::-1]):
        args = {"mine": mine, "theirs": theirs}
        kernel = Module.from_ptx(ptx_program(SWAP, args))["kernel"]
        launches.append(Launch(kernel, (1,), (1,), list(args.values())))
    Emulator(seed=seed, schedule="priority", checks=()).launch_concurrent(launches)
    assert all(flag[0] >= 2 for flag in flags)


def test_a_deadlock_is_reported_under_priorities() -> None:
    with pytest.raises(EmulationError, match="no warp can run"):
        run_ptx("bar.sync 1, 64;", {}, emulator=Emulator(schedule="priority"))


# ---- traces ----


def without_empty_turns(trace: Trace) -> Trace:
    """Turns in which a woken warp found nothing to do change nothing."""
    runs = tuple(
        tuple(step for step in steps if step.kind != "run" or step.value) for steps in trace.runs
    )
    return replace(trace, runs=runs)


@pytest.mark.parametrize(("schedule", "completion"), MODES)
def test_a_replay_repeats_the_run(schedule: str, completion: str) -> None:
    options = {"schedule": schedule, "async_completion": completion, "seed": 7}
    recorder = Emulator(**options, record_trace=True)  # type: ignore[arg-type]
    order, report = tickets(recorder)
    trace = Trace.from_json(recorder.trace.to_json())
    assert trace == recorder.trace
    replayer = Emulator(trace=trace, record_trace=True)
    assert tickets(replayer)[0] == order
    assert without_empty_turns(replayer.trace) == without_empty_turns(trace)
    assert report.trace == trace.runs[0]


@pytest.mark.parametrize(("schedule", "completion"), MODES)
def test_a_replay_repeats_an_op(schedule: str, completion: str) -> None:
    """TMA, WGMMA and mbarriers of a whole kernel: every decision is in the trace."""
    generator = torch.Generator().manual_seed(0)
    operands = [
        pykernels.quantize_1x128(torch.randn(128, 256, generator=generator).bfloat16()),
        pykernels.quantize_128x128(torch.randn(128, 256, generator=generator).bfloat16()),
    ]
    options = {"schedule": schedule, "async_completion": completion, "seed": 5, "checks": ()}
    with pykernels.emulate(**options, record_trace=True) as recorded:
        first = pykernels.fp8_gemm_nt(*operands)
    with pykernels.emulate(trace=recorded.trace, checks=(), record_trace=True) as replayed:
        second = pykernels.fp8_gemm_nt(*operands)
    assert torch.equal(first, second)
    assert recorded.counters == replayed.counters
    assert without_empty_turns(replayed.trace) == without_empty_turns(recorded.trace)
    assert recorded.trace.num_switches > 0


def test_a_failing_run_is_recorded_to_its_end() -> None:
    body = "atom.global.add.u32 r1, [counter], 1; setp.eq.u32 p0, r1, 100; @p0 trap;"
    args: dict[str, Words] = {"counter": zeros(1)}
    recorder = Emulator(seed=2, schedule="priority", record_trace=True)
    with pytest.raises(EmulationError) as first:
        run_ptx(body, args, grid=(4,), block=(64,), emulator=recorder)
    args["counter"][:] = 0
    with pytest.raises(EmulationError) as second:
        run_ptx(body, args, grid=(4,), block=(64,), emulator=Emulator(trace=recorder.trace))
    assert str(first.value) == str(second.value)
    assert first.value.report.findings == second.value.report.findings


def test_steps_that_are_not_possible_are_left_out() -> None:
    steps = (
        TraceStep("run", 0, 2, 1, 10),
        TraceStep("run", 9, 0, 0, 10),
        TraceStep("run", 0, 10**12, 0, 10),
        TraceStep("run", 0, 0, 4000, 10),
        TraceStep("complete", 0, 0, 0, 5),
        TraceStep("start", 0, 0),
        TraceStep("run", 0, 0, 0, 2**63),
    )
    emulator = Emulator(trace=Trace(132, 0, "late", (steps,)), record_trace=True)
    places, _ = tickets(emulator)
    assert sorted(places) == list(range(len(places)))
    order = turns(emulator.trace)
    assert (order[0], order[1]) == ((2, 1), (0, 0))


def test_after_a_trace_warps_run_by_index() -> None:
    places, _ = tickets(Emulator(trace=Trace(132, 0, "late", ()), schedule="priority", seed=9))
    assert places == list(range(len(places)))


def test_a_trace_in_words() -> None:
    emulator = Emulator(seed=1, record_trace=True)
    tickets(emulator, grid=1)
    text = str(emulator.trace)
    assert text.startswith("132 SMs, seed 1, late completion, 1 context switches")
    assert "start launch 0 cluster 0" in text
    assert "run launch 0 cluster 0 warp 1 for " in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text is no JSON"),
        ("[" * 100000, "text is no JSON"),
        ("9" * 5000, "text is no JSON: Exceeds the limit"),
        ("[]", "must be an object with"),
        ('{"format": "pykernels emulator trace 1"}', '"runs" must be a list of lists of steps'),
        ('{"format": "pykernels emulator trace 1", "runs": [[["run", 0, 0, 0, -1]]]}', "a step"),
        ('{"format": "pykernels emulator trace 1", "runs": [[["jump", 0, 0, 0, 1]]]}', "a step"),
        ('{"format": "pykernels emulator trace 1", "runs": [[["run", true, 0, 0, 1]]]}', "a step"),
        ('{"format": "pykernels emulator trace 1", "runs": [[3]]}', "a step"),
    ],
)
def test_text_that_is_no_trace(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trace.from_json(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "fifo"}, 'schedule must be "random" or "priority", got \'fifo\''),
        ({"num_change_points": -1}, "num_change_points must be at least 0"),
        ({"expected_steps": 0.5}, "expected_steps must be an integer"),
        ({"trace": "run"}, "trace must be a Trace or None, got 'run'"),
        ({"trace": Trace(0, 0, "late", ())}, "num_sms must be at least 1"),
        ({"trace": Trace(1, 0, "late", ((("run", -1, 0, 0, 0),),))}, "a step of a trace must be"),
    ],
)
def test_options_of_no_use(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Emulator(**options)  # type: ignore[arg-type]
