"""Plans of MLA decode: the kernel and the host against what a plan has to be."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pykernels
from pykernels import MlaPlan, mla_checks
from pykernels.native import native, strided_view
from tests.cases import assert_same_bits, ceil_div
from tests.op_checks import CHECKS
from tests.recording import Cuda
from tests.target import selected

KERNEL = "mla_update_plan"
OVERHEAD, MOST_SPLITS = 5, 16
UNTOUCHED = -7
LONGEST = 2**31 - 1


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclasses.dataclass(frozen=True)
class Case:
    """Lengths and parts of a plan, and what they exercise."""

    what: str
    lengths: tuple[int, ...]
    num_parts: int
    spare: int = 0  # requests that the plan has room for beside these

    def __str__(self) -> str:
        return self.what.replace(" ", "_")


def random_lengths(number: int, most: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, most + 1, (number,), generator=generator).tolist())


CASES = [
    Case("no requests, no room", (), 3),
    Case("no requests", (), 3, spare=2),
    Case("one token", (1,), 1),
    Case("one request on one part", (6400,), 1),
    Case("one request on all parts", (64 * 500 + 1,), 132),
    Case("fewer blocks than parts", (64 * 3,), 132, spare=3),
    Case("edges of blocks", (0, 1, 63, 64, 65, 127, 128, 129), 5),
    Case("no tokens", (0, 0, 0), 7, spare=1),
    Case("negative lengths", (-1, 640, -(2**31), 0, 6400), 4),
    Case("more parts than cost", (0, 64), 132),
    Case("equal lengths", (4096,) * 32, 66),
    Case("one long among short", (*[100] * 20, 131072, *[100] * 20), 66),
    Case("borders at starts of requests", (64 * 5,) * 6, 6),
    Case("overhead across a border", (64 * 8, 64 * 30, 64 * 8), 4),
    Case("as many as threads", random_lengths(512, 3000), 132),
    Case("more than threads", random_lengths(513, 900, seed=1), 17, spare=600),
    Case("several chunks", random_lengths(1700, 40000, seed=2), 132, spare=3),
    Case("the longest", (LONGEST,) * 3, 132),
    Case("a cost beyond 32 bits", (LONGEST,) * 600, 132),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
INVARIANT = pytest.mark.parametrize("invariant", [False, True], ids=["by_parts", "by_length"])
MODES = ("early", "late", "random")


def make_plan(
    max_batch: int, num_parts: int, *, invariant: bool = False, max_seqlen: int | None = None
) -> MlaPlan:
    """Of 8 rows, so that a part is an SM; without partial results, whose sizes tests ask for."""
    plan = pykernels.mla_decode_plan(
        max_batch, 1, 8, batch_invariant=invariant, max_seqlen=max_seqlen,
        num_sms=num_parts, device="cpu",
    )  # fmt: skip
    for tensor in plan[:3]:
        tensor.fill_(UNTOUCHED)
    assert plan.part_offsets.size(0) == num_parts + 1
    return plan


def updated(
    lengths: Tensor, plan: MlaPlan, *, on_the_host: bool = False, **options: Any
) -> MlaPlan:
    """The kernel's plan, or the host's; with no findings."""
    if on_the_host:
        pykernels.mla_update_plan(plan, lengths)
        return plan
    target = selected()
    if target.kind == "cuda":
        target.call(pykernels.mla_update_plan, plan, lengths)
        return plan
    with pykernels.emulate(**options) as report:
        pykernels.mla_update_plan(plan, lengths)
    report.raise_if_findings()
    assert [name for name, _ in report.launches] == [KERNEL]
    return plan


def num_blocks(length: int) -> int:
    return ceil_div(max(length, 0), 64)


def assert_right(plan: MlaPlan, lengths: tuple[int, ...]) -> None:
    """All that decode relies on, and the balance."""
    items, requests = plan.items.tolist(), plan.requests.tolist()
    offsets = plan.part_offsets.tolist()
    blocks_of = [num_blocks(length) for length in lengths]
    ranges: list[list[tuple[int, int, int]]] = [[] for _ in lengths]
    num_items = offsets[-1]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert num_items <= len(items)
    assert all(row == [UNTOUCHED] * 4 for row in items[num_items:])
    order = [item[0] for item in items[:num_items]]
    assert order == sorted(order)
    for request, begin, end, slot in items[:num_items]:
        ranges[request].append((begin, end, slot))

    slots: list[int] = []
    for request, (length, blocks) in enumerate(zip(lengths, blocks_of, strict=True)):
        found = ranges[request]
        assert [begin for begin, _, _ in found] == [0, *(end for _, end, _ in found[:-1])]
        assert found[-1][1] == blocks
        assert all(begin < end for begin, end, _ in found) or (blocks == 0 and len(found) == 1)
        planned_length, num_splits, first_slot, unused = requests[request]
        assert (planned_length, num_splits, unused) == (length, len(found), 0)
        if num_splits == 1:
            assert (found[0][2], first_slot) == (-1, 0)
        else:
            assert [slot for _, _, slot in found] == list(
                range(first_slot, first_slot + len(found))
            )
            slots += [slot for _, _, slot in found]
    assert slots == list(range(len(slots)))
    assert len(slots) <= plan.partial_lse.size(0)
    assert all(row == [0] * 4 for row in requests[len(lengths) :])
    assert_balanced(plan, items[:num_items], blocks_of)


def assert_balanced(plan: MlaPlan, items: list[list[int]], blocks_of: list[int]) -> None:
    """No part has more than its share; by lengths, than that and what remains of an item."""
    offsets = plan.part_offsets.tolist()
    work = [max(end - begin, 1) for _, begin, end, _ in items]
    overheads = [OVERHEAD] * len(items)
    if not plan.batch_invariant:  # a continuation's overhead is not part of the line of cost
        overheads = [OVERHEAD if begin == 0 else 0 for _, begin, _, _ in items]
    cost = [overhead + blocks for overhead, blocks in zip(overheads, work, strict=True)]
    share = ceil_div(sum(cost), len(offsets) - 1)
    slack = max(cost, default=1) - 1 if plan.batch_invariant else OVERHEAD
    for begin, end in itertools.pairwise(offsets):
        assert sum(work[begin:end]) <= share or plan.batch_invariant
        assert sum(cost[begin:end]) <= share + slack


@EVERY_CASE
@INVARIANT
def test_plans(case: Case, invariant: bool) -> None:
    """The kernel's, and the same bits on the host."""
    lengths = int32(*case.lengths)
    plans = []
    for on_the_host in (False, True):
        plan = make_plan(len(case.lengths) + case.spare, case.num_parts, invariant=invariant)
        plans.append(updated(lengths, plan, on_the_host=on_the_host))
        assert_right(plans[-1], case.lengths)
    for kernel, host in zip(plans[0][:3], plans[1][:3], strict=True):
        assert_same_bits(kernel, host)


