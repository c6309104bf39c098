"""Merging attention results: torch implementation and kernel against the reference."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pykernels
from pykernels import reference
from pykernels.native import native, strided_view
from pykernels.testing import row_errors
from tests.cases import assert_same_bits
from tests.op_checks import CHECKS
from tests.recording import Cuda
from tests.target import selected

Pair = tuple[Tensor, Tensor]
OP = pykernels.merge_states
KERNEL = "mla_combine"
BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
IN_TORCH = pytest.mark.parametrize("in_torch", [False, True], ids=["kernel", "torch"])
MODES = ("early", "late", "random")
# FP32: 2^-24 for each of up to 40 states' products and sums, and 2^-22 for their weights.
FLOOR = 2e-6
LSE_ERROR = 2e-6


@dataclasses.dataclass(frozen=True)
class Case:
    """States, rows and columns, and what they exercise."""

    num_states: int
    rows: tuple[int, int, int]  # batch, seqlen_q, num_heads
    head_dim_v: int
    what: str

    def __str__(self) -> str:
        return self.what.replace(" ", "_")


CASES = [
    Case(1, (2, 1, 3), 512, "one state"),
    Case(2, (1, 1, 1), 8, "one row of one vector"),
    Case(2, (3, 2, 5), 512, "two states"),
    Case(7, (2, 3, 4), 72, "a slice in part"),
    Case(8, (1, 2, 9), 136, "all in flight and a slice and one vector"),
    Case(9, (1, 1, 16), 264, "one more than in flight"),
    Case(33, (2, 1, 2), 128, "one more state than lanes"),
    Case(40, (2, 2, 3), 512, "many states"),
    Case(3, (1, 1, 3), 1024, "wide rows"),
    Case(100, (1, 1, 2), 16, "states in four rounds of lanes"),
]


def make_states(case: Case, dtype: torch.dtype, seed: int = 0) -> Pair:
    """Log-sum-exps apart by several units; some states of a row have no keys."""
    generator = torch.Generator().manual_seed(seed + case.num_states)
    batch, seqlen_q, num_heads = case.rows
    outs = torch.randn(case.num_states, *case.rows, case.head_dim_v, generator=generator)
    lses = torch.randn(case.num_states, batch, num_heads, seqlen_q, generator=generator) * 3 + 5
    without = torch.rand(lses.shape, generator=generator) < 0.2
    without[0] = False
    outs[without.transpose(2, 3)] = torch.nan  # nothing may read them
    return outs.to(dtype), torch.where(without, -torch.inf, lses)


def assert_close(actual: Pair, outs: Tensor, lses: Tensor) -> None:
    """Rows within 1.5 times what rounding to the output's type costs."""
    exact, lse = reference.merge_states(outs, lses)
    assert bool(exact.isfinite().all())
    width = exact.size(-1)
    rows, wanted = actual[0].reshape(-1, width), exact.reshape(-1, width)
    errors = row_errors(rows.double(), wanted)
    allowed = 1.5 * row_errors(wanted.to(actual[0].dtype).double(), wanted) + FLOOR
    assert bool((errors <= allowed).all()), (errors - allowed).max()
    torch.testing.assert_close(actual[1].double(), lse, rtol=LSE_ERROR, atol=LSE_ERROR)


def outputs(outs: Tensor, dtype: torch.dtype) -> Pair:
    """To write into, poisoned."""
    _, batch, seqlen_q, num_heads, _ = outs.shape
    return torch.full(outs.shape[1:], 7.0).to(dtype), torch.full((batch, num_heads, seqlen_q), 7.0)


def emulated(*arguments: Any, options: Any = None, **named: Any) -> Pair:
    """Runs the kernel, with ``--device cuda`` on the GPU, and demands no findings."""
    result, launched = selected().call(OP, *arguments, options=options, **named)
    assert launched in ([KERNEL], None)
    pair: Pair = result
    return pair


def compute(outs: Tensor, lses: Tensor, in_torch: bool, **named: Any) -> Pair:
    return OP(outs, lses, **named) if in_torch else emulated(outs, lses, **named)


