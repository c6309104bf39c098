"""Machine code of every kernel and emulator counts, as committed.

``python -m bench.regress`` prints what differs and returns 1 if anything does; ``--update`` writes
``results/static.json``. Worse figures are regressions; better ones beyond a tolerance make the
file stale, so that it stays true.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pykernels.config import Candidate
from pykernels.native import kernel_metadata

from . import bits, counts, moe_links, static_answer
from .candidates import rank
from .cast_bench import CastShape, QuantizeShape, SiluMulShape
from .gemm_bench import Shape
from .grouped_bench import GroupedShape
from .mla_bench import MlaShape
from .moe_bench import MoeShape
from .problem import Options, Problem

FILE = Path(__file__).with_name("results") / "static.json"
COMMAND = "python -m bench.regress --update"
# Ragged in all sizes for every tile, ten k tiles: more than any ring has stages or k has splits.
_PROBLEMS: dict[str, Problem[Any]] = {
    "fp8_gemm_nt": Shape(200, 264, 1168),
    "grouped_fp8_gemm_nt": GroupedShape((37, 0, 130, 1), 264, 1168),
    # Ragged too, in several steps of a CTA's warps.
    "quantize_1x128": QuantizeShape(1003, 1040),
    "quantize_128x128": QuantizeShape(1003, 1040, block_rows=128),
    "silu_mul_quantize_1x128": SiluMulShape(67, 1040, capacity=128, num_groups=15),
}
# A split request, whole ones and one without tokens, for each kernel's rows.
_MLA_LENGTHS, _MLA_HEADS, _MLA_FP8 = (700, 0, 65, 1, 192), (5, 16, 24, 64, 128), (False, True)
_MLA_OPTIONS = Options(num_sms=4)
# Three ranks, several tokens for a warp and a last chunk that is smaller than the others.
_MOE_CALLS = (
    ("dispatch", False),
    ("dispatch", True),
    ("low_latency_dispatch", True),
    ("combine", False),
)
_MOE = [
    MoeShape(call, 3, 21, fp8, hidden=4480, num_experts=24, num_topk=4) for call, fp8 in _MOE_CALLS
]
# What a kernel has none of is left out: `instructions` are all of one that has no main loop.
_LISTING = ("registers", "local_accesses", "main_loop", "ffma", "issue_share", "instructions")
_COUNTS = (
    "wgmma",
    "tma_bytes_loaded",
    "tma_bytes_stored",
    "global_bytes_read",
    "global_bytes_written",
    "global_footprint_bytes_read",
    "shared_bank_conflicts",
    "warp_instructions",
)
# Of kernels that wait for other ranks what no wait adds to: polls read and are instructions.
_MOE_COUNTS = ("global_bytes_written", "global_footprint_bytes_written", "shared_bank_conflicts")
_LOOSE = {"warp_instructions": 0.02}  # how often a wait is tried depends on the emulator too
_STALE = 0.02  # better by more than this share: the file no longer says what is
_OTHER_RELEASE = 0.05  # another ptxas schedules otherwise

Figures = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Static:
    """The figures of all kernels, and what assembled them."""

    ptxas: str
    listing: Mapping[str, Figures]  # by kernel
    counts: Mapping[str, Figures]  # by kernel, schedule and shape

    @classmethod
    def read(cls, path: Path = FILE) -> Static:
        return cls(**json.loads(path.read_text()))

    @classmethod
    def measure(cls) -> Static:
        """Of the kernels as built."""
        families = {str(k["name"]): str(k["family"]) for k in kernel_metadata()}
        (ptxas,) = {str(kernel["ptxas"]) for kernel in kernel_metadata()}
        widest = {candidate.kernel: candidate for candidate in bits.candidates()}
        widest |= _casts()
        counted = [
            _counts(widest[name], _PROBLEMS[family], Options())
            for name, family in families.items()
            if family in _PROBLEMS
        ]
        counted += [_counts(*decode, _MLA_OPTIONS) for decode in _decodes()]
        counted += [row for shape in _MOE for row in _exchanges(shape)]
        return cls(ptxas, {name: _listing(name) for name in families}, dict(counted))

    def write(self, path: Path = FILE) -> None:
        """One line a kernel, so that a change shows as a line."""
        parts = [f' "ptxas": {json.dumps(self.ptxas)}']
        for name in ("listing", "counts"):
            rows = getattr(self, name).items()
            lines = [f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in sorted(rows)]
            parts.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
        path.parent.mkdir(exist_ok=True)
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _listing(kernel: str) -> dict[str, float]:
    row = static_answer.listing_row(kernel)
    return {name: row[name] for name in _LISTING if name in row}


def _casts() -> dict[str, Candidate]:
    """Their one kernel each."""
    casts = [problem for problem in _PROBLEMS.values() if isinstance(problem, CastShape)]
    ranked = [candidate for problem in casts for candidate in rank(problem, Options())]
    return {candidate.kernel: candidate for candidate in ranked}


def _decodes() -> list[tuple[Candidate, MlaShape]]:
    """Each kernel of MLA decode with the call that runs it, and merges what it has split."""
    shapes = [MlaShape(_MLA_LENGTHS, heads, fp8=fp8) for heads in _MLA_HEADS for fp8 in _MLA_FP8]
    return [(rank(shape, _MLA_OPTIONS)[0], shape) for shape in shapes]


def _exchanges(shape: MoeShape) -> list[tuple[str, dict[str, float]]]:
    """The kernel that moves rows, and once the layout before it, of all ranks."""
    rows = []
    for kernel, report in shape.reports():
        if kernel != shape.kernel and shape != _MOE[0]:
            continue  # the same layout again
        found: dict[str, float] = {name: getattr(report.counters, name) for name in _MOE_COUNTS}
        if kernel == shape.kernel:
            links = moe_links.count(shape).row()
            found |= {name: links[name] for name in ("counted_bytes", "read_bytes")}
        rows.append((f"{kernel} {shape}", found))
    return rows


def _counts(
    candidate: Candidate, problem: Problem[Any], options: Options
) -> tuple[str, dict[str, float]]:
    """Of the kernel's widest schedule: the last in the order of cluster sizes and split."""
    row = counts.count(problem, candidate, options).row()
    schedule = "x".join(map(str, candidate.schedule.values()))
    found = {name: row["counts"][name] for name in _COUNTS}
    return " ".join(filter(None, (candidate.kernel, schedule, str(problem)))), found


