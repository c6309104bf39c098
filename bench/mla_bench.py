"""MLA decode as benches take it: DeepSeek-V3's shapes, a paged cache, correctness."""

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
from pykernels.emulator import Counters, EmulationReport
from pykernels.native import native
from pykernels.testing import assert_rows_close

from . import published
from .baselines import Baseline, MlaOperands, Prepared, mla_baselines
from .problem import Options, Problem, halved, random_fp8

HEAD_DIM, HEAD_DIM_V = 576, 512
FP8_BYTES = 656  # of a token: 512 e4m3, 4 FP32 scales, 64 BF16
SOFTMAX_SCALE = (128 + 64) ** -0.5  # DeepSeek-V3's: by the head's size before absorption
PAGE_SIZE = 64
UPDATED = "pykernels, plan updated in each call"
_SCALE_BLOCK = 128
_FP8_SCALE = 1 / 40  # of codes of 40 in the mean
_FILLED_AT_ONCE = 2**22  # values
_CALLS_OF_ALL_HEADS = 3  # of the first cases
_MIN_LENGTH, _MIN_BATCH = 512, 4  # of a shape that is not made smaller any more
_PROBE_LENGTH = 64  # tokens of a call that shows which kernel runs
_EMULATION_FACTOR = 8  # what BF16 and the softmax cost the emulator over FP8 products
_NAN_BYTE = 0xFF  # such bytes are NaN in e4m3, BF16 and FP32
# Of an out row and of lse, beyond rounding the row: what probabilities in BF16 cost, and from FP8
# also keys and values that are rounded to BF16 after scaling.
_FLOOR, _FP8_FLOOR = 2.0**-8, 2.0**-7