@IN_TORCH
@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results(case: Case, dtype: torch.dtype, in_torch: bool) -> None:
    outs, lses = make_states(case, dtype)
    result = compute(outs, lses, in_torch)
    assert result[0].dtype == BF16
    assert_close(result, outs, lses)
    for out_dtype in (BF16, FP32):
        out = outputs(outs, out_dtype)
        written = compute(outs, lses, in_torch, out=out)
        assert written[0] is out[0]
        assert written[1] is out[1]
        assert_close(out, outs, lses)
        assert_same_bits(out[1], result[1])
        assert_same_bits(out[0].to(BF16), result[0])


def test_a_wrong_row_is_noticed() -> None:
    outs, lses = make_states(CASES[7], BF16)
    for change in ("a row of zeros", "a state left out", "a weight", "an lse"):
        out, lse = OP(outs, lses)
        if change == "a row of zeros":
            out[1, 0, 2] = 0
        elif change == "a state left out":
            out = OP(outs[1:], lses[1:])[0]
        elif change == "a weight":
            out = OP(outs, torch.cat([lses[:1] + 0.05, lses[1:]]))[0]
        else:
            lse[1, 2, 1] += 1e-4
        with pytest.raises(AssertionError):
            assert_close((out, lse), outs, lses)


@IN_TORCH
@DTYPES
def test_one_state_is_copied(dtype: torch.dtype, in_torch: bool) -> None:
    outs, lses = make_states(CASES[0], dtype)
    out = outputs(outs, dtype)
    compute(outs, lses, in_torch, out=out)
    assert_same_bits(out[0], outs[0])
    assert_same_bits(out[1], lses[0])


@IN_TORCH
@DTYPES
def test_special_values(dtype: torch.dtype, in_torch: bool) -> None:
    """A row each: what its states hold, and what becomes of it; in every lane's states."""
    infinity, nan = math.inf, math.nan
    rows: list[tuple[list[tuple[float, float]], float, float]] = [  # (lse, out)..., out, lse
        ([(-infinity, nan), (-infinity, 1.0)], 0.0, -infinity),
        ([(-infinity, nan), (2.0, 3.0)], 3.0, 2.0),
        ([(-infinity, infinity), (2.0, 3.0)], 3.0, 2.0),
        ([(nan, 1.0), (2.0, 3.0)], nan, nan),
        ([(nan, 1.0), (-infinity, 3.0)], nan, nan),
        ([(infinity, 1.0), (2.0, 3.0)], nan, nan),
        ([(1.0, nan), (2.0, 3.0)], nan, 2.0 + math.log1p(math.exp(-1))),
        ([(1.0, infinity), (2.0, 3.0)], infinity, 2.0 + math.log1p(math.exp(-1))),
        ([(-200.0, nan), (2.0, 3.0)], 3.0, 2.0),  # its weight is zero
        ([(-1e30, 4.0), (-1e30, 2.0)], 3.0, -1e30),
        ([(1e30, 4.0), (-1e30, 2.0)], 4.0, 1e30),
        ([(3e38, 4.0), (-3e38, 2.0)], 4.0, 3e38),
        ([(88.0, 4.0), (88.0, 2.0)], 3.0, 88.0 + math.log(2)),
    ]
    for num_states in (2, 45):
        for at in (0, num_states - 2):
            outs = torch.full((num_states, 1, 1, len(rows), 72), nan, dtype=dtype)
            lses = torch.full((num_states, 1, len(rows), 1), -infinity)
            for head, (states, _, _) in enumerate(rows):
                for s, (lse, value) in enumerate(states):
                    lses[at + s, 0, head], outs[at + s, 0, 0, head] = lse, value
            out, lse = compute(outs, lses, in_torch)
            for head, (_, value, total) in enumerate(rows):
                expected = torch.full((72,), value).to(BF16)
                assert_same_bits(out[0, 0, head].nan_to_num(99.0), expected.nan_to_num(99.0))
                wanted = torch.tensor(total)
                torch.testing.assert_close(lse[0, head, 0], wanted, equal_nan=True)


