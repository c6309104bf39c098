"""The same launches in the emulator and on the GPU, compared bit by bit.

GEMM, quantisation and the MoE all-to-all of several ranks in one process must be equal. Differences
are counted by class, because each class points to another cause: a wrong rounding shows as 1 ulp, a
wrong fragment layout as large errors, an unverified row of gpu_facts as NaN payloads or signs.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import pykernels
from pykernels.config import Candidate
from pykernels.group_checks import Groups
from pykernels.native import native, tensor_view

from . import moe_check
from .baselines import GroupedOperands, MoeOperands, ProductT, flat
from .candidates import rank
from .gemm_bench import Shape
from .grouped_bench import SOURCES, GroupedShape
from .moe_bench import CALLS, MoeShape
from .problem import Options, Problem

Outputs = tuple[Tensor, ...]
# Where a case runs: (the tensors' device, what makes the Device that launches).
Place = tuple[torch.device, Callable[[], Any]]

_GEMM_SIZES = (
    (1, 8, 16),
    (63, 64, 128),
    (65, 128, 112),
    (129, 136, 256),
    (40, 8, 1168),
    (257, 264, 272),
    (256, 512, 2048),
)
_KINDS = ("normal", "mixed", "special")
_CASES_A_CANDIDATE = 3  # a kernel with a schedule
_ROWS_TO_A_HOLE = 5
# Empty groups at both ends and between, one row, groups that end within and at a tile's end.
_GROUPS = ((0, 1, 63, 0, 65, 0), (128, 129), (3, 0, 40, 7, 8, 9, 1, 200))
_GROUPED_SIZES = ((64, 128), (136, 1168), (264, 272))  # n x k
_ALL_SCHEDULES: tuple[Problem[Any], ...] = (
    Shape(1024, 8192, 8192),
    GroupedShape((1024,) * 8, 8192, 8192),
)
_QUANTIZE_SIZES = ((1, 16), (33, 272), (128, 128), (257, 1040))
_GENERIC_TYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One launch: its name, and what runs it on a place and returns the outputs on the CPU."""

    name: str
    run: Callable[[Place], Outputs]


def emulator() -> Place:
    return torch.device("cpu"), lambda: native().EmulatedDevice(checks=())


def gpu() -> Place:
    def device() -> Any:
        index = torch.cuda.current_device()
        return native().CudaDevice(index, torch.cuda.current_stream(index).cuda_stream)

    return torch.device("cuda", torch.cuda.current_device()), device


def cases() -> Iterator[Case]:
    """Every kernel of GEMMs with every schedule, then quantisation and the MoE all-to-all."""
    for number, candidate in enumerate(candidates()):
        yield from _gemm_cases(candidate, number)
    for block_rows in (1, 128):
        for dtype in _GENERIC_TYPES:
            for scale_fmt in ("fp32", "ue8m0"):
                for m, k in _QUANTIZE_SIZES:
                    yield _quantize_case(block_rows, (m, k), dtype, scale_fmt)
    for shape in _exchanges():
        yield _moe_case(shape)
        if shape.call == "dispatch" and not shape.fp8:
            yield _layout_case(shape)


def _exchanges() -> Iterator[MoeShape]:
    """Calls of 2, 4 and 8 ranks; rows of one chunk and more, with and without whole blocks."""
    for num_ranks, hidden in ((2, 144), (4, 4096), (8, 7168)):
        for call in CALLS:
            for fp8 in (False, True) if call.endswith("dispatch") else (False,):
                yield MoeShape(call, num_ranks, 11, fp8, hidden, 8 * num_ranks, 6)


def _moe_case(shape: MoeShape) -> Case:
    """Rows that arrive and the experts' counts, or the sums at home, of every rank."""

    def run(place: Place) -> Outputs:
        operands, found = _run_moe(shape, place)
        if not shape.is_dispatch:
            return (operands.out.cpu(),)
        outputs = []
        for own, (received, counts, _) in enumerate(zip(*found, strict=True)):
            stand = moe_check.places_of(shape, own)
            stand = stand if shape.is_low_latency else torch.arange(len(stand))
            for rows in received if shape.fp8 else [received]:
                flat = rows.flatten(0, -2).cpu()
                outputs.append(flat.view(_WIDTHS[flat.dtype.itemsize])[stand].view(flat.dtype))
            outputs.append(counts.cpu())
        return tuple(outputs)

    return Case(f"{shape.kernel}/{shape}", run)


