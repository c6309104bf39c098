"""The bench of MoE dispatch and combine: kernels in the emulator, clock and libraries replaced."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import cli, reference
from pykernels.bench import (
    contest,
    counts,
    harness,
    moe_bench,
    moe_check,
    moe_links,
    moe_ranks,
    published,
    static_answer,
)
from pykernels.bench.baselines import MoeOperands, Prepared, Unavailable, moe_baselines
from pykernels.bench.baselines.moe import COPY, DEEPEP, NCCL
from pykernels.bench.moe_bench import CALLS, HOOK, MoeShape, across_gpus, cases
from pykernels.bench.problem import Options
from tests.bench.test_answer import MEASURED, as_measured
from tests.bench.timing import stand_in_times
from tests.moe.checking import same_bits


def small(call: str, **changes: Any) -> MoeShape:
    """Tokens of one chunk and a part of a block of scale factors."""
    sizes = {"hidden": 144, "num_experts": 12, "num_topk": 3}
    return MoeShape(call, **{"num_ranks": 3, "num_tokens": 5} | sizes | changes)


SHAPES = [
    small(call, fp8=fp8) for call in CALLS for fp8 in (False, True)[: 1 + call.endswith("dispatch")]
]
H200 = Options(device="H200")
EVERY = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours take 2 us, all others 3."""
    stand_in_times(monkeypatch, MoeShape)


@EVERY
def test_row(shape: MoeShape, timed: None) -> None:
    """Beside a copy; of low latency also with the receive in the hook."""
    with pykernels.emulate(checks=()) as report:
        row = contest.measure(shape, 1000.0, every_kernel=True)
    assert (row["op"], row["call"], row["us"]) == ("moe.Buffer", shape.call, 2.0)
    assert (row["bound"], row["tflops"]) == ("memory", 0)
    assert row["gbps"] == pytest.approx(shape.num_bytes / 2e3)
    assert row["roofline_share"] == pytest.approx(shape.num_bytes / 1e6 / 2)
    assert row["kernel"] in {name for name, _ in report.launches}
    assert row["baselines"].keys() == ({HOOK, COPY} if shape.is_low_latency else {COPY})
    assert all(found["ratio"] == 1.5 for found in row["baselines"].values())
    assert "link_gbps" not in row
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("on", ["emulator", "torch"])
@EVERY
def test_wrong_results_are_found(shape: MoeShape, on: str) -> None:
    """A row, a count, and what a rank has not written at all."""
    if on == "emulator":
        with pykernels.emulate(checks=()):
            find_wrong_results(shape)
    else:
        find_wrong_results(shape)


def find_wrong_results(shape: MoeShape) -> None:
    operands = shape.emulated_operands()
    right = shape.prepare_op(Options(), operands)
    shape.check(operands, right)
    assert right.results is not None
    results = right.results

    def check_of(call: Any) -> None:
        shape.check(operands, dataclasses.replace(right, call=call))

    if not shape.is_dispatch:
        for wrong in (lambda: None, lambda: (right.call(), operands.out[-1, 2].zero_())):
            with pytest.raises(AssertionError, match="rank"):
                check_of(wrong)
        return

    def change_a_row() -> None:
        right.call()
        rows = results()[0][0]
        last = shape.num_ranks - 1
        values = rows[last][0] if shape.fp8 else rows[last]
        flat = values.flatten(0, -2).view(torch.uint8)
        row = int(moe_check.places_of(shape, last)[1]) if shape.is_low_latency else 1
        flat[row] = flat[row].flip(0)

    def change_a_scale() -> None:
        right.call()
        rows, _, _ = results()[0]
        rows[0][1].mul_(2)

    def change_a_count() -> None:
        right.call()
        results()[0][1][0][-1] += 1

    changes = [change_a_row, change_a_count, *([change_a_scale] if shape.fp8 else [])]
    for change in changes:
        with pytest.raises(AssertionError, match="rank"):
            check_of(change)


