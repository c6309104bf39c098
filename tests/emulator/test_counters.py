"""Bytes, sectors and bank conflicts: exact figures of small programs and of a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import pykernels
from pykernels.emulator import (
    Counters,
    EmulationError,
    Emulator,
    Launch,
    MemoryTraffic,
    Module,
    Report,
    TensorMap,
)
from pykernels.emulator.arguments import Argument
from pykernels.testing import gemm_operands
from tests.emulator.isa.bulk_copy_program import INIT, MODES, SHARED, WAIT
from tests.emulator.ptx_program import ptx_program, run_ptx

_PAGE = 2 << 20  # bytes that the emulator marks in one page
_NOTHING = (0, 0, 0, 0)


def _words(count: int) -> Tensor:
    """torch aligns to 64 bytes: the first word begins a sector."""
    words = torch.zeros(count, dtype=torch.int32)
    assert words.data_ptr() % 64 == 0
    return words


def _traffic(counters: Counters) -> tuple[int, int, int, int]:
    """Bytes read and written, then the footprints of both."""
    return (
        counters.global_bytes_read,
        counters.global_bytes_written,
        counters.global_footprint_bytes_read,
        counters.global_footprint_bytes_written,
    )


def _run(
    body: str,
    args: Mapping[str, Argument],
    *,
    shared: int = 0,
    threads: int = 1,
    mode: str = "late",
    ctas: int = 1,
) -> Counters:
    report = run_ptx(
        body,
        args,
        module=SHARED,
        grid=(ctas,),
        cluster=(ctas,),
        block=(threads,),
        dynamic_smem_bytes=shared,
        emulator=Emulator(async_completion=mode),
    )
    report.raise_if_findings()
    return report.counters


@dataclass(frozen=True)
class Access:
    """What a warp does to the words of `data`, and the traffic that it makes."""

    body: str
    traffic: tuple[int, int, int, int]


_LANE = "mad.wide.u32 rd1, lane, {scale}, data;"
_ACCESSES = {
    "load": Access(f"{_LANE.format(scale=4)} ld.global.u32 r1, [rd1];", (128, 0, 128, 0)),
    "the same twice": Access(
        f"{_LANE.format(scale=4)} ld.global.u32 r1, [rd1]; ld.global.u32 r2, [rd1];",
        (256, 0, 128, 0),
    ),
    "overlapping": Access(
        f"{_LANE.format(scale=4)} ld.global.u32 r1, [rd1]; ld.global.u32 r2, [rd1+64];",
        (256, 0, 192, 0),
    ),
    "one word into the next sector": Access(
        f"{_LANE.format(scale=4)} ld.global.u32 r1, [rd1+4];", (128, 0, 160, 0)
    ),
    "a byte of each sector": Access(
        f"{_LANE.format(scale=32)} ld.global.u8 r1, [rd1+31];", (32, 0, 1024, 0)
    ),
    "broadcast": Access("ld.global.u32 r1, [data];", (128, 0, 32, 0)),
    "vector": Access(
        f"{_LANE.format(scale=16)} ld.global.v4.u32 {{r1, r2, r3, r4}}, [rd1];", (512, 0, 512, 0)
    ),
    "some lanes": Access(
        f"setp.lt.u32 p0, lane, 9; {_LANE.format(scale=4)} @p0 ld.global.u32 r1, [rd1];",
        (36, 0, 64, 0),
    ),
    "store": Access(f"{_LANE.format(scale=4)} st.global.u32 [rd1], lane;", (0, 128, 0, 128)),
    "load and store": Access(
        f"{_LANE.format(scale=4)} ld.global.u32 r1, [rd1]; st.global.u32 [data+256], r1;",
        (128, 128, 128, 32),
    ),
    "atomic": Access("atom.global.add.u32 r1, [data+32], 1;", (128, 128, 32, 32)),
    "reduction": Access(
        f"{_LANE.format(scale=8)} red.global.add.u32 [rd1], 1;", (128, 128, 256, 256)
    ),
    "generic lanes to both memories": Access(
        """
        mov.u64 rd2, barrier;
        cvta.shared.u64 rd2, rd2;
        setp.lt.u32 p0, lane, 16;
        selp.b64 rd1, data, rd2, p0;
        st.u32 [rd1], 1;""",
        (0, 64, 0, 32),
    ),
    "prefetch": Access("prefetch.global.L2 [data];", _NOTHING),
}


@pytest.mark.parametrize("name", _ACCESSES)
def test_accesses_of_threads(name: str) -> None:
    access = _ACCESSES[name]
    assert _traffic(_run(access.body, {"data": _words(512)}, threads=32)) == access.traffic


def test_generic_lanes_count_where_they_go() -> None:
    body = _ACCESSES["generic lanes to both memories"].body
    counters = _run(body, {"data": _words(512)}, threads=32)
    assert counters.shared_bytes_written == 64


def test_constants_and_parameters_are_no_global_memory() -> None:
    report = run_ptx(
        "ld.const.u32 r1, [table];",
        {"number": 3},
        module=".const .align 4 .b32 table[4] = {1, 2, 3, 4};",
    )
    assert _traffic(report.counters) == _NOTHING


def test_a_misaligned_access_touches_two_sectors() -> None:
    report = run_ptx("ld.global.u32 r1, [data+30];", {"data": _words(64)}, block=(1,))
    assert _traffic(report.counters) == (4, 0, 64, 0)


def test_pages_far_apart() -> None:
    """More pages than are found without a search, each touched twice, one range over a border."""
    data = torch.empty(40 * _PAGE, dtype=torch.uint8)
    border = _PAGE - data.data_ptr() % _PAGE
    counters = _run(
        f"""{INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [data+{border - 64}], 128, [r0];
    {WAIT}
    mov.u32 r2, 0;
AGAIN:
    rem.u32 r3, r2, 39;
    mad.wide.u32 rd1, r3, {_PAGE}, data;
    ld.global.u32 r4, [rd1+{border + 64}];
    add.u32 r2, r2, 1;
    setp.lt.u32 p1, r2, 78;
    @p1 bra AGAIN;""",
        {"data": data},
        shared=128,
    )
    assert _traffic(counters) == (128 + 78 * 4, 0, 128 + 39 * 32, 0)


def test_every_size_of_a_range() -> None:
    """All sectors of a bulk copy, wherever in a word of 64 bits they begin."""
    data = torch.zeros(8192, dtype=torch.uint8)
    for start in (0, 16, 32, 1008, 2016, 2048 - 16):
        for size in (16, 32, 48, 2032, 2048, 4112):
            counters = _run(
                f"""{INIT}
    mov.u32 r2, {size};
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], r2;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [data+{start}], r2, [r0];
    {WAIT}""",
                {"data": data},
                shared=size,
            )
            first = (data.data_ptr() + start) // 32
            last = (data.data_ptr() + start + size - 1) // 32
            assert _traffic(counters) == (size, 0, 32 * (last - first + 1), 0), (start, size)


def test_copies_of_threads_leave_out_what_is_filled() -> None:
    counters = _run(
        f"""
    mov.u32 r1, tile;
    mad.lo.u32 r1, lane, 16, r1;
    {_LANE.format(scale=32)}
    setp.lt.u32 p0, lane, 8;
    selp.b32 r2, 4, 0, p0;
    cp.async.cg.shared.global [r1], [rd1], 16, r2;
    cp.async.wait_all;""",
        {"data": _words(256)},
        shared=512,
        threads=32,
    )
    assert _traffic(counters) == (32, 0, 256, 0)
    assert counters.shared_bytes_written == 512


@pytest.mark.parametrize("operation", ["", "add"])
def test_bulk_stores(operation: str) -> None:
    opcode = "cp.reduce.async.bulk" if operation else "cp.async.bulk"
    counters = _run(
        f"""{INIT}
    st.shared.v4.b32 [r1], {{0, 0, 0, 0}};
    fence.proxy.async.shared::cta;
    {opcode}.global.shared::cta.bulk_group{".add.u32" if operation else ""} [data+16], [r1], 16;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;""",
        {"data": _words(16)},
        shared=16,
    )
    assert _traffic(counters) == ((16, 16, 32, 32) if operation else (0, 16, 0, 32))


# ---- boxes of tensors ----


def _load_box(start: tuple[int, int], size: int) -> str:
    return f"""{INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], {size};
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [map, {{{start[1]}, {start[0]}}}], [r0];
    {WAIT}"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("start", "read", "footprint"),
    [
        ((8, 32), 256, 256),
        ((8, 16), 256, 512),  # each row from the middle of a sector to the middle of the next
        ((14, 48), 6 * 16, 6 * 32),
        ((-3, -20), 5 * 12, 5 * 32),
        ((0, 63), 8, 256),
        ((20, 0), 0, 0),
        ((0, -32), 0, 0),
    ],
)
def test_a_box_counts_its_elements_in_bounds(
    start: tuple[int, int], read: int, footprint: int, mode: str
) -> None:
    tensor = torch.zeros(20, 64, dtype=torch.uint8)
    counters = _run(
        _load_box(start, 256),
        {"map": TensorMap.encode_tiled(tensor, box=(8, 32))},
        shared=256,
        mode=mode,
    )
    assert _traffic(counters) == (read, 0, footprint, 0)
    assert counters.tma_bytes_loaded == counters.shared_bytes_written == 256


