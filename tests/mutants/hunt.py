"""Runs mutants until the emulator reports them or the result is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pykernels.emulator import EmulationError, Module, Report
from tests.cases import bits
from tests.grouped_kernels import Problem
from tests.kernel_launch import GemmLaunch, MlaCacheLaunch, QuantizeLaunch, SiluMulLaunch
from tests.mla_cases import MlaCase
from tests.mla_launch import Item, MlaCombineLaunch, MlaDecodeLaunch, MlaPlanLaunch
from tests.moe_beside import MoeBesideLaunch
from tests.moe_launch import MoeLaunch
from tests.mutants.assembled import complaint
from tests.mutants.mutate import Mutant, mutants
from tests.overlapped import GroupedLaunch, OverlappedLaunch

# Completion, seed and schedule. What happens-before finds does not depend on them, so nearly all
# end in the first run; the others are for wrong results, those by priority for a late role.
SCHEDULES = (
    ("late", 0, "random"),
    ("random", 1, "random"),
    ("early", 2, "random"),
    ("random", 3, "random"),
    ("random", 14, "priority"),
    ("random", 23, "priority"),
    ("random", 38, "priority"),
)
MAX_WARP_INSTRUCTIONS = 20_000_000  # some fifty times what the kernels need
DTYPES = (torch.bfloat16, torch.float32)

# m and n ragged; k takes the main loop and its remainder, with more k tiles than stages. Few SMs:
# each CTA has several tiles, so that staging and stages are used again.
_GEMMS = {
    "fp8_gemm_nt_m64n64c1": ((200, 136, 1136), 2, (1, 1, 1)),
    "fp8_gemm_nt_m128n128c2": ((400, 264, 1136), 4, (2, 1, 1)),
    "fp8_gemm_nt_m128n192c2": ((136, 600, 1136), 4, (1, 2, 1)),
    "fp8_gemm_nt_swap_m16n64": ((40, 264, 7 * 1024 + 16), 6, (1, 2, 3)),
}
_QUANTIZES = {"quantize_1x128": (1, (200, 1136)), "quantize_128x128": (128, (400, 1136))}
_GROUPED = {
    "grouped_fp8_gemm_nt_m128n128c2": ((1, 2, 1), (2, 1, 1)),
    "grouped_fp8_gemm_nt_m64n128c1": ((1, 1, 1), (1, 1, 1)),
    "grouped_fp8_gemm_nt_swap_m16n64": ((1, 2, 1), (1, 1, 1)),
}
_SILU_MUL = "silu_mul_quantize_1x128"
_MLA_CACHES = ("mla_cache_write", "mla_cache_read")
# By heads: two CTAs of 64 rows, the second one with few; one of 16, some of them missing.
_MLA_DECODES = {
    "mla_decode_bf16_m64c2": 35,
    "mla_decode_bf16_n16": 6,
    "mla_decode_fp8_m64c2": 35,
    "mla_decode_fp8_n16": 6,
}
_MLA_COMBINE, _MLA_PLAN = "mla_combine", "mla_update_plan"
_MLA = (*_MLA_DECODES, _MLA_COMBINE, _MLA_PLAN, *_MLA_CACHES)
_MOE = ("moe_layout", "moe_dispatch", "moe_dispatch_quantise", "moe_combine")
KERNELS = (*_GEMMS, *_GROUPED, *_QUANTIZES, _SILU_MUL, *_MLA, *_MOE)

Mutable = (
    GemmLaunch
    | GroupedLaunch
    | MlaCacheLaunch
    | MlaCombineLaunch
    | MlaDecodeLaunch
    | MlaPlanLaunch
    | MoeBesideLaunch
    | MoeLaunch
    | OverlappedLaunch
    | QuantizeLaunch
    | SiluMulLaunch
)


def _silu_mul_launches() -> list[SiluMulLaunch]:
    """With groups by each source; more of them than a list holds, so that it is filled again."""
    num_rows, i = 2100, 32
    indices = torch.arange(num_rows, dtype=torch.int32) % 3 - 1
    masked = torch.arange(num_rows, dtype=torch.int32) % 2
    offsets = torch.tensor([3, 90], dtype=torch.int32)
    bf16, fp32 = DTYPES
    return [
        SiluMulLaunch.make("masked_m", masked, (num_rows, 2, i), bf16),
        SiluMulLaunch.make("m_indices", indices, (num_rows, i), fp32),
        SiluMulLaunch.make("group_offsets", offsets, (100, i), torch.float16),
    ]


def _grouped_launches(kernel: str) -> list[Mutable]:
    """By each source; beside kernels that fill and take its rows, on one GPU and on two."""
    (alone, overlapped), (bf16, fp32) = _GROUPED[kernel], DTYPES
    ragged = Problem((200, 0, 9, 130, 1), 264, 144)
    return [
        OverlappedLaunch.make(kernel, overlapped, bf16),
        OverlappedLaunch.make(kernel, overlapped, fp32, max_m=133, scope="system"),
        *(GroupedLaunch.make(kernel, alone, dtype, ragged, 4) for dtype in DTYPES),
        # One tile, and CTAs that have none.
        GroupedLaunch.make(kernel, alone, bf16, Problem((5,), 8, 144, behind=40), 16),
    ]


def _mla_launches(kernel: str) -> Sequence[Mutable]:
    if kernel == _MLA_COMBINE:
        return [MlaCombineLaunch.make((3, 1, 0, 40), seqlen_q=2, num_heads=3)]
    if kernel == _MLA_PLAN:
        # More requests than threads, and none.
        lengths = 7 * torch.arange(600, dtype=torch.int32)
        return [
            MlaPlanLaunch.make(lengths, num_parts=13, max_splits=None),
            MlaPlanLaunch.make(lengths, num_parts=13, max_splits=4),
            MlaPlanLaunch.make(lengths[:0], num_parts=3, max_splits=None),
        ]
    if kernel in _MLA_DECODES:
        return _mla_decode_launches(kernel)
    caches = (
        torch.zeros(2, 8, 1, 576, dtype=torch.bfloat16),
        torch.zeros(2, 8, 1, 656, dtype=torch.uint8),
    )
    return [MlaCacheLaunch.make(kernel, 13, cache) for cache in caches]


def _mla_decode_launches(kernel: str) -> list[Mutable]:
    """Odd and even numbers of blocks behind each other, by TMA and thread by thread.

    Two tokens of each request: the first one sees less. Whole requests, some without tokens, and
    split ones.
    """
    num_heads, fp8 = _MLA_DECODES[kernel], "fp8" in kernel

    def launch(
        lengths: tuple[int, ...], page_size: int, *parts: tuple[Item, ...], **named: Any
    ) -> Mutable:
        case = MlaCase(lengths, num_heads, "mutants", 2, page_size, fp8)
        return MlaDecodeLaunch.make(kernel, case, parts, **named)

    return [
        launch((74, 180, 128), 16, ((0, 0, 2), (1, 0, 3), (2, 0, 2))),
        launch((300, 0, 4), 4, ((2, 0, 1), (1, 0, 0), (0, 0, 4)), ((0, 4, 5),)),
        launch((320, 60, 128), 32, ((1, 0, 1), (0, 0, 5), (2, 0, 2)), bad_page=(0, 4), stale=1),
    ]


def _moe_launches(kernel: str) -> Sequence[Mutable]:
    """Calls that follow one another on each rank; more tokens than warps; a rank that is absent."""
    if kernel == "moe_layout":  # more choices to a warp than it takes at a time
        return [MoeLaunch.make(kernel, [(300, 3, 0)], 8)]
    kind = "cast" if kernel == "moe_dispatch_quantise" else "bf16"
    there = "fp8" if kind == "bf16" else kind
    returns = kernel == "moe_combine"
    three_chunks = (2 if kind == "cast" else 1) * 7168 + 144
    launches: list[Mutable] = [
        MoeLaunch.make(kernel, [(60, 3, 0), (2, 63, 5)], 48, kind=kind, num_local_experts=40),
        MoeLaunch.make(kernel, [(9, 3), (2, 9)], 176, kind=there, masked=True, split=True),
        MoeLaunch.make(kernel, [(14, 1), (3, 1)], three_chunks, kind=kind),  # two to a warp
        MoeLaunch.make(kernel, [(3, 4, 2)], 16, kind=kind, absent=1, returns=returns),
    ]
    if not returns:
        back_to_back = [(40, 40), (40, 40), (9, 4)]
        launches.append(MoeLaunch.make(kernel, back_to_back, 48, kind=kind, returns=False))
    launches.append(MoeBesideLaunch.make(kernel, (60, 45), 256))
    if not returns:
        launches.append(MoeBesideLaunch.make(kernel, (60, 45), 256, withholds=True))
    return launches


def _launches(kernel: str) -> Sequence[Mutable]:
    """Of each type of elements."""
    if kernel in _GROUPED:
        return _grouped_launches(kernel)
    if kernel == _SILU_MUL:
        return _silu_mul_launches()
    if kernel in _MLA:
        return _mla_launches(kernel)
    if kernel in _MOE:
        return _moe_launches(kernel)
    if kernel in _GEMMS:
        sizes, num_sms, schedule = _GEMMS[kernel]
        return [GemmLaunch.make(kernel, sizes, num_sms, dtype, schedule) for dtype in DTYPES]
    block_m, shape = _QUANTIZES[kernel]
    inputs = (*DTYPES, torch.float16)
    return [QuantizeLaunch.make(block_m, shape, dtype) for dtype in inputs]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; `caught_by` is None if it survived every run."""

    mutant: Mutant
    caught_by: str | None
    runs: int


