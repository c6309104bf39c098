"""MoE dispatch and combine as benches take them: DeepSeek-V3's shapes, routing, correctness."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

import pykernels
from pykernels import moe
from pykernels.config import Candidate
from pykernels.emulator import Counters, EmulationReport, Report
from pykernels.native import native

from . import moe_check, moe_links, published
from .baselines import Baseline, MoeOperands, Prepared, moe_baselines
from .problem import Options, Problem, halved

HOOK = "pykernels, receive in the hook"
CALLS = ("dispatch", "combine", "low_latency_dispatch", "low_latency_combine")
HIDDEN, NUM_EXPERTS, NUM_TOPK = 7168, 256, 8  # DeepSeek-V3
NVLINK_GBPS = 450.0  # a direction, by the datasheet of H100 SXM and H200
RANKS = (2, 4, 8)  # of a LocalGroup on one GPU
TOKENS, LOW_LATENCY_TOKENS = 4096, (1, 8, 32, 128)
_SCALE_BLOCK = 128
_EMULATED_SMS = 2  # of each rank
_EMULATION_FACTOR = 1024  # what a byte moved costs the emulator over an FP8 multiply-add
_INDEX_BYTES, _WEIGHT_BYTES = 8, 4  # of topk_idx, topk_weights


@dataclasses.dataclass(frozen=True)
class MoeShape(Problem[MoeOperands]):
    """One call by all ranks.

    Attributes:
        call: Of :class:`pykernels.moe.Buffer`.
        num_ranks: On one GPU, each with its share of the SMs; or a GPU each, see ``across``.
        num_tokens: Of each rank, as many as the buffer is made for.
        fp8: Whether rows of a dispatch travel as FP8; combine's are BF16.
        hidden: Columns.
        num_experts: Of all ranks.
        num_topk: Distinct experts of a token, all equally likely.
        across: Whether ranks are processes of torch.distributed with a GPU each.
    """

    call: str
    num_ranks: int = 8
    num_tokens: int = TOKENS
    fp8: bool = False
    hidden: int = HIDDEN
    num_experts: int = NUM_EXPERTS
    num_topk: int = NUM_TOPK
    across: bool = False

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise ValueError(f"call must be one of {', '.join(CALLS)}, got {self.call!r}")
        if self.fp8 and not self.is_dispatch:
            raise ValueError(f"{self.call} sends BF16 rows")
        if self.num_topk > self.num_experts:
            raise ValueError(
                f"num_topk must be at most num_experts = {self.num_experts}, got {self.num_topk}"
            )
        self.buffer_sizes  # noqa: B018 - refuses what no buffer takes

    def __str__(self) -> str:
        """``dispatch of 8 x 4096 tokens x 7168, BF16, top 8 of 256, on one GPU``."""
        name = self.call.replace("low_latency_", "low-latency ")
        place = "a GPU each" if self.across else "on one GPU"
        return (
            f"{name} of {self.num_ranks} x {self.num_tokens} tokens x {self.hidden}, "
            f"{'FP8' if self.fp8 else 'BF16'}, top {self.num_topk} of {self.num_experts}, {place}"
        )

    @property
    def is_dispatch(self) -> bool:
        return self.call.endswith("dispatch")

    @property
    def is_low_latency(self) -> bool:
        return self.call.startswith("low_latency")

    @property
    def buffer_sizes(self) -> moe.BufferSizes:
        return moe.BufferSizes(
            self.num_ranks, self.num_experts, self.num_topk, self.hidden, self.num_tokens
        )

    @property
    def op(self) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(moe.Buffer, self.call)
        return method

    @property
    def sizes(self) -> Mapping[str, int]:
        return {
            "num_ranks": self.num_ranks,
            "num_tokens": self.num_tokens,
            "hidden": self.hidden,
            "num_experts": self.num_experts,
            "num_topk": self.num_topk,
        }

    @property
    def flops(self) -> float:
        return 0.0

    @property
    def emulation_work(self) -> float:
        return float(_EMULATION_FACTOR * self._slot_bytes)

    def routing(self) -> moe_links.Routing:
        return moe_links.Routing.of(
            self.num_ranks, self.num_tokens, self.num_experts, self.num_topk
        )

    @property
    def payload_bytes(self) -> int:
        """Of a token on its way: values, and scale factors in multiples of 16 bytes."""
        if not self.fp8:
            return 2 * self.hidden
        return self.hidden + 16 * -(-self.hidden // (4 * _SCALE_BLOCK))

    @property
    def _slot_bytes(self) -> int:
        """All payloads in the ranks' windows, a rank's own among them."""
        return self.payload_bytes * int(self.routing().tokens.sum())

    @property
    def _row_bytes(self) -> int:
        """All rows of recv_x or y."""
        return self.payload_bytes * int(self.routing().entries.sum())

    @property
    def _token_bytes(self) -> int:
        """What the call takes, or gives, of every token: before a cast in the send BF16."""
        cast = self.fp8 and self.is_low_latency
        row = 2 * self.hidden if cast else self.payload_bytes
        return self.num_ranks * self.num_tokens * row

    @property
    def _routing_bytes(self) -> int:
        entry = _INDEX_BYTES + _WEIGHT_BYTES if self.is_dispatch else 0
        return self.num_ranks * self.num_tokens * self.num_topk * entry

    def _of_a_gpu(self, num_bytes: int) -> int:
        return num_bytes // self.num_ranks if self.across else num_bytes

    @property
    def bytes_read(self) -> int:
        """Tokens or rows once, then each payload from its slot; of several GPUs the mean."""
        source = self._token_bytes if self.is_dispatch else self._row_bytes
        return self._of_a_gpu(source + self._slot_bytes + self._routing_bytes)

    @property
    def bytes_written(self) -> int:
        """Each payload into its slot, then rows or tokens once; of several GPUs the mean."""
        result = self._row_bytes if self.is_dispatch else self._token_bytes
        return self._of_a_gpu(result + self._slot_bytes)

    @property
    def link_bytes(self) -> int:
        """Payloads that the busiest GPU sends to its peers, or receives from them."""
        if not self.across:
            return 0
        tokens = self.routing().tokens.clone().fill_diagonal_(0)
        return self.payload_bytes * int(torch.maximum(tokens.sum(0), tokens.sum(1)).max())

    @property
    def deepep_bytes(self) -> int:
        """As DeepEP counts them: what a rank receives, its own tokens too; the mean."""
        return self._slot_bytes // self.num_ranks

    @property
    def link_us(self) -> float:
        return self.link_bytes / NVLINK_GBPS / 1e3

    def row(self) -> dict[str, Any]:
        return super().row() | {
            "op": "moe.Buffer",
            "call": self.call,
            "rows": "fp8" if self.fp8 else "bf16",
            "across_gpus": self.across,
            "payload_bytes": self.payload_bytes,
            "published": [dataclasses.asdict(figure) for figure in published.moe_figures(self)],
        }

    def rates(self, us: float) -> dict[str, float]:
        """GB/s of one GPU's links, and what DeepEP would call them."""
        if not self.across:
            return {}
        return {
            "link_gbps": self.link_bytes / us / 1e3,
            "gbps_as_deepep": self.deepep_bytes / us / 1e3,
        }

    def smaller(self) -> MoeShape | None:
        """Half of the tokens."""
        if self.num_tokens < 2:
            return None
        return dataclasses.replace(self, num_tokens=halved(self.num_tokens, 1))

    def emulated_operands(self, seed: int = 0) -> MoeOperands:
        """In a buffer of their own; NaN in rows of y that no token has."""
        return self._operands(seed, "cpu", _EMULATED_SMS, fill=torch.nan)

    def gpu_operands(self, seed: int) -> MoeOperands:
        """All sets share a buffer, as the layers of a model do."""
        return self._operands(seed, "cuda", self._share_of_sms(), fill=0.0)

    def _share_of_sms(self) -> int | None:
        """Of one GPU among its ranks; across GPUs the default."""
        if self.across:
            return None
        sms: int = torch.cuda.get_device_properties("cuda").multi_processor_count
        return sms // self.num_ranks

    def local_ranks(self) -> list[int]:
        """Those of this process."""
        return [torch.distributed.get_rank()] if self.across else list(range(self.num_ranks))

    def public(self, values: list[Any]) -> Any:
        """As the buffer takes them."""
        return values[0] if self.across else values

    def _operands(self, seed: int, device: str, num_sms: int | None, *, fill: float) -> MoeOperands:
        routing, ranks = self.routing(), self.local_ranks()
        if device == "cpu":
            buffer = _make_buffer(self.buffer_sizes, self.across, device, num_sms)
        else:
            buffer = _shared_buffer(self.buffer_sizes, self.across, device, num_sms)
        x = [moe_check.tokens(self, seed, rank, device) for rank in ranks]
        idx = [routing.topk_idx[rank].to(device) for rank in ranks]
        weights = [routing.topk_weights[rank].to(device) for rank in ranks]
        operands = MoeOperands(buffer, x, idx, weights, [], [], torch.empty(0), seed)
        if self.is_dispatch:
            return operands
        dispatch = dataclasses.replace(
            self, call=self.call.replace("combine", "dispatch"), fp8=self.is_low_latency
        )
        bf16 = [moe_check.tokens(dispatch, seed, rank, device) for rank in ranks]
        _, _, handle = dispatch.run(operands._replace(x=bf16), hook=False)
        y = [moe_check.results(self, seed, rank, device, fill) for rank in ranks]
        out = torch.empty(
            len(ranks), self.num_tokens, self.hidden, dtype=torch.bfloat16, device=device
        )
        return operands._replace(y=y, handle=handle, out=out)

    def run(self, operands: MoeOperands, *, hook: bool) -> Any:
        """The call. Of a dispatch recv_x, counts and handle; of a combine its results."""
        if self.is_dispatch:
            sent = [self.public(each) for each in operands[1:4]]
            if not self.is_low_latency:
                return operands.buffer.dispatch(*sent, capacity=self.routing().capacity)
            *results, receive = operands.buffer.low_latency_dispatch(
                *sent, fp8=self.fp8, return_recv_hook=hook
            )
            receive()
            return results
        arguments = self.public(operands.y), operands.handle
        out = self.public(list(operands.out))
        if not self.is_low_latency:
            return operands.buffer.combine(*arguments, out=out)
        result, receive = operands.buffer.low_latency_combine(
            *arguments, out=out, return_recv_hook=hook
        )
        receive()
        return result

    def candidates(self, options: Options) -> list[Candidate]:
        """The one kernel that moves the rows."""
        name = self.kernel
        configs = {kernel.name: kernel.config for kernel in native().registered_kernels()}
        return [Candidate(name, configs[name], {}, {})]

    @property
    def kernel(self) -> str:
        if not self.is_dispatch:
            return "moe_combine"
        return "moe_dispatch_quantise" if self.fp8 and self.is_low_latency else "moe_dispatch"

    def launch(
        self, device: Any, candidate: Candidate, options: Options, operands: MoeOperands
    ) -> None:
        """The call itself, on the operands' own device: there is nothing to choose."""
        self.run(operands, hook=False)

    def emulate(self, candidate: Candidate, options: Options) -> Counters:
        """All launches of one call, of all ranks."""
        return sum((report.counters for _, report in self.reports()), Counters())

    def reports(self) -> tuple[tuple[str, Report], ...]:
        """Kernel and report of what one call launches in the emulator, without checks."""
        return _emulated(dataclasses.replace(self, across=False))

    def details(self, options: Options) -> dict[str, Any]:
        """Bytes over the links, counted."""
        return {"links": moe_links.count(self).row()}

    def prepare_op(self, options: Options, operands: MoeOperands) -> Prepared:
        return self._prepare(operands, hook=False)

    def _prepare(self, operands: MoeOperands, *, hook: bool) -> Prepared:
        kept: list[Any] = [None]  # results that the op allocates

        def call() -> None:
            kept[0] = self.run(operands, hook=hook)

        return Prepared(call, operands.out, results=lambda: (kept[0],))

    def variants(self, options: Options) -> list[Baseline[MoeOperands]]:
        """Of low latency: send and receive in launches of their own."""
        if not self.is_low_latency:
            return []
        prepare = functools.partial(self._prepare, hook=True)
        return [Baseline(HOOK, "send and receive apart, nothing between them", prepare)]

    def check(self, operands: MoeOperands, prepared: Prepared) -> None:
        """Every row and count of this process's ranks."""
        operands.out.fill_(torch.nan)
        prepared.call()
        operands.buffer.check()
        assert prepared.results is not None
        (found,) = prepared.results()
        if self.is_dispatch:
            moe_check.check_dispatch(self, operands, found)
        else:
            moe_check.check_combine(self, operands)

    def baselines(self) -> list[Baseline[MoeOperands]]:
        return moe_baselines(self)