@IN_TORCH
@DTYPES
def test_strides(dtype: torch.dtype, in_torch: bool) -> None:
    """Any order of dimensions and gaps between rows; what lies between stays untouched."""
    case = CASES[3]
    outs, lses = make_states(case, dtype)
    expected = compute(outs, lses, in_torch)
    batch, seqlen_q, num_heads = case.rows
    wide = torch.full((num_heads, batch, seqlen_q, case.num_states, 96), torch.nan, dtype=dtype)
    strided = wide.permute(3, 1, 2, 0, 4)[..., 8 : 8 + case.head_dim_v].copy_(outs)
    apart = torch.full((seqlen_q, num_heads, case.num_states, batch, 3), torch.nan)[..., 1]
    strided_lses = apart.permute(2, 3, 1, 0).copy_(lses)
    out_storage = torch.full((seqlen_q, batch, num_heads, 96), 7.0, dtype=BF16)
    lse_storage = torch.full((seqlen_q, num_heads, batch, 2), 7.0)
    out = out_storage.permute(1, 0, 2, 3)[..., 16 : 16 + case.head_dim_v]
    lse = lse_storage[..., 0].permute(2, 1, 0)
    compute(strided, strided_lses, in_torch, out=(out, lse))
    assert_same_bits(out, expected[0])
    assert_same_bits(lse, expected[1])
    assert bool((out_storage[..., :16] == 7).all())
    assert bool((out_storage[..., 16 + case.head_dim_v :] == 7).all())
    assert bool((lse_storage[..., 1] == 7).all())


@IN_TORCH
def test_a_state_for_all_rows(in_torch: bool) -> None:
    """Expanded inputs have strides of zero."""
    outs = torch.randn(3, 1, 1, 1, 64).expand(3, 2, 4, 5, 64)
    lses = torch.randn(3, 1, 1, 1).expand(3, 2, 5, 4)
    assert_close(compute(outs, lses, in_torch), outs, lses)


@pytest.mark.parametrize("mode", MODES)
def test_same_bits_with_every_schedule(mode: str) -> None:
    outs, lses = make_states(CASES[7], FP32)
    expected = emulated(outs, lses)
    for seed in range(3):
        options = {"seed": seed, "async_completion": mode, "num_sms": seed + 1, "checks": "all"}
        out, lse = emulated(outs, lses, options=options)
        assert_same_bits(out, expected[0])
        assert_same_bits(lse, expected[1])


def test_bits_of_a_row_depend_on_its_states_alone() -> None:
    outs, lses = make_states(CASES[7], BF16)
    expected = emulated(outs, lses)
    out, lse = emulated(outs[:, 1:, 1:, 1:2].contiguous(), lses[:, 1:, 1:2, 1:].contiguous())
    assert_same_bits(out, expected[0][1:, 1:, 1:2])
    assert_same_bits(lse, expected[1][1:, 1:2, 1:])


