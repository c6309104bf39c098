"""The casts to FP8 as benches take them: DeepSeek-V3's shapes, operands, correctness."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pykernels
from pykernels import quantize
from pykernels.config import Candidate
from pykernels.group_checks import Groups
from pykernels.native import native, strided_view, tensor_view
from pykernels.testing import row_errors

from .baselines import Baseline, CastOperands, Prepared, cast
from .problem import Options, Problem, halved

HIDDEN, INTERMEDIATE = 7168, 2048  # of a DeepSeek-V3 expert
ROWS = (4096, 128, 1024, 32768)  # in the order of interest
_WEIGHTS = ((4096, 7168), (7168, 2048))  # of the two layers of an expert
_CAPACITY = 8  # room for rows over rows that there are, with offsets
_BLOCK = 128
_MIN_ROWS = 1024  # of a shape that is not made smaller any more
_MULTIPLY_ADDS_A_VALUE = 2**11  # that take the emulator as long as a value of a cast
# Of a block's values: what an intermediate result in BF16 costs, rounded twice.
_FLOOR = 2.0**-8


class CastShape(Problem[CastOperands]):
    """One cast from BF16. ``block_rows``: of a scale."""

    block_rows: int

    @property
    @abstractmethod
    def columns(self) -> int:
        """Of the result."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """That are cast."""

    @abstractmethod
    def own_rows(self, tensor: Tensor) -> Tensor:
        """The rows of x or of a result that are cast, as a part of it."""

    @abstractmethod
    def values(self, x: Tensor) -> Tensor:
        """What rows of x are cast from, in FP32."""

    @abstractmethod
    def allocated(self, device: str) -> CastOperands:
        """Operands whose groups are set and whose values are not; x is NaN."""

    @property
    def flops(self) -> float:
        return 0.0

    @property
    def emulation_work(self) -> float:
        return float(_MULTIPLY_ADDS_A_VALUE * self.num_rows * self.columns)

    @property
    def bytes_written(self) -> int:
        blocks = -(-self.num_rows // self.block_rows) * -(-self.columns // _BLOCK)
        return self.num_rows * self.columns + 4 * blocks

    def computed(self, tensor: Tensor) -> Tensor:
        """The same as a matrix of its own, where it has to be."""
        return self.own_rows(tensor).reshape(-1, tensor.size(-1))

    def own_output(self, operands: CastOperands) -> CastOperands:
        out, scales = (torch.empty_like(tensor) for tensor in (operands.out, operands.scales))
        return operands._replace(out=out, scales=scales)

    def emulated_operands(self, seed: int = 0) -> CastOperands:
        """Rows that are not cast stay NaN."""
        operands = self.allocated("cpu")
        generator = torch.Generator().manual_seed(seed + self.num_rows)
        rows = self.own_rows(operands.x)
        rows.copy_(torch.randn(rows.shape, generator=generator) * 3)
        return operands

    def gpu_operands(self, seed: int) -> CastOperands:
        operands = self.allocated("cuda")
        operands.x.normal_(generator=torch.Generator("cuda").manual_seed(seed))
        return operands

    def check(self, operands: CastOperands, prepared: Prepared) -> None:
        """Each row's blocks of 128 values within 1.5 times what the cast alone costs them."""
        operands.out.view(torch.uint8).zero_()
        operands.scales.zero_()
        prepared.call()
        values = self.values(self.computed(operands.x))
        found = self.computed(operands.out), self.computed(operands.scales)
        wanted = torch.empty_like(found[0]), torch.empty_like(found[1])
        quantize.compute_in_torch(values, "fp32", self.block_rows, *wanted)
        exact = _in_blocks(values)
        errors, best = (
            row_errors(_in_blocks(self._dequantized(*pair)), exact) for pair in (found, wanted)
        )
        allowed = 1.5 * best + _FLOOR
        if bool((errors <= allowed).all()):
            return
        worst = int((errors - allowed).nan_to_num(nan=torch.inf).argmax())
        row, block = divmod(worst, -(-self.columns // _BLOCK))
        raise AssertionError(
            f"row {row}, block {block}: relative error {float(errors[worst]):.3g}, "
            f"allowed {float(allowed[worst]):.3g}"
        )

    def _dequantized(self, q: Tensor, scales: Tensor) -> Tensor:
        a_row = scales.repeat_interleave(self.block_rows, dim=0)[: q.size(0)]
        return q.float() * a_row.repeat_interleave(_BLOCK, dim=1)[:, : q.size(1)]


def _in_blocks(matrix: Tensor) -> Tensor:
    """A row for each 128 columns of a row, the last filled up with zeros."""
    padded = torch.nn.functional.pad(matrix, (0, -matrix.size(1) % _BLOCK))
    return padded.view(-1, _BLOCK)


@dataclasses.dataclass(frozen=True)
class QuantizeShape(CastShape):
    """A matrix by ``quantize_1x128``, or with ``block_rows`` 128 by ``quantize_128x128``."""

    m: int
    k: int
    block_rows: int = 1

    def __str__(self) -> str:
        return f"{self.block_rows}x128 cast of {self.m}x{self.k}"

    @property
    def op(self) -> Callable[..., Any]:
        return pykernels.quantize_1x128 if self.block_rows == 1 else pykernels.quantize_128x128

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"m": self.m, "k": self.k}

    @property
    def num_rows(self) -> int:
        return self.m

    @property
    def columns(self) -> int:
        return self.k

    @property
    def bytes_read(self) -> int:
        return 2 * self.m * self.k

    def smaller(self) -> QuantizeShape | None:
        if self.m < 2 * _MIN_ROWS:
            return None
        return dataclasses.replace(self, m=halved(self.m, _BLOCK))

    def own_rows(self, tensor: Tensor) -> Tensor:
        return tensor

    def values(self, x: Tensor) -> Tensor:
        return x.float()

    def allocated(self, device: str) -> CastOperands:
        out, scales = _outputs((self.m,), self.k, self.block_rows, device)
        begins, ends = _bounds([0], self.m, device)
        x = _nan_rows((self.m,), self.k, device)
        return CastOperands(x, out, scales, None, begins, ends)

    def launch(
        self, device: Any, candidate: Candidate, options: Options, operands: CastOperands
    ) -> None:
        native().quantize(device, *map(tensor_view, operands[:3]), self.block_rows, False)

    def prepare_op(self, options: Options, operands: CastOperands) -> Prepared:
        pair = (operands.out, operands.scales)
        return Prepared(partial(self.op, operands.x, out=pair), operands.out)

    def baselines(self) -> list[Baseline[CastOperands]]:
        return cast.quantize_baselines(self.num_bytes, self.block_rows)


@dataclasses.dataclass(frozen=True)
class SiluMulShape(CastShape):
    """SwiGLU and cast of ``rows`` rows, or of so many in each of ``num_groups`` masked groups.

    Attributes:
        rows: That are cast, of each group.
        i: Columns of the result; x has twice as many.
        capacity: Room for rows, of each group: rows if None; without ``num_groups`` more of it
            means that offsets name the rows.
        num_groups: Of the masked layout; None for rows that follow each other.
    """

    rows: int
    i: int = INTERMEDIATE
    capacity: int | None = None
    num_groups: int | None = None
    block_rows: int = dataclasses.field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.room < self.rows:
            raise ValueError(f"the capacity must be at least m = {self.rows}, got {self.room}")

    def __str__(self) -> str:
        rows = str(self.rows)
        if self.num_groups is not None:
            rows = f"masked {self.num_groups}x{self.rows} in {self.room}"
        elif self.capacity is not None:
            rows += f" in {self.room}"
        return f"SwiGLU and cast of {rows} rows, i {self.i}"

    @property
    def room(self) -> int:
        return self.rows if self.capacity is None else self.capacity

    @property
    def total_room(self) -> int:
        return (self.num_groups or 1) * self.room

    @property
    def op(self) -> Callable[..., Any]:
        return pykernels.silu_mul_quantize_1x128

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"m": self.num_rows, "i": self.i}

    @property
    def num_rows(self) -> int:
        return (self.num_groups or 1) * self.rows

    @property
    def columns(self) -> int:
        return self.i

    @property
    def bytes_read(self) -> int:
        """Both halves of the rows, and what names the rows: of offsets the first and the last."""
        num_named = 0 if self.source is None else self.num_groups or 2
        return 4 * self.num_rows * self.i + 4 * num_named

    @property
    def source(self) -> str | None:
        """What names the rows."""
        if self.num_groups is not None:
            return "masked_m"
        return None if self.capacity is None else "group_offsets"

    def row(self) -> dict[str, Any]:
        return super().row() | {"source": self.source, "capacity": self.total_room}

    def smaller(self) -> SiluMulShape | None:
        """Half of the rows and of the room for them, down to a group's."""
        if self.rows < 2 * _MIN_ROWS:
            return None
        capacity = None if self.capacity is None else halved(self.capacity, 1)
        return dataclasses.replace(self, rows=halved(self.rows, 1), capacity=capacity)

    def own_rows(self, tensor: Tensor) -> Tensor:
        return tensor[..., : self.rows, :]

    def values(self, x: Tensor) -> Tensor:
        gate, up = x.float().chunk(2, dim=-1)
        return gate / (1 + torch.exp(-gate)) * up

    def allocated(self, device: str) -> CastOperands:
        lead = (self.room,) if self.num_groups is None else (self.num_groups, self.room)
        out, scales = _outputs(lead, self.i, 1, device)
        first = range(0, self.total_room, self.room)
        begins, ends = _bounds(first, self.rows, device)
        groups = None
        if self.source == "masked_m":
            groups = Groups(self.source, ends - begins)
        elif self.source is not None:
            groups = Groups(self.source, torch.cat([begins, ends]))
        return CastOperands(_nan_rows(lead, 2 * self.i, device), out, scales, groups, begins, ends)

    def launch(
        self, device: Any, candidate: Candidate, options: Options, operands: CastOperands
    ) -> None:
        arguments: list[Any] = [*map(strided_view, operands[:3]), False]
        if operands.groups is not None:
            arguments += strided_view(operands.groups.values), operands.groups.source
        native().silu_mul_quantize(device, *arguments)

    def prepare_op(self, options: Options, operands: CastOperands) -> Prepared:
        arguments: dict[str, Any] = {"out": (operands.out, operands.scales)}
        if operands.groups is not None:
            arguments[operands.groups.source] = operands.groups.values
        return Prepared(partial(self.op, operands.x, **arguments), operands.out)

    def baselines(self) -> list[Baseline[CastOperands]]:
        return cast.silu_mul_baselines(self.num_bytes)