def _make_buffer(
    sizes: moe.BufferSizes, across: bool, device: str, num_sms: int | None
) -> moe.Buffer:
    group = torch.distributed.group.WORLD if across else moe.LocalGroup(sizes.num_ranks)
    return moe.Buffer(
        group,
        hidden=sizes.hidden,
        num_experts=sizes.num_experts,
        num_topk=sizes.num_topk,
        num_max_tokens_per_rank=sizes.num_max_tokens_per_rank,
        device=device,
        num_sms=num_sms,
    )


_shared: dict[tuple[Any, ...], moe.Buffer] = {}  # the last one


def _shared_buffer(
    sizes: moe.BufferSizes, across: bool, device: str, num_sms: int | None
) -> moe.Buffer:
    """The one before is closed if it was another."""
    key = sizes, across, device, num_sms
    if key not in _shared:
        for buffer in _shared.values():
            buffer.close()
        _shared.clear()
        _shared[key] = _make_buffer(*key)
    return _shared[key]


@functools.lru_cache(maxsize=8)
def _emulated(shape: MoeShape) -> tuple[tuple[str, Report], ...]:
    report: EmulationReport
    with pykernels.emulate(checks=()) as report:
        prepared = shape.prepare_op(Options(), shape.emulated_operands())
        before = len(report.launches)
        prepared.call()
        return tuple(report.launches[before:])


def across_gpus(shape: MoeShape) -> MoeShape:
    """The same with a GPU for each of torch.distributed's ranks."""
    num_ranks = torch.distributed.get_world_size()
    return dataclasses.replace(shape, num_ranks=num_ranks, across=True)


def cases(ranks: tuple[int, ...] = RANKS) -> Iterator[MoeShape]:
    """On one GPU: 4096 tokens a rank, most ranks first; then the low-latency pair."""
    for num_ranks in sorted(ranks, reverse=True):
        yield MoeShape("dispatch", num_ranks)
        yield MoeShape("dispatch", num_ranks, fp8=True)
        yield MoeShape("combine", num_ranks)
    for num_tokens in sorted(LOW_LATENCY_TOKENS, reverse=True):
        for num_ranks in sorted(ranks, reverse=True):
            yield MoeShape("low_latency_dispatch", num_ranks, num_tokens, fp8=True)
            yield MoeShape("low_latency_combine", num_ranks, num_tokens)