@INVARIANT
def test_many_random_lengths(invariant: bool) -> None:
    """Also in the sizes between; every third request of few tokens, some of none."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        number, num_parts = torch.randint(1, 60, (2,), generator=generator).tolist()
        magnitudes = torch.rand(number, generator=generator) * 11 - 1
        lengths = tuple(torch.exp(magnitudes).int().tolist())
        plans = []
        for on_the_host in (False, True):
            plan = make_plan(number + seed % 3, num_parts, invariant=invariant)
            plans.append(updated(int32(*lengths), plan, on_the_host=on_the_host))
        assert_right(plans[0], lengths)
        for kernel, host in zip(plans[0][:3], plans[1][:3], strict=True):
            assert_same_bits(kernel, host)


def test_a_wrong_plan_is_noticed() -> None:
    lengths = (6400, 0, 640, 6400)
    spoil = [
        ("items", (0, 2), 1), ("items", (1, 1), 1), ("items", (0, 3), 1), ("part_offsets", (2,), 1),
        ("requests", (0, 1), 1), ("requests", (3, 2), 1), ("part_offsets", (1,), -1),
    ]  # fmt: skip
    for field, place, change in spoil:
        plan = updated(int32(*lengths), make_plan(4, 8), on_the_host=True)
        assert_right(plan, lengths)
        getattr(plan, field)[place] += change
        with pytest.raises(AssertionError):
            assert_right(plan, lengths)


def splits_of(plan: MlaPlan, request: int) -> list[tuple[int, int]]:
    begins = plan.items[: int(plan.part_offsets[-1])].tolist()
    return [(begin, end) for owner, begin, end, _ in begins if owner == request]


@pytest.mark.parametrize("length", [0, 1, 512, 513, 4097, 8191, 8192, 8193, 8700, 131071])
def test_splits_by_length_do_not_depend_on_others(length: int) -> None:
    """Nor on the parts, nor on max_seqlen, unless the request is longer."""
    alone = splits_of(updated(int32(length), make_plan(1, 132, invariant=True)), 0)
    blocks = num_blocks(length)
    assert len(alone) <= min(max(ceil_div(blocks, 8), 1), MOST_SPLITS)
    assert max(end - begin for begin, end in alone) <= max(8, ceil_div(blocks, MOST_SPLITS))
    for number, num_parts, max_seqlen in ((3, 7, None), (40, 132, length), (600, 5, 10**6)):
        lengths = list(random_lengths(number, 9000, seed=length))
        lengths[number // 2] = length
        plan = make_plan(number, num_parts, invariant=True, max_seqlen=max_seqlen)
        assert splits_of(updated(int32(*lengths), plan), number // 2) == alone


def test_a_request_longer_than_max_seqlen() -> None:
    """It has no more splits than there is room for."""
    lengths = (100000, 512, 513, 1024, 1025, LONGEST)
    for max_seqlen, most in ((0, 1), (512, 1), (513, 2), (1025, 3), (7680, 15), (7681, 16)):
        for on_the_host in (False, True):
            plan = make_plan(6, 9, invariant=True, max_seqlen=max_seqlen)
            assert plan.items.size(0) == 6 * most
            assert plan.partial_lse.size(0) == (6 * most if most > 1 else 0)
            updated(int32(*lengths), plan, on_the_host=on_the_host)
            assert_right(plan, lengths)
            assert len(splits_of(plan, 0)) <= most


@INVARIANT
def test_an_update_leaves_nothing_of_the_one_before(invariant: bool) -> None:
    plan = make_plan(40, 12, invariant=invariant)
    before = random_lengths(40, 20000)
    for lengths in (before, before[:3], (), (7,), before):
        fresh = updated(int32(*lengths), make_plan(40, 12, invariant=invariant))
        plan.items.fill_(UNTOUCHED)
        updated(int32(*lengths), plan)
        assert_right(plan, lengths)
        for again, once in zip(plan[:3], fresh[:3], strict=True):
            assert_same_bits(again, once)


@pytest.mark.parametrize("mode", MODES)
@INVARIANT
def test_same_bits_with_every_schedule(mode: str, invariant: bool) -> None:
    lengths = random_lengths(1100, 9000)
    expected = updated(int32(*lengths), make_plan(1100, 20, invariant=invariant), on_the_host=True)
    for seed in range(3):
        plan = make_plan(1100, 20, invariant=invariant)
        options = {"seed": seed, "async_completion": mode, "checks": "all"}
        updated(int32(*lengths), plan, **options)
        for kernel, host in zip(plan[:3], expected[:3], strict=True):
            assert_same_bits(kernel, host)


def test_bounds_are_reached() -> None:
    """Of items and slots: the sizes of a plan are not larger than needed."""
    for num_parts, lengths in ((5, (64 * 100,)), (3, (64 * 70, 64 * 70, 64 * 70, 64 * 70))):
        plan = updated(int32(*lengths), make_plan(len(lengths), num_parts))
        items = plan.items[: int(plan.part_offsets[-1])]
        if len(lengths) == 1:
            assert items.size(0) == plan.items.size(0) == num_parts
            assert plan.partial_lse.size(0) == num_parts
    # Each border in a request of its own, one more without any.
    plan = updated(int32(64 * 40, 64 * 40, 64 * 40, 64), make_plan(4, 4))
    assert int(plan.part_offsets[-1]) == plan.items.size(0) == 7
    assert int(plan.requests[:, 1].clamp(min=2).sum()) == 8
    assert plan.partial_lse.size(0) == 6


# ---- sizes ----


@pytest.mark.parametrize(
    ("seqlen_q", "num_heads", "num_parts"),
    [
        (1, 1, 132), (1, 8, 132), (1, 16, 132), (2, 16, 132), (1, 64, 132), (1, 65, 66),
        (1, 128, 66), (3, 64, 44), (2, 128, 33), (100, 128, 1),
    ],
)  # fmt: skip
def test_parts(seqlen_q: int, num_heads: int, num_parts: int) -> None:
    plan = pykernels.mla_decode_plan(3, seqlen_q, num_heads, device="cpu")
    borders = num_parts - 1
    assert plan.part_offsets.shape == (num_parts + 1,)
    assert plan.items.shape == (3 + borders, 4)
    assert plan.requests.shape == (3, 4)
    num_slots = borders + min(borders, 3)
    assert plan.partial_out.shape == (num_slots, seqlen_q, num_heads, 512)
    assert plan.partial_lse.shape == (num_slots, seqlen_q, num_heads)
    assert all(bool((tensor == 0).all()) for tensor in plan[:3])
    mla_checks.check_plan(plan, 3, seqlen_q, num_heads, torch.device("cpu"))


def test_parts_of_few_sms() -> None:
    """A cluster has two CTAs with 128 rows; with three tiles of rows there are no clusters."""
    for num_sms, rows, num_parts in ((1, 64, 1), (7, 64, 7), (7, 128, 3), (1, 128, 1), (7, 192, 2)):
        plan = pykernels.mla_decode_plan(1, rows // 64, 64, num_sms=num_sms, device="cpu")
        assert plan.part_offsets.size(0) == num_parts + 1
    with pykernels.emulate(num_sms=4):
        plan = pykernels.mla_decode_plan(1, 1, 16, device="cpu")
    assert plan.part_offsets.size(0) == 5


def test_the_memory_that_the_documentation_states() -> None:
    def megabytes(plan: MlaPlan) -> float:
        return sum(tensor.nbytes for tensor in plan[:5]) / 1e6

    def make(*sizes: int, **named: Any) -> MlaPlan:
        with FakeTensorMode():
            return pykernels.mla_decode_plan(*sizes, device="cpu", **named)

    assert megabytes(make(256, 1, 128)) == pytest.approx(34.1, abs=0.5)
    assert megabytes(make(256, 1, 64)) == pytest.approx(34.4, abs=0.5)
    assert megabytes(make(256, 1, 16)) == pytest.approx(8.6, abs=0.2)
    assert megabytes(make(128, 1, 128, batch_invariant=True)) == pytest.approx(538, abs=1)


# ---- wrong arguments ----


@dataclasses.dataclass(frozen=True)
class Wrong:
    """One spoilt call and what the message must say."""

    named: dict[str, Any]
    message: str

    def __str__(self) -> str:
        return "-".join(f"{name}={value}" for name, value in self.named.items())


WRONG_SIZES = [
    Wrong({"max_batch": -1}, "max_batch must be at least 0, got -1"),
    Wrong({"max_batch": 1.0}, "max_batch must be an integer, got 1.0"),
    Wrong({"seqlen_q": 0}, "seqlen_q must be at least 1, got 0"),
    Wrong({"num_heads": 0}, "num_heads must be at least 1, got 0"),
    Wrong({"num_heads": 129}, "num_heads must be at most 128, got 129"),
    Wrong({"batch_invariant": 1}, "batch_invariant must be True or False, got 1"),
    Wrong({"max_seqlen": -1}, "max_seqlen must be at least 0"),
    Wrong({"num_sms": 0}, "num_sms must be at least 1"),
    Wrong({"device": "tpu"}, "device must be a CUDA device, the CPU, or None, got 'tpu'"),
    Wrong({"device": 0}, "device must be a CUDA device, the CPU, or None, got 0"),
    Wrong(
        {"max_batch": 2**28, "batch_invariant": True},
        "a plan must have at most 2147483647 items, got 4294967296 for max_batch = 268435456",
    ),
]


@pytest.mark.parametrize("wrong", WRONG_SIZES, ids=str)
def test_refuses_sizes(wrong: Wrong) -> None:
    named = {"max_batch": 2, "seqlen_q": 1, "num_heads": 16, "device": "cpu"} | wrong.named
    with pytest.raises(ValueError, match=re.escape(wrong.message)):
        pykernels.mla_decode_plan(**named)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is there")
def test_no_gpu_for_a_plan() -> None:
    message = "torch finds no GPU for device cuda; pass device='cpu' for CPU tensors"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        pykernels.mla_decode_plan(2, 1, 16, device="cuda")


LENGTHS = int32(100, 2000)
WRONG_UPDATES = [
    Wrong({"plan": None}, "plan must be an MlaPlan, got None; mla_decode_plan makes one"),
    Wrong({"plan": (LENGTHS,) * 5}, "plan must be an MlaPlan"),
    Wrong({"items": 3}, "plan.items must be a tensor, got int"),
    Wrong({"batch_invariant": None}, "batch_invariant must be True or False, got None"),
    Wrong({"lengths": [1]}, "cache_seqlens must be a tensor, got list"),
    Wrong({"lengths": LENGTHS.long()}, "cache_seqlens must be int32, got int64"),
    Wrong({"lengths": LENGTHS[None]}, "cache_seqlens must have 1 dimensions, got 2"),
    Wrong({"lengths": int32(1, 2, 3, 4)[::2]}, "cache_seqlens must be contiguous, got strides"),
    Wrong({"lengths": int32(1, 2, 3, 4)}, "at most max_batch = 3 lengths, for which the plan was"),
    Wrong({"lengths": LENGTHS.to("meta")}, "must be on one device, got cache_seqlens on meta"),
    Wrong({"items": LENGTHS}, "plan.items must have 2 dimensions, got 1"),
    Wrong({"items": torch.zeros(9, 4)}, "plan.items must be int32, got float32"),
    Wrong(
        {"items": torch.zeros(9, 4, dtype=torch.int32)},
        "plan.items must be [max_batch + num_parts - 1, 4] = [10, 4], got [9, 4]",
    ),
    Wrong(
        {"batch_invariant": True},
        "plan.items must be [max_batch * num_splits, 4] = [9, 4], got [10, 4]",
    ),
    Wrong(
        {"items": torch.zeros(10, 8, dtype=torch.int32)[:, :4]},
        "plan.items must be contiguous, got strides (8, 1)",
    ),
    Wrong({"part_offsets": int32(0)}, "plan.part_offsets must have a part, got 1 offsets"),
    Wrong({"requests": torch.zeros(3, 3, dtype=torch.int32)}, "= [3, 4], got [3, 3]"),
    Wrong(
        {"requests": torch.zeros(13, dtype=torch.int32)[1:].view(3, 4)},
        "the data pointer of plan.requests must be a multiple of 16 bytes",
    ),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_UPDATES, ids=lambda wrong: "-".join(wrong.named))
def test_refuses_updates(wrong: Wrong) -> None:
    """Before anything is written."""
    whole = make_plan(3, 8)
    named = dict(wrong.named)
    lengths = named.pop("lengths", LENGTHS)
    plan = named.pop("plan") if "plan" in named else whole._replace(**named)
    with pykernels.emulate() as report:
        with pytest.raises(ValueError, match=re.escape(wrong.message)) as error:
            pykernels.mla_update_plan(plan, lengths)
        capability = pykernels.can_run(pykernels.mla_update_plan, plan, lengths)
    assert capability == (False, str(error.value))
    assert not report.launches
    assert all(bool((tensor == UNTOUCHED).all()) for tensor in whole[:3])


def test_tensors_of_a_plan_share_no_memory() -> None:
    plan = make_plan(3, 8)
    over_items = plan._replace(requests=plan.items[:3])
    with pytest.raises(ValueError, match=r"plan\.items must not share memory with plan\.requests"):
        pykernels.mla_update_plan(over_items, LENGTHS)
    with pytest.raises(ValueError, match=r"plan\.part_offsets must not share memory with cache_"):
        pykernels.mla_update_plan(plan, plan.part_offsets[:2])


def test_can_run() -> None:
    plan = make_plan(3, 8)
    assert pykernels.can_run(pykernels.mla_update_plan, plan, LENGTHS) == (True, "")
    assert bool((plan.items == UNTOUCHED).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((3, 2, 16, "cpu"), None),
        ((0, 2, 16, "cpu"), None),
        ((4, 2, 16, "cpu"), "the call has batch = 4, seqlen_q = 2 and num_heads = 16"),
        ((3, 1, 16, "cpu"), "the call has batch = 3, seqlen_q = 1 and num_heads = 16"),
        ((3, 2, 32, "cpu"), "the call has batch = 3, seqlen_q = 2 and num_heads = 32"),
        ((3, 2, 16, "meta"), "plan was made on cpu (plan.items), and the call has tensors on meta"),
    ],
)
@INVARIANT
def test_check_plan(call: tuple[int, int, int, str], message: str | None, invariant: bool) -> None:
    plan = pykernels.mla_decode_plan(3, 2, 16, batch_invariant=invariant, num_sms=8, device="cpu")
    arguments = (*call[:3], torch.device(call[3]))
    if message is None:
        assert mla_checks.check_plan(plan, *arguments) is plan
        return
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        mla_checks.check_plan(plan, *arguments)
    assert "made" in str(error.value)
    if call[3] == "cpu":
        assert "max_batch = 3, seqlen_q = 2 and num_heads = 16" in str(error.value)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("partial_out", lambda t: t[1:], "plan.partial_out must be [num_slots, seqlen_q, num"),
        ("partial_out", lambda t: t[..., :511], "num_heads, 512] = [10, 2, 16, 512], got [10, 2"),
        ("partial_out", lambda t: t.double(), "plan.partial_out must be float32, got float64"),
        ("partial_out", lambda t: t[0], "plan.partial_out must have 4 dimensions, got 3"),
        ("partial_lse", lambda t: t[..., :8], "plan.partial_lse must be [num_slots, seqlen_q, num"),
        ("partial_lse", lambda t: t.mT.contiguous().mT, "plan.partial_lse must be contiguous"),
        ("batch_invariant", lambda _: True, "plan.items must be [max_batch * num_splits, 4]"),
    ],
)  # fmt: skip
def test_check_plan_of_mixed_tensors(field: str, change: Any, message: str) -> None:
    plan = pykernels.mla_decode_plan(3, 2, 16, num_sms=8, device="cpu")
    spoilt = plan._replace(**{field: change(getattr(plan, field))})
    with pytest.raises(ValueError, match=re.escape(message)):
        mla_checks.check_plan(spoilt, 3, 2, 16, torch.device("cpu"))


# ---- the CUDA path, by a recording driver ----


def test_capture_and_replay_with_other_lengths(cuda: Cuda) -> None:
    plan, lengths = make_plan(5, 8), int32(7, 7, 7, 7)
    stream = cuda.driver.create_stream(0)
    cuda.driver.begin_capture(stream)
    with cuda.on(0, stream):
        pykernels.mla_update_plan(plan, lengths)
    cuda.driver.end_capture()
    assert cuda.last.captured
    assert cuda.last.launch.programmatic_dependent
    assert (cuda.last.launch.grid, cuda.last.launch.block) == ((1, 1, 1), (512, 1, 1))
    assert bool((plan.requests == UNTOUCHED).all())
    for changed in ((0, 6400, 1, 64000), (100, 100, 100, 100)):
        lengths.copy_(int32(*changed))
        plan.items.fill_(UNTOUCHED)
        cuda.driver.replay()
        assert_right(plan, changed)


@INVARIANT
def test_what_the_driver_gets_is_the_described_launch(cuda: Cuda, invariant: bool) -> None:
    plan = make_plan(3, 8, invariant=invariant)
    pykernels.mla_update_plan(plan, LENGTHS)
    views = map(strided_view, (LENGTHS, plan.items, plan.part_offsets, plan.requests))
    device = native().CudaDevice(0, 0)
    described = native().make_mla_update_plan_launch(device, *views, invariant)
    assert cuda.last.launch.arguments == described.arguments
    assert cuda.last.launch.kernel == KERNEL
    assert_right(plan, (100, 2000))


def test_bindings_refuse_what_the_kernel_cannot_do() -> None:
    plan = make_plan(2, 8)
    device = native().EmulatedDevice()
    lengths = int32(1, 2, 3)
    views = list(map(strided_view, (lengths, plan.items, plan.part_offsets, plan.requests)))
    with pytest.raises(ValueError, match="at most max_batch = 2 lengths, got 3"):
        native().make_mla_update_plan_launch(device, *views, False)
    views[0], views[2] = strided_view(lengths[:2]), strided_view(int32(0))
    with pytest.raises(ValueError, match="a plan must have a part, got 0"):
        native().make_mla_update_plan_launch(device, *views, False)


# ---- torch ----


def test_schema() -> None:
    assert str(torch.ops.pykernels.mla_update_plan.default._schema) == (
        "pykernels::mla_update_plan(Tensor(a!) items, Tensor(b!) part_offsets, "
        "Tensor(c!) requests, Tensor cache_seqlens, bool batch_invariant) -> ()"
    )


@INVARIANT
def test_opcheck(invariant: bool) -> None:
    arguments = (*make_plan(3, 8, invariant=invariant)[:3], LENGTHS, invariant)
    op = torch.ops.pykernels.mla_update_plan.default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", *CHECKS))


def test_compile() -> None:
    def step(plan: MlaPlan, lengths: Tensor) -> Tensor:
        pykernels.mla_update_plan(plan, lengths + 1)
        return plan.requests[:, 1] * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for lengths in (LENGTHS, int32(0, 64000, 7)):
        plan, expected = make_plan(3, 8), make_plan(3, 8)
        assert_same_bits(compiled(plan, lengths), step(expected, lengths))
        assert_same_bits(plan.items, expected.items)


def test_fake_tensors() -> None:
    with FakeTensorMode():
        plan = pykernels.mla_decode_plan(3, 1, 16, device="cpu")
        pykernels.mla_update_plan(plan, torch.empty(3, dtype=torch.int32))
        with pytest.raises(ValueError, match="cache_seqlens must be int32"):
            pykernels.mla_update_plan(plan, torch.empty(3))
        mla_checks.check_plan(plan, 3, 1, 16, torch.device("cpu"))
