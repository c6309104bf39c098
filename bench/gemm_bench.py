"""The dense FP8 GEMM on a GPU: shapes, correctness, and its time among the baselines'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import pykernels
from pykernels.config import Candidate
from pykernels.gemm import compute_in_torch
from pykernels.native import native
from pykernels.testing import TENSOR_CORE_FLOOR, assert_rows_close

from . import harness
from .baselines import Baseline, Operands, Prepared, Unavailable, baselines
from .candidates import Options, Shape, launch, named, peak_tflops, rank

# n x k of DeepSeek-V3's linear layers.
WEIGHTS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
ROWS = (64, 128, 4096, 1, 16, 32, 256, 512, 1024, 2048, 8192)  # in the order of interest
OURS = "pykernels"
_NUM_RANKED = 6  # candidates that are timed by name because the model likes them,
_MAX_CANDIDATES = 16  # and in all, with the best schedule of other kernels


def shapes() -> Iterator[Shape]:
    """All shapes, the most telling first: a run that is cut short has measured those."""
    for m in ROWS:
        for n, k in WEIGHTS:
            yield Shape(m, n, k)


def make_operands(shape: Shape, seed: int) -> Operands:
    """Random values and scales on the GPU; zeros would draw less power and so run faster."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def quantized(rows: int) -> torch.Tensor:
        values = torch.randn(rows, shape.k, generator=generator, device="cuda") * 40
        return values.to(torch.float8_e4m3fn)

    def scales(rows: int) -> torch.Tensor:
        blocks = -(-shape.k // 128)
        return torch.rand(rows, blocks, generator=generator, device="cuda") + 0.5

    out = torch.empty(shape.m, shape.n, dtype=torch.bfloat16, device="cuda")
    return quantized(shape.m), scales(shape.m), quantized(shape.n), scales(-(-shape.n // 128)), out


def check(operands: Operands, prepared: Prepared) -> None:
    """Asserts one result against torch, row by row."""
    a, _, b, _, out = operands
    prepared.out.zero_()
    prepared.call()
    exact = torch.empty(out.shape, dtype=torch.float32, device=out.device)
    compute_in_torch(a, prepared.sfa, b, prepared.sfb, exact)
    assert_rows_close(prepared.out, exact, floor=TENSOR_CORE_FLOOR)


def prepare_op(options: Options, operands: Operands) -> Prepared:
    """The public op."""
    a, sfa, b, sfb, out = operands
    arguments: dict[str, Any] = {"out": out, "num_sms": options.num_sms}
    if options.batch_invariant:
        arguments["batch_invariant"] = True
    call = partial(pykernels.fp8_gemm_nt, (a, sfa), (b, sfb), **arguments)
    return Prepared(call, out, sfa, sfb)


def prepare_candidate(candidate: Candidate, options: Options, operands: Operands) -> Prepared:
    """One kernel with one schedule, through the binding."""
    _, sfa, _, sfb, out = operands

    def call() -> None:
        launch(_current_device(out), candidate, options, operands)

    return Prepared(call, out, sfa, sfb)


def _current_device(tensor: torch.Tensor) -> Any:
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return native().CudaDevice(tensor.get_device(), stream)


def measure(
    shape: Shape,
    copy_gbps: float,
    *,
    options: Options | None = None,
    every_kernel: bool = False,
    against: list[Baseline] | None = None,
) -> dict[str, Any]:
    """One row: the op and each baseline in turns, cold and warm; on request kernels by name."""
    options = options or Options()
    num_sets = harness.num_rotated_sets(shape.num_bytes)
    sets = [make_operands(shape, seed) for seed in range(num_sets)]
    against = baselines() if against is None else against
    contenders, refused = _contenders(sets, options, against)
    cold = harness.time_interleaved(contenders)
    warm = harness.time_interleaved({name: calls[:1] for name, calls in contenders.items()})
    peak = peak_tflops(Options())  # of the GPU at hand, whatever the model stands for
    roofline = harness.Roofline(shape.flops, shape.num_bytes, copy_gbps, peak)
    row: dict[str, Any] = {"op": "fp8_gemm_nt", "m": shape.m, "n": shape.n, "k": shape.k}
    row |= {"num_sms": options.num_sms, "batch_invariant": options.batch_invariant}
    row |= roofline.row(cold[OURS].timing)
    row["warm_l2_us"] = warm[OURS].timing.median_us
    ranked = rank(shape, options)
    row |= named(ranked[0])
    row["baselines"] = refused | {
        baseline.name: _baseline_row(cold[baseline.name], cold[OURS])
        | _warm_row(warm[baseline.name], warm[OURS])
        | {"note": baseline.note}
        for baseline in against
        if baseline.name in contenders
    }
    if every_kernel:
        row["candidates"] = [_candidate_row(c, options, sets) for c in _selected(ranked)]
    row["nvidia_smi"] = harness.nvidia_smi()
    return row


def _contenders(
    sets: list[Operands], options: Options, against: list[Baseline]
) -> tuple[dict[str, list[harness.Call]], dict[str, Any]]:
    """What is timed, checked once; and why the others are not."""
    ours = [prepare_op(options, operands) for operands in sets]
    check(sets[0], ours[0])
    calls: dict[str, list[harness.Call]] = {OURS: [prepared.call for prepared in ours]}
    refused: dict[str, Any] = {}
    for baseline in against:
        try:
            first = baseline.prepare(sets[0])
            check(sets[0], first)
            rest = [baseline.prepare(operands) for operands in sets[1:]]
        except Unavailable as reason:
            refused[baseline.name] = {"unavailable": str(reason)}
        except AssertionError as error:  # a wrong baseline is shown, not timed
            refused[baseline.name] = {"unavailable": f"wrong result: {error}"}
        except Exception as error:  # others' code: what fails there must not end the bench
            refused[baseline.name] = {"unavailable": f"{type(error).__name__}: {error}"}
        else:
            calls[baseline.name] = [first.call, *(prepared.call for prepared in rest)]
    return calls, refused


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


def _candidate_row(candidate: Candidate, options: Options, sets: list[Operands]) -> dict[str, Any]:
    prepare: Callable[[Operands], Prepared] = partial(prepare_candidate, candidate, options)
    prepared = [prepare(operands) for operands in sets]
    check(sets[0], prepared[0])
    timing = harness.time_calls([one.call for one in prepared], sample_s=0.05)
    return named(candidate) | {"us": timing.median_us, "model": dict(candidate.cost)}
