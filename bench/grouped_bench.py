"""The grouped FP8 GEMMs as benches take them: cases, operands, correctness."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pykernels
from pykernels.config import Candidate
from pykernels.gemm import compute_in_torch
from pykernels.group_checks import Groups, Segment
from pykernels.native import native, strided_view
from pykernels.testing import TENSOR_CORE_FLOOR, assert_rows_close, gemm_operands

from . import published
from .baselines import Baseline, GroupedOperands, Prepared, flat, grouped_baselines
from .gemm_bench import MIN_COLUMNS, MIN_K, MIN_ROWS
from .problem import Options, Problem, halved, random_fp8, random_scales

SOURCES = ("group_offsets", "m_indices", "masked_m")
WEIGHTS = ((4096, 7168), (7168, 2048))  # n x k of the two layers of a DeepSeek-V3 expert
# The busiest of 256 experts gets eight times the mean, the idlest half of it.
_ZIPF_EXPONENT = 0.5
_DRAWN_AT_ONCE = 2**16  # tokens
_MASKED_ROWS = 128  # room for rows in the masked layout is a multiple of it


@dataclasses.dataclass(frozen=True)
class GroupedShape(Problem[GroupedOperands]):
    """Products of groups with weights of one shape.

    Attributes:
        rows: Of each group.
        n: Rows of each group's weight.
        k: Columns.
        source: How the call says which rows are whose, one of ``SOURCES``.
    """

    rows: tuple[int, ...]
    n: int
    k: int
    source: str = "group_offsets"

    def __str__(self) -> str:
        """``masked 4x256 rows, 4096x7168``, with the largest group where groups differ."""
        layout = {"group_offsets": "ragged", "m_indices": "indexed", "masked_m": "masked"}
        mean = statistics.mean(self.rows)
        rows = f"{self.num_groups}x{mean:g} rows"
        if self.is_skewed:
            rows += f" up to {max(self.rows)}"
        return f"{layout[self.source]} {rows}, {self.n}x{self.k}"

    @property
    def num_groups(self) -> int:
        return len(self.rows)

    @property
    def is_skewed(self) -> bool:
        return min(self.rows) != max(self.rows)

    @property
    def expected_m(self) -> int:
        """Rows that a caller expects of a group: the mean."""
        return max(1, round(statistics.mean(self.rows)))

    @property
    def max_m(self) -> int:
        """Room for the rows of each group in the masked layout."""
        return -(-max(self.rows) // _MASKED_ROWS) * _MASKED_ROWS

    @property
    def op(self) -> Callable[..., Any]:
        if self.source == "masked_m":
            return pykernels.grouped_fp8_gemm_nt_masked
        return pykernels.grouped_fp8_gemm_nt

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"num_groups": self.num_groups, "m": self.expected_m, "n": self.n, "k": self.k}

    @property
    def flops(self) -> float:
        return 2.0 * sum(self.rows) * self.n * self.k

    @property
    def bytes_read(self) -> int:
        """Rows in groups, the weights of groups that have any, their scales, and the groups."""
        k_blocks, n_blocks = -(-self.k // 128), -(-self.n // 128)
        weights = sum(rows > 0 for rows in self.rows)
        values = sum(self.rows) * self.k + weights * self.n * self.k
        return values + 4 * k_blocks * (sum(self.rows) + weights * n_blocks) + self._group_bytes

    @property
    def _group_bytes(self) -> int:
        """Of the tensor that says which rows are whose."""
        counts = {
            "group_offsets": self.num_groups + 1,
            "m_indices": sum(self.rows),
            "masked_m": self.num_groups,
        }
        return 4 * counts[self.source]

    @property
    def bytes_written(self) -> int:
        return 2 * sum(self.rows) * self.n

    def row(self) -> dict[str, Any]:
        figures = [dataclasses.asdict(figure) for figure in published.figures(self)]
        return super().row() | {
            "source": self.source,
            "rows": list(self.rows),
            "published": figures,
        }

    def smaller(self) -> GroupedShape | None:
        """k is halved first, then columns, then the groups down to two, then each group's rows."""
        if self.k >= 2 * MIN_K:
            return dataclasses.replace(self, k=halved(self.k, 128))
        if self.n >= 2 * MIN_COLUMNS:
            return dataclasses.replace(self, n=halved(self.n, 128))
        if sum(self.rows) < 2 * MIN_ROWS:
            return None
        if self.num_groups > 2:
            return dataclasses.replace(self, rows=self.rows[: -(-self.num_groups // 2)])
        return dataclasses.replace(self, rows=tuple(-(-rows // 2) for rows in self.rows))

    def emulated_operands(self, seed: int = 0) -> GroupedOperands:
        """Each group's as of a product of its own; what no group has is not set."""
        operands = self._allocated("cpu")
        a, sfa = flat(operands.a), flat(operands.sfa)
        begins = {segment.group: segment for segment in operands.segments}
        for group, rows in enumerate(self.rows):
            of_a, of_b = gemm_operands(rows, self.n, self.k, seed + group)
            operands.b[group], operands.sfb[group] = of_b
            if rows > 0:
                segment = begins[group]
                a[segment.begin : segment.end], sfa[segment.begin : segment.end] = of_a
        return operands

    def gpu_operands(self, seed: int) -> GroupedOperands:
        operands = self._allocated("cuda")
        generator = torch.Generator("cuda").manual_seed(seed)
        operands.sfa.copy_(random_scales(generator, *operands.sfa.shape))
        operands.sfb.copy_(random_scales(generator, *operands.sfb.shape))
        for values in (operands.a, operands.b):
            for part in values if values.dim() == 3 else values.split(MIN_ROWS):
                part.copy_(random_fp8(generator, *part.shape))
        return operands

    def _allocated(self, device: str) -> GroupedOperands:
        """Operands whose groups are set and whose values are not."""
        lead = (self.num_groups, self.max_m) if self.source == "masked_m" else (sum(self.rows),)
        blocks = -(-self.k // 128)

        def values(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)

        return GroupedOperands(
            values(*lead, self.k),
            torch.ones(*lead, blocks, device=device),
            values(self.num_groups, self.n, self.k),
            torch.ones(self.num_groups, -(-self.n // 128), blocks, device=device),
            torch.zeros(*lead, self.n, dtype=torch.bfloat16, device=device),
            self._groups(device),
            self._segments(),
        )

    def _groups(self, device: str) -> Groups:
        rows = torch.tensor(self.rows)
        values = {
            "group_offsets": torch.cat([torch.zeros(1, dtype=rows.dtype), rows.cumsum(0)]),
            "m_indices": torch.arange(self.num_groups).repeat_interleave(rows),
            "masked_m": rows,
        }
        return Groups(self.source, values[self.source].to(device, torch.int32))

    def _segments(self) -> tuple[Segment, ...]:
        segments = []
        begin = 0
        for group, rows in enumerate(self.rows):
            first = group * self.max_m if self.source == "masked_m" else begin
            if rows > 0:
                segments.append(Segment(group, first, first + rows))
            begin += rows
        return tuple(segments)

    def launch(
        self, device: Any, candidate: Candidate, options: Options, operands: GroupedOperands
    ) -> None:
        a, sfa, b, sfb, out, groups, _ = operands
        native().grouped_fp8_gemm_nt(
            device,
            *map(strided_view, (a, sfa, b, sfb, out, groups.values)),
            groups.source,
            options.num_sms,
            self.expected_m,
            kernel=candidate.kernel,
            schedule=tuple(candidate.schedule.values()),
        )

    def prepare_op(self, options: Options, operands: GroupedOperands) -> Prepared:
        a, sfa, b, sfb, out, groups, _ = operands
        arguments: dict[str, Any] = {groups.source: groups.values, "out": out}
        arguments |= {"num_sms": options.num_sms, "expected_m": self.expected_m}
        return Prepared(partial(self.op, (a, sfa), (b, sfb), **arguments), out, sfa, sfb)

    def check(self, operands: GroupedOperands, prepared: Prepared) -> None:
        """Each group's rows against a product of their own."""
        prepared.out.zero_()
        prepared.call()
        rows = operands.rows() if prepared.rows is None else prepared.rows
        found = flat(prepared.out)
        a, sfa = flat(operands.a), flat(prepared.sfa)
        done = 0
        for group, begin, end in operands.segments:
            own = found[rows[done : done + end - begin]]
            done += end - begin
            exact = torch.empty(own.shape, dtype=torch.float32, device=own.device)
            b, sfb = operands.b[group], prepared.sfb[group]
            compute_in_torch(a[begin:end], sfa[begin:end], b, sfb, exact)
            try:
                assert_rows_close(own, exact, floor=TENSOR_CORE_FLOOR)
            except AssertionError as error:
                raise AssertionError(f"group {group}, {error}") from error

    def baselines(self) -> list[Baseline[GroupedOperands]]:
        return grouped_baselines()


def routed_rows(num_tokens: int, num_topk: int, num_experts: int, seed: int = 0) -> tuple[int, ...]:
    """How many rows each expert gets from a router with favourites.

    Each token takes ``num_topk`` different experts, one after the other by weights that fall with
    an expert's rank as in Zipf's law; ranks are dealt to experts by the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randperm(num_experts, generator=generator) + 1.0
    counts = torch.zeros(num_experts, dtype=torch.int64)
    for first in range(0, num_tokens, _DRAWN_AT_ONCE):
        tokens = min(_DRAWN_AT_ONCE, num_tokens - first)
        # The largest of exponential noises over weights are a draw without replacement.
        noise = torch.empty(tokens, num_experts).exponential_(generator=generator)
        chosen = (noise * ranks**_ZIPF_EXPONENT).topk(num_topk, largest=False).indices
        counts += chosen.flatten().bincount(minlength=num_experts)
    return tuple(counts.tolist())


def cases() -> Iterator[GroupedShape]:
    """Those that figures are published of, then a router's, then some of them in other layouts."""
    few_rows = [(rows,) * 16 for rows in (32, 96, 160)]
    router = routed_rows(num_tokens=4096, num_topk=8, num_experts=256)
    decode = routed_rows(num_tokens=128, num_topk=8, num_experts=256)
    masked = [(1024,), (512,) * 2, (256,) * 4]
    listed = [
        ((8192,) * 4, "group_offsets"),
        *((rows, "masked_m") for rows in (*masked, *few_rows)),
        (router, "group_offsets"),
        (decode, "group_offsets"),
        *((rows, "group_offsets") for rows in few_rows),
        (router, "m_indices"),
    ]
    for rows, source in listed:
        for n, k in WEIGHTS:
            yield GroupedShape(rows, n, k, source)