@EVERY
def test_what_is_compared_with_agrees_with_the_reference(shape: MoeShape) -> None:
    """Rows and sums of the reference pass, given as if the op had made them."""
    operands = shape.emulated_operands()
    routing, ranks = shape.routing(), range(shape.num_ranks)
    idx = [routing.topk_idx[rank] for rank in ranks]
    weights = [routing.topk_weights[rank] for rank in ranks]
    if not shape.is_dispatch:
        sums = reference.moe_combine(operands.y, idx, weights, num_experts=shape.num_experts)

        def combine() -> None:
            operands.out.copy_(torch.stack(list(sums)))

        shape.check(operands, Prepared(combine, operands.out, results=lambda: (None,)))
        return
    x = operands.x
    if shape.fp8 and shape.is_low_latency:
        x = [pykernels.quantize_1x128(each) for each in x]
    if not shape.is_low_latency:
        found = reference.moe_dispatch(x, idx, num_experts=shape.num_experts)
        received = [rows for rows, _ in found]
        offsets = [offsets for _, offsets in found]
        results = received, offsets, [None] * shape.num_ranks
        moe_check.check_dispatch(shape, operands, results)
        for rank, rows in enumerate(received):
            moe_rows = moe_check.rows_of(shape, rank)
            values = rows[0] if shape.fp8 else rows
            assert isinstance(values, Tensor)
            assert len(values) == len(moe_rows)


def test_operands() -> None:
    """Rows of y that no token has are NaN in the emulator; all sets have the same routing."""
    shape = small("low_latency_combine")
    one, other = shape.emulated_operands(0), shape.emulated_operands(1)
    for rank, y in enumerate(one.y):
        used = torch.zeros(y.flatten(0, 1).size(0), dtype=torch.bool)
        used[moe_check.places_of(shape, rank)] = True
        assert y.flatten(0, 1)[used].isfinite().all()
        assert y.flatten(0, 1)[~used].isnan().all()
        assert same_bits(one.topk_idx[rank], other.topk_idx[rank])
        assert not same_bits(one.x[rank], other.x[rank])
    assert one.out.data_ptr() != shape.own_output(one).out.data_ptr()


