"""A measured row of any op: its time on a GPU among the baselines', and kernels by name."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from pykernels.config import Candidate
from pykernels.native import native

from . import harness
from .baselines import Baseline, OperandsT, Prepared, Unavailable
from .candidates import named, peak_tflops, rank
from .problem import Options, Problem

OURS = "pykernels"
_NUM_RANKED = 6  # candidates that are timed by name because the model likes them,
_MAX_CANDIDATES = 16  # and in all, with the best schedule of other kernels


def measure(
    problem: Problem[OperandsT],
    copy_gbps: float,
    *,
    options: Options | None = None,
    every_kernel: bool = False,
    against: list[Baseline[OperandsT]] | None = None,
) -> dict[str, Any]:
    """One row: the op and each baseline in turns, cold and warm; on request kernels by name."""
    options = options or Options()
    num_sets = harness.num_rotated_sets(problem.num_bytes)
    sets = [problem.gpu_operands(seed) for seed in range(num_sets)]
    if against is None:
        against = problem.variants(options) + problem.baselines()
    contenders, refused = _contenders(problem, sets, options, against)
    cold = harness.time_interleaved(contenders)
    warm = harness.time_interleaved({name: calls[:1] for name, calls in contenders.items()})
    # Of the GPU at hand, whatever the model stands for.
    peak = peak_tflops(Options(), problem.operand_bytes)
    roofline = harness.Roofline(problem.flops, problem.num_bytes, copy_gbps, peak, problem.link_us)
    row: dict[str, Any] = problem.row()
    row |= {"num_sms": options.num_sms, "batch_invariant": options.batch_invariant}
    row |= roofline.row(cold[OURS].timing) | problem.rates(cold[OURS].timing.median_us)
    row["warm_l2_us"] = warm[OURS].timing.median_us
    ranked = rank(problem, options)
    row |= named(ranked[0])
    row["baselines"] = refused | {
        baseline.name: _baseline_row(cold[baseline.name], cold[OURS])
        | _warm_row(warm[baseline.name], warm[OURS])
        | {"note": baseline.note}
        for baseline in against
        if baseline.name in contenders
    }
    if every_kernel and len(ranked) > 1:
        row["candidates"] = [_candidate_row(problem, c, options, sets) for c in _selected(ranked)]
    row["nvidia_smi"] = harness.nvidia_smi()
    return row


def prepare_candidate(
    problem: Problem[OperandsT], candidate: Candidate, options: Options, operands: OperandsT
) -> Prepared:
    """One kernel with one schedule, through the binding."""

    def call() -> None:
        problem.launch(current_device(operands.out), candidate, options, operands)

    return dataclasses.replace(problem.prepare_op(options, operands), call=call)


def current_device(tensor: torch.Tensor) -> Any:
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return native().CudaDevice(tensor.get_device(), stream)


def _contenders(
    problem: Problem[OperandsT],
    sets: list[OperandsT],
    options: Options,
    against: list[Baseline[OperandsT]],
) -> tuple[dict[str, list[harness.Call]], dict[str, Any]]:
    """What is timed, checked once; and why the others are not."""
    ours = [problem.prepare_op(options, operands) for operands in sets]
    problem.check(sets[0], ours[0])
    calls: dict[str, list[harness.Call]] = {OURS: [prepared.call for prepared in ours]}
    refused: dict[str, Any] = {}
    for baseline in against:
        try:
            calls[baseline.name] = _calls(problem, sets, baseline)
        except Unavailable as reason:
            refused[baseline.name] = {"unavailable": str(reason)}
        except AssertionError as error:  # a wrong baseline is shown, not timed
            refused[baseline.name] = {"unavailable": f"wrong result: {error}"}
        except Exception as error:  # others' code: what fails there must not end the bench
            refused[baseline.name] = {"unavailable": f"{type(error).__name__}: {error}"}
        if harness.agreed(baseline.name in refused) and baseline.name in calls:
            del calls[baseline.name]  # it would wait for ever
            refused[baseline.name] = {"unavailable": "refused by another rank"}
    return calls, refused


def _calls(
    problem: Problem[OperandsT], sets: list[OperandsT], baseline: Baseline[OperandsT]
) -> list[harness.Call]:
    """One for each set of operands, the first of them checked."""
    first = problem.own_output(sets[0])
    prepared = baseline.prepare(first)
    if baseline.computes:
        problem.check(first, prepared)
    harness.rehearse(prepared.call)
    rest: list[Prepared] = [baseline.prepare(problem.own_output(operands)) for operands in sets[1:]]
    return [prepared.call, *(other.call for other in rest)]


def _baseline_row(own: harness.Turns, ours: harness.Turns) -> dict[str, float]:
    """``ratio`` is the baseline's time over ours: above 1 ours is faster."""
    timing = own.timing
    return {
        "us": timing.median_us,
        "us_p10": timing.p10_us,
        "us_p90": timing.p90_us,
        "ratio": own.ratio_to(ours),
    }


def _warm_row(own: harness.Turns, ours: harness.Turns) -> dict[str, float]:
    return {"warm_l2_us": own.timing.median_us, "warm_l2_ratio": own.ratio_to(ours)}


def _selected(ranked: list[Candidate]) -> list[Candidate]:
    """The first of the ranking, then the best schedule of every other kernel, up to a number."""
    chosen = ranked[:_NUM_RANKED]
    known = {candidate.kernel for candidate in chosen}
    for candidate in ranked[_NUM_RANKED:]:
        if candidate.kernel not in known and len(chosen) < _MAX_CANDIDATES:
            chosen.append(candidate)
            known.add(candidate.kernel)
    return chosen


def _candidate_row(
    problem: Problem[OperandsT], candidate: Candidate, options: Options, sets: list[OperandsT]
) -> dict[str, Any]:
    prepare = partial(prepare_candidate, problem, candidate, options)
    prepared = [prepare(operands) for operands in sets]
    problem.check(sets[0], prepared[0])
    timing = harness.time_calls([one.call for one in prepared], sample_s=0.05)
    return named(candidate) | {"us": timing.median_us, "model": dict(candidate.cost)}
