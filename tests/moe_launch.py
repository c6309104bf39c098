"""Calls of the MoE kernels on all ranks, in one run: a rank may be in the next call already.

The public ops run call after call in the emulator; what a rank does to one that is still in the
call before shows here only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels.emulator import Emulator, Launch, Module, Report
from pykernels.moe.group import BufferSizes
from pykernels.moe.ranks import aligned_zeros, native_sizes, window_bytes
from pykernels.native import native, strided_view
from tests.kernel_launch import kernel_info, kernel_ptx

if TYPE_CHECKING:
    from pykernels import _C

NUM_SMS = 2  # of a rank
CPU = torch.device("cpu")
FOREVER_NS = 2**62
TIMEOUT_NS = 8_000_000  # longer than a schedule keeps a rank from running
POISON = 0x7F  # bytes of what is to be received: NaN in e4m3, large in BF16


@lru_cache
def registered(kernel: str) -> Module:
    return Module.from_ptx(kernel_ptx(kernel))


@dataclass
class Sent:
    """One rank's batch and what it becomes: the tensors of dispatch and combine."""

    sizes: BufferSizes
    x: Tensor
    scales: Tensor | None
    topk_idx: Tensor
    topk_weights: Tensor
    fp8: bool
    masked: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes, (num_tokens, hidden) = self.sizes, self.x.shape
        rows = sizes.num_local_experts * sizes.expert_rows if self.masked else sizes.max_rows
        groups = sizes.num_local_experts + (not self.masked)
        table = (sizes.num_ranks, sizes.num_max_tokens_per_rank, sizes.num_topk)
        shapes: dict[str, tuple[int, ...]] = {
            "position_in_expert": (num_tokens, sizes.num_topk),
            "position_in_rank": (num_tokens, sizes.num_ranks),
            "expert_counts": (sizes.num_experts,),
            "rank_counts": (sizes.num_ranks,),
            "groups": (groups,),
            "recv_counts": (sizes.num_ranks,),
            "number": (1,),
            "rows": table,
            "row_topk": table,
        }
        self.tensors = {
            name: torch.empty(shape, dtype=torch.int32) for name, shape in shapes.items()
        }
        self.tensors["row_weights"] = torch.empty(table)
        blocks = -(-rows // 128)
        if self.masked:
            blocks = sizes.num_local_experts * -(-sizes.expert_rows // 128)
        self.tensors["counters"] = torch.empty(2, blocks, dtype=torch.int32)
        dtype = torch.float8_e4m3fn if self.fp8 else torch.bfloat16
        self.tensors["recv_x"] = torch.empty(rows, hidden, dtype=dtype)
        if self.fp8:
            factors = -(-hidden // 128)
            self.tensors["recv_scales"] = torch.empty(rows, -(-factors // 4) * 4)
        self.tensors["out"] = torch.empty(num_tokens, hidden, dtype=torch.bfloat16)

    def poison(self) -> None:
        for tensor in self.tensors.values():
            tensor.view(torch.uint8).fill_(POISON)

    def scale_columns(self) -> Tensor | None:
        return self.tensors["recv_scales"][:, : -(-self.x.size(1) // 128)] if self.fp8 else None

    def all_tensors(self) -> list[Tensor]:
        given = [self.x, self.topk_idx, self.topk_weights, *self.tensors.values()]
        return given if self.scales is None else [*given, self.scales]


def _views(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else strided_view(tensor) for tensor in tensors]


def emulated(launch: _C.Launch, module: Module, rank: int) -> Launch:
    """A launch of a registered kernel, or of a changed copy, on a rank's GPU."""
    return Launch(
        module[launch.kernel],
        launch.grid,
        launch.block,
        [launch.arguments],
        cluster=launch.cluster,
        dynamic_smem_bytes=launch.dynamic_shared_bytes,
        registers=kernel_info(launch.kernel).registers,
        rank=rank,
    )


class World:
    """All ranks' buffers."""

    def __init__(self, sizes: BufferSizes, timeout_ns: int = FOREVER_NS) -> None:
        self.sizes = sizes
        extension, ranks = native(), range(sizes.num_ranks)
        memory = extension.moe_memory()
        self.windows = [aligned_zeros(window_bytes(sizes), CPU) for _ in ranks]
        self.states = [aligned_zeros(memory["state_bytes"], CPU) for _ in ranks]
        self.records = [aligned_zeros(memory["record_bytes"], CPU) for _ in ranks]
        self.buffers = [
            extension.MoeBuffer(
                **native_sizes(sizes),
                windows=[window.data_ptr() for window in self.windows],
                state=self.states[rank].data_ptr(),
                record=self.records[rank].data_ptr(),
                timeout_ns=timeout_ns,
                rank=rank,
            )
            for rank in ranks
        ]

    def reset(self, epoch: int = 0) -> None:
        """As new; with another epoch as after so many calls."""
        for tensor in (*self.windows, *self.states, *self.records):
            tensor.zero_()
        signed = epoch - (1 << 64) if epoch >> 63 else epoch
        for rank in range(self.sizes.num_ranks):
            self.states[rank].view(torch.int64)[0] = signed
            mail = self.windows[rank].view(torch.int64)
            pitch = self._flags_at() // self.sizes.num_ranks
            for peer in range(self.sizes.num_ranks):
                mail[peer * pitch] = signed
                mail[peer * pitch + 1] = signed
            flags = self._flags_at()
            count = self.sizes.num_ranks * self.sizes.num_max_tokens_per_rank
            mail[flags : flags + count] = signed

    def take_back(self, rank: int, source: int, index: int) -> None:
        """As if this token of the source had not come to the rank yet."""
        sizes = self.sizes
        flags = self.windows[rank].view(torch.int64)[self._flags_at() :]
        flags[source * sizes.num_max_tokens_per_rank + index] -= 1

    def _flags_at(self) -> int:
        """Words ahead of the flags in a window."""
        pitch = (40 + 4 * self.sizes.num_local_experts + 127) // 128 * 128 // 8
        return self.sizes.num_ranks * pitch

    def errors(self) -> list[dict[str, Any] | None]:
        """What each rank has recorded."""
        return [native().moe_read_record(record.data_ptr()) for record in self.records]

    def layout(self, batches: Sequence[Sent]) -> list[_C.Launch]:
        return [
            native().make_moe_layout_launch(buffer, *self._routing(batch))
            for buffer, batch in zip(self.buffers, batches, strict=True)
        ]

    def dispatch(
        self, batches: Sequence[Sent], phases: str = "both", beside: bool = False
    ) -> list[_C.Launch]:
        """``beside``: rows are counted for a kernel that runs beside."""
        names = ("groups", "recv_counts", "number", "rows")
        return [
            native().make_moe_dispatch_launch(
                buffer,
                *_views(batch.x, batch.scales),
                *self._routing(batch),
                *_views(batch.tensors["recv_x"], batch.scale_columns()),
                *_views(*(batch.tensors[name] for name in names)),
                *_views(batch.tensors["row_weights"], batch.tensors["row_topk"]),
                *_views(batch.tensors["counters"] if beside else None),
                masked=batch.masked,
                ue8m0=False,
                phases=phases,
                num_sms=NUM_SMS,
            )
            for buffer, batch in zip(self.buffers, batches, strict=True)
        ]

    def combine(
        self,
        y: Sequence[Tensor],
        batches: Sequence[Sent],
        phases: str = "both",
        beside: bool = False,
    ) -> list[_C.Launch]:
        """``beside``: rows of y are counted by a kernel that runs beside."""
        names = ("recv_counts", "number", "rows", "row_weights")
        names += ("position_in_rank", "rank_counts", "out")
        return [
            native().make_moe_combine_launch(
                buffer,
                strided_view(rows),
                *_views(*(batch.tensors[name] for name in names)),
                *_views(
                    *(batch.tensors["counters"][1:], batch.tensors["groups"]) if beside else ()
                ),
                phases=phases,
                num_sms=NUM_SMS,
            )
            for buffer, rows, batch in zip(self.buffers, y, batches, strict=True)
        ]

    def run(
        self,
        calls: Sequence[Sequence[_C.Launch | Launch]],
        memory: Sequence[Tensor],
        module: Module | None = None,
        num_sms: int | None = None,
        **options: Any,
    ) -> Report:
        """Runs each rank's launches behind one another, and all ranks at the same time.

        ``module`` takes the place of the kernel of its name. ``num_sms``: of each rank.
        """
        emulator = Emulator(num_sms=num_sms or NUM_SMS * max(1, len(calls)), **options)
        for tensor in (*memory, *self.windows, *self.states, *self.records):
            if tensor.numel() > 0:
                emulator.register(tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor)
        changed = {} if module is None else dict.fromkeys(module.kernels, module)
        launches = []
        for index, call in enumerate(calls):
            for launch in call:
                if isinstance(launch, Launch):
                    launches.append(launch)
                    continue
                module_of = changed.get(launch.kernel) or registered(launch.kernel)
                made = emulated(launch, module_of, launch.rank)
                launches.append(dataclasses.replace(made, programmatic_dependent=index > 0))
        return emulator.launch_concurrent(launches)

    def _routing(self, batch: Sent) -> list[Any]:
        names = ("position_in_expert", "position_in_rank", "expert_counts", "rank_counts")
        return _views(batch.topk_idx, batch.topk_weights, *(batch.tensors[name] for name in names))


@dataclass
class MoeLaunch:
    """Two batches there and back, one kernel of which may be a changed copy."""

    kernel: str
    world: World
    batches: list[list[Sent]]  # of each call, of each rank
    y: list[list[Tensor]]
    split: bool  # dispatch and combine in two launches each
    returns: bool  # with combine
    absent: int | None  # a rank that does not launch the kernel

    @classmethod
    def make(
        cls,
        kernel: str,
        num_tokens: Sequence[Sequence[int]],
        hidden: int,
        *,
        kind: str = "bf16",
        masked: bool = False,
        split: bool = False,
        returns: bool = True,
        absent: int | None = None,
        num_local_experts: int = 3,
    ) -> MoeLaunch:
        """Random batches of so many tokens for each call and rank.

        ``kind``: "bf16", "fp8" (pairs) or "cast" (BF16 that travels as FP8).
        """
        generator = torch.Generator().manual_seed(0)
        num_ranks = len(num_tokens[0])
        most = max(map(max, num_tokens))
        sizes = BufferSizes(num_ranks, num_local_experts * num_ranks, 4, hidden, most)
        batches = [
            [_batch(sizes, count, kind, masked, generator) for count in counts]
            for counts in num_tokens
        ]
        y = [
            [
                torch.randn(sent.tensors["recv_x"].shape, generator=generator).bfloat16()
                for sent in call
            ]
            for call in batches
        ]
        timeout_ns = FOREVER_NS if absent is None else TIMEOUT_NS
        return cls(kernel, World(sizes, timeout_ns), batches, y, split, returns, absent)

    @property
    def results(self) -> tuple[Tensor, ...]:
        """Where a rank is absent, what kind of error: the rest depends on the order of events."""
        if self.absent is not None:
            return tuple(record[:4] for record in self.world.records)
        sent = [
            tensor for call in self.batches for each in call for tensor in each.tensors.values()
        ]
        epochs = [state[:8] for state in self.world.states]
        return (*sent, *self.world.records, *epochs)

    def ptx(self) -> str:
        return kernel_ptx(self.kernel)

    def run(self, module: Module, epoch: int = 0, **options: Any) -> Report:
        """Poisons the results and runs all calls, after so many others."""
        for call in self.batches:
            for sent in call:
                sent.poison()
        self.world.reset(epoch)
        sent = [tensor for call in self.batches for each in call for tensor in each.all_tensors()]
        memory = [*sent, *(rows for call in self.y for rows in call)]
        layouts = [self.world.layout(call) for call in self.batches]
        calls: list[list[_C.Launch]] = []
        for y, batches in zip(self.y, self.batches, strict=True):
            phases = ("send", "receive") if self.split else ("both",)
            calls += [self.world.dispatch(batches, each) for each in phases]
            if self.returns:
                calls += [self.world.combine(y, batches, each) for each in phases]
        if self.absent is not None:
            for call in calls:
                if call[self.absent].kernel == self.kernel:
                    del call[self.absent]
        if self.kernel == "moe_layout":
            calls = layouts
        return self.world.run([*layouts, *calls], memory, module, **options)


def _batch(
    sizes: BufferSizes, num_tokens: int, kind: str, masked: bool, generator: torch.Generator
) -> Sent:
    x = torch.randn(num_tokens, sizes.hidden, generator=generator).bfloat16()
    scores = torch.rand(num_tokens, sizes.num_experts, generator=generator)
    idx = scores.topk(sizes.num_topk, dim=1).indices
    idx[torch.rand(idx.shape, generator=generator) < 0.2] = -1
    weights = torch.rand(idx.shape, generator=generator)
    if kind != "fp8":
        return Sent(sizes, x, None, idx, weights, kind == "cast", masked)
    factors = torch.rand(-(-sizes.hidden // 128), num_tokens, generator=generator).T
    return Sent(sizes, x.to(torch.float8_e4m3fn), factors, idx, weights, True, masked)