def test_sets_on_a_gpu_share_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has its share of the SMs."""
    made: list[tuple[str, int | None]] = []

    def operands(
        shape: MoeShape, seed: int, device: str, num_sms: int | None, *, fill: float
    ) -> None:
        made.append((device, num_sms))

    class Properties:
        multi_processor_count = 132

    monkeypatch.setattr(MoeShape, "_operands", operands)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    for num_ranks in (2, 4, 8):
        small("dispatch", num_ranks=num_ranks, num_experts=16).gpu_operands(0)
    small("dispatch", across=True).gpu_operands(0)
    assert made == [("cuda", 66), ("cuda", 33), ("cuda", 16), ("cuda", None)]


def test_a_shared_buffer_is_closed_before_another_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moe_bench, "_shared", {})
    shape, other = small("dispatch"), small("dispatch", num_tokens=6)
    first = moe_bench._shared_buffer(shape.buffer_sizes, False, "cpu", 2)
    assert moe_bench._shared_buffer(shape.buffer_sizes, False, "cpu", 2) is first
    second = moe_bench._shared_buffer(other.buffer_sizes, False, "cpu", 2)
    assert second is not first
    with pytest.raises(RuntimeError, match="closed"):
        first.check()
    second.check()


def test_least_bytes() -> None:
    """By hand: ranks of two experts each, of which a token names two of one rank or two ranks."""
    shape = MoeShape("dispatch", 2, 3, hidden=64, num_experts=4, num_topk=2)
    idx = shape.routing().topk_idx // 2
    crossings = sum(len(set(token)) for rank in idx.tolist() for token in rank)
    assert int(shape.routing().tokens.sum()) == crossings
    assert int(shape.routing().entries.sum()) == 2 * 3 * 2
    assert shape.payload_bytes == 128
    assert shape.bytes_read == 128 * (6 + crossings) + 2 * 3 * 2 * 12
    assert shape.bytes_written == 128 * (12 + crossings)
    combine = dataclasses.replace(shape, call="combine")
    assert combine.bytes_read == 128 * (12 + crossings)
    assert combine.bytes_written == 128 * (6 + crossings)
    fp8 = dataclasses.replace(shape, fp8=True)
    assert fp8.payload_bytes == 64 + 16
    cast = MoeShape("low_latency_dispatch", fp8=True)
    assert cast.payload_bytes == 7168 + 4 * 56
    assert cast._token_bytes == 8 * 4096 * 2 * 7168
    assert MoeShape("dispatch").bytes_written / 2 / 7168 / 8 / 4096 == pytest.approx(8 + 5.3, 0.01)


def test_bytes_across_gpus() -> None:
    """Of one GPU: the mean of the memory's, the busiest one's over links; its own stay at home."""
    shape = small("dispatch", num_ranks=4, num_experts=12)
    across = dataclasses.replace(shape, across=True)
    assert (shape.link_bytes, shape.link_us, shape.rates(2.0)) == (0, 0.0, {})
    assert across.bytes_read == shape.bytes_read // 4
    tokens = shape.routing().tokens
    out = [int(tokens[r].sum() - tokens[r, r]) for r in range(4)]
    into = [int(tokens[:, r].sum() - tokens[r, r]) for r in range(4)]
    assert across.link_bytes == 288 * max(*out, *into)
    assert across.link_us == pytest.approx(across.link_bytes / 450e3)
    assert across.deepep_bytes == 288 * int(tokens.sum()) // 4
    assert across.rates(2.0) == {
        "link_gbps": across.link_bytes / 2e3,
        "gbps_as_deepep": across.deepep_bytes / 2e3,
    }
    large = MoeShape("dispatch", 8, 4096, fp8=True, across=True)
    assert harness.Roofline(0, large.num_bytes, 4000, 2000, large.link_us).bound == "link"
    assert across.routing().tokens.diagonal().any(), "the routing itself is unchanged"


@EVERY
def test_all_bytes_over_the_links_are_explained(shape: MoeShape) -> None:
    links = moe_links.count(shape)
    row = links.row()
    assert row["num_links"] == len(links.counted) == 6
    assert row["read_bytes"] == row["unexplained_bytes"] == 0
    assert row["counted_bytes"] == row["payload_bytes"] + sum(row["overhead_bytes"].values())
    assert row["payload_bytes"] < row["counted_bytes"]
    assert all(links.counted[link] > least for link, least in links.payload.items())


def test_what_else_crosses_a_link_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that wrote more, or read from another's window."""
    shape = small("dispatch")
    right = shape.reports()
    name, report = right[-1]
    key = 0, "window of rank 2"
    more = dataclasses.replace(
        report.traffic[key],
        bytes_written=report.traffic[key].bytes_written + 48,
        bytes_read=16,
    )
    changed = dataclasses.replace(report, traffic={**report.traffic, key: more})
    monkeypatch.setattr(MoeShape, "reports", lambda shape: (*right[:-1], (name, changed)))
    row = moe_links.count(shape).row()
    assert (row["unexplained_bytes"], row["read_bytes"]) == (48, 16)


def test_deepseek_v3_over_the_links() -> None:
    """Of 7168 columns and top 8 of 256, little is beside the payload."""
    for call, most in (("dispatch", 1.01), ("combine", 1.002)):
        row = moe_links.count(MoeShape(call, 8, 4)).row()
        assert 1 < row["ratio"] < most
        assert row["unexplained_bytes"] == 0