def _nan_rows(lead: tuple[int, ...], columns: int, device: str) -> Tensor:
    """BF16 rows that start at multiples of 16 bytes."""
    padded = -(-columns // 8) * 8
    rows = torch.full((*lead, padded), torch.nan, dtype=torch.bfloat16, device=device)
    return rows[..., :columns]


def _outputs(
    lead: tuple[int, ...], columns: int, block_rows: int, device: str
) -> tuple[Tensor, Tensor]:
    padded = -(-columns // 16) * 16
    q = torch.zeros((*lead, padded), dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
    *groups, rows = lead
    blocks = (*groups, -(-rows // block_rows), -(-columns // _BLOCK))
    return q[..., :columns], torch.zeros(blocks, device=device)


def _bounds(begins: Sequence[int], rows: int, device: str) -> tuple[Tensor, Tensor]:
    """The first row of each group, and the one behind its last."""
    first = torch.tensor(begins, dtype=torch.int32, device=device)
    return first, first + rows


def shapes() -> Iterator[CastShape]:
    """The fused cast in all layouts first, then the plain ones."""
    for rows in ROWS:
        yield SiluMulShape(rows)
        yield SiluMulShape(rows, capacity=_CAPACITY * rows)
        if rows == ROWS[0]:
            yield SiluMulShape(rows=8, capacity=128, num_groups=32)
    for rows in ROWS:
        yield QuantizeShape(rows, HIDDEN)
    for n, k in _WEIGHTS:
        yield QuantizeShape(n, k, block_rows=128)