@dataclasses.dataclass(frozen=True)
class MlaShape(Problem[MlaOperands]):
    """One causal decode.

    Attributes:
        lengths: Of each request: the tokens in the cache, those of the query included.
        num_heads: Of the query.
        seqlen_q: Query tokens of each request.
        fp8: Whether the cache is FP8.
        page_size: Tokens of a page.
    """

    lengths: tuple[int, ...]
    num_heads: int = 16
    seqlen_q: int = 1
    fp8: bool = False
    page_size: int = PAGE_SIZE

    def __str__(self) -> str:
        """``128x4096 tokens, 16 heads, seqlen_q 1, BF16 in pages of 64``."""
        tokens = f"{self.batch}x{self.seqlen_kv} tokens"
        if self.is_varied:
            tokens += f" ({min(self.lengths)} to {max(self.lengths)})"
        cache = f"{'FP8' if self.fp8 else 'BF16'} in pages of {self.page_size}"
        return f"{tokens}, {self.num_heads} heads, seqlen_q {self.seqlen_q}, {cache}"

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def seqlen_kv(self) -> int:
        """The mean."""
        return round(statistics.mean(self.lengths))

    @property
    def is_varied(self) -> bool:
        return min(self.lengths) != max(self.lengths)

    @property
    def op(self) -> Callable[..., Any]:
        return pykernels.mla_decode

    @property
    def sizes(self) -> Mapping[str, int]:
        return {
            "batch": self.batch,
            "seqlen_kv": self.seqlen_kv,
            "num_heads": self.num_heads,
            "seqlen_q": self.seqlen_q,
        }

    @property
    def operand_bytes(self) -> int:
        return 2  # tensor cores take BF16, whatever the cache holds

    @property
    def flops(self) -> float:
        """Of the tokens that each query token sees."""
        seen = sum(
            max(0, length - before) for length in self.lengths for before in range(self.seqlen_q)
        )
        return 2.0 * seen * self.num_heads * (HEAD_DIM + HEAD_DIM_V)

    @property
    def emulation_work(self) -> float:
        return _EMULATION_FACTOR * super().emulation_work

    @property
    def _rows(self) -> int:
        return self.batch * self.seqlen_q * self.num_heads

    @property
    def bytes_read(self) -> int:
        """The cached tokens once for each request, q, the pages' indices and the lengths."""
        token_bytes = FP8_BYTES if self.fp8 else 2 * HEAD_DIM
        indices = sum(self._num_pages(length) for length in self.lengths) + self.batch
        return token_bytes * sum(self.lengths) + 2 * HEAD_DIM * self._rows + 4 * indices

    @property
    def bytes_written(self) -> int:
        return (2 * HEAD_DIM_V + 4) * self._rows

    def _num_pages(self, length: int) -> int:
        return -(-length // self.page_size)

    def row(self) -> dict[str, Any]:
        found = super().row() | {
            "cache": "fp8" if self.fp8 else "bf16",
            "page_size": self.page_size,
            "published": [dataclasses.asdict(figure) for figure in published.mla_figures(self)],
        }
        return found | ({"lengths": list(self.lengths)} if self.is_varied else {})

    def smaller(self) -> MlaShape | None:
        """Lengths are halved first, then requests; rows, by which kernels differ, stay."""
        if max(self.lengths) >= 2 * _MIN_LENGTH:
            halves = tuple(halved(length, 1) for length in self.lengths)
            return dataclasses.replace(self, lengths=halves)
        if self.batch >= 2 * _MIN_BATCH:
            return dataclasses.replace(self, lengths=self.lengths[: halved(self.batch, 1)])
        return None

    def emulated_operands(self, seed: int = 0) -> MlaOperands:
        """What no request has is NaN, and what no row of the table needs is no page."""
        generator = torch.Generator().manual_seed(seed + sum(self.lengths))
        operands = self._operands(generator)
        used = torch.zeros(operands.kv_cache.shape[:2], dtype=torch.bool)
        for request, length in enumerate(self.lengths):
            used[_places(operands, request)] = True
            operands.block_table[request, self._num_pages(length) :] = torch.iinfo(torch.int32).max
        operands.kv_cache.view(torch.uint8)[~used] = _NAN_BYTE
        return operands

    def gpu_operands(self, seed: int) -> MlaOperands:
        """Random values also in what no request has: in others' kernels NaN would spread."""
        return self._operands(torch.Generator("cuda").manual_seed(seed))

    def _operands(self, generator: torch.Generator) -> MlaOperands:
        """Pages in a random order."""
        device = generator.device
        max_pages = self._num_pages(max(self.lengths))
        counts = [self._num_pages(length) for length in self.lengths]
        num_pages = sum(counts) + 1
        if self.fp8:
            cache = torch.empty(
                num_pages, self.page_size, 1, FP8_BYTES, dtype=torch.uint8, device=device
            )
        else:
            cache = torch.empty(
                num_pages, self.page_size, 1, HEAD_DIM, dtype=torch.bfloat16, device=device
            )
        for part in cache.split(max(1, _FILLED_AT_ONCE // (self.page_size * HEAD_DIM))):
            _fill(part, generator)
        pages = torch.randperm(num_pages, generator=generator, device=device).int()
        table = torch.zeros(self.batch, max_pages, dtype=torch.int32, device=device)
        for row, own in zip(table, pages[:-1].split(counts), strict=True):
            row[: len(own)] = own
        shape = self.batch, self.seqlen_q, self.num_heads
        q = torch.empty(*shape, HEAD_DIM, dtype=torch.bfloat16, device=device)
        return MlaOperands(
            q.normal_(generator=generator),
            cache,
            table,
            torch.tensor(self.lengths, dtype=torch.int32, device=device),
            q.new_empty(*shape, HEAD_DIM_V),
            torch.empty(self.batch, self.num_heads, self.seqlen_q, device=device),
            self.lengths,
            SOFTMAX_SCALE,
        )

    def own_output(self, operands: MlaOperands) -> MlaOperands:
        out, lse = (torch.empty_like(tensor) for tensor in (operands.out, operands.lse))
        return operands._replace(out=out, lse=lse)

    def candidates(self, options: Options) -> list[Candidate]:
        """The one kernel for so many rows and such a cache: what a small call of them launches."""
        probe = dataclasses.replace(self, lengths=(_PROBE_LENGTH + self.seqlen_q,))
        launches = probe._launches(options)
        name, _ = max(launches, key=lambda it: (it[1].tensor_multiply_adds, it[1].instructions))
        configs = {kernel.name: kernel.config for kernel in native().registered_kernels()}
        return [Candidate(name, configs[name], {}, {})]

    def launch(
        self, device: Any, candidate: Candidate, options: Options, operands: MlaOperands
    ) -> None:
        """The op itself, on the operands' own device: there is nothing to choose."""
        self.prepare_op(options, operands).call()

    def emulate(self, candidate: Candidate, options: Options) -> Counters:
        """All launches of one call, the plan's update not among them."""
        return sum((counters for _, counters in self._launches(options)), Counters())

    def _launches(self, options: Options) -> list[tuple[str, Counters]]:
        """Kernel and counters of what one call launches in the emulator."""
        report: EmulationReport
        with pykernels.emulate(checks=()) as report:
            prepared = self.prepare_op(options, self.emulated_operands())
            before = len(report.launches)
            prepared.call()
        return [(name, found.counters) for name, found in report.launches[before:]]

    def prepare_op(self, options: Options, operands: MlaOperands) -> Prepared:
        """With a plan that is up to date, as all layers of a step but the first find it."""
        plan, call = self._planned(options, operands)
        pykernels.mla_update_plan(plan, operands.cache_seqlens)
        return Prepared(call, operands.out)

    def variants(self, options: Options) -> list[Baseline[MlaOperands]]:
        """The same with the plan's update, as the first layer of a step has it."""

        def prepare(operands: MlaOperands) -> Prepared:
            plan, decode = self._planned(options, operands)

            def call() -> None:
                pykernels.mla_update_plan(plan, operands.cache_seqlens)
                decode()

            return Prepared(call, operands.out)

        return [Baseline(UPDATED, "as in the first layer of a step", prepare)]

    def _planned(self, options: Options, operands: MlaOperands) -> tuple[Any, Callable[[], object]]:
        """A plan without lengths yet, and the call that takes it."""
        q, cache, table, lengths, out, lse, _, softmax_scale = operands
        plan = pykernels.mla_decode_plan(
            self.batch,
            self.seqlen_q,
            self.num_heads,
            batch_invariant=options.batch_invariant,
            num_sms=options.num_sms,
            device=q.device,
        )
        call = partial(
            self.op,
            *(q, cache, table, lengths),
            softmax_scale=softmax_scale,
            plan=plan,
            batch_invariant=options.batch_invariant,
            out=(out, lse),
        )
        return plan, call

    def check(self, operands: MlaOperands, prepared: Prepared) -> None:
        """Each request against its attention in FP32, row by row, and the logarithms."""
        operands.out.fill_(torch.nan)
        operands.lse.fill_(torch.nan)
        prepared.call()
        found = prepared.results() if prepared.results else (operands.out, operands.lse)
        floor = _FP8_FLOOR if self.fp8 else _FLOOR
        for request in range(self.batch):
            out, lse = attention(operands, request)
            try:
                assert_rows_close(found[0][request].flatten(0, 1), out.flatten(0, 1), floor=floor)
            except AssertionError as error:
                raise AssertionError(f"request {request}, {error}") from error
            visible = lse.isfinite()  # of a row without tokens not all say -inf
            distance = (found[1][request] - lse)[visible].abs()
            if not bool((distance <= floor).all()):
                worst = float(distance.nan_to_num(nan=torch.inf).max())
                raise AssertionError(f"request {request}: lse is off by {worst:.3g}")

    def baselines(self) -> list[Baseline[MlaOperands]]:
        return mla_baselines()


def _fill(cache: Tensor, generator: torch.Generator) -> None:
    """Normal values; in FP8 with scales from half to one and a half of their mean."""
    if cache.dtype == torch.bfloat16:
        cache.normal_(generator=generator)
        return
    lead = cache.shape[:-1]
    end, rope = HEAD_DIM_V, HEAD_DIM_V + 4 * HEAD_DIM_V // _SCALE_BLOCK
    cache[..., :end] = random_fp8(generator, *lead, end).view(torch.uint8)
    scales = torch.rand(*lead, HEAD_DIM_V // _SCALE_BLOCK, generator=generator, device=cache.device)
    cache.view(torch.float32)[..., end // 4 : rope // 4] = (scales + 0.5) * _FP8_SCALE
    values = cache.view(torch.bfloat16)[..., rope // 2 :]
    values.copy_(torch.randn(values.shape, generator=generator, device=cache.device))


def _places(operands: MlaOperands, request: int) -> tuple[Tensor, Tensor]:
    """The page and the slot in it of each token."""
    page_size = operands.kv_cache.size(1)
    token = torch.arange(operands.lengths[request], device=operands.q.device)
    return operands.block_table[request, token // page_size].long(), token % page_size


def tokens(operands: MlaOperands, request: int) -> Tensor:
    """``[length, 576]``, FP32: what the cache says of a request."""
    cached = operands.kv_cache[_places(operands, request)].squeeze(1)
    if not operands.is_fp8:
        return cached.float()
    end, rope = HEAD_DIM_V, HEAD_DIM_V + 4 * HEAD_DIM_V // _SCALE_BLOCK
    latent = cached[:, :end].view(torch.float8_e4m3fn).float()
    scales = cached.view(torch.float32)[:, end // 4 : rope // 4]
    latent = latent * scales.repeat_interleave(_SCALE_BLOCK, dim=1)
    return torch.cat([latent, cached.view(torch.bfloat16)[:, rope // 2 :].float()], dim=1)


def attention(operands: MlaOperands, request: int) -> tuple[Tensor, Tensor]:
    """``out [seqlen_q, num_heads, 512]`` and ``lse [num_heads, seqlen_q]`` of a request, FP32."""
    cached = tokens(operands, request)
    q = operands.q[request].float()
    scores = torch.einsum("shd,td->hst", q, cached) * operands.softmax_scale
    length, seqlen_q = cached.size(0), q.size(0)
    last = length - seqlen_q + torch.arange(seqlen_q, device=q.device)
    hidden = torch.arange(length, device=q.device) > last[:, None]
    scores.masked_fill_(hidden, -torch.inf)
    weights = scores.softmax(dim=2).nan_to_num(0.0)  # a row without tokens is zero
    out = torch.einsum("hst,td->shd", weights, cached[:, :HEAD_DIM_V])
    return out, scores.logsumexp(dim=2)


def varied(batch: int, seqlen_kv: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths from a quarter to seven quarters of the mean, in random order: as many tokens."""
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(max(1, round(seqlen_kv * (0.25 + 1.5 * (i + 0.5) / batch))) for i in order)


def cases() -> Iterator[MlaShape]:
    """128 requests of 4096 tokens first, then in turn other lengths, batches and query tokens."""
    calls: list[tuple[tuple[int, ...], int]] = [
        ((4096,) * 128, 1),
        (varied(128, 4096), 1),
        ((4096,) * 128, 2),
        ((4096,), 1),
        ((32768,) * 16, 1),
        ((1024,) * 128, 1),
        ((4096,) * 128, 4),
        ((4096,) * 16, 1),
        ((32768,) * 128, 1),
        ((32768,), 1),
        (varied(16, 16384), 2),
    ]
    for number, (lengths, seqlen_q) in enumerate(calls):
        for num_heads in (16, 128, 64) if number < _CALLS_OF_ALL_HEADS else (16, 128):
            for fp8 in (False, True):
                yield MlaShape(lengths, num_heads, seqlen_q, fp8)
