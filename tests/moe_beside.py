"""MoE kernels with grouped GEMMs beside them, one of which may be a changed copy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pykernels import reference
from pykernels.emulator import Module, Report
from pykernels.native import native, strided_view
from tests.grouped_kernels import ALL
from tests.kernel_launch import kernel_ptx
from tests.moe_launch import (
    FOREVER_NS,
    TIMEOUT_NS,
    MoeLaunch,
    Sent,
    World,
    emulated,
    registered,
)

if TYPE_CHECKING:
    from pykernels import _C

NUM_GEMM_SMS = 3  # of a rank
NUM_SMS = 8  # of a rank, for all its kernels
GEMM = next(each for each in ALL if each.kernel.endswith("m64n128c1"))


def expert_weights(num_experts: int, columns: int, hidden: int, seed: int) -> tuple[Tensor, Tensor]:
    """``[num_experts, columns, hidden]`` in FP8, with scales."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(num_experts, columns, hidden, generator=generator) / hidden**0.5
    parts = [reference.quantize_128x128(each.bfloat16()) for each in weights]
    return torch.stack([q for q, _ in parts]), torch.stack([scales for _, scales in parts])


@dataclass
class Experts:
    """A rank's GEMM over the rows that it receives in FP8."""

    sent: Sent
    weights: tuple[Tensor, Tensor]
    out: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.device = native().EmulatedDevice(num_sms=NUM_SMS)
        rows = self.sent.tensors["recv_x"].size(0)
        self.out = torch.empty(rows, self.weights[0].size(1), dtype=torch.bfloat16)

    @property
    def ready(self) -> Tensor:
        return self.sent.tensors["counters"][0]

    @property
    def done(self) -> Tensor:
        return self.sent.tensors["counters"][1]

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        scales = self.sent.scale_columns()
        assert scales is not None
        return self.sent.tensors["recv_x"], scales

    def launch(self, *, waits: bool = True) -> _C.Launch:
        """``waits``: for rows, which another kernel counts."""
        groups = self.sent.tensors["groups"]
        return native().make_grouped_fp8_gemm_nt_launch(
            self.device,
            *map(strided_view, (*self.rows, *self.weights, self.out, groups)),
            "group_offsets",
            NUM_GEMM_SMS,
            None,
            strided_view(self.ready) if waits else None,
            strided_view(self.done),
            False,
            FOREVER_NS,
            GEMM.kernel,
            GEMM.schedule,
        )

    def memory(self) -> list[Tensor]:
        record = (ctypes.c_uint32 * 4).from_address(self.device.error_record())
        return [*self.weights, self.out, torch.frombuffer(record, dtype=torch.int32)]


@dataclass
class MoeBesideLaunch:
    """One batch there and back: the kernel runs beside the GEMM that takes or makes its rows."""

    kernel: str
    world: World
    sent: list[Sent]
    experts: list[Experts]
    withholds: bool  # the last token of rank 1 for rank 0

    @classmethod
    def make(
        cls, kernel: str, num_tokens: Sequence[int], hidden: int, *, withholds: bool = False
    ) -> MoeBesideLaunch:
        """Random batches that travel in FP8."""
        kind = "cast" if kernel == "moe_dispatch_quantise" else "fp8"
        made = MoeLaunch.make(kernel, [num_tokens], hidden, kind=kind, num_local_experts=2)
        (sent,) = made.batches
        world = World(made.world.sizes, TIMEOUT_NS) if withholds else made.world
        experts = [
            Experts(each, expert_weights(2, hidden, hidden, rank)) for rank, each in enumerate(sent)
        ]
        return cls(kernel, world, sent, experts, withholds)

    @property
    def results(self) -> tuple[Tensor, ...]:
        """Where a token is withheld, the kind of error, and that the GEMMs have done their work."""
        if self.withholds:
            kinds = [record[:4] for record in self.world.records]
            return (*kinds, *(each.done for each in self.experts))
        tensors = [tensor for each in self.sent for tensor in each.tensors.values()]
        epochs = [state[:8] for state in self.world.states]
        return (*tensors, *(each.out for each in self.experts), *self.world.records, *epochs)

    def ptx(self) -> str:
        return kernel_ptx(self.kernel)

    def run(self, module: Module, **options: Any) -> Report:
        """In two runs, since what comes first has ended where the others start."""
        for each in self.sent:
            each.poison()
        for experts in self.experts:
            experts.out.view(torch.uint8).fill_(0x7F)
        self.world.reset()
        memory = [tensor for each in self.sent for tensor in each.all_tensors()]
        memory += [tensor for experts in self.experts for tensor in experts.memory()]
        first: list[Any] = [self.world.layout(self.sent)]
        first.append(self.world.dispatch(self.sent, "send and counts", beside=True))
        rows = self.world.dispatch(self.sent, "rows", beside=True)
        combines = self.kernel == "moe_combine"
        gemms = [
            emulated(each.launch(waits=not combines), registered(GEMM.kernel), rank)
            for rank, each in enumerate(self.experts)
        ]
        together: list[Any] = [*rows]
        if combines:
            first.append(rows)
            y = [each.out for each in self.experts]
            together = [*self.world.combine(y, self.sent, beside=True)]
        report = self.world.run(first, memory, module, **options)
        if report.findings:
            return report
        if self.withholds:
            self.world.take_back(0, 1, int(self.sent[0].tensors["recv_counts"][1]) - 1)
        return self.world.run([[*together, *gemms]], memory, module, num_sms=NUM_SMS, **options)
