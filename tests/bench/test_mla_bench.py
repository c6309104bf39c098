"""The bench of MLA decode: kernels run by the emulator, the clock and libraries replaced."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels import cli
from pykernels.bench import answer, contest, counts, harness, published, static_answer
from pykernels.bench.baselines import (
    MlaOperands,
    Prepared,
    Unavailable,
    flash_attention,
    flashinfer_mla,
    flashmla,
    mla_baselines,
    triton_mla_launch,
)
from pykernels.bench.baselines.triton_mla_launch import LARGE, SMALL, Call, Tile
from pykernels.bench.candidates import peak_tflops, roofline
from pykernels.bench.mla_bench import UPDATED, MlaShape, attention, cases, varied
from pykernels.bench.problem import Options
from pykernels.emulator import Emulator, Finding, Module
from tests.bench.test_answer import MEASURED, as_measured
from tests.bench.test_baselines import aligned
from tests.bench.timing import stand_in_times

BF16 = MlaShape((150, 64, 1), num_heads=16)
FP8 = MlaShape((150, 64, 1), num_heads=16, fp8=True)
TWO_TOKENS = MlaShape((70, 1, 0, 130), num_heads=5, seqlen_q=2, page_size=16)
SINGLE_SLOTS = MlaShape((33, 90), num_heads=128, seqlen_q=1, fp8=True, page_size=1)
SHAPES = [BF16, FP8, TWO_TOKENS, SINGLE_SLOTS]
H200 = Options(device="H200")
EVERY = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours take 2 us, all others 3."""
    stand_in_times(monkeypatch, MlaShape)


@EVERY
def test_row(shape: MlaShape, timed: None) -> None:
    """The plan's update is the second figure: outside of ours, inside of the variant."""
    with pykernels.emulate(checks=()):
        row = contest.measure(shape, 1000.0, against=shape.variants(Options()), every_kernel=True)
    assert (row["op"], row["us"], row["bound"]) == ("mla_decode", 2.0, "memory")
    assert row["tflops"] == pytest.approx(shape.flops / 2e6)
    assert row["gbps"] == pytest.approx(shape.num_bytes / 2e3)
    assert row["roofline_share"] == pytest.approx(shape.num_bytes / 1e6 / 2)
    assert row["cache"] == ("fp8" if shape.fp8 else "bf16")
    assert row["lengths"] == list(shape.lengths)
    assert row["kernel"]
    assert row["baselines"][UPDATED]["ratio"] == 1.5
    assert "candidates" not in row
    json.dumps(row, allow_nan=False)


def test_who_takes_part(timed: None) -> None:
    """All baselines have a row, with the reason where they cannot run."""
    row = contest.measure(BF16, 1000.0)
    names = [baseline.name for baseline in mla_baselines()]
    assert list(dict.fromkeys(names)) == names
    assert row["baselines"].keys() == {UPDATED, *names}
    for name in ("FlashMLA", "FlashAttention-3", "FlashInfer"):
        assert row["baselines"][name] == {"unavailable": "not installed"}