def differences(found: Static, recorded: Static) -> list[str]:
    """What is worse than recorded, or so much better that the record is stale; empty if neither."""
    same_release = found.ptxas == recorded.ptxas
    slack = {} if same_release else dict.fromkeys(_LISTING, _OTHER_RELEASE)
    problems = _compare(found.listing, recorded.listing, slack, check_stale=same_release)
    return problems + _compare(found.counts, recorded.counts, _LOOSE, check_stale=True)


def _compare(
    found: Mapping[str, Figures],
    recorded: Mapping[str, Figures],
    slack: Mapping[str, float],
    *,
    check_stale: bool,
) -> list[str]:
    problems = [
        f"{key}: {'not recorded' if key in found else 'recorded, but not built'}; run `{COMMAND}`"
        for key in sorted(found.keys() ^ recorded.keys())
    ]
    for key in sorted(found.keys() & recorded.keys()):
        for name, before in recorded[key].items():
            now = found[key][name]
            if now > before * (1 + slack.get(name, 0.0)):
                problems.append(f"{key}: {name} {now} is more than the recorded {before}")
            elif check_stale and now < before * (1 - _STALE):
                problems.append(
                    f"{key}: {name} {now} is better than the recorded {before}; run `{COMMAND}`"
                )
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Compare or update."""
    parser = argparse.ArgumentParser(prog="bench.regress", description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"write {FILE.name}")
    update: bool = parser.parse_args(arguments).update
    found = Static.measure()
    if update:
        found.write()
        print(f"written: {FILE}")
        return 0
    problems = differences(found, Static.read())
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
