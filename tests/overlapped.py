"""A grouped GEMM between a kernel that fills its rows and one that takes its results.

The two others stand for a dispatch that expands tokens and a combine that sends them: they move
rows in any order and speak to the GEMM through its counters alone.
"""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pykernels.emulator import Emulator, Launch, Module, Report
from pykernels.native import native, strided_view
from tests.gemm_kernels import Schedule
from tests.grouped_kernels import UNTOUCHED, Problem, Scheduled
from tests.kernel_launch import kernel_info, kernel_ptx, run_launch

_NUM_FILLERS = 3  # CTAs
_HEADER = ".version 8.3\n.target sm_90a\n.address_size 64\n"

# Rows order[cta], order[cta + CTAs], ...: a warp copies a row's values and scale factors, 16 and 4
# bytes a lane and turn, and adds 1 to the row's counter.
_FILLER = (
    _HEADER
    + """
.visible .entry fill(.param .u64 p_from, .param .u64 p_to, .param .u32 p_bytes,
                     .param .u64 p_sf_from, .param .u64 p_sf_to, .param .u32 p_sf_bytes,
                     .param .u64 p_order, .param .u32 p_count, .param .u64 p_ready,
                     .param .u64 p_counters)
{
    .reg .pred %p;
    .reg .b32 %lane, %i, %step, %count, %row, %bytes, %sf_bytes, %at, %v<4>, %c;
    .reg .b64 %from, %to, %sf_from, %sf_to, %order, %ready, %counters, %a, %o, %d;
    ld.param.u64 %from, [p_from];
    ld.param.u64 %to, [p_to];
    ld.param.u32 %bytes, [p_bytes];
    ld.param.u64 %sf_from, [p_sf_from];
    ld.param.u64 %sf_to, [p_sf_to];
    ld.param.u32 %sf_bytes, [p_sf_bytes];
    ld.param.u64 %order, [p_order];
    ld.param.u32 %count, [p_count];
    ld.param.u64 %ready, [p_ready];
    ld.param.u64 %counters, [p_counters];
    mov.u32 %lane, %tid.x;
    mov.u32 %i, %ctaid.x;
    mov.u32 %step, %nctaid.x;
NEXT:
    setp.ge.u32 %p, %i, %count;
    @%p bra END;
    mad.wide.u32 %a, %i, 4, %order;
    ld.global.u32 %row, [%a];
    mad.wide.u32 %a, %i, 4, %counters;
    ld.global.u32 %c, [%a];
    shl.b32 %at, %lane, 4;
VALUES:
    setp.ge.u32 %p, %at, %bytes;
    @%p bra VALUES_END;
    cvt.u64.u32 %o, %at;
    mad.wide.u32 %a, %row, %bytes, %o;
    add.u64 %d, %a, %from;
    ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%d];
    add.u64 %d, %a, %to;
    st.global.v4.u32 [%d], {%v0, %v1, %v2, %v3};
    add.u32 %at, %at, 512;
    bra VALUES;
VALUES_END:
    shl.b32 %at, %lane, 2;
SCALES:
    setp.ge.u32 %p, %at, %sf_bytes;
    @%p bra SCALES_END;
    cvt.u64.u32 %o, %at;
    mad.wide.u32 %a, %row, %sf_bytes, %o;
    add.u64 %d, %a, %sf_from;
    ld.global.u32 %v0, [%d];
    add.u64 %d, %a, %sf_to;
    st.global.u32 [%d], %v0;
    add.u32 %at, %at, 128;
    bra SCALES;
SCALES_END:
    bar.warp.sync 0xffffffff;
    setp.ne.u32 %p, %lane, 0;
    mad.wide.u32 %a, %c, 4, %ready;
    @!%p red.release.{scope}.global.add.u32 [%a], 1;
    add.u32 %i, %i, %step;
    bra NEXT;
END:
    ret;
}
"""
)

