"""Runs a changed copy of an MLA kernel's PTX: decode, the plan's update, merging of what was split.

Plans of the decode are written out, so that a case says which part takes what.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pykernels.emulator import Module, Report
from pykernels.native import native, strided_view
from tests.kernel_launch import kernel_ptx, run_launch
from tests.mla_cases import LATENT, SOFTMAX_SCALE, MlaCase, Operands

Item = tuple[int, int, int]  # request, its first block, one behind the last
Parts = tuple[tuple[Item, ...], ...]

_POISON = 7.0  # of what a kernel writes
_WHOLE_REQUEST = -1


@dataclass(frozen=True)
class PlanTensors:
    """As `pykernels.MlaPlan`, without the flag."""

    items: Tensor
    part_offsets: Tensor
    requests: Tensor
    partial_out: Tensor
    partial_lse: Tensor

    @classmethod
    def make(cls, lengths: Tensor, rows: tuple[int, int], parts: Parts) -> PlanTensors:
        """Requests with several items have a slot for each, others none."""
        items = [item for part in parts for item in part]
        counts = Counter(request for request, _, _ in items)
        slots = Counter[int]()
        first_slots, num_slots = {}, 0
        for request, count in sorted(counts.items()):
            if count > 1:
                first_slots[request] = num_slots
                num_slots += count
        written = []
        for request, begin, end in items:
            slot = _WHOLE_REQUEST
            if request in first_slots:
                slot = first_slots[request] + slots[request]
                slots[request] += 1
            written.append((request, begin, end, slot))
        ends = np.cumsum([0, *map(len, parts)]).tolist()
        planned = [
            (length, counts[request], first_slots.get(request, 0), 0)
            for request, length in enumerate(lengths.tolist())
        ]
        return cls(
            _int32(written),
            _int32(ends),
            _int32(planned),
            torch.empty(num_slots, *rows, LATENT),
            torch.empty(num_slots, *rows),
        )

    @property
    def all(self) -> list[Tensor]:
        return [self.items, self.part_offsets, self.requests, self.partial_out, self.partial_lse]


def _int32(values: list[int] | list[tuple[int, ...]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass
class MlaDecodeLaunch:
    """A call's tensors, and the launch of one kernel of the family on them."""

    kernel: str
    operands: Operands
    plan: PlanTensors
    out: Tensor
    lse: Tensor

    @classmethod
    def make(
        cls,
        kernel: str,
        case: MlaCase,
        parts: Parts,
        *,
        bad_page: tuple[int, int] | None = None,
        stale: int | None = None,
    ) -> MlaDecodeLaunch:
        """The kernel is the one that the sizes choose.

        Args:
            parts: items in their order, by part.
            bad_page: a request and an entry of its row of the block table.
            stale: a request that has another length than the plan says.
        """
        operands = case.operands()
        plan = PlanTensors.make(operands.cache_seqlens, operands.q.shape[1:3], parts)
        if bad_page is not None:
            operands.block_table[bad_page] = 2**30
        if stale is not None:
            operands.cache_seqlens[stale] -= 1
        return cls(kernel, operands, plan, *operands.poisoned_outputs())

    @property
    def results(self) -> tuple[Tensor, ...]:
        return self.out, self.lse, self.plan.partial_out, self.plan.partial_lse

    def ptx(self) -> str:
        return kernel_ptx(self.kernel)

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the results and runs the only kernel of the module."""
        for result in self.results:
            result.fill_(_POISON)
        given = self.operands
        inputs = [given.q, given.kv_cache, given.block_table, given.cache_seqlens]
        tensors = [*inputs, *self.plan.all, self.out, self.lse]
        cache = given.kv_cache
        if cache.dtype == torch.uint8:
            cache = cache.view(torch.float8_e4m3fn)
        called = [given.q[..., :LATENT], given.q[..., LATENT:], cache, *tensors[2:]]
        num_sms = 2 * self.plan.part_offsets.numel()
        device = native().EmulatedDevice(num_sms=num_sms)
        launch = native().make_mla_decode_launch(
            device, *map(strided_view, called), SOFTMAX_SCALE, given.causal
        )
        assert launch.kernel == self.kernel
        record = (ctypes.c_uint32 * 4).from_address(device.error_record())
        errors = torch.from_numpy(np.frombuffer(record, dtype=np.int32))
        report = run_launch(module, launch, [*tensors, errors], num_sms, **options)
        device.take_error()
        return report


@dataclass
class MlaCombineLaunch:
    """Partial results of a plan, and the launch that merges them."""

    plan: PlanTensors
    out: Tensor
    lse: Tensor

    @classmethod
    def make(cls, num_splits: tuple[int, ...], seqlen_q: int, num_heads: int) -> MlaCombineLaunch:
        parts = tuple(((b, i, i + 1),) for b, count in enumerate(num_splits) for i in range(count))
        rows = seqlen_q, num_heads
        plan = PlanTensors.make(_int32(list(num_splits)), rows, parts)
        generator = torch.Generator().manual_seed(0)
        for partial in (plan.partial_out, plan.partial_lse):
            partial.copy_(torch.randn(partial.shape, generator=generator))
        out = torch.empty(len(num_splits), *rows, LATENT, dtype=torch.bfloat16)
        return cls(plan, out, torch.empty(len(num_splits), num_heads, seqlen_q))

    @property
    def results(self) -> tuple[Tensor, ...]:
        return self.out, self.lse

    def ptx(self) -> str:
        return kernel_ptx("mla_combine")

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the results and runs the only kernel of the module."""
        for result in self.results:
            result.fill_(_POISON)
        device = native().EmulatedDevice(num_sms=1)
        tensors = [*self.plan.all[2:], *self.results]
        launch = native().make_mla_combine_launch(device, *map(strided_view, tensors))
        return run_launch(module, launch, tensors, 1, **options)


@dataclass
class MlaPlanLaunch:
    """Lengths, and the launch that plans for them."""

    lengths: Tensor
    items: Tensor
    part_offsets: Tensor
    requests: Tensor
    batch_invariant: bool

    @classmethod
    def make(cls, lengths: Tensor, num_parts: int, max_splits: int | None) -> MlaPlanLaunch:
        """For two more requests than there are.

        Args:
            max_splits: of a batch-invariant plan, else None.
        """
        max_batch = lengths.numel() + 2
        num_items = max_batch + num_parts - 1 if max_splits is None else max_batch * max_splits
        sizes = ((num_items, 4), (num_parts + 1,), (max_batch, 4))
        empty = (torch.empty(size, dtype=torch.int32) for size in sizes)
        return cls(lengths, *empty, batch_invariant=max_splits is not None)

    @property
    def results(self) -> tuple[Tensor, ...]:
        return self.items, self.part_offsets, self.requests

    def ptx(self) -> str:
        return kernel_ptx("mla_update_plan")

    def run(self, module: Module, **options: object) -> Report:
        """Poisons the results and runs the only kernel of the module."""
        for result in self.results:
            result.fill_(int(_POISON))
        device = native().EmulatedDevice(num_sms=1)
        tensors = [self.lengths, *self.results]
        launch = native().make_mla_update_plan_launch(
            device, *map(strided_view, tensors), self.batch_invariant
        )
        return run_launch(module, launch, tensors, 1, **options)