def _layout_case(shape: MoeShape) -> Case:
    """Where each token goes."""

    def run(place: Place) -> Outputs:
        _, (_, _, handles) = _run_moe(shape, place)
        return tuple(handle.position_in_rank.cpu() for handle in handles)

    return Case(f"moe_layout/{shape}", run)


def _run_moe(shape: MoeShape, place: Place) -> tuple[MoeOperands, Any]:
    torch_device, _ = place
    if torch_device.type == "cuda":
        operands = shape.gpu_operands(0)
        return operands, shape.run(operands, hook=shape.is_low_latency)
    with pykernels.emulate(checks=()):
        operands = shape.emulated_operands()
        return operands, shape.run(operands, hook=shape.is_low_latency)


def candidates() -> list[Candidate]:
    """Every kernel with every schedule that it can run, by name.

    Calls of many tiles and k tiles: there the cost model leaves none out.
    """
    ranked = [candidate for problem in _ALL_SCHEDULES for candidate in rank(problem, Options())]
    return sorted(ranked, key=lambda c: (c.kernel, *c.schedule.values()))


def _gemm_cases(candidate: Candidate, number: int) -> Iterator[Case]:
    """A few launches: sizes, output type and kind of operands walk on from one to the next.

    Those of a grouped kernel are ragged, indexed and masked.
    """
    for i in range(_CASES_A_CANDIDATE):
        which = _CASES_A_CANDIDATE * number + i
        dtype = (torch.bfloat16, torch.float32)[(number + i) % 2]
        kind = _KINDS[(number + i) % len(_KINDS)]
        problem: Problem[Any] = Shape(*_GEMM_SIZES[which % len(_GEMM_SIZES)])
        if candidate.config["grouped"]:
            rows = _GROUPS[(number + i) % len(_GROUPS)]
            n, k = _GROUPED_SIZES[(number // 3 + i) % len(_GROUPED_SIZES)]
            problem = GroupedShape(rows, n, k, SOURCES[i % len(SOURCES)])
        yield _gemm_case(candidate, problem, dtype, kind)


def _gemm_case(candidate: Candidate, problem: Problem[Any], dtype: torch.dtype, kind: str) -> Case:
    def run(place: Place) -> Outputs:
        torch_device, make_device = place
        operands = _moved(_operands(problem, kind), torch_device, dtype)
        problem.launch(make_device(), candidate, Options(), operands)
        return (operands.out.cpu(),)

    schedule = "x".join(map(str, candidate.schedule.values()))
    return Case(f"{candidate.kernel}/{schedule}/{problem}/{_name(dtype)}/{kind}", run)


def _operands(problem: Problem[ProductT], kind: str) -> ProductT:
    """``mixed``: every FP8 pattern but NaN. ``special``: NaN and infinities too.

    Of rows given by their group some have none.
    """
    operands = problem.emulated_operands()
    if isinstance(operands, GroupedOperands) and operands.groups.source == "m_indices":
        operands.groups.values[::_ROWS_TO_A_HOLE] = -1
    if kind == "normal":
        return operands
    generator = torch.Generator().manual_seed(sum(problem.sizes.values()))

    def patterns(tensor: Tensor) -> Tensor:
        bits = torch.randint(0, 256, tensor.shape, generator=generator, dtype=torch.uint8)
        bits[(bits & 0x7F) == 0x7F] = 0x01
        return bits.view(torch.float8_e4m3fn)

    operands = operands._replace(a=patterns(operands.a), b=patterns(operands.b))
    if kind == "special":
        sfa, sfb = flat(operands.sfa), flat(operands.sfb)
        flat(operands.a).view(torch.uint8)[-1, 0] = 0x7F
        flat(operands.b).view(torch.uint8)[0, -1] = 0xFF
        sfa[0, 0] = math.inf
        sfa[sfa.size(0) // 2, -1] = math.nan
        sfb[-1, 0] = -0.0
    return operands


def _moved(operands: ProductT, device: torch.device, dtype: torch.dtype) -> ProductT:
    """On another device, with an output of another type that is all zeros."""
    moved: dict[str, Any] = {
        name: value.to(device)
        for name, value in operands._asdict().items()
        if isinstance(value, Tensor)
    }
    moved["out"] = torch.zeros(operands.out.shape, dtype=dtype, device=device)
    if isinstance(operands, GroupedOperands):
        moved["groups"] = Groups(operands.groups.source, operands.groups.values.to(device))
    return operands._replace(**moved)


def _quantize_case(
    block_rows: int, sizes: tuple[int, int], dtype: torch.dtype, scale_fmt: str
) -> Case:
    m, k = sizes
    op = pykernels.quantize_1x128 if block_rows == 1 else pykernels.quantize_128x128

    def run(place: Place) -> Outputs:
        torch_device, make_device = place
        x = _activations(sizes, dtype).to(torch_device)
        q = torch.zeros(m, k, dtype=torch.uint8, device=torch_device).view(torch.float8_e4m3fn)
        scales = torch.zeros(-(-m // block_rows), -(-k // 128), device=torch_device)
        views = [tensor_view(tensor) for tensor in (x, q, scales)]
        native().quantize(make_device(), *views, block_rows, scale_fmt == "ue8m0")
        return q.cpu(), scales.cpu()

    return Case(f"{op.__name__}/{m}x{k}/{_name(dtype)}/{scale_fmt}", run)


def _activations(sizes: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Magnitudes over the type's range, a zero block, an infinity and a NaN."""
    generator = torch.Generator().manual_seed(sum(sizes))
    m, k = sizes
    exponents = torch.randint(-30, 15, (m, -(-k // 16)), generator=generator)
    x = torch.randn(m, k, generator=generator)
    x *= torch.exp2(exponents.double()).float().repeat_interleave(16, dim=1)[:, :k]
    x = x.to(dtype)
    x[0, : min(k, 128)] = 0
    if m > 2:
        x[1, 0], x[2, -1] = math.inf, math.nan
    return x


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compare(case: Case, reference: Place, actual: Place) -> dict[str, Any]:
    """One row of the result: the number of elements, and the differences by class."""
    differences: Counter[str] = Counter()
    elements = 0
    for wanted, found in zip(case.run(reference), case.run(actual), strict=True):
        elements += wanted.numel()
        differences += classify(found, wanted)
    return {"case": case.name, "elements": elements, "differences": dict(differences)}


_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def classify(found: Tensor, wanted: Tensor) -> Counter[str]:
    """Counts elements whose bits differ, by the kind of difference."""
    width = _WIDTHS[wanted.element_size()]
    different = found.contiguous().view(width) != wanted.contiguous().view(width)
    kinds: Counter[str] = Counter()
    pairs = zip(
        found[different].float().tolist(),
        wanted[different].float().tolist(),
        _distances(found[different], wanted[different]),
        strict=True,
    )
    for actual, expected, distance in pairs:
        kinds[_kind(actual, expected, distance)] += 1
    return kinds


def _kind(actual: float, expected: float, distance: int) -> str:
    if math.isnan(actual) or math.isnan(expected):
        both = math.isnan(actual) and math.isnan(expected)
        return "NaN payload or sign" if both else "NaN on one side"
    if math.isinf(actual) or math.isinf(expected):
        return "infinity"
    if actual == expected:
        return "sign of zero"
    if distance == 1:
        return "1 ulp"
    return "2 to 16 ulp" if distance <= 16 else "more than 16 ulp"


def _distances(found: Tensor, wanted: Tensor) -> list[int]:
    """Representable values between the two, in the elements' type."""
    width = _WIDTHS[wanted.element_size()]
    sign = 1 << (8 * wanted.element_size() - 1)

    def ordered(tensor: Tensor) -> Tensor:
        bits = tensor.contiguous().view(width).long() & (2 * sign - 1)
        return torch.where(bits >= sign, sign - bits, bits)

    distances: list[int] = (ordered(found) - ordered(wanted)).abs().tolist()
    return distances