# A warp for each counter: waits until it has its value, then copies the rows that it stands for.
_TAKER = (
    _HEADER
    + """
.visible .entry take(.param .u64 p_from, .param .u64 p_to, .param .u32 p_bytes,
                     .param .u64 p_first, .param .u64 p_end, .param .u64 p_done,
                     .param .u64 p_expected)
{
    .reg .pred %p;
    .reg .b32 %lane, %i, %row, %end, %bytes, %at, %v<4>, %seen, %wanted;
    .reg .b64 %from, %to, %first, %ends, %done, %expected, %a, %o, %d;
    ld.param.u64 %from, [p_from];
    ld.param.u64 %to, [p_to];
    ld.param.u32 %bytes, [p_bytes];
    ld.param.u64 %first, [p_first];
    ld.param.u64 %ends, [p_end];
    ld.param.u64 %done, [p_done];
    ld.param.u64 %expected, [p_expected];
    mov.u32 %lane, %tid.x;
    mov.u32 %i, %ctaid.x;
    mad.wide.u32 %a, %i, 4, %expected;
    ld.global.u32 %wanted, [%a];
    mad.wide.u32 %a, %i, 4, %done;
WAIT:
    ld.acquire.{scope}.global.u32 %seen, [%a];
    setp.ne.u32 %p, %seen, %wanted;
    @%p bra WAIT;
    mad.wide.u32 %a, %i, 4, %first;
    ld.global.u32 %row, [%a];
    mad.wide.u32 %a, %i, 4, %ends;
    ld.global.u32 %end, [%a];
ROW:
    setp.ge.u32 %p, %row, %end;
    @%p bra END;
    shl.b32 %at, %lane, 4;
VALUES:
    setp.ge.u32 %p, %at, %bytes;
    @%p bra VALUES_END;
    cvt.u64.u32 %o, %at;
    mad.wide.u32 %a, %row, %bytes, %o;
    add.u64 %d, %a, %from;
    ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%d];
    add.u64 %d, %a, %to;
    st.global.v4.u32 [%d], {%v0, %v1, %v2, %v3};
    add.u32 %at, %at, 512;
    bra VALUES;
VALUES_END:
    add.u32 %row, %row, 1;
    bra ROW;
END:
    ret;
}
"""
)