def test_command_of_the_links(capsys: pytest.CaptureFixture[str]) -> None:
    assert moe_links.main(["1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["shape"].split(" of ")[0] for row in rows] == [
        "dispatch",
        "combine",
        "low-latency dispatch",
        "low-latency combine",
    ]
    assert all(row["unexplained_bytes"] == 0 for row in rows)


def test_cases() -> None:
    """All of one GPU, the largest first; none larger than a GPU has room for."""
    shapes = list(cases())
    assert len({str(shape) for shape in shapes}) == len(shapes) == 9 + 24
    assert str(shapes[0]) == "dispatch of 8 x 4096 tokens x 7168, BF16, top 8 of 256, on one GPU"
    assert {shape.num_ranks for shape in shapes} == {2, 4, 8}
    assert {shape.num_tokens for shape in shapes if shape.is_low_latency} == {1, 8, 32, 128}
    assert all(shape.fp8 == shape.is_dispatch for shape in shapes if shape.is_low_latency)
    assert max(shape.num_bytes for shape in shapes) < 20e9


def test_large_shapes_are_counted_on_smaller_ones() -> None:
    for shape in cases():
        smaller = counts.emulated_problem(shape)
        assert smaller.emulation_work <= 2**34
        assert dataclasses.replace(smaller, num_tokens=shape.num_tokens) == shape
    assert MoeShape("combine", num_tokens=1).smaller() is None


def test_published() -> None:
    def figures(*shape: Any, **options: Any) -> dict[str, tuple[str, float]]:
        found = published.moe_figures(MoeShape(*shape, **options))
        return {figure.library: (figure.gpu, figure.us) for figure in found}

    dispatch = MoeShape("dispatch", fp8=True)
    us = dispatch.deepep_bytes / 153e3
    assert figures("dispatch", fp8=True) == {"DeepEP": ("H800", pytest.approx(us))}
    combine_us = MoeShape("combine").deepep_bytes / 158e3
    assert figures("combine") == {"DeepEP": ("H800", pytest.approx(combine_us))}
    low_latency = {"DeepEP": ("H800", 77.0), "pplx": ("H100", 83.6)}
    assert figures("low_latency_dispatch", 8, 128, fp8=True) == low_latency
    assert figures("low_latency_combine", 8, 128)["pplx"] == ("H100", 102.3)
    assert (
        figures("dispatch") == figures("combine", 4) == figures("low_latency_combine", 8, 64) == {}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"call": "reduce"}, "call must be one of dispatch, combine"),
        ({"call": "combine", "fp8": True}, "combine sends BF16 rows"),
        ({"num_topk": 13}, "num_topk must be at most num_experts = 12, got 13"),
        ({"hidden": 100}, "hidden must be a multiple of 8"),
        ({"num_ranks": 5}, "num_experts must be a multiple of the group's 5 ranks"),
    ],
)
def test_bad_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**{"call": "dispatch"} | changes)


@EVERY
def test_static_row(shape: MoeShape) -> None:
    row = static_answer.static_row(shape, H200)
    assert row["bound"] == "memory"
    assert row["roofline_us"] == pytest.approx(shape.num_bytes / 4.8e6, rel=0.01)
    assert row["model"] == []
    assert row["listing"]["name"] == row["kernel"] == shape.kernel
    assert row["listing"]["local_accesses"] == 0
    assert row["links"]["unexplained_bytes"] == 0
    assert row["emulator"]["ratios"]["global_bytes_written"] < 3  # few columns: entries count
    json.dumps(row, allow_nan=False)


# The command.


def run(*arguments: str) -> int:
    return cli.main(["bench", "moe", *arguments])


SIZES = ("--hidden=144", "--experts=12", "--topk=3")