def test_rows_of_a_box_in_both_directions() -> None:
    """128 bytes a row are four sectors, and two boxes that overlap in two rows count those once."""
    tensor = torch.zeros(16, 256, dtype=torch.uint8)
    load = """
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        [r1], [map, {{128, {row}}}], [r0];"""
    counters = _run(
        f"""{INIT}
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 2048;
    {load.format(row=0)} add.u32 r1, r1, 1024; {load.format(row=6)}
    {WAIT}""",
        {"map": TensorMap.encode_tiled(tensor, box=(8, 128), swizzle="128B")},
        shared=2048,
    )
    assert _traffic(counters) == (2048, 0, 14 * 128, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_multicast_is_read_once(mode: str) -> None:
    tensor = torch.zeros(8, 128, dtype=torch.uint8)
    counters = _run(
        f"""{INIT}
    .reg .b32 rank;
    .reg .b16 mask;
    mov.u32 rank, %cluster_ctarank;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [r0], 1024;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    mov.u16 mask, 15;
    setp.eq.u32 p3, rank, 1;
    @p3 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
        .multicast::cluster [r1], [map, {{0, 0}}], [r0], mask;
    {WAIT}
    barrier.cluster.arrive;
    barrier.cluster.wait;""",
        {"map": TensorMap.encode_tiled(tensor, box=(8, 128), swizzle="128B")},
        shared=1024,
        mode=mode,
        ctas=4,
    )
    assert _traffic(counters) == (1024, 0, 1024, 0)
    assert counters.tma_bytes_loaded == 1024
    assert counters.shared_bytes_written == 4096


@pytest.mark.parametrize("operation", ["", "add"])
def test_a_stored_box_counts_its_elements_in_bounds(operation: str) -> None:
    """Four of eight rows, the last 24 bytes of each: they begin in the middle of a sector."""
    tensor = torch.zeros(12, 32, dtype=torch.bfloat16)
    opcode = "cp.reduce.async.bulk.tensor" if operation else "cp.async.bulk.tensor"
    suffix = f".{operation}" if operation else ""
    fill = "\n".join(f"st.shared.v4.b32 [r1+{at}], {{0, 0, 0, 0}};" for at in range(0, 256, 16))
    counters = _run(
        f"""{INIT}{fill}
    fence.proxy.async.shared::cta;
    {opcode}.2d.global.shared::cta{suffix}.bulk_group [map, {{20, 8}}], [r1];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;""",
        {"map": TensorMap.encode_tiled(tensor, box=(8, 16))},
        shared=256,
    )
    read = (96, 128) if operation else (0, 0)
    assert _traffic(counters) == (read[0], 96, read[1], 128)
    assert counters.tma_bytes_stored == 256


# ---- launches ----


def test_grids_that_run_together_share_a_footprint() -> None:
    data = _words(32)
    body = _ACCESSES["load"].body
    kernel = Module.from_ptx(ptx_program(body, {"data": data}))["kernel"]
    emulator = Emulator()
    together = emulator.launch_concurrent([Launch(kernel, (1,), (32,), [data])] * 2).counters
    assert _traffic(together) == (256, 0, 128, 0)
    apart = emulator.launch(kernel, (1,), (32,), [data]).counters
    assert _traffic(apart + apart) == (256, 0, 256, 0)


def test_an_error_carries_what_was_touched_before() -> None:
    with pytest.raises(EmulationError) as raised:
        run_ptx(
            f"{_ACCESSES['load'].body} mov.u64 rd2, 0; ld.global.u32 r1, [rd2];",
            {"data": _words(32)},
        )
    assert _traffic(raised.value.report.counters) == (128, 0, 128, 0)


def test_the_gemm_touches_its_operands_and_its_result() -> None:
    m, n, k = 64, 128, 256
    a, b = gemm_operands(m, n, k)
    with pykernels.emulate() as report:
        out = pykernels.fp8_gemm_nt(a, b)
    tensors = [*a, *b, out]
    assert all(t.is_contiguous() and t.data_ptr() % 32 == 0 for t in tensors)
    assert [t.nbytes for t in tensors] == [m * k, m * 2 * 4, n * k, 2 * 4, m * n * 2]
    counters = report.counters
    assert counters.global_footprint_bytes_read == 16384 + 512 + 32768 + 32
    assert counters.global_footprint_bytes_written == 16384
    assert counters.global_bytes_written == 16384
    assert f"global_footprint_bytes_read {16384 + 512 + 32768 + 32}" in str(counters)


# ---- several ranks ----


def _run_ranks(
    body: str,
    args: Mapping[str, Argument],
    ranks: Sequence[int] = (0, 1),
    other_args: Mapping[str, Argument] | None = None,
    **options: Any,
) -> Report:
    """The same program on each of these ranks; on all but the first with other arguments."""
    kernel = Module.from_ptx(ptx_program(body, args, module=SHARED))["kernel"]
    launches = [
        Launch(
            kernel,
            (1,),
            (options.get("threads", 1),),
            list((other_args if i and other_args else args).values()),
            dynamic_smem_bytes=options.get("shared", 0),
            rank=rank,
        )
        for i, rank in enumerate(ranks)
    ]
    emulator = Emulator(async_completion=options.get("mode", "late"), checks={"memory", "sync"})
    return emulator.launch_concurrent(launches)


def _traffic_by_name(report: Report) -> dict[tuple[int, str], MemoryTraffic]:
    """Parameters are named after the arguments."""
    return {
        (rank, name.removesuffix("_param")): traffic
        for (rank, name), traffic in report.traffic.items()
    }


def test_each_rank_has_its_traffic_by_the_name_of_the_memory() -> None:
    """Both launches name the same memory, and one rank has two launches."""
    data, out = _words(64), _words(64)
    body = f"{_LANE.format(scale=4)} ld.global.u32 r1, [rd1]; st.global.u32 [out+32], r1;"
    report = _run_ranks(body, {"data": data, "out": out}, (0, 3, 3), threads=32)
    assert _traffic_by_name(report) == {
        (0, "data"): MemoryTraffic(128, 0, 128, 0),
        (0, "out"): MemoryTraffic(0, 128, 0, 32),
        (3, "data"): MemoryTraffic(256, 0, 128, 0),
        (3, "out"): MemoryTraffic(0, 256, 0, 32),
    }
    for name in ("bytes_read", "bytes_written"):
        total = sum(getattr(traffic, name) for traffic in report.traffic.values())
        assert total == getattr(report.counters, f"global_{name}")


def test_one_rank_has_no_traffic() -> None:
    report = _run_ranks(_ACCESSES["load"].body, {"data": _words(64)}, (1, 1), threads=32)
    assert report.traffic == {}
    assert report.counters.global_bytes_read == 256


def test_lanes_over_several_ranges_and_outside_of_them() -> None:
    """Neighbouring words are of two arguments; the other rank names only the first of these."""
    words = _words(32)
    _, behind = views = words[:20], words[20:]
    report = _run_ranks(
        f"{_LANE.format(scale=4)} ld.global.u32 r1, [rd1];",
        {"data": views[0], "behind": behind},
        other_args={"data": views[0], "behind": None},
        threads=32,
    )
    assert _traffic_by_name(report) == {
        (0, "data"): MemoryTraffic(80, 0, 96, 0),
        (0, "behind"): MemoryTraffic(48, 0, 64, 0),
        (1, "data"): MemoryTraffic(80, 0, 96, 0),
        (1, ""): MemoryTraffic(48, 0, 64, 0),
    }


def test_of_ranges_that_overlap_the_one_that_begins_last_counts() -> None:
    words = _words(32)
    report = _run_ranks(
        "ld.global.u32 r1, [data+36]; ld.global.u32 r1, [data+72];",
        {"data": words, "inner": words[8:16]},
    )
    for rank in (0, 1):
        assert _traffic_by_name(report)[rank, "inner"] == MemoryTraffic(4, 0, 32, 0)
        assert _traffic_by_name(report)[rank, "data"] == MemoryTraffic(4, 0, 32, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["bulk", "box"])
def test_asynchronous_copies_are_their_issuers(name: str, mode: str) -> None:
    """Both write into the same memory, whenever the copies take effect."""
    data = torch.zeros(8, 32, dtype=torch.uint8)
    copy = {
        "bulk": "cp.async.bulk.global.shared::cta.bulk_group [target], [r1], 64;",
        "box": "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [target, {0, 6}], [r1];",
    }[name]
    target: Any = data if name == "bulk" else TensorMap.encode_tiled(data, box=(4, 32))
    fill = "\n".join(f"st.shared.v4.b32 [r1+{at}], {{0, 0, 0, 0}};" for at in range(0, 128, 16))
    report = _run_ranks(
        f"""{INIT}{fill}
    fence.proxy.async.shared::cta;
    {copy}
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;""",
        {"target": target},
        shared=128,
        mode=mode,
    )
    assert list(report.traffic.values()) == [MemoryTraffic(0, 64, 0, 64)] * 2
    assert [rank for rank, _ in report.traffic] == [0, 1]


def test_an_error_carries_the_traffic_before() -> None:
    with pytest.raises(EmulationError) as raised:
        _run_ranks("ld.global.u32 r1, [data]; trap;", {"data": _words(8)})
    assert _traffic_by_name(raised.value.report)[0, "data"].bytes_read == 4


# ---- bank conflicts ----


@pytest.mark.parametrize(
    ("instruction", "stride", "conflicts"),
    [
        ("ld.shared.b32 r1, [r0];", 4, 0),
        ("ld.shared.b32 r1, [r0];", 8, 1),
        ("ld.shared.v2.b32 {r1, r2}, [r0];", 8, 0),
        ("ld.shared.v2.b32 {r1, r2}, [r0];", 16, 2),  # two halves of the warp
        ("st.shared.v2.b32 [r0], {lane, lane};", 16, 2),
        ("ld.shared.b64 rd1, [r0];", 16, 2),
        ("ld.shared.v4.b32 {r1, r2, r3, r4}, [r0];", 16, 0),
        ("ld.shared.v4.b32 {r1, r2, r3, r4}, [r0];", 32, 4),  # four quarters
        ("st.shared.v4.b32 [r0], {lane, lane, lane, lane};", 32, 4),
        ("st.shared.v4.b32 [r0], {lane, lane, lane, lane};", 128, 28),
        ("ld.shared.b128 q0, [r0];", 32, 4),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r1, r2, r3, r4}, [r0];", 16, 0),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r1, r2, r3, r4}, [r0];", 32, 4),
        ("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {r1, r2}, [r0];", 128, 14),
        ("stmatrix.sync.aligned.m8n8.x4.shared.b16 [r0], {lane, lane, lane, lane};", 128, 28),
        ("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [r0], {lane, lane};", 64, 6),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r1, r2, r3, r4}, [r0];", 144, 0),
    ],
)
def test_bank_conflicts(instruction: str, stride: int, conflicts: int) -> None:
    report = run_ptx(
        f"mov.u32 r0, rows; mad.lo.u32 r0, lane, {stride}, r0; {instruction}",
        {},
        module=".shared .align 16 .b8 rows[8192];",
        emulator=Emulator(checks={"memory", "sync"}),
    )
    report.raise_if_findings()
    assert report.counters.shared_bank_conflicts == conflicts