def _program(text: str, scope: str) -> Module:
    return Module.from_ptx(text.replace("{scope}", {"gpu": "gpu", "system": "sys"}[scope]))


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass
class Overlapped:
    """The three launches on one problem, whose groups begin with row 0.

    Attributes:
        scheduled: The GEMM's kernel.
        problem: Its groups.
        order: The rows of groups in the order in which they are filled.
        max_m: Rows that each group has room for, with ``masked_m``; None: one after the other.
        scope: Of the counters; with "system" the other two kernels run on another GPU.
        timeout_ns: Of the GEMM's waits.
        num_sms: Of all; the GEMM takes what the others leave.
        dtype: Of the results.
    """

    scheduled: Scheduled
    problem: Problem
    order: list[int]
    max_m: int | None = None
    scope: str = "gpu"
    timeout_ns: int = 10**9
    num_sms: int = 12
    dtype: torch.dtype = torch.bfloat16
    waits: bool = True  # for ready rows; else they are filled before it starts
    module: Module | None = None  # in place of the kernel's
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem, groups = self.problem, len(self.problem.sizes)
        rows, sfa = problem.rows()
        room = problem.m if self.max_m is None else groups * self.max_m
        blocks = [self._counter(row) for row in range(room)]
        counters = max(blocks, default=0) + 1
        b, sfb = problem.weights()
        self.tensors = {
            "source": torch.zeros(room, problem.k, dtype=torch.uint8),
            "sf_source": torch.zeros(room, sfa.size(1)),
            "a": torch.full((room, problem.k), 0x7F, dtype=torch.uint8),
            "sfa": torch.full((room, sfa.size(1)), torch.nan),
            "b": b,
            "sfb": sfb,
            "out": torch.full((room, problem.n), UNTOUCHED, dtype=self.dtype),
            "taken": torch.full((room, problem.n), UNTOUCHED, dtype=self.dtype),
            "groups": _int32(problem.offsets if self.max_m is None else list(problem.sizes)),
            "ready": torch.zeros(counters, dtype=torch.int32),
            "done": torch.zeros(counters, dtype=torch.int32),
        }
        at = self.places()
        self.tensors["source"][at] = rows.view(torch.uint8)
        self.tensors["sf_source"][at] = sfa
        self.tensors["order"] = _int32([at[row] for row in self.order])
        self.tensors["counters"] = _int32([blocks[at[row]] for row in self.order])
        filled = [[row for row in at if blocks[row] == i] for i in range(counters)]
        self.tensors["first"] = _int32([min(rows, default=0) for rows in filled])
        self.tensors["end"] = _int32([max(rows, default=-1) + 1 for rows in filled])
        self.tensors["expected"] = _int32([len(rows) * problem.n // 8 for rows in filled])
        self.device = native().EmulatedDevice(num_sms=self.num_sms)

    def _counter(self, row: int) -> int:
        if self.max_m is None:
            return row // 128
        return row // self.max_m * (-(-self.max_m // 128)) + row % self.max_m // 128

    def places(self) -> list[int]:
        """Where the problem's rows stand."""
        if self.max_m is None:
            return list(range(self.problem.m))
        return [
            group * self.max_m + row
            for group, size in enumerate(self.problem.sizes)
            for row in range(size)
        ]

    def launches(self) -> tuple[Launch, Launch, Launch]:
        """That fills, that multiplies, that takes."""
        t = self.tensors
        others = {"rank": 1 if self.scope == "system" else 0}
        fill = Launch(
            _program(_FILLER, self.scope)["fill"],
            (_NUM_FILLERS,),
            (32,),
            [
                *(t["source"], t["a"], t["a"].size(1)),
                *(t["sf_source"], t["sfa"], t["sfa"].size(1) * 4),
                *(t["order"], len(self.order), t["ready"], t["counters"]),
            ],
            **others,
        )
        take = Launch(
            _program(_TAKER, self.scope)["take"],
            (t["done"].numel(),),
            (32,),
            [
                *(t["out"], t["taken"], t["out"].size(1) * t["out"].element_size()),
                *(t["first"], t["end"], t["done"], t["expected"]),
            ],
            **others,
        )
        return fill, self._multiply(_NUM_FILLERS + t["done"].numel()), take

    def _multiply(self, others: int) -> Launch:
        t = self.tensors
        a, sfa, out = t["a"].view(torch.float8_e4m3fn), t["sfa"], t["out"]
        if self.max_m is not None:
            a, sfa, out = (tensor.view(-1, self.max_m, tensor.size(1)) for tensor in (a, sfa, out))
        views = map(strided_view, (a, sfa, t["b"], t["sfb"], out, t["groups"]))
        source = "group_offsets" if self.max_m is None else "masked_m"
        made = native().make_grouped_fp8_gemm_nt_launch(
            self.device,
            *views,
            source,
            self.num_sms - others,
            None,
            strided_view(t["ready"]) if self.waits else None,
            strided_view(t["done"]),
            self.scope == "system",
            self.timeout_ns,
            self.scheduled.kernel,
            self.scheduled.schedule,
        )
        module = self.module or Module.from_ptx(kernel_ptx(self.scheduled.kernel))
        (kernel,) = module.kernels
        return Launch(
            module[kernel],
            made.grid,
            made.block,
            [made.arguments],
            cluster=made.cluster,
            dynamic_smem_bytes=made.dynamic_shared_bytes,
            programmatic_dependent=made.programmatic_dependent,
            registers=kernel_info(self.scheduled.kernel).registers,
        )

    def emulator(self, **options: Any) -> Emulator:
        """Reaches all tensors and the record of errors."""
        emulator = Emulator(num_sms=self.num_sms, **options)
        for name in ("a", "sfa", "b", "sfb", "out", "groups", "ready", "done"):
            tensor = self.tensors[name]
            emulator.register(tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor)
        record = (ctypes.c_uint32 * 4).from_address(self.device.error_record())
        emulator.register(np.frombuffer(record, dtype=np.uint32))
        return emulator

    def run(self, **options: Any) -> Report:
        """All three at one time; or the first one ahead of the others."""
        fill, multiply, take = self.launches()
        emulator = self.emulator(**options)
        if self.waits:
            return emulator.launch_concurrent([fill, multiply, take])
        emulator.launch_concurrent([fill]).raise_if_findings()
        return emulator.launch_concurrent([multiply, take])

    def reset(self) -> None:
        """As before the first run."""
        self.tensors["a"].fill_(0x7F)
        self.tensors["sfa"].fill_(torch.nan)
        for name in ("out", "taken"):
            self.tensors[name].fill_(UNTOUCHED)
        for name in ("ready", "done"):
            self.tensors[name].zero_()
        self.device.take_error()

    def expected(self) -> Tensor:
        """What out and taken hold in the end."""
        out = torch.full_like(self.tensors["out"], UNTOUCHED)
        out[self.places()] = self.problem.expected(self.dtype)
        return out


@dataclass
class OverlappedLaunch:
    """The GEMM beside the two others, to be run with a changed copy of its PTX."""

    pair: Overlapped

    @classmethod
    def make(
        cls,
        kernel: str,
        schedule: Schedule,
        dtype: torch.dtype,
        max_m: int | None = None,
        scope: str = "gpu",
    ) -> OverlappedLaunch:
        """One CTA or cluster, with more tiles than slots twice over; more k tiles than stages."""
        problem = Problem((70, 0, 9, 130, 1, 60), 136, 8 * 128 + 16)
        order = list(range(problem.m))
        random.Random(0).shuffle(order)
        scheduled = Scheduled(kernel, schedule)
        num_counters = 3 if max_m is None else 12
        num_sms = _NUM_FILLERS + num_counters + scheduled.cluster
        options = {"waits": scheduled.cluster == 1, "timeout_ns": 2**62, "dtype": dtype}
        return cls(Overlapped(scheduled, problem, order, max_m, scope, num_sms=num_sms, **options))

    @property
    def results(self) -> tuple[Tensor, ...]:
        return self.pair.tensors["out"], self.pair.tensors["taken"], self.pair.tensors["done"]

    def ptx(self) -> str:
        return kernel_ptx(self.pair.scheduled.kernel)

    def run(self, module: Module, **options: Any) -> Report:
        self.pair.reset()
        self.pair.module = module
        return self.pair.run(**options)


@dataclass
class GroupedLaunch:
    """A launch of the GEMM alone, by indices, likewise."""

    scheduled: Scheduled
    tensors: list[Tensor]
    num_sms: int

    @classmethod
    def make(
        cls, kernel: str, schedule: Schedule, dtype: torch.dtype, problem: Problem, num_sms: int
    ) -> GroupedLaunch:
        out = torch.empty(problem.m, problem.n, dtype=dtype)
        indices = torch.full((problem.m,), -1, dtype=torch.int32)
        for group, rows in enumerate(problem.segments):
            indices[rows] = group
        tensors = [*problem.rows(), *problem.weights(), out, indices]
        return cls(Scheduled(kernel, schedule), tensors, num_sms)

    @property
    def results(self) -> tuple[Tensor, ...]:
        return (self.tensors[4],)

    def ptx(self) -> str:
        return kernel_ptx(self.scheduled.kernel)

    def run(self, module: Module, **options: Any) -> Report:
        """Poisons the output and runs the only kernel of the module."""
        self.tensors[4].fill_(torch.nan)
        device = native().EmulatedDevice(num_sms=self.num_sms)
        launch = native().make_grouped_fp8_gemm_nt_launch(
            device,
            *map(strided_view, self.tensors),
            "m_indices",
            self.num_sms,
            kernel=self.scheduled.kernel,
            schedule=self.scheduled.schedule,
        )
        return run_launch(module, launch, self.tensors, self.num_sms, **options)