def test_command_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "rows.json"
    options = ["--call=dispatch,combine", "--tokens=2,5", "--ranks=3", *SIZES]
    assert run(*options, "--json", str(written)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("nothing below is measured", "over 6 links", "overhead: flags", "moe_combine"):
        assert text in printed
    result = json.loads(written.read_text())
    assert not result["measured"]
    named = [(row["call"], row["num_tokens"], row["rows"]) for row in result["rows"]]
    assert named == [
        (call, tokens, rows)
        for tokens in (2, 5)
        for call, rows in (("dispatch", "bf16"), ("dispatch", "fp8"), ("combine", "bf16"))
    ]


def test_command_by_default_runs_all_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def static_row(problem: Any, options: Options) -> dict[str, Any]:
        taken.append(problem)
        raise RuntimeError("enough")

    monkeypatch.setattr(static_answer, "static_row", static_row)
    assert run() == 1
    assert run("--ranks=4") == 1
    assert taken == [next(cases()), next(cases((4,)))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--call=reduce"], "must be of dispatch, combine"),
        (["--tokens=0"], "num_tokens must be"),
        (["--rows=fp4"], "must be of bf16, fp8"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(*options)
    assert message in capsys.readouterr().err


def test_wrong_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--tokens=5", "--ranks=5") == 1
    assert "num_experts must be a multiple" in capsys.readouterr().err


def test_measured_rows_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_measured(monkeypatch)
    for name, value in {"tflops": 0.0, "kernel": "moe_dispatch", "schedule": []}.items():
        monkeypatch.setitem(MEASURED, name, value)
    monkeypatch.delitem(MEASURED, "candidates")
    assert run("--call=low_latency_dispatch", "--tokens=128", "--rows=fp8") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("50% of the memory bound", "Published", "pplx", "83.60", "DeepEP"):
        assert text in printed
    assert "NVLink" not in printed


# Across GPUs.


def as_a_rank(monkeypatch: pytest.MonkeyPatch, rank: int, num_ranks: int = 3) -> None:
    """torch.distributed says so; nothing is sent."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: num_ranks)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(moe_ranks.atexit, "register", lambda function: None)
    monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
    monkeypatch.setenv("LOCAL_RANK", str(rank))


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_prints(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_measured(monkeypatch)
    as_a_rank(monkeypatch, rank)
    rates = {"link_gbps": 320.0, "gbps_as_deepep": 400.0}
    changes = {"kernel": "moe_dispatch", "schedule": [], "bound": "link"} | rates
    for name, value in changes.items():
        monkeypatch.setitem(MEASURED, name, value)
    monkeypatch.delitem(MEASURED, "candidates")
    written = tmp_path / "rows.json"
    options = ["--call=dispatch", "--tokens=16", "--ranks=2,4", "--rows=bf16", *SIZES]
    assert run(*options, "--json", str(written)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert written.exists() == (rank == 0)
    if rank:
        assert printed == ""
        return
    assert "a GPU each" in printed
    assert "links: 320 GB/s a direction; " in printed
    assert "as DeepEP counts: 400 GB/s" in printed
    (row,) = json.loads(written.read_text())["rows"]  # two numbers of ranks, but torchrun has one
    assert (row["num_ranks"], row["across_gpus"]) == (3, True)


def test_without_torchrun_nobody_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not moe_ranks.join()


def operands_of_a_rank(shape: MoeShape, rank: int) -> MoeOperands:
    """As that process has them, of a whole group's."""
    local = dataclasses.replace(shape, across=False).emulated_operands()
    kept = {name: [each[rank]] for name, each in local._asdict().items() if name in _LISTS and each}
    return local._replace(**kept, out=local.out[rank : rank + 1])


_LISTS = ("x", "topk_idx", "topk_weights", "y")


@EVERY
def test_nccl_sends_the_same_payloads(shape: MoeShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all ranks send one another fits together, and is the payload of all links."""
    sent: dict[int, list[int]] = {}
    received: dict[int, list[int]] = {}
    for rank in range(3):
        as_a_rank(monkeypatch, rank)
        across = across_gpus(shape)

        def all_to_all(
            target: Tensor, source: Tensor, into: list[int], out: list[int], rank: int = rank
        ) -> None:
            assert (target.numel(), source.numel()) == (sum(into), sum(out))
            sent[rank], received[rank] = out, into

        monkeypatch.setattr(torch.distributed, "all_to_all_single", all_to_all)
        nccl, deepep = across.baselines()
        assert (nccl.name, nccl.computes, deepep.name) == (NCCL, False, DEEPEP)
        nccl.prepare(operands_of_a_rank(across, rank)).call()
    assert all(sent[a][b] == received[b][a] for a in range(3) for b in range(3))
    links = moe_links.count(shape)
    assert {link: sent[link[0]][link[1]] for link in links.payload} == links.payload
    assert sum(map(sum, sent.values())) == shape._slot_bytes


class FakeConfig:
    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return hidden_bytes * num_ranks


class FakeDeepEp:
    """Takes the calls that DeepEP takes, and keeps them."""

    calls: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, group: Any, **options: Any) -> None:
        self.calls.append(("Buffer", options))

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> FakeConfig:
        return FakeConfig()

    get_combine_config = get_dispatch_config

    @staticmethod
    def get_low_latency_rdma_size_hint(*sizes: int) -> int:
        return sum(sizes)

    def get_dispatch_layout(self, idx: Tensor, num_experts: int) -> tuple[None, ...]:
        return (None,) * 5

    def dispatch(self, x: Any, **options: Any) -> tuple[Any, ...]:
        self.calls.append(("dispatch", options.get("handle")))
        return x, None, None, None, "handle", None

    def combine(self, x: Any, handle: str, config: Any) -> None:
        self.calls.append(("combine", handle))

    def low_latency_dispatch(
        self, x: Any, idx: Tensor, num_tokens: int, num_experts: int, **options: Any
    ) -> tuple[Any, ...]:
        self.calls.append(("low_latency_dispatch", options["use_fp8"]))
        return x, None, "handle", None, None

    def low_latency_combine(self, y: Any, idx: Tensor, weights: Tensor, handle: str) -> None:
        self.calls.append(("low_latency_combine", handle))


@EVERY
def test_deepep(shape: MoeShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared once, with a handle that stands ready; the call alone is timed."""
    as_a_rank(monkeypatch, 1)
    module: Any = types.ModuleType("deep_ep")
    module.Buffer = FakeDeepEp
    monkeypatch.setitem(sys.modules, "deep_ep", module)
    monkeypatch.setattr(FakeDeepEp, "calls", [])
    across = across_gpus(shape)
    _, deepep = across.baselines()
    prepared = deepep.prepare(operands_of_a_rank(across, 1))
    FakeDeepEp.calls.clear()
    prepared.call()
    wanted: Any = "handle"
    if shape.call == "low_latency_dispatch":
        wanted = shape.fp8
    assert FakeDeepEp.calls == [(shape.call, wanted)]


def test_libraries_that_are_not_installed() -> None:
    shape = dataclasses.replace(small("dispatch"), across=True)
    operands = small("dispatch").emulated_operands()
    _, deepep = moe_baselines(shape)
    with pytest.raises(Unavailable, match="not installed"):
        deepep.prepare(operands)


# Ranks that measure together, here processes of gloo.


def measure_together(rank: int, port: int, results: Any) -> None:
    """A rank that is slower by its number; the others' waits would differ without agreement."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    shape = across_gpus(small("dispatch", num_ranks=2))
    operands = shape.emulated_operands()
    shape.check(operands, shape.prepare_op(Options(), operands))
    combine = across_gpus(small("combine", num_ranks=2))
    sums = combine.emulated_operands()
    combine.check(sums, combine.prepare_op(Options(), sums))
    agreed = harness.agreed(7 + rank)
    slowest = harness._largest([1.0 + rank, 5.0 - rank])
    results.put((rank, agreed, slowest, shape.local_ranks()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(180)
def test_ranks_measure_together() -> None:
    """The op across processes is checked as on one GPU; numbers and times are the largest."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    processes = [
        context.Process(target=measure_together, args=(rank, port, results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert found == [(0, 8, [2.0, 5.0], [0]), (1, 8, [2.0, 5.0], [1])]


def test_what_another_rank_refuses_is_not_timed(
    timed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "agreed", lambda number: 1)
    with pykernels.emulate(checks=()):
        row = contest.measure(small("dispatch"), 1000.0)
    assert row["baselines"] == {COPY: {"unavailable": "refused by another rank"}}


def test_alone_nobody_has_to_agree() -> None:
    assert harness.agreed(7) == 7
    assert harness._largest([1.0]) == [1.0]