class Hunter:
    """A kernel's launches, their right results, and its mutants."""

    def __init__(self, kernel: str) -> None:
        """Run the unchanged kernel.

        Raises:
            EmulationError: it has findings itself.
        """
        self.kernel = kernel
        self._launches = _launches(kernel)
        ptx = self._launches[0].ptx()
        self.mutants = list(mutants(ptx))
        self._expected = []
        for launch in self._launches:
            launch.run(Module.from_ptx(ptx)).raise_if_findings()
            self._expected.append([bits(result).clone() for result in launch.results])

    def hunt(self, mutant: Mutant) -> Outcome:
        """Run one mutant until something notices.

        A wgmma.fence that nothing reports is assembled: where the accumulators are still a WGMMA's
        own PTX needs none, but ptxas may want one behind a branch.
        """
        module = Module.from_ptx(mutant.ptx)
        runs = 0
        for mode, seed, schedule in SCHEDULES:
            if runs > 0 and mutant.opcode.startswith("wgmma.fence"):
                refused = complaint(mutant.ptx)
                return Outcome(mutant, refused and f"build: {refused}", runs)
            options: dict[str, Any] = {"async_completion": mode, "seed": seed, "schedule": schedule}
            for launch, right in zip(self._launches, self._expected, strict=True):
                runs += 1
                caught = _run(module, launch, right, options)
                if caught is not None:
                    return Outcome(mutant, f"{caught} ({mode} completion, seed {seed})", runs)
        return Outcome(mutant, None, runs)


def _run(
    module: Module,
    launch: Mutable,
    right: list[torch.Tensor],
    options: dict[str, Any],
) -> str | None:
    try:
        report = launch.run(module, **options, max_warp_instructions=MAX_WARP_INSTRUCTIONS)
    except EmulationError as error:
        return _first_finding(error.report)
    if report.findings:
        return _first_finding(report)
    same = all(map(torch.equal, map(bits, launch.results), right))
    return None if same else "wrong result"


def _first_finding(report: Report) -> str:
    finding = report.findings[0]
    return f"{finding.kind}: {finding.message.splitlines()[0]}"