@pytest.mark.parametrize("rows", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_no_rows(rows: tuple[int, int, int]) -> None:
    batch, seqlen_q, num_heads = rows
    outs, lses = torch.empty(4, *rows, 64), torch.empty(4, batch, num_heads, seqlen_q)
    with pykernels.emulate() as report:
        results = [OP(outs, lses)]
    assert not report.launches
    for out, lse in (*results, OP(outs, lses)):
        assert out.shape == (*rows, 64)
        assert lse.shape == (batch, num_heads, seqlen_q)


def test_bytes() -> None:
    """Each value once; what does not count is not read."""
    outs, lses = torch.zeros(40, 2, 1, 16, 512), torch.zeros(40, 2, 16, 1)
    lses[20:] = -torch.inf
    with pykernels.emulate(checks=()) as report:
        out, lse = OP(outs, lses)
    counters = report.counters
    assert counters.global_bytes_written == out.nbytes + lse.nbytes
    slices = 4  # warps of a row, which read its log-sum-exps twice
    assert counters.global_bytes_read == outs.nbytes // 2 + 2 * slices * lses.nbytes


# ---- wrong arguments ----


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One spoilt call and what the message must say."""

    name: str
    named: dict[str, Any]
    message: str

    def __str__(self) -> str:
        return self.name


OUTS, LSES = torch.ones(3, 2, 1, 4, 64), torch.ones(3, 2, 4, 1)
OUT, LSE = torch.ones(2, 1, 4, 64), torch.ones(2, 4, 1)
WRONG = [
    Wrong("outs no tensor", {"outs": [1.0]}, "outs must be a tensor, got list"),
    Wrong("lses no tensor", {"lses": None}, "lses must be a tensor, got NoneType"),
    Wrong("out no pair", {"out": OUT}, "out must be a pair (out, lse) of tensors, got a tensor"),
    Wrong("out no tensors", {"out": (OUT, 1)}, "out[1] must be a tensor, got int"),
    Wrong("device", {"lses": LSES.to("meta")}, "got outs on cpu and lses on meta"),
    Wrong("dtype of outs", {"outs": OUTS.half()}, "outs must be bfloat16 or float32, got float16"),
    Wrong("dtype of lses", {"lses": LSES.bfloat16()}, "lses must be float32, got bfloat16"),
    Wrong("dtype of out", {"out": (OUT.half(), LSE)}, "out[0] must be bfloat16 or float32"),
    Wrong("dtype of lse", {"out": (OUT, LSE.double())}, "out[1] must be float32, got float64"),
    Wrong("rank of outs", {"outs": OUTS[0]}, "outs must have 5 dimensions, got 4"),
    Wrong("rank of lses", {"lses": LSES[0]}, "lses must have 4 dimensions, got 3"),
    Wrong("no states", {"outs": OUTS[:0], "lses": LSES[:0]}, "outs must have at least 1 state"),
    Wrong("columns", {"outs": OUTS[..., :60]}, "must be a multiple of 8, got 60"),
    Wrong(
        "order of lses",
        {"lses": LSES.mT},
        "lses must be [num_states, batch, num_heads, seqlen_q] = [3, 2, 4, 1], got [3, 2, 1, 4]",
    ),
    Wrong("states of lses", {"lses": LSES[:2]}, "= [3, 2, 4, 1], got [2, 2, 4, 1]"),
    Wrong(
        "shape of out",
        {"out": (OUT[..., :56], LSE)},
        "out[0] must be [batch, seqlen_q, num_heads, head_dim_v] = [2, 1, 4, 64], got [2, 1, 4, 56",
    ),
    Wrong("shape of lse", {"out": (OUT, LSE.mT)}, "= [2, 4, 1], got [2, 1, 4]"),
    Wrong(
        "columns apart", {"outs": torch.ones(3, 2, 1, 64, 4).mT},
        "outs must be contiguous in its last dimension, got stride 4",
    ),
    Wrong(
        "rows apart", {"outs": torch.ones(3, 2, 1, 4, 66)[..., :64]},
        "the strides of outs must be multiples of 16 bytes, got 264 in dimension 3",
    ),
    Wrong("out overlaps", {"out": (OUT[:1].expand(2, 1, 4, 64), LSE)}, "elements of out[0] must"),
    Wrong("lse overlaps", {"out": (OUT, LSE[:1].expand(2, 4, 1))}, "elements of out[1] must not"),
    Wrong(
        "address", {"outs": torch.ones(3 * 2 * 4 * 64 + 1)[1:].view(3, 2, 1, 4, 64)}, "(4 past one)"
    ),
    Wrong("gradient", {"outs": OUTS.clone().requires_grad_()}, "outs requires grad"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_refuses(wrong: Wrong) -> None:
    named = {"outs": OUTS, "lses": LSES} | wrong.named
    arguments = named.pop("outs"), named.pop("lses")
    with pykernels.emulate() as report:
        with pytest.raises(ValueError, match=re.escape(wrong.message)) as error:
            OP(*arguments, **named)
        assert pykernels.can_run(OP, *arguments, **named) == (False, str(error.value))
    assert not report.launches


def test_outputs_may_not_share_memory() -> None:
    outs, lses = OUTS.clone(), LSES.clone()
    for name, out in {
        r"out\[0\] must not share memory with outs": (outs[1], LSE),
        r"out\[1\] must not share memory with lses": (OUT, lses[1]),
        r"out\[0\] must not share memory with out\[1\]": (OUT, OUT[:, 0, :, :1]),
    }.items():
        with pytest.raises(ValueError, match=name):
            OP(outs, lses, out=out)


def test_can_run() -> None:
    assert pykernels.can_run(OP, OUTS, LSES) == (True, "")
    assert pykernels.can_run(OP, OUTS, LSES, out=(OUT, LSE))


def test_more_rows_than_the_kernel_counts() -> None:
    device = native().EmulatedDevice()
    rows = 2**29 + 1
    sizes = {"outs": (1, rows, 1, 1, 512), "lses": (1, rows, 1, 1)}
    sizes |= {"out": sizes["outs"][1:], "lse": sizes["lses"][1:]}
    views = [native().TensorView(4096, shape, (512,) * len(shape), "float32")
             for shape in sizes.values()]  # fmt: skip
    with pytest.raises(ValueError, match="at most 536870911 rows of 512 columns, got 536870913"):
        native().make_merge_states_launch(device, *views)


# ---- the CUDA path, by a recording driver ----


def test_capture_and_replay(cuda: Cuda) -> None:
    outs, lses = make_states(CASES[2], BF16)
    states, logs, out = torch.zeros_like(outs), torch.zeros_like(lses), outputs(outs, BF16)
    stream = cuda.driver.create_stream(1)
    cuda.driver.begin_capture(stream)
    with cuda.on(1, stream):
        OP(states, logs, out=out)
    cuda.driver.end_capture()
    assert cuda.last.captured
    assert (cuda.last.device_index, cuda.last.stream) == (1, stream)
    assert cuda.last.launch.programmatic_dependent
    assert bool((out[0] == 7).all())
    for seed in range(2):
        outs, lses = make_states(CASES[2], BF16, seed)
        states.copy_(outs)
        logs.copy_(lses)
        cuda.driver.replay()
        assert_close(out, outs, lses)


@DTYPES
def test_what_the_driver_gets_is_the_described_launch(cuda: Cuda, dtype: torch.dtype) -> None:
    outs, lses = make_states(CASES[3], dtype)
    out = outputs(outs, BF16)
    OP(outs, lses, out=out)
    views = map(strided_view, (outs, lses, *out))
    described = native().make_merge_states_launch(native().CudaDevice(0, 0), *views)
    assert cuda.last.launch.arguments == described.arguments
    assert cuda.last.launch.grid == described.grid == ((2 * 3 * 4 + 7) // 8, 1, 1)
    assert cuda.last.launch.block == (256, 1, 1)
    assert_close(out, outs, lses)


# ---- torch ----


def test_schemas() -> None:
    ops = torch.ops.pykernels.merge_states
    name = "pykernels::merge_states"
    assert str(ops.default._schema) == f"{name}(Tensor outs, Tensor lses) -> (Tensor, Tensor)"
    assert str(ops.out._schema) == (
        f"{name}.out(Tensor outs, Tensor lses, *, Tensor(a!) out, Tensor(b!) lse) -> ()"
    )


@DTYPES
def test_opcheck(dtype: torch.dtype) -> None:
    arguments = make_states(CASES[0], dtype)
    ops = torch.ops.pykernels.merge_states
    torch.library.opcheck(ops.default, arguments, test_utils=("test_schema", *CHECKS))
    out, lse = outputs(arguments[0], FP32)
    named = {"out": out, "lse": lse}
    torch.library.opcheck(ops.out, arguments, named, test_utils=("test_schema", *CHECKS))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def layer(outs: Tensor, lses: Tensor) -> Tensor:
        out, lse = OP(outs, lses)
        return out * lse.transpose(1, 2)[..., None]

    compiled: Callable[..., Tensor] = torch.compile(
        layer, fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for case in (CASES[2], CASES[7]):
        arguments = make_states(case, BF16)
        assert_same_bits(compiled(*arguments), layer(*arguments))


def run_on(device: str) -> list[Any]:
    outs = torch.zeros(3, 2, 4, 5, 64, device=device)
    lses = torch.zeros(3, 2, 5, 4, device=device)
    return [(result.shape, result.stride(), result.dtype) for result in OP(outs, lses)]


def test_fake_and_meta_tensors() -> None:
    real = run_on("cpu")
    assert run_on("meta") == real
    with FakeTensorMode():
        assert run_on("cpu") == real
    with FakeTensorMode(), pytest.raises(ValueError, match="multiple of 8, got 60"):
        OP(torch.empty(3, 2, 4, 5, 60), torch.empty(3, 2, 5, 4))


# ---- partial results of a plan ----


@dataclasses.dataclass(frozen=True)
class Partial:
    """A plan, partial results in its slots, and where merged rows go."""

    plan: pykernels.MlaPlan
    batch: int
    out: Tensor
    lse: Tensor

    @classmethod
    def make(cls, lengths: tuple[int, ...], seqlen_q: int, num_heads: int) -> Partial:
        """Of some slots no token counts, of one row in all its slots."""
        plan = pykernels.mla_decode_plan(
            len(lengths) + 1, seqlen_q, num_heads, num_sms=40, device="cpu"
        )
        pykernels.mla_update_plan(plan, torch.tensor(lengths, dtype=torch.int32))
        generator = torch.Generator().manual_seed(len(lengths))
        plan.partial_out.normal_(generator=generator)
        plan.partial_lse.normal_(generator=generator).mul_(3)
        plan.partial_lse[::3, 0, 0] = -torch.inf
        plan.partial_lse[:, -1, -1] = -torch.inf
        plan.partial_out[plan.partial_lse == -torch.inf] = torch.nan
        batch = len(lengths)
        # Heads before tokens in memory, as a projection that follows may want them.
        out = torch.full((batch, num_heads, seqlen_q, 520), 7.0, dtype=BF16).transpose(1, 2)
        return cls(plan, batch, out[..., :512], torch.full((batch, num_heads, seqlen_q), 7.0))

    @property
    def views(self) -> list[Any]:
        tensors = self.plan.requests, self.plan.partial_out, self.plan.partial_lse
        return list(map(strided_view, (*tensors, self.out, self.lse)))

    def run(self, **options: Any) -> None:
        device = native().EmulatedDevice(**options)
        native().mla_combine(device, *self.views)
        assert [(name, report["findings"]) for name, report in device.reports] == [(KERNEL, [])]

    def assert_right(self) -> None:
        counts = []
        for request in range(self.batch):
            _, num_splits, first, _ = self.plan.requests[request].tolist()
            counts.append(num_splits)
            if num_splits == 1:
                assert bool((self.out[request] == 7).all())
                assert bool((self.lse[request] == 7).all())
                continue
            slots = slice(first, first + num_splits)
            outs, lses = self.plan.partial_out[slots, None], self.plan.partial_lse[slots, None]
            result = self.out[request, None], self.lse[request, None]
            assert_close(result, outs, lses.transpose(2, 3))
            assert float(self.lse[request, -1, -1]) == -math.inf
            assert bool((self.out[request, -1, -1] == 0).all())
        assert min(counts) == 1
        assert max(counts) > 8


@DTYPES
def test_more_rows_than_the_device_holds_at_a_time(dtype: torch.dtype) -> None:
    """CTAs go on to further rows; there are as many as one SM can hold."""
    outs, lses = make_states(Case(3, (7, 2, 5), 512, "many rows"), dtype)
    out = emulated(outs, lses, options={"num_sms": 1})
    assert_close(out, outs, lses)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("seqlen_q", "num_heads"), [(1, 1), (2, 3), (1, 16)])
def test_partial_results(seqlen_q: int, num_heads: int, mode: str) -> None:
    """Split requests between whole ones and one without tokens; others are left alone."""
    lengths = (100, 64 * 300, 0, 64 * 90, 64 * 90, 3)
    for seed in range(2):
        partial = Partial.make(lengths, seqlen_q, num_heads)
        partial.run(seed=seed, async_completion=mode, checks="all")
        partial.assert_right()


def test_partial_results_on_a_gpu(cuda: Cuda) -> None:
    """What the driver gets; behind the kernel that left them, whose dependent it is."""
    partial = Partial.make((64 * 500, 5), 2, 4)
    native().mla_combine(native().CudaDevice(0, 0), *partial.views)
    launch = cuda.last.launch
    assert launch.programmatic_dependent
    assert launch.grid == (2 * 2 * 4 * 4 // 8, 1, 1)
    described = native().make_mla_combine_launch(native().CudaDevice(0, 0), *partial.views)
    assert launch.arguments == described.arguments
    partial.assert_right()


def test_merged_partial_results_are_merged_states() -> None:
    """Same bits: one kernel body."""
    partial = Partial.make((64 * 500, 5), 2, 4)
    partial.run()
    num_splits = int(partial.plan.requests[0, 1])
    outs = partial.plan.partial_out[:num_splits, None]
    lses = partial.plan.partial_lse[:num_splits, None].transpose(2, 3)
    out, lse = emulated(outs, lses)
    assert_same_bits(out, partial.out[:1])
    assert_same_bits(lse, partial.lse[:1])