def test_what_cannot_be_captured_is_not_timed(timed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a row that says so; the others are timed."""

    def refuse(call: harness.Call) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(harness, "rehearse", refuse)
    row = contest.measure(BF16, 1000.0, against=BF16.variants(Options()))
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert row["baselines"] == {UPDATED: {"unavailable": reason}}
    assert row["us"] == 2.0


def test_compute_bound() -> None:
    """128 heads and several query tokens: by BF16's rate, half of FP8's."""
    shape = MlaShape((4096,) * 128, num_heads=128, seqlen_q=4)
    assert roofline(shape, H200)["bound"] == "compute"
    assert roofline(shape, H200)["roofline_us"] == pytest.approx(shape.flops / 989e6, rel=0.01)
    assert peak_tflops(H200, 2) == pytest.approx(989, rel=0.01)
    assert peak_tflops(H200) == 2 * peak_tflops(H200, 2)


@EVERY
def test_wrong_results_are_found(shape: MlaShape) -> None:
    operands = shape.emulated_operands()
    right = shape.prepare_op(Options(), operands)
    shape.check(operands, right)

    def zero_a_row() -> None:
        right.call()
        operands.out[0, -1, -1] = 0

    def drop_the_last_token() -> None:
        fewer = operands._replace(lengths=(operands.lengths[0] - 1, *operands.lengths[1:]))
        operands.out[0], operands.lse[0] = attention(fewer, 0)

    def change_an_element() -> None:
        right.call()
        operands.out[0, 0, 0, 300] += 0.5

    def change_the_base() -> None:
        right.call()
        operands.lse.div_(math.log(2))

    wrong = (lambda: None, zero_a_row, drop_the_last_token, change_an_element, change_the_base)
    for call in wrong:
        with pytest.raises(AssertionError, match="request 0"):
            shape.check(operands, Prepared(call, operands.out))


@EVERY
def test_what_is_compared_with_agrees_with_a_second_formula(shape: MlaShape) -> None:
    """torch's attention over each query token's own tokens."""
    operands = shape.emulated_operands()
    for request, length in enumerate(shape.lengths):
        out, lse = attention(operands, request)
        for token in range(shape.seqlen_q):
            seen = max(0, length - shape.seqlen_q + 1 + token)
            if seen == 0:
                assert not out[token].any()
                assert (lse[:, token] == -math.inf).all()
                continue
            cached = by_hand(operands, request, seen)
            q = operands.q[request, token].float()
            wanted = torch.nn.functional.scaled_dot_product_attention(
                *(part[None].contiguous() for part in (q, cached, cached[:, :512])),
                scale=operands.softmax_scale,
            )
            torch.testing.assert_close(out[token], wanted[0], rtol=1e-4, atol=1e-5)


def by_hand(operands: MlaOperands, request: int, length: int) -> Tensor:
    """A request's first tokens, one by one."""
    page_size, rows = operands.kv_cache.size(1), []
    for token in range(length):
        page = int(operands.block_table[request, token // page_size])
        stored = operands.kv_cache[page, token % page_size, 0]
        if operands.is_fp8:
            codes = stored[:512].clone().view(torch.float8_e4m3fn).float().view(4, 128)
            scales = stored[512:528].clone().view(torch.float32)
            rope = stored[528:].clone().view(torch.bfloat16).float()
            stored = torch.cat([(codes * scales[:, None]).flatten(), rope])
        rows.append(stored.float())
    return torch.stack(rows)


def test_operands() -> None:
    """No page twice; NaN in every slot that no request has; all others random."""
    for shape in SHAPES:
        operands = shape.emulated_operands()
        counts_of_pages = [-(-length // shape.page_size) for length in shape.lengths]
        own = [row[:n] for row, n in zip(operands.block_table, counts_of_pages, strict=True)]
        pages = torch.cat(own)
        assert len(pages.unique()) == len(pages) == operands.kv_cache.size(0) - 1
        other = operands.kv_cache[~torch.isin(torch.arange(operands.kv_cache.size(0)), pages)]
        assert (other.view(torch.uint8) == 0xFF).all()
        for request, length in enumerate(shape.lengths):
            cached = by_hand(operands, request, length) if length else torch.ones(1)
            assert cached.isfinite().all()
            assert (cached == 0).float().mean() < 0.05
    gpu = BF16._operands(torch.Generator().manual_seed(0))
    assert gpu.kv_cache.isfinite().all()
    assert (gpu.block_table < gpu.kv_cache.size(0)).all()


def test_least_bytes_and_operations() -> None:
    rows = 3 * 16
    assert BF16.bytes_read == 1152 * (215 + rows) + 4 * (3 + 1 + 1 + 3)
    assert FP8.bytes_read == 656 * 215 + 1152 * rows + 4 * (3 + 1 + 1 + 3)
    assert FP8.bytes_written == BF16.bytes_written == (1024 + 4) * rows
    assert BF16.flops == 2 * 16 * 1088 * 215
    seen = (70 + 69) + (1 + 0) + 0 + (130 + 129)
    assert TWO_TOKENS.flops == 2 * 5 * 1088 * seen
    assert MlaShape((4096,) * 128).bytes_read / 4.8e6 == pytest.approx(126, rel=0.01)


def test_varied_lengths() -> None:
    lengths = varied(128, 4096)
    assert lengths == varied(128, 4096) != varied(128, 4096, seed=1)
    assert sum(lengths) == pytest.approx(128 * 4096, rel=1e-4)
    assert min(lengths) < 0.3 * 4096 < 1.7 * 4096 < max(lengths)
    assert list(lengths) != sorted(lengths)
    assert varied(1, 4096) == (4096,)
    assert "128x4096 tokens (1048 to 7144)" in str(MlaShape(lengths))


def test_cases() -> None:
    """All sizes that are asked for, each cache in turn; none larger than a GPU has room for."""
    shapes = list(cases())
    assert len({str(shape) for shape in shapes}) == len(shapes) == 50
    assert {shape.num_heads for shape in shapes} == {16, 64, 128}
    assert {shape.seqlen_q for shape in shapes} == {1, 2, 4}
    assert {shape.batch for shape in shapes} == {1, 16, 128}
    assert {shape.seqlen_kv for shape in shapes if not shape.is_varied} == {1024, 4096, 32768}
    assert {shape.fp8 for shape in shapes} == {False, True}
    assert max(shape.num_bytes for shape in shapes) < 6e9


def test_large_shapes_are_counted_on_smaller_ones() -> None:
    for shape in cases():
        smaller = counts.emulated_problem(shape)
        assert smaller.emulation_work <= 2**34
        assert (smaller.num_heads, smaller.seqlen_q) == (shape.num_heads, shape.seqlen_q)


def test_published() -> None:
    listed = published.mla_figures(MlaShape((1024,) * 128))
    assert [(one.library, one.us) for one in listed[:2]] == [
        ("FlashAttention-3", 71.0),
        ("FlashMLA", 84.0),
    ]
    (rate,) = published.mla_figures(MlaShape((4096,) * 128, num_heads=128, seqlen_q=2))
    assert "660 TFLOPS" in rate.source
    assert rate.us == pytest.approx(2 * 128 * 128 * 1088 * (4096 + 4095) / 660e6)
    assert published.mla_figures(MlaShape((1024,) * 128, fp8=True)) == []


@pytest.mark.parametrize("shape", [BF16, FP8], ids=str)
def test_static_row(shape: MlaShape) -> None:
    row = static_answer.static_row(shape, dataclasses.replace(H200, num_sms=1))
    assert row["bound"] == "memory"
    assert row["roofline_us"] == pytest.approx(shape.num_bytes / 4.8e6, rel=0.01)
    assert row["model"] == []
    assert row["bounding_peer"] is None
    assert row["listing"]["name"] == row["kernel"]
    ratios = row["emulator"]["ratios"]
    assert ratios["global_bytes_written"] == 1  # on one SM no request is split
    assert 1 <= ratios["global_bytes_read"] <= 1.35
    assert 1 <= ratios["global_footprint_bytes_read"] <= 1.05


# Triton's kernels.


@functools.cache
def kernels(tile: Tile, fp8: bool) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = triton_mla_launch.compile_kernel(triton_mla_launch.SPLIT, tile, fp8=fp8)
        return split, triton_mla_launch.compile_kernel(triton_mla_launch.COMBINE)


def emulate(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
    entry_point = Module.from_ptx(kernel.asm["ptx"])[kernel.metadata.name]
    report = Emulator().launch(
        entry_point,
        grid=(*grid, 1)[:3],
        block=(entry_point.required_threads, 1, 1),
        args=[*arguments, None, None],
        dynamic_smem_bytes=kernel.metadata.shared,
    )
    assert [finding for finding in report.findings if not of_replicas(finding)] == []


def of_replicas(finding: Finding) -> bool:
    """Triton lets all threads that hold the same value store it: one instruction, two writers."""
    two_writers = "write of shared memory" in finding.message and "the write by" in finding.message
    first, second = finding.first, finding.second
    if finding.kind != "race" or not two_writers or first is None or second is None:
        return False
    return first.ptx_line == second.ptx_line


@pytest.mark.parametrize(
    ("tile", "shape", "num_sms"),
    [
        (SMALL, MlaShape((600, 0, 1, 300), num_heads=16), 4),  # two splits, some of them empty
        (SMALL, MlaShape((70, 1), num_heads=5, seqlen_q=4, page_size=16), 1),
        (SMALL, MlaShape((130, 65), num_heads=16, fp8=True, page_size=1), 1),
        (LARGE, MlaShape((515, 66), num_heads=33, seqlen_q=2), 8),
        (LARGE, MlaShape((130,), num_heads=64, fp8=True), 1),
    ],
    ids=lambda value: str(value) if isinstance(value, MlaShape) else "",
)
def test_triton_kernels_in_the_emulator(tile: Tile, shape: MlaShape, num_sms: int) -> None:
    operands = shape.emulated_operands()
    names = ("q", "kv_cache", "block_table", "cache_seqlens", "out", "lse")
    operands = operands._replace(**{name: aligned(getattr(operands, name)) for name in names})
    call = triton_mla_launch.call_for(tile, operands, num_sms)
    call = aligned_partials(call)
    split, combine = kernels(tile, shape.fp8)

    def run() -> None:
        emulate(split, call.split_grid, call.split_arguments)
        emulate(combine, call.combine_grid, call.combine_arguments)

    shape.check(operands, Prepared(run, operands.out))
    assert call.split_grid[2] == max(1, min(2, max(shape.lengths) // 256))
    for request, length in enumerate(shape.lengths):
        if length == 0:
            assert not operands.out[request].any()
            assert (operands.lse[request] == -math.inf).all()


def aligned_partials(call: Call) -> Call:
    """What the splits leave starts as NaN, at multiples of 16 bytes as torch's GPU memory does."""
    partials = [aligned(tensor).fill_(math.nan) for tensor in call.combine_arguments[:2]]
    split = (*call.split_arguments[:4], *partials, *call.split_arguments[6:])
    combine = (*partials, *call.combine_arguments[2:])
    return call._replace(split_arguments=split, combine_arguments=combine)


def test_triton_listing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cubin = triton_mla_launch.write_cubin(tmp_path, SMALL, fp8=False)
    row = static_answer.foreign_row(cubin)
    assert row["name"] == "triton_mla_m16n64"
    assert row["local_accesses"] == 0
    assert "issue_share" not in row  # mma.sync has no rate of a warpgroup
    assert row["matrix"].endswith("MMA 16816")


def test_a_tile_that_would_be_empty_is_refused() -> None:
    operands = BF16.emulated_operands()
    *_, large = triton_mla_launch.baselines()
    with pytest.raises(Unavailable, match="16 rows are less than half of a tile"):
        large.prepare(operands)


# Others' libraries: what they are called with, computed by the reference of the bench.


def recomputed(operands: MlaOperands) -> tuple[Tensor, Tensor]:
    """Of all requests, as a library returns it."""
    found = [attention(operands, request) for request in range(len(operands.lengths))]
    return torch.stack([out for out, _ in found]).bfloat16(), torch.stack([lse for _, lse in found])


class FlashMla:
    """As the package's functions; ``plans`` counts how often lengths were planned for."""

    def __init__(self) -> None:
        self.plans = 0

    def get_mla_metadata(self, *arguments: Any) -> tuple[Any, None]:
        self.plans += 1
        return arguments, None

    def flash_mla_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        block_table: Tensor,
        cache_seqlens: Tensor,
        head_dim_v: int,
        tile_scheduler_metadata: Any,
        num_splits: None,
        softmax_scale: float,
        causal: bool = False,
        is_fp8_kvcache: bool = False,
        indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        lengths, rows, num_heads_kv, *_ = tile_scheduler_metadata
        assert (head_dim_v, rows, num_heads_kv) == (512, q.size(1) * q.size(2), 1)
        assert lengths is cache_seqlens
        assert k_cache.size(1) == 64
        cache = k_cache
        host_lengths = tuple(cache_seqlens.tolist())
        if is_fp8_kvcache:
            assert indices is not None
            assert not causal
            cache = k_cache.view(torch.uint8)
            for request, length in enumerate(host_lengths):
                token = torch.arange(length)
                places = block_table[request, token // 64] * 64 + token % 64
                for query in range(q.size(1)):
                    seen = max(0, length - q.size(1) + 1 + query)
                    assert torch.equal(indices[request, query, :seen], places[:seen])
                    assert (indices[request, query, seen:] == -1).all()
        lse = torch.empty(0)
        operands = MlaOperands(
            q, cache, block_table, cache_seqlens, lse, lse, host_lengths, softmax_scale
        )
        return recomputed(operands)


@pytest.mark.parametrize(
    "shape",
    [MlaShape((150, 0, 64, 1), num_heads=16, seqlen_q=2, fp8=fp8) for fp8 in (False, True)],
    ids=str,
)
def test_flash_mla(shape: MlaShape, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FlashMla()
    monkeypatch.setitem(sys.modules, "flash_mla", library)
    operands = shape.emulated_operands()
    dense, planned, sparse = flashmla.baselines()
    if shape.fp8:
        shape.check(operands, sparse.prepare(operands))
        for other in (dense, planned):
            with pytest.raises(Unavailable, match="no dense kernel for FP8"):
                other.prepare(operands)
        return
    shape.check(operands, dense.prepare(operands))
    assert library.plans == 1
    prepared = planned.prepare(operands)
    before = library.plans
    shape.check(operands, prepared)
    assert library.plans == before + 1
    with pytest.raises(Unavailable, match="FP8 only"):
        sparse.prepare(operands)
    other_pages = MlaShape((5,), page_size=16).emulated_operands()
    with pytest.raises(Unavailable, match="pages of 64 tokens only, not of 16"):
        dense.prepare(other_pages)


def joined(latent: Tensor, rope: Tensor) -> Tensor:
    return torch.cat([latent, rope], dim=-1)


def test_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = TWO_TOKENS
    operands = shape.emulated_operands()

    def get_scheduler_metadata(
        batch: int, seqlen_q: int, seqlen_kv: int, heads: int, heads_kv: int, head_dim: int,
        lengths: Tensor, dtype: torch.dtype, *, headdim_v: int, page_size: int, causal: bool,
    ) -> str:  # fmt: skip
        assert (batch, seqlen_q, seqlen_kv, heads, heads_kv) == (4, 2, 130, 5, 1)
        assert (head_dim, headdim_v, page_size, causal) == (64, 512, 16, True)
        assert dtype == torch.bfloat16
        return "plan"

    def flash_attn_with_kvcache(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, *, qv: Tensor, cache_seqlens: Tensor,
        page_table: Tensor, softmax_scale: float, causal: bool, scheduler_metadata: str,
        return_softmax_lse: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        assert causal
        assert return_softmax_lse
        assert scheduler_metadata == "plan"
        called = operands._replace(
            q=joined(qv, q),
            kv_cache=joined(v_cache, k_cache),
            block_table=page_table,
            lengths=tuple(cache_seqlens.tolist()),
            softmax_scale=softmax_scale,
        )
        return *recomputed(called), torch.empty(0), torch.empty(0)

    module = types.SimpleNamespace(
        get_scheduler_metadata=get_scheduler_metadata,
        flash_attn_with_kvcache=flash_attn_with_kvcache,
    )
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    shape.check(operands, flash_attention.baseline().prepare(operands))
    with pytest.raises(Unavailable, match="BF16 only"):
        flash_attention.baseline().prepare(FP8.emulated_operands())


@pytest.mark.parametrize("shape", [BF16, TWO_TOKENS], ids=str)
def test_flash_infer(shape: MlaShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows follow each other, its pages stand in one list, and its logarithms are base 2."""
    operands = shape.emulated_operands()

    class BatchMLAPagedAttentionWrapper:
        def __init__(self, workspace: Tensor) -> None:
            assert workspace.numel() == 128 * 2**20

        def plan(self, *arguments: Any) -> None:
            self.planned = arguments

        def run(
            self, q_nope: Tensor, q_pe: Tensor, ckv_cache: Tensor, kpe_cache: Tensor,
            out: Tensor, lse: Tensor, return_lse: bool,
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            first_row, first_page, pages, lengths, *rest = self.planned
            assert rest == [
                *(shape.num_heads, 512, 64, shape.page_size, True, operands.softmax_scale),
                *(torch.bfloat16, torch.bfloat16),
            ]
            assert return_lse
            for request, length in enumerate(lengths.tolist()):
                rows = slice(int(first_row[request]), int(first_row[request + 1]))
                table = pages[first_page[request] : first_page[request + 1]]
                called = operands._replace(
                    q=joined(q_nope, q_pe)[rows][None],
                    kv_cache=joined(ckv_cache, kpe_cache)[:, :, None],
                    block_table=table[None],
                    lengths=(length,),
                )
                out[rows], of_heads = attention(called, 0)
                lse[rows] = of_heads.t() / math.log(2)
            return out, lse

    module = types.SimpleNamespace(BatchMLAPagedAttentionWrapper=BatchMLAPagedAttentionWrapper)
    monkeypatch.setitem(sys.modules, "flashinfer", types.SimpleNamespace(mla=module))
    monkeypatch.setitem(sys.modules, "flashinfer.mla", module)
    shape.check(operands, flashinfer_mla.baseline().prepare(operands))
    with pytest.raises(Unavailable, match="BF16 only"):
        flashinfer_mla.baseline().prepare(FP8.emulated_operands())


def test_a_library_that_refuses_a_shape_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        raise RuntimeError("no such head count")

    library = FlashMla()
    monkeypatch.setattr(library, "flash_mla_with_kvcache", refuse)
    monkeypatch.setitem(sys.modules, "flash_mla", library)
    with pytest.raises(Unavailable, match="RuntimeError: no such head count"):
        flashmla.baselines()[0].prepare(BF16.emulated_operands())


def test_what_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("flash_mla", "flash_attn_interface", "flashinfer", "flashinfer.mla"):
        monkeypatch.setitem(sys.modules, package, None)
    operands = BF16.emulated_operands()
    for baseline in (
        flashmla.baselines()[0],
        flash_attention.baseline(),
        flashinfer_mla.baseline(),
    ):
        with pytest.raises(Unavailable, match="not installed"):
            baseline.prepare(operands)


# The command.


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(static_answer, "compiled_baselines", lambda kind: [])


def run(*arguments: str) -> int:
    return cli.main(["bench", "mla", *arguments])


def test_everything_is_labelled(
    no_gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "rows.json"
    sizes = ["--batch=2", "--seqlen-kv=96", "--heads=16", "--seqlen-q=1", "--page-size=16"]
    assert run(*sizes, "--cache=bf16,fp8", "--varied", "--json", str(written)) == 0
    printed = " ".join(capsys.readouterr().out.split())  # a table's title may take two lines
    for text in (
        "mla_decode 2x96 tokens (60 to 132), 16 heads, seqlen_q 1, BF16 in pages of 16",
        "FP8 in pages of 16",
        "no Hopper GPU here, nothing below is measured",
        ": no times",
        "Published: other machines, measured otherwise",
    ):
        assert text in printed
    assert "not a measurement" not in printed
    rows = json.loads(written.read_text())["rows"]
    assert [row["cache"] for row in rows] == ["bf16", "fp8"]
    assert {row["batch"] for row in rows} == {2}


def test_measured_rows_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One table a call, and one line of each in a last table."""
    as_measured(monkeypatch)
    measured = {name: value for name, value in MEASURED.items() if name not in ("m", "n", "k")}
    monkeypatch.setattr(contest, "measure", lambda problem, *_, **__: measured | problem.row())
    assert run("--batch=2", "--seqlen-kv=96", "--heads=16,64") == 0
    printed = capsys.readouterr().out
    for text in (
        "mla_decode 2x96 tokens, 64 heads, seqlen_q 1, BF16 in pages of 64",
        "50% of the memory bound",
        "not installed",
        "Over shapes, measured",
    ):
        assert text in printed


def problems_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """What a command line would run."""
    found: list[str] = []

    def note(problem: Any, options: Options) -> dict[str, Any]:
        found.append(str(problem))
        return {}

    monkeypatch.setattr(answer, "_static_row", note)
    monkeypatch.setattr("pykernels.bench.tables.print_static", lambda *_: None)
    monkeypatch.setattr("pykernels.bench.tables.print_sweep", lambda *_: None)
    assert run(*arguments) == 0
    return found


def test_lists(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every combination, sizes that are not given as in the first case; without any all cases."""
    assert problems_of(monkeypatch) == [str(shape) for shape in cases()]
    assert problems_of(monkeypatch, "--heads", "16,64", "--seqlen-q", "1,2") == [
        f"128x4096 tokens, {heads} heads, seqlen_q {seqlen_q}, BF16 in pages of 64"
        for heads in (16, 64)
        for seqlen_q in (1, 2)
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch=0", "--batch: batch must be at least 1, got 0"),
        ("--heads=16,", "--heads: must be a size or a list like 1,16,64, got '16,'"),
        ("--heads=129", "--heads: num_heads must be at most 128, got 129"),
        ("--page-size=48", "--page-size: page_size must be a power of two from 1 to 256, got 48"),
        ("--cache=fp4", "--cache: must be of bf16, fp8, got 'fp4'"),
        ("--plot=x.png", "unrecognized arguments: --plot=x.png"),
    ],
)
def test_wrong_sizes(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(option)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
